"""Images as arrays: what readers hand over, decoded once, kept in a checksummed cache."""

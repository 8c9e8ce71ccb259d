"""What a table is made of: its cells, their settings, the figures of the paper."""

"""Ways of summing over all pairs, one a file; `plan` chooses."""

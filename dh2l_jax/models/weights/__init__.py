"""Weights of others: read into our variables, and ours written for them."""

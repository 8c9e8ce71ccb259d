"""Regularisers of a model: which of its parameters are vectors, and what looks at them."""

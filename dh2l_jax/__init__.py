"""Deep Hierarchical-Hyperspherical Learning in JAX."""

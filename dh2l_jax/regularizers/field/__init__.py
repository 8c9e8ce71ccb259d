"""Penalties of the field beside the paper's energies."""

"""Weights of others: read into our variables, and ours written for them."""

from dh2l_jax.models.weights.export import export_safetensors, has_torch_names
from dh2l_jax.models.weights.formats import read_weights
from dh2l_jax.models.weights.stablehlo import export_stablehlo
from dh2l_jax.models.weights.start import read_metadata, start_from
from dh2l_jax.models.weights.torchvision import load_pretrained, read_pretrained

__all__ = [
    "export_safetensors",
    "export_stablehlo",
    "has_torch_names",
    "load_pretrained",
    "read_metadata",
    "read_pretrained",
    "read_weights",
    "start_from",
]

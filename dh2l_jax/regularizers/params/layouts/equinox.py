"""Layouts of Equinox modules by their types: outputs come first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax

from dh2l_jax.regularizers.params.axes import leading
from dh2l_jax.regularizers.params.layouts.names import Known
from dh2l_jax.regularizers.params.layouts.spelled import convolution
from dh2l_jax.regularizers.params.leaves import path_text

__all__ = ["read"]

LAYERS = ("Linear", "Conv", "ConvTranspose", "Embedding", "GRUCell", "LSTMCell")
NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm")


def read(tree: Any) -> dict[str, Known]:
    """Path → what is known of it, of the layers of Equinox anywhere in a tree."""
    nn: Any = sys.modules.get("equinox.nn")
    if nn is None:
        return {}
    norms = tuple(getattr(nn, name) for name in NORMS)
    types = (*(getattr(nn, name) for name in LAYERS), *norms)
    found = {}
    for path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, types)
    ):
        if not isinstance(node, types):
            continue
        kind = next(t.__name__ for t in type(node).__mro__ if t in types)
        for name, text in _weights(kind, node):
            rank = len(text.split(" -> ")[0].replace("(g o)", "o").split())
            extra = getattr(getattr(node, name), "ndim", 0) - rank
            known = Known(leading(text, extra) if extra >= 0 else None, f"eqx.nn.{kind}")
            found[path_text((*path, jax.tree_util.GetAttrKey(name)))] = known
        if kind in NORMS:
            for sub, _ in jax.tree_util.tree_leaves_with_path(node):
                found[path_text((*path, *sub))] = Known(None, "", f"of an eqx.nn.{kind}")
    return found


def _weights(kind: str, layer: Any) -> Iterator[tuple[str, str]]:
    """(name, axes) of a layer's weights, without axes that `filter_vmap` adds."""
    match kind:
        case "Linear":
            yield "weight", "o i -> o i"
        case "Conv" | "ConvTranspose":
            yield "weight", convolution(layer.num_spatial_dims, "o i k", layer.groups)
        case "Embedding":
            yield "weight", "v d -> v d"
        case "GRUCell" | "LSTMCell":
            yield "weight_ih", "o i -> o i"
            yield "weight_hh", "o i -> o i"

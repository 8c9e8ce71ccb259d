"""How every leaf of a model or a tree of parameters is read, whoever knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from dh2l_jax.regularizers.params.layouts import equinox, flax_linen, flax_nnx
from dh2l_jax.regularizers.params.layouts.names import Known, by_name, no_vectors
from dh2l_jax.regularizers.params.leaves import parameters

__all__ = ["Leaf", "known_leaves"]


class Leaf(NamedTuple):
    """An array, or None in a place that shares one, and what is known of it."""

    array: Any
    known: Known


def known_leaves(tree: Any, module: Any = None, inputs: Any = ()) -> dict[str, Leaf]:
    """Path → leaf, of all arrays of a tree.

    Args:
      tree: parameters, or a module of NNX or Equinox, or any tree of those of Equinox.
      module: whose parameters the tree holds, if it is none itself.
      inputs: of a module of Linen.

    Raises:
      ValueError: there are no parameters, those of another module, or an optimiser's state.
    """
    if flax_linen.is_module(tree):
        name = type(tree).__name__
        raise ValueError(
            f"a module of Linen holds no parameters: plan(params, module={name}(...), inputs=(x,))"
        )
    leaves = parameters(tree)
    if not leaves:
        raise ValueError(f"expected a tree of parameters, found no array in {type(tree).__name__}")
    known = _from_types(tree if module is None else module, leaves, inputs)
    found = {path: Leaf(x, _known(path, x, known.get(path))) for path, x in leaves.items()}
    elsewhere = {path: Leaf(None, k) for path, k in known.items() if k.left_out}
    return found | {path: leaf for path, leaf in elsewhere.items() if path not in found}


def _from_types(model: Any, leaves: dict[str, jax.Array], inputs: Any) -> dict[str, Known]:
    if flax_linen.is_module(model):
        return flax_linen.read(model, inputs, leaves)
    return flax_nnx.read(model) if flax_nnx.is_module(model) else equinox.read(model)


def _known(path: str, leaf: jax.Array, by_type: Known | None) -> Known:
    if why := no_vectors(path, leaf):
        return Known(None, "", why)
    return by_type or Known(by_name(path, leaf.shape), "its name")

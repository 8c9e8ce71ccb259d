"""The leaves of any tree of parameters by their paths, seen through the boxes of frameworks."""

from __future__ import annotations

import sys
from typing import Any

import jax

__all__ = ["named", "parameters", "path_text"]


def path_text(path: Any) -> str:
    """A path of jax.tree_util as "block/dense/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf in the order of the tree; a box is no part of the path.

    >>> named({"dense": {"kernel": 1, "bias": 2}})
    [('dense/bias', 2), ('dense/kernel', 1)]
    """
    boxes = _boxes()
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, boxes))
    return [(path_text(path), leaf) for path, node in nodes for leaf in jax.tree.leaves(node)]


def parameters(tree: Any) -> dict[str, jax.Array]:
    """Path → array, without functions and names; what two modules of NNX share is one leaf.

    Raises:
      ValueError: a state of optax, a train state or something else with an `opt_state` is given or
        in the tree: Adam's moments have the shapes of the parameters, and are none.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(tree, nnx.Module):
        tree = nnx.state(tree)
    _refuse_optimizer_states(tree)
    return {path: leaf for path, leaf in named(tree) if hasattr(leaf, "shape")}


def _refuse_optimizer_states(tree: Any) -> None:
    def refuse(path: Any, node: Any) -> bool:
        held = node.keys() if hasattr(node, "keys") else ()
        state = type(node).__module__.startswith("optax.") and type(node).__name__ != "MaskedNode"
        if state or hasattr(node, "opt_state") or "opt_state" in held or {"count", "mu"} <= {*held}:
            where = f"at {path_text(path)!r}" if path else "given"
            raise ValueError(
                f"expected parameters, found the optimiser state {type(node).__name__} {where}: "
                "give the parameters alone, such as state.params"
            )
        return False

    jax.tree_util.tree_leaves_with_path(tree, is_leaf=refuse, is_leaf_takes_path=True)


def _boxes() -> tuple[type, ...]:
    """What wraps one array, of the frameworks that are loaded."""
    meta, nnx = (sys.modules.get(f"flax.{name}") for name in ("core.meta", "nnx"))
    return (*([meta.AxisMetadata] if meta else ()), *([nnx.Variable] if nnx else ()))

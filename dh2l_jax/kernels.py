"""A params tree → named (fan_out, fan_in) matrices, chosen by rules on the path."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dh2l_jax.checks import unknown_name

__all__ = ["kernel_matrices"]

Patterns = str | Sequence[str]


def kernel_matrices(
    params: object, include: Patterns = r"(^|/)kernel$", exclude: Patterns = ()
) -> dict[str, jax.Array]:
    """The weight vectors of every layer: path → (fan_out, fan_in), in the order of the tree.

    A convolution kernel (kh, kw, cin, cout) gives cout vectors of kh·kw·cin, a dense kernel
    (in, out) gives out vectors of in. Leaves with fewer than two axes (biases, BatchNorm) never
    take part.

    Args:
      params: any pytree of arrays.
      include: regular expressions, searched for in the path ("block_1_1/conv_1/kernel").
      exclude: regular expressions of paths to leave out.

    Raises:
      ValueError: a pattern matches no leaf (the nearest path is named).

    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}}
    >>> {path: matrix.shape for path, matrix in kernel_matrices(params).items()}
    {'conv/kernel': (16, 72)}

    Reference: DH²L, §3.1 (E of a layer).
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jnp.ndim(leaf) >= 2
    }
    chosen = _matching(leaves, include) - _matching(leaves, exclude)
    return {path: _vectors(leaf) for path, leaf in leaves.items() if path in chosen}


def _matching(paths: dict[str, jax.Array], patterns: Patterns) -> set[str]:
    found = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        hits = {path for path in paths if re.search(pattern, path)}
        if not hits:
            raise ValueError(unknown_name("path pattern", pattern, paths))
        found |= hits
    return found


def _vectors(kernel: jax.Array) -> jax.Array:
    return jnp.reshape(kernel, (-1, kernel.shape[-1])).T

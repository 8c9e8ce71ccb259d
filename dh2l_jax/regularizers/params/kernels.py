"""A params tree → named (fan_out, fan_in) matrices by rules on the path, and their energy."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dh2l_jax.checks import as_float, unknown_name
from dh2l_jax.metrics import MetricLike
from dh2l_jax.metrics.pairs import stacked_energy

__all__ = ["kernel_matrices", "weight_energy"]

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


def weight_energy(
    params: object,
    metric: MetricLike,
    *,
    include: Patterns = r"(^|/)kernel$",
    exclude: Patterns = (),
    method: str = "auto",
    half_space: bool = False,
) -> jax.Array:
    """R_E: sum over layers of the mean energy of the layer's weight vectors.

        Σ_layers 2/(n(n−1)) Σ_{i<j} e(w_i, w_j)

    Kernels of one shape are stacked and summed in one call.

    Args:
      params: any pytree; see `kernel_matrices` for what counts as a layer.
      metric: a name, a `Metric` or a profile f(c, h).
      include: regular expressions of the paths to use.
      exclude: regular expressions of the paths to leave out.
      method: as in `mean_energy`.
      half_space: as in `mean_energy`.

    Raises:
      ValueError: a pattern matches nothing, unknown metric or method.

    >>> params = {"a": {"kernel": jnp.eye(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    >>> round(float(weight_energy(params, "cosine")), 4)
    1.0

    Reference: DH²L, §3.1 (E).
    """
    layers = defaultdict(list)
    for matrix in kernel_matrices(params, include, exclude).values():
        layers[matrix.shape].append(as_float(matrix))
    stacks = [jnp.stack(matrices) for matrices in layers.values()]
    return stacked_energy(stacks, metric, method=method, half_space=half_space)

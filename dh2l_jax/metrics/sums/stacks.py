"""Sums over the pairs of many small matrices, such as the layers of a network, in one program."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.metrics.blocks import (
    energy_and_slopes,
    features,
    grams,
    off_diagonal,
    pull_symmetric,
    pull_to_rows,
    scale_gradient,
)
from dh2l_jax.metrics.profile import Metric
from dh2l_jax.numerics import inverse_norm

__all__ = ["stacked_sum"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def stacked_sum(metric: Metric, scales: tuple[float, ...], stacks: list[jax.Array]) -> jax.Array:
    """Σ_k scale_k Σ_{i<j} e(w_i, w_j) over the matrices of every stack k.

    The profile is traced and compiled once, for the pairs of all stacks in a row: its many
    elementwise operations would else be compiled anew for each shape of layers.

    Args:
      metric: of the pairs.
      scales: one a stack.
      stacks: (matrices, n, d) each.

    >>> import dh2l_jax as dh2l
    >>> stacks = [jnp.ones((2, 3, 4)), jnp.ones((1, 2, 5))]
    >>> round(float(stacked_sum(dh2l.get_metric("cosine"), (1.0, 10.0), stacks)), 4)
    16.0
    """
    return _stacked_fwd(metric, scales, stacks)[0]


def _stacked_fwd(metric: Metric, scales: tuple[float, ...], stacks: list[jax.Array]):
    norms = [inverse_norm(W) for W in stacks]
    parts = [_of_each(features, metric, W, r) for W, r in zip(stacks, norms, strict=True)]
    similarities = [_of_each(grams, metric, part, part) for part in parts]
    shapes = [c.shape for c, _ in similarities]
    weights = [
        jnp.broadcast_to(scale * off_diagonal(shape[-1]), shape)
        for scale, shape in zip(scales, shapes, strict=True)
    ]
    c, h = (_in_a_row(X) for X in zip(*similarities, strict=True))
    # Every pair twice: half of the value, and slopes that are those of both its vectors.
    value, dc, dh = energy_and_slopes(metric, c, h, _in_a_row(weights))
    slopes = zip(_taken_apart(dc, shapes), _taken_apart(dh, shapes), strict=True)
    cotangents = [
        _of_each(pull_symmetric, metric, *pair, part)
        for pair, part in zip(slopes, parts, strict=True)
    ]
    return value / 2, [pull_to_rows(*x) for x in zip(stacks, norms, cotangents, strict=True)]


def _of_each(fn: Callable[..., Any], metric: Metric, *stacks: Any) -> Any:
    return jax.vmap(functools.partial(fn, metric))(*stacks)


def _in_a_row(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([X.reshape(-1) for X in arrays])


def _taken_apart(row: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The arrays of `_in_a_row`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [X.reshape(shape) for X, shape in zip(jnp.split(row, ends), shapes, strict=True)]


stacked_sum.defvjp(_stacked_fwd, lambda *args: scale_gradient(*args)[:1])

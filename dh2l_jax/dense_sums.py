"""Sums over all pairs through n×n similarities, value and gradient in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics import Metric
from dh2l_jax.numerics import inverse_norm
from dh2l_jax.pair_blocks import (
    Features,
    energy_and_slopes,
    features,
    grams,
    off_diagonal,
    pull_symmetric,
    pull_to_rows,
    scale_gradient,
    total_energy,
)

__all__ = ["dense_sum", "stacked_sum"]

PANEL = 512  # rows whose similarities with later rows are one product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_sum(metric: Metric, W: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_{i<j} weights[i, j] e(w_i, w_j).

    Args:
      metric: of the pairs.
      W: (n, d).
      weights: (n, n), symmetric, 0 on the diagonal.

    >>> import dh2l_jax as dh2l
    >>> dense_sum(dh2l.get_metric("cosine"), jnp.ones((3, 2)), 1 - jnp.eye(3)).round(4)
    Array(3., dtype=float32)
    """
    parts = features(metric, W, inverse_norm(W))
    panels = _panels(metric, parts, weights)
    return jnp.sum(jnp.stack([total_energy(metric, *panel) for panel in panels]))


def _dense_fwd(metric: Metric, W: jax.Array, weights: jax.Array):
    r = inverse_norm(W)
    parts = features(metric, W, r)
    total, slopes = jnp.zeros((), W.dtype), []
    for panel in _panels(metric, parts, weights):
        value, *panel_slopes = energy_and_slopes(metric, *panel)
        total += value
        slopes.append(panel_slopes)
    dc, dh = (_symmetric(panels) for panels in zip(*slopes, strict=True))
    return total, pull_to_rows(W, r, pull_symmetric(metric, dc, dh, parts))


class _Panel(NamedTuple):
    """Similarities and weights of some rows with themselves and all later ones, (rows, later).

    Pairs i ≥ j have weight 0; where one panel holds all pairs, i < j and i > j have half of it.
    """

    c: jax.Array
    h: jax.Array
    weights: jax.Array


def _panels(metric: Metric, parts: Features, weights: jax.Array) -> Iterator[_Panel]:
    n = weights.shape[0]
    if n <= PANEL:
        yield _Panel(*grams(metric, parts, parts), weights * 0.5)
        return
    for start in range(0, n, PANEL):
        rows = Features(*(X[start : start + PANEL] for X in parts))
        later = Features(*(X[start:] for X in parts))
        upper = jnp.triu(weights[start : start + PANEL, start:], k=1)
        yield _Panel(*grams(metric, rows, later), upper)


def _symmetric(panels: Sequence[jax.Array]) -> jax.Array:
    """T + Tᵀ, given the panels of an upper triangular T or a symmetric T as one panel."""
    if len(panels) == 1:
        return 2 * panels[0]
    n = panels[0].shape[1]
    upper = jnp.zeros((n, n), panels[0].dtype)
    for panel in panels:
        start = n - panel.shape[1]
        upper = lax.dynamic_update_slice(upper, panel, (start, start))
    return upper + upper.T


dense_sum.defvjp(_dense_fwd, scale_gradient)


# Many small matrices, such as the layers of a network.


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

"""Sums over all pairs through n×n similarities, value and gradient in one pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dh2l_jax.metrics.blocks import (
    Features,
    energy_and_slopes,
    features,
    grams,
    pull_symmetric,
    pull_to_rows,
    scale_gradient,
    total_energy,
)
from dh2l_jax.metrics.profile import Metric
from dh2l_jax.numerics import inverse_norm

__all__ = [
    "dense_sum",
]

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

"""Centres of features where they lie: distances of raw vectors, which know lengths too.

Idea. ‖w − v‖² = ‖w‖² + ‖v‖² − 2 w·v is a product, but of near vectors it has no digits left: a
block of rows that has one near another takes the differences one by one.
Figure. 512 × 4,608: 0.12 of the time that PyTorch takes, where differences alone take 7 times.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics import mean_energy
from dh2l_jax.metrics.blocks import (
    Cotangent,
    even_block,
    over_blocks,
    pair_count,
    product,
    write_rows,
)
from dh2l_jax.metrics.pairs import with_gradient
from dh2l_jax.numerics import safe_norm, safe_sqrt

__all__ = ["uniformface"]

BLOCK = 512  # rows whose distances are looked at together
NEAR = 1 / 16  # of ‖w‖² + ‖v‖²: below, the differences are taken


def uniformface(W: ArrayLike, where: ArrayLike | None = None, *, unit: bool = False) -> jax.Array:
    """Mean over pairs of 1/(‖w_i − w_j‖ + 1), of raw vectors; 0 where there is no pair.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, the rows that take part.
      unit: of unit vectors instead, the metric `uniformface`.

    Raises:
      ValueError: W is not a matrix, `where` has another length.
      TypeError: `where` is not boolean.

    >>> round(uniformface(jnp.array([[3.0, 0.0], [0.0, 4.0]])).item(), 4)  # 1/(5 + 1)
    0.1667

    Reference: Duan et al., UniformFace, CVPR 2019.
    """
    if unit:
        return mean_energy(W, "uniformface", where=where)
    W, where = rows(W, where)
    total = with_gradient(_total, None, W, where)
    return total / jnp.maximum(pair_count(where, W.dtype), 1)


def _total(_: None, W: jax.Array, where: jax.Array) -> Cotangent:
    """Σ_{i<j} 1/(‖w_i − w_j‖ + 1), and its gradient."""
    squares = jnp.sum(W * W, axis=1)

    def step(carry: Cotangent, start: jax.Array | int, own: jax.Array) -> Cotangent:
        i = start + jnp.arange(own.shape[0])
        pairs = (
            (own & where[i])[:, None] & where[None, :] & (i[:, None] != jnp.arange(len(W))[None, :])
        )
        sums = squares[i][:, None] + squares[None, :]
        gaps = sums - 2 * product(W[i], W.T)
        near = jnp.any(pairs & ~(gaps >= NEAR * sums))  # NaN counts as near
        value, slopes = lax.cond(near, _by_differences, _by_products, W, i, pairs, gaps)
        return carry[0] + value / 2, write_rows(carry[1], start, own, slopes)

    zeros = jnp.zeros((), W.dtype), jnp.zeros_like(W)
    return over_blocks(step, zeros, len(W), even_block(len(W), BLOCK)) if len(W) else zeros


def _by_products(W: jax.Array, i: jax.Array, pairs: jax.Array, gaps: jax.Array) -> Cotangent:
    """Σ_j 1/(‖w_i − w_j‖ + 1) of the rows i, and its gradient, given the squares of distances."""
    e, slopes = _energies(safe_sqrt(jnp.where(pairs, gaps, 0)), pairs)
    return jnp.sum(e), jnp.sum(slopes, axis=1, keepdims=True) * W[i] - product(slopes, W)


def _by_differences(W: jax.Array, i: jax.Array, pairs: jax.Array, gaps: jax.Array) -> Cotangent:
    del gaps

    def with_others(row: tuple[jax.Array, jax.Array]) -> Cotangent:
        i, pairs = row
        differences = W[i][None] - W
        e, slopes = _energies(safe_norm(differences), pairs)
        return jnp.sum(e), product(slopes, differences)

    values, slopes = lax.map(with_others, (i, pairs))
    return jnp.sum(values), slopes


def _energies(distances: jax.Array, pairs: jax.Array) -> Cotangent:
    """1/(z + 1), and its slope over z, 0 at 0; both 0 for what is no pair."""
    e = jnp.where(pairs, 1 / (distances + 1), 0)
    apart = distances > 0
    return e, jnp.where(apart, -e * e / jnp.where(apart, distances, 1), 0)

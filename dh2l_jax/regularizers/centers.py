"""Centres of features where they lie: distances of raw vectors, which know lengths too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics import mean_energy
from dh2l_jax.metrics.blocks import pair_count
from dh2l_jax.numerics import safe_norm

__all__ = ["uniformface"]

ENTRIES = 2**20  # of the differences that are looked at together


def uniformface(W: ArrayLike, where: ArrayLike | None = None, *, unit: bool = False) -> jax.Array:
    """Mean over pairs of 1/(‖w_i − w_j‖ + 1), of raw vectors; 0 where there is no pair.

    Differences are taken one by one, as products would lose those of near vectors; the derivative
    takes them anew, so that memory is that of a block.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, the rows that take part.
      unit: of unit vectors instead, the metric `uniformface`.

    Raises:
      ValueError: W is not a matrix, `where` has another length.
      TypeError: `where` is not boolean.

    >>> uniformface(jnp.array([[3.0, 0.0], [0.0, 4.0]])).item() == 1 / 6
    True

    Reference: Duan et al., UniformFace, CVPR 2019.
    """
    if unit:
        return mean_energy(W, "uniformface", where=where)
    W, where = rows(W, where)
    n, d = W.shape

    @jax.checkpoint
    def with_others(i: jax.Array) -> jax.Array:
        pairs = where & where[i] & (jnp.arange(n) != i)
        return jnp.sum(jnp.where(pairs, 1 / (safe_norm(W - W[i][None]) + 1), 0))

    block = max(1, ENTRIES // max(n * d, 1))
    total = jnp.sum(lax.map(with_others, jnp.arange(n), batch_size=block)) / 2
    return (total / jnp.maximum(pair_count(where, W.dtype), 1)).astype(W.dtype)

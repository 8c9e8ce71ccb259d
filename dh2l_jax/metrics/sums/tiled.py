"""Sums over all pairs, the upper triangle of tiles one at a time, in the memory of a few tiles.

Idea. Two blocks of rows make a tile; its similarities, slopes and both sides' cotangents are formed
and added before the next tile begins. Tiles below the diagonal are never looked at, and a block
with itself takes one product for its gradient, being symmetric.
Memory. The cotangent of all unit vectors is one n×d, and the pull to the rows is written over it, a
block at a time, with the cotangent of the affine part added on the way: a gradient of its own for
either would be another n×d. XLA unrolls nothing here: tiles are a `lax.scan` over their numbers.
Figure. On CPU 100,000 × 512 needs 16 MB beside W and its gradient. Tiles of 640 rows keep their six
n×n intermediates, 1.6 MB each, in the cache of two cores; below 1,024 rows their bookkeeping costs
more than the lower triangle does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics.blocks import (
    Cotangent,
    Features,
    Rows,
    Start,
    add_rows,
    all_pairs,
    block_of,
    energy_and_slopes,
    features,
    grams,
    in_tiles,
    over_blocks,
    pair_count,
    pull_symmetric,
    pull_to_rows,
    pull_to_unit,
    row_codes,
    unit_slopes,
    write_rows,
)
from dh2l_jax.metrics.profile import Affine, Metric
from dh2l_jax.metrics.sums.closed import linear

__all__ = ["Tiled", "cross_cotangents", "tiled_cotangent", "tiled_pull"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Tiled:
    """The upper triangle of tiles, one at a time.

    Attributes:
      block: rows of a tile, at most; None for as many as suit the device that is compiled for.

    Raises:
      ValueError: block < 1.
    """

    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"block must be ≥ 1, found {self.block}")

    def __call__(self, metric: Metric, rows: Rows, affine: Affine) -> Cotangent:
        """Σ_{i<j} of e and of an affine form, and its gradient.

        >>> import dh2l_jax as dh2l
        >>> rows = Rows(jnp.eye(3), jnp.ones(3), jnp.ones(3, bool))
        >>> Tiled(block=2)(dh2l.get_metric("cosine"), rows, (0.0, 0.0, 1.0))[0].item()
        3.0
        """
        assert not (affine[1] and metric.threshold), "codes with a dead zone have no linear part"
        return in_tiles(functools.partial(_sum, metric, affine), self.block, len(rows.W), rows)


def _sum(metric: Metric, affine: Affine, block: int, rows: Rows) -> Cotangent:
    slopes = unit_slopes(metric, affine, rows.W.shape[1])
    total, dU = tiled_cotangent(metric, block, rows)
    total += affine[2] * pair_count(rows.where, rows.W.dtype)
    if not any(slopes):
        return total, tiled_pull(block, rows, dU)
    value, sums, r = linear(metric, slopes, rows)

    def more(start: Start) -> jax.Array:
        W, present = (lax.dynamic_slice_in_dim(X, start, block) for X in (rows.W, r))
        S = slopes[1] * row_codes(metric, W, present)
        return jnp.where(present[:, None] > 0, sums[None, :] - S, 0)

    return total + value, tiled_pull(block, rows, dU, more)


def tiled_cotangent(metric: Metric, block: int, rows: Rows) -> Cotangent:
    """The sum over the upper triangle of tiles, and the cotangent of all unit vectors."""

    def diagonal(carry: Cotangent, side: _Side) -> Cotangent:
        # A block with itself is symmetric: half of the value, and one product for its gradient.
        similarities = grams(metric, side.parts, side.parts)
        value, dc, dh = energy_and_slopes(metric, *similarities, all_pairs(side.own))
        dU = pull_symmetric(metric, dc, dh, side.parts)
        return carry[0] + value / 2, add_rows(carry[1], side.start, dU)

    def tile(carry: Cotangent, left: _Side, right: _Side) -> Cotangent:
        value, dU_left, dU_right = _tile(metric, left, right)
        dU = add_rows(carry[1], left.start, dU_left)
        return carry[0] + value, add_rows(dU, right.start, dU_right)

    of = functools.partial(_side, metric, rows, block)
    carry = jnp.zeros((), rows.W.dtype), jnp.zeros_like(rows.W)
    carry = _fold(diagonal, carry, _diagonal(rows.W, block), of)
    return _fold(tile, carry, _upper(rows.W, block), of, of)


def cross_cotangents(
    metric: Metric,
    block: int,
    rows: Rows,
    others: Rows,
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Σ_{ij} e(w_i, v_j) of two matrices, and its cotangents added to those of both."""

    def tile(carry, left: _Side, right: _Side):
        total, (dU, dV) = carry
        value, dU_left, dV_right = _tile(metric, left, right)
        cotangents = add_rows(dU, left.start, dU_left), add_rows(dV, right.start, dV_right)
        return total + value, cotangents

    counts = (_count(X.W, block) for X in (rows, others))
    tiles = tuple(index.reshape(-1) for index in np.indices(tuple(counts), np.int32))
    of, of_others = (functools.partial(_side, metric, X, block) for X in (rows, others))
    return _fold(tile, (jnp.zeros((), rows.W.dtype), cotangents), tiles, of, of_others)


def tiled_pull(
    block: int,
    rows: Rows,
    dU: jax.Array,
    more: Callable[[Start], jax.Array] | None = None,
) -> jax.Array:
    """The pull of dU to the rows, a block at a time in the memory of dU.

    `more`, called with the start of a block, gives what is to be added to dU.
    """

    def step(gradient, start, own):
        W, r, cotangent = (
            lax.dynamic_slice_in_dim(X, start, own.shape[0]) for X in (*rows[:2], gradient)
        )
        if more is not None:
            cotangent += more(start)
        return write_rows(gradient, start, own, pull_to_rows(W, r, cotangent))

    return over_blocks(step, dU, len(rows.W), block)


class _Side(NamedTuple):
    """One side of a tile: a block of rows, and which of them it stands for and are present."""

    start: jax.Array
    parts: Features
    own: jax.Array


def _fold(
    step: Callable[..., T],
    carry: T,
    tiles: Sequence[np.ndarray],
    *sides: Callable[[jax.Array], _Side],
) -> T:
    """Folds step(carry, *sides of the tile) over tiles, given the numbers of their blocks."""

    def body(carry: T, numbers: Sequence[jax.Array]) -> tuple[T, None]:
        return step(carry, *(side(i) for side, i in zip(sides, numbers, strict=True))), None

    return lax.scan(body, carry, tuple(map(jnp.asarray, tiles)))[0]


def _count(W: jax.Array, block: int) -> int:
    return -(-len(W) // block)


def _diagonal(W: jax.Array, block: int) -> tuple[np.ndarray]:
    return (np.arange(_count(W, block), dtype=np.int32),)


def _upper(W: jax.Array, block: int) -> tuple[np.ndarray, ...]:
    """Of the tiles beyond the diagonal."""
    return tuple(index.astype(np.int32) for index in np.triu_indices(_count(W, block), k=1))


def _side(metric: Metric, rows: Rows, block: int, i: jax.Array) -> _Side:
    start, own = block_of(len(rows.W), block, i)
    W, r, present = (lax.dynamic_slice_in_dim(X, start, block) for X in rows)
    return _Side(start, features(metric, W, r), own & present)


def _pairs(left: _Side, right: _Side) -> jax.Array:
    """(block, block) bool: the pairs of a tile that count."""
    return left.own[:, None] & right.own[None, :]


def _tile(metric: Metric, left: _Side, right: _Side) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum over the pairs of a tile, and the cotangents of the unit vectors of both sides."""
    similarities = grams(metric, left.parts, right.parts)
    value, dc, dh = energy_and_slopes(metric, *similarities, _pairs(left, right))
    dU_left = pull_to_unit(metric, dc, dh, left.parts, right.parts)
    return value, dU_left, pull_to_unit(metric, dc.T, dh.T, right.parts, left.parts)

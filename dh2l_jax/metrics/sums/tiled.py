"""Sums over all pairs, the upper triangle of tiles one at a time, in the memory of a few tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics.blocks import (
    Features,
    Start,
    add_rows,
    all_pairs,
    block_of,
    energy_and_slopes,
    features,
    grams,
    over_blocks,
    pair_count,
    pull_symmetric,
    pull_to_rows,
    pull_to_unit,
    scale_gradient,
    total_energy,
    write_rows,
)
from dh2l_jax.metrics.profile import Affine, Metric
from dh2l_jax.metrics.similarity import code_length, encode
from dh2l_jax.metrics.sums.closed import linear
from dh2l_jax.numerics import inverse_norm

__all__ = ["Blocks", "cross_cotangents", "tiled_cotangent", "tiled_pull", "tiled_sum"]

T = TypeVar("T")
Cotangent = tuple[jax.Array, jax.Array]  # a sum, and the cotangent of the unit vectors


class Blocks(NamedTuple):
    """Rows that are looked at a block at a time.

    Attributes:
      W: (n, d).
      r: (n,) their inverse norms.
      where: (n,) bool, the rows that take part.
    """

    W: jax.Array
    r: jax.Array
    where: jax.Array


def tiled_sum(
    metric: Metric, affine: Affine, block: int, W: jax.Array, where: jax.Array
) -> jax.Array:
    """Σ_{i<j} of e and of an affine form, with O(block·(block + d)) of temporaries.

    Args:
      metric: of the pairs.
      affine: (a, b, k), added as a c + b h + k.
      block: rows of a tile.
      W: (n, d).
      where: (n,) bool.

    >>> import dh2l_jax as dh2l
    >>> affine, cosine = (0.0, 0.0, 1.0), dh2l.get_metric("cosine")
    >>> tiled_sum(cosine, affine, 2, jnp.ones((3, 2)), jnp.ones(3, bool)).round(4)
    Array(6., dtype=float32)
    """
    a, b, k = affine
    assert not (b and metric.threshold), "codes with a dead zone have no linear part"
    b /= code_length(W.shape[1], metric.threshold)
    pairs = k * pair_count(where).astype(W.dtype)
    return jnp.add(pairs, _tiled_sum(metric, (a, b), block, W, where))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled_sum(
    metric: Metric, slopes: tuple[float, float], block: int, W: jax.Array, where: jax.Array
) -> jax.Array:
    blocks = Blocks(W, inverse_norm(W), where)

    def diagonal(total: jax.Array, side: _Side) -> jax.Array:
        similarities = grams(metric, side.parts, side.parts)
        return total + total_energy(metric, *similarities, all_pairs(side.own)) / 2

    def tile(total: jax.Array, left: _Side, right: _Side) -> jax.Array:
        similarities = grams(metric, left.parts, right.parts)
        return total + total_energy(metric, *similarities, _pairs(left, right))

    of = functools.partial(_side, metric, blocks, block)
    total = _fold(diagonal, jnp.zeros((), W.dtype), _diagonal(W, block), of)
    total = _fold(tile, total, _upper(W, block), of, of)
    return total + linear(metric, slopes, *blocks).value if any(slopes) else total


def _tiled_fwd(
    metric: Metric, slopes: tuple[float, float], block: int, W: jax.Array, where: jax.Array
):
    blocks = Blocks(W, inverse_norm(W), where)
    total, dU = tiled_cotangent(metric, block, blocks)
    if not any(slopes):
        return total, tiled_pull(block, blocks, dU)
    value, sums, r = linear(metric, slopes, *blocks)

    # Added on the way to the rows: a gradient of its own would be another n×d.
    def more(start: Start) -> jax.Array:
        rows, present = (lax.dynamic_slice_in_dim(X, start, block) for X in (W, r > 0))
        S = slopes[1] * encode(rows, metric.code)
        return jnp.where(present[:, None], sums[None, :] - S, 0)

    return total + value, tiled_pull(block, blocks, dU, more)


_tiled_sum.defvjp(_tiled_fwd, scale_gradient)


def tiled_cotangent(metric: Metric, block: int, blocks: Blocks) -> Cotangent:
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

    of = functools.partial(_side, metric, blocks, block)
    carry = jnp.zeros((), blocks.W.dtype), jnp.zeros_like(blocks.W)
    carry = _fold(diagonal, carry, _diagonal(blocks.W, block), of)
    return _fold(tile, carry, _upper(blocks.W, block), of, of)


def cross_cotangents(
    metric: Metric,
    block: int,
    blocks: Blocks,
    others: Blocks,
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Σ_{ij} e(w_i, v_j) of two matrices, and its cotangents added to those of both."""

    def tile(carry, left: _Side, right: _Side):
        total, (dU, dV) = carry
        value, dU_left, dV_right = _tile(metric, left, right)
        cotangents = add_rows(dU, left.start, dU_left), add_rows(dV, right.start, dV_right)
        return total + value, cotangents

    counts = (_count(X.W, block) for X in (blocks, others))
    tiles = tuple(index.reshape(-1) for index in np.indices(tuple(counts), np.int32))
    of, of_others = (functools.partial(_side, metric, X, block) for X in (blocks, others))
    return _fold(tile, (jnp.zeros((), blocks.W.dtype), cotangents), tiles, of, of_others)


def tiled_pull(
    block: int,
    blocks: Blocks,
    dU: jax.Array,
    more: Callable[[Start], jax.Array] | None = None,
) -> jax.Array:
    """The pull of dU to the rows, a block at a time in the memory of dU.

    `more`, called with the start of a block, gives what is to be added to dU.
    """

    def step(gradient, start, own):
        W, r, cotangent = (
            lax.dynamic_slice_in_dim(X, start, own.shape[0]) for X in (*blocks[:2], gradient)
        )
        if more is not None:
            cotangent += more(start)
        return write_rows(gradient, start, own, pull_to_rows(W, r, cotangent))

    return over_blocks(step, dU, len(blocks.W), block)


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


def _side(metric: Metric, blocks: Blocks, block: int, i: jax.Array) -> _Side:
    start, own = block_of(len(blocks.W), block, i)
    W, r, present = (lax.dynamic_slice_in_dim(X, start, block) for X in blocks)
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

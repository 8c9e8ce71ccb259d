"""The largest energies: of each row with its nearest other row, or of the nearest pair of all.

Idea. Which pair is the largest is found a tile at a time and takes no derivative; its energy is
that of two rows, so value and gradient of all n winners are O(nd). An energy that grows with c
alone is searched by c, without its profile; of equals the first wins, and never all of them.
Memory. A tile of similarities, and some blocks of rows while the winners are gathered: the gradient
is written in place, a row's own part and its neighbour's, by a scatter.
Figure. The search is one product of the upper triangle, a third of the mean's value and gradient.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics.blocks import (
    Cotangent,
    Features,
    Rows,
    block_of,
    features,
    grams,
    in_tiles,
    over_blocks,
    pairs_in_step,
    pull_codes,
    pull_to_rows,
)
from dh2l_jax.metrics.profile import Metric, energy_of_opposites, grows_with_c

__all__ = ["Maxima", "largest"]


class Maxima(NamedTuple):
    """What is looked for.

    Attributes:
      metric: of the pairs.
      of_each_row: the mean over rows of each row's largest energy; else the largest of all.
      half_space: among W ∪ −W.
      block: rows of a tile, at most; None for as many as suit the device that is compiled for.
    """

    metric: Metric
    of_each_row: bool
    half_space: bool
    block: int | None


def largest(what: Maxima, rows: Rows) -> Cotangent:
    """The mean of the largest energies, or the largest, and its gradient; 0 where there is no pair.

    >>> import dh2l_jax as dh2l
    >>> rows = Rows(jnp.eye(3), jnp.ones(3), jnp.ones(3, bool))
    >>> largest(Maxima(dh2l.get_metric("cosine"), True, False, 2), rows)[0].item()
    0.0
    """
    return in_tiles(functools.partial(_largest, what), what.block, len(rows.W), rows)


def _largest(what: Maxima, block: int, rows: Rows) -> Cotangent:
    best, neighbour = _search(what, block, rows)
    found = neighbour < len(rows.W)
    if what.of_each_row:
        weights = found / jnp.maximum(jnp.sum(found), 1)
    else:
        weights = found & (jnp.arange(len(best)) == jnp.argmax(best))
    weights = jnp.where(jnp.isnan(best), jnp.nan, weights.astype(rows.W.dtype))
    return _at(what, block, rows, neighbour, weights)


def _search(what: Maxima, block: int, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The largest score of each row, and with whom; −∞ and n for rows without another."""
    n = len(rows.W)
    by_c = grows_with_c(what.metric.energy)

    def score(c: jax.Array, h: jax.Array) -> jax.Array:
        if by_c:
            return jnp.abs(c) if what.half_space else c
        e = what.metric.energy(c, h)
        return jnp.maximum(e, what.metric.energy(-c, -h)) if what.half_space else e

    def side(i: jax.Array) -> tuple[jax.Array, Features, jax.Array]:
        start, own = block_of(n, block, i)
        W, r, present = (lax.dynamic_slice_in_dim(X, start, block) for X in rows)
        return start, features(what.metric, W, r), own & present

    def better(carry, start: jax.Array, scores: jax.Array, first: jax.Array):
        """Takes the best of a tile, (block, others), where it is better than what there was."""
        best, who = (lax.dynamic_slice_in_dim(X, start, block) for X in carry)
        top, column = jnp.max(scores, axis=1), jnp.arange(block, dtype=who.dtype)[None, :]
        # Two plain reductions, which CPUs vectorise; argmax they compute one number at a time.
        column = jnp.min(jnp.where(scores == top[:, None], column, block), axis=1)
        who = jnp.where(top > best, first + column, who)
        new = jnp.maximum(top, best), who
        old_best, old_who = carry
        return (
            lax.dynamic_update_slice_in_dim(old_best, new[0], start, 0),
            lax.dynamic_update_slice_in_dim(old_who, new[1], start, 0),
        )

    def tile(carry, numbers):
        (i, left, here), (j, right, there) = (side(k) for k in numbers)
        pairs = here[:, None] & there[None, :]
        pairs &= (i + jnp.arange(block))[:, None] != (j + jnp.arange(block))[None, :]
        scores = jnp.where(pairs, score(*grams(what.metric, left, right)), -jnp.inf)
        carry = better(carry, i, scores, j)
        return better(carry, j, scores.T, i), None

    start = jnp.full(n, -jnp.inf, rows.W.dtype), jnp.full(n, n, jnp.int32)
    tiles = np.triu_indices(-(-n // block))
    return lax.scan(tile, start, tuple(jnp.asarray(x, jnp.int32) for x in tiles))[0]


def _at(
    what: Maxima, block: int, rows: Rows, neighbour: jax.Array, weights: jax.Array
) -> Cotangent:
    """Σ_i weights[i] e(w_i, w_neighbour[i]), and its gradient."""

    def step(carry: Cotangent, start, own) -> Cotangent:
        value, gradient = carry
        size = own.shape[0]
        here = Rows(*(lax.dynamic_slice_in_dim(X, start, size) for X in rows))
        who, weight = (lax.dynamic_slice_in_dim(X, start, size) for X in (neighbour, weights))
        there = Rows(*(X.at[who].get(mode="fill", fill_value=0) for X in rows))
        left, right = (features(what.metric, X.W, X.r) for X in (here, there))
        (c, h), pull = jax.vjp(functools.partial(pairs_in_step, what.metric), left, right)
        e, slopes = jax.vjp(functools.partial(_energy, what), c, h)
        weight = jnp.where(own, weight, 0)
        used = weight != 0
        value += jnp.sum(jnp.where(used, weight * e, 0))
        slopes = tuple(jnp.where(used, slope, 0) for slope in slopes(weight))
        sides = zip((here, there), (left, right), pull(slopes), strict=True)
        back, out = (
            pull_to_rows(X.W, X.r, dX.U + pull_codes(what.metric, U.U, dX.S)) for X, U, dX in sides
        )
        gradient = gradient.at[start + jnp.arange(size)].add(back)
        return value, gradient.at[who].add(out, mode="drop")

    zeros = jnp.zeros((), rows.W.dtype), jnp.zeros_like(rows.W)
    return over_blocks(step, zeros, len(rows.W), block)


def _energy(what: Maxima, c: jax.Array, h: jax.Array) -> jax.Array:
    """Of a row and its nearest, or of the nearer of ±w, or of its own opposite."""
    energy = what.metric.energy
    if not what.half_space:
        return energy(c, h)
    sign = jnp.where(energy(c, h) >= energy(-c, -h), 1, -1).astype(c.dtype)
    return jnp.maximum(energy(sign * c, sign * h), energy_of_opposites(what.metric, c.dtype))

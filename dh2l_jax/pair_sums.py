"""The sum of a metric's energy over all pairs of rows, in closed form, dense and tiled.

Every profile lives on two Gram matrices, U Uᵀ and S Sᵀ, so no method builds an n×n×d tensor.
The dense and tiled sums carry their own derivative: the slopes are symmetric in the pair, so the
gradient is one product per Gram matrix, formed in the forward pass without a tape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics import Metric
from dh2l_jax.numerics import inverse_norm, safe_normalize, snap
from dh2l_jax.profiles import Affine, similarities_used
from dh2l_jax.similarity import code_length, encode

__all__ = [
    "all_pairs",
    "closed_sum",
    "cross_cotangents",
    "dense_sum",
    "pair_count",
    "scale_gradient",
    "tiled_cotangent",
    "tiled_pull",
    "tiled_sum",
]

T = TypeVar("T")
Start = jax.Array | int

CODES_BLOCK = 128  # rows whose codes are summed at once
PANEL = 512  # rows of a dense sum whose similarities with later rows are one product


def pair_count(where: jax.Array, *, half_space: bool = False) -> jax.Array:
    """Number of pairs i < j of the rows of a (..., n) mask, as float32 of shape (...).

    With `half_space`, of the 2n rows W ∪ −W.
    """
    n = jnp.sum(where, axis=-1, dtype=jnp.float32) * (2 if half_space else 1)
    return n * (n - 1) / 2


def all_pairs(where: jax.Array) -> jax.Array:
    """(n, n) bool: i ≠ j, both present."""
    off_diagonal = ~jnp.eye(where.shape[0], dtype=bool)
    return where[:, None] & where[None, :] & off_diagonal


# Similarities of blocks of rows, and the profile with its slopes.


class _Features(NamedTuple):
    """Unit vectors U and their codes S, both (rows, d)."""

    U: jax.Array
    S: jax.Array


def _features(metric: Metric, W: jax.Array) -> _Features:
    U = safe_normalize(W)
    return _Features(U, encode(U, metric.code, metric.threshold))


def _grams(metric: Metric, left: _Features, right: _Features) -> tuple[jax.Array, jax.Array]:
    """(c, h) of every row of `left` with every row of `right`."""
    h = _product(left.S, right.S.T) / code_length(left.U.shape[1], metric.threshold)
    return _product(left.U, right.U.T), snap(h)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Full float32: accelerators' default would round c to a few digits.
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _energy_and_slopes(metric: Metric, c: jax.Array, h: jax.Array, weights: jax.Array):
    """Σ weights·e, and weights·∂e/∂c, weights·∂e/∂h; entries of weight 0 are never looked at."""
    e, pull = jax.vjp(metric.energy, c, h)
    used = weights != 0
    slopes = (jnp.where(used, weights * slope, 0) for slope in pull(jnp.ones_like(e)))
    return jnp.sum(jnp.where(used, weights * e, 0)), *slopes


def _pull_to_unit(
    metric: Metric, dc: jax.Array, dh: jax.Array, rows: _Features, other: _Features
) -> jax.Array:
    """The cotangent of the unit vectors `rows.U`, given the slopes against the rows of `other`."""
    uses = similarities_used(metric.energy)
    dU = _product(dc, other.U) if uses.c else jnp.zeros_like(rows.U)
    if not uses.h:
        return dU
    dS = _product(dh / code_length(rows.U.shape[1], metric.threshold), other.S)
    if metric.threshold:
        code = functools.partial(encode, code=metric.code, threshold=metric.threshold)
        return dU + jax.vjp(code, rows.U)[1](dS)[0]
    return dU + dS  # the estimator passes all of it: no entry of a unit vector is beyond ±1


def _pull_to_rows(W: jax.Array, dU: jax.Array) -> jax.Array:
    """The cotangent of the rows, given that of their unit vectors."""
    return jax.vjp(safe_normalize, W)[1](dU)[0]


def scale_gradient(*args):
    """The backward pass of a sum whose forward pass has formed the gradient."""
    *_, gradient, g = args
    return g * gradient, None


# Blocks of rows.


def _over_blocks(step: Callable[..., T], carry: T, n: int, block: int) -> T:
    """Folds step(carry, start, own) over blocks of n rows.

    A ragged last block starts early instead of being padded; `own`, (block,) bool, leaves out the
    rows that it shares with the block before.
    """
    if n <= block:
        return step(carry, 0, jnp.ones(n, bool))
    return lax.fori_loop(
        0, -(-n // block), lambda i, carry: step(carry, *_block(n, block, i * block)), carry
    )


def _block(n: int, block: int, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    start = jnp.minimum(first, n - block)
    return start, start + jnp.arange(block) >= first


def _rows(W: jax.Array, where: jax.Array, start: Start, own: jax.Array):
    """The rows of a block, and which of them it stands for and are present."""
    rows, present = (lax.dynamic_slice_in_dim(X, start, own.shape[0]) for X in (W, where))
    return rows, own & present


def _write_rows(target: jax.Array, start: Start, own: jax.Array, rows: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(target, start, own.shape[0])
    return lax.dynamic_update_slice_in_dim(target, jnp.where(own[:, None], rows, old), start, 0)


def _add_rows(target: jax.Array, start: Start, rows: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(target, start, rows.shape[0])
    return lax.dynamic_update_slice_in_dim(target, old + rows, start, 0)


# Closed form: sums over rows and products with vectors, nothing of the size of W.


def closed_sum(metric: Metric, affine: Affine, W: jax.Array, where: jax.Array) -> jax.Array:
    """a Σc + b Σh + k·pairs, with Σ_{i<j} x_i·x_j = (‖Σx‖² − Σ‖x‖²)/2 in O(nd)."""
    a, b, k = affine
    b /= code_length(W.shape[1], metric.threshold)
    pairs = k * pair_count(where).astype(W.dtype)
    if b and metric.threshold:
        U, S = (jnp.where(where[:, None], X, 0) for X in _features(metric, W))
        return pairs + a * _sum_of_products(U) + b * _sum_of_products(S)
    return jnp.add(pairs, _closed_sum(metric, (a, b), W, where))


def _sum_of_products(X: jax.Array) -> jax.Array:
    total = jnp.sum(X, axis=0)
    return (_product(total, total) - jnp.sum(X * X)) / 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _closed_sum(
    metric: Metric, slopes: tuple[float, float], W: jax.Array, where: jax.Array
) -> jax.Array:
    """Σ_{i<j} a u_i·u_j + b s_i·s_j for codes without a dead zone, in O(n + d) of memory."""
    return _closed_fwd(metric, slopes, W, where)[0]


def _closed_fwd(metric: Metric, slopes: tuple[float, float], W: jax.Array, where: jax.Array):
    linear = _linear(metric, slopes, W, where)
    r, b = linear.r, slopes[1]
    S = encode(W, metric.code) if b else jnp.zeros_like(W)
    # w·s = Σ|w|, written so that XLA keeps no |W| for this sum and the norm's maximum.
    length = jnp.sum(jnp.maximum(W, -W), axis=1) if b else 0.0
    along = r * (_product(W, linear.total) - b * length)
    # r·along first: r² is out of range for very short vectors.
    gradient = r[:, None] * (linear.total[None, :] - b * S - (r * along)[:, None] * W)
    return linear.value, gradient


class _Linear(NamedTuple):
    """What the pairs of a form affine in c and h add up to.

    The cotangent of u_i is total − b s_i, less a multiple of u_i that the pull to w_i removes.
    """

    value: jax.Array
    total: jax.Array
    r: jax.Array  # u_i = r_i w_i, 0 for rows that take no part


def _linear(metric: Metric, slopes: tuple[float, float], W: jax.Array, where: jax.Array) -> _Linear:
    a, b = slopes
    where &= jnp.sum(where) > 1  # one row is no pair: exactly 0, without a rounding error
    r = jnp.where(where, inverse_norm(W), 0)
    sum_u, num_u = _product(r, W), jnp.sum(r > 0)
    sum_s, num_s = _sum_of_codes(metric, W, where) if b else (jnp.zeros_like(sum_u), 0.0)
    value = a * (_product(sum_u, sum_u) - num_u) + b * (_product(sum_s, sum_s) - num_s)
    return _Linear(value / 2, a * sum_u + b * sum_s, r)


def _sum_of_codes(metric: Metric, W: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ s, (d,), and Σ‖s‖², a block at a time: a sum over columns would write all codes first."""

    def step(sums, start, own):
        rows, present = _rows(W, where, start, own)
        S = jnp.where(present[:, None], encode(rows, metric.code), 0)
        return sums[0] + jnp.sum(S, axis=0), sums[1] + jnp.sum(S * S)

    zeros = jnp.zeros(W.shape[1], W.dtype), jnp.zeros((), W.dtype)
    return _over_blocks(step, zeros, W.shape[0], CODES_BLOCK)


_closed_sum.defvjp(_closed_fwd, scale_gradient)


# Dense: value and gradient in one pass.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_sum(metric: Metric, W: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_{i<j} weights[i, j] e(w_i, w_j), weights symmetric (n, n)."""
    features = _features(metric, W)
    total = jnp.zeros((), W.dtype)
    for panel in _panels(metric, features, weights):
        e = metric.energy(panel.c, panel.h)
        total += jnp.sum(jnp.where(panel.weights != 0, panel.weights * e, 0))
    return total


def _dense_fwd(metric: Metric, W: jax.Array, weights: jax.Array):
    features = _features(metric, W)
    total, slopes = jnp.zeros((), W.dtype), []
    for panel in _panels(metric, features, weights):
        value, *panel_slopes = _energy_and_slopes(metric, panel.c, panel.h, panel.weights)
        total += value
        slopes.append(panel_slopes)
    dc, dh = (_symmetric(panels) for panels in zip(*slopes, strict=True))
    # dh is symmetric: transposed, its product is not fused with the sum, which costs CPUs a tenth.
    dU = _pull_to_unit(metric, dc, dh.T, features, features)
    return total, _pull_to_rows(W, dU)


class _Panel(NamedTuple):
    """Similarities and weights of some rows with themselves and all later ones, (rows, later).

    Pairs i ≥ j have weight 0; where one panel holds all pairs, i < j and i > j have half of it.
    """

    c: jax.Array
    h: jax.Array
    weights: jax.Array


def _panels(metric: Metric, features: _Features, weights: jax.Array) -> Iterator[_Panel]:
    n = weights.shape[0]
    if n <= PANEL:
        yield _Panel(*_grams(metric, features, features), weights * 0.5)
        return
    for start in range(0, n, PANEL):
        rows = _Features(*(X[start : start + PANEL] for X in features))
        later = _Features(*(X[start:] for X in features))
        upper = jnp.triu(weights[start : start + PANEL, start:], k=1)
        yield _Panel(*_grams(metric, rows, later), upper)


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


# Tiled: the upper triangle of tiles, one at a time.


def tiled_sum(
    metric: Metric, affine: Affine, block: int, W: jax.Array, where: jax.Array
) -> jax.Array:
    """Σ_{i<j} of e and of an affine form, with O(block·(block + d)) of temporaries."""
    a, b, k = affine
    assert not (b and metric.threshold), "codes with a dead zone have no linear part"
    b /= code_length(W.shape[1], metric.threshold)
    pairs = k * pair_count(where).astype(W.dtype)
    return jnp.add(pairs, _tiled_sum(metric, (a, b), block, W, where))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _tiled_sum(
    metric: Metric, slopes: tuple[float, float], block: int, W: jax.Array, where: jax.Array
) -> jax.Array:
    def step(total, tile):
        left, right = (_side(metric, W, where, block, first) for first in tile)
        e = metric.energy(*_grams(metric, left.features, right.features))
        return total + jnp.sum(jnp.where(_pairs(left, right, ordered=True), e, 0)), None

    total, _ = lax.scan(step, jnp.zeros((), W.dtype), _upper_tiles(W.shape[0], block))
    return total + _linear(metric, slopes, W, where).value if any(slopes) else total


def _tiled_fwd(
    metric: Metric, slopes: tuple[float, float], block: int, W: jax.Array, where: jax.Array
):
    total, dU = tiled_cotangent(metric, block, W, where)
    if not any(slopes):
        return total, tiled_pull(block, W, dU)
    linear = _linear(metric, slopes, W, where)

    # Added on the way to the rows: a gradient of its own would be another n×d.
    def more(start: Start, own: jax.Array) -> jax.Array:
        rows, present = _rows(W, linear.r > 0, start, own)
        S = slopes[1] * encode(rows, metric.code)
        return jnp.where(present[:, None], linear.total[None, :] - S, 0)

    return total + linear.value, tiled_pull(block, W, dU, more)


_tiled_sum.defvjp(_tiled_fwd, scale_gradient)


def tiled_cotangent(
    metric: Metric, block: int, W: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sum over the upper triangle of tiles, and the cotangent of all unit vectors."""

    def step(carry, tile):
        total, dU = carry
        left, right = (_side(metric, W, where, block, first) for first in tile)
        value, dU_left, dU_right = _tile(metric, left, right, ordered=True)
        dU = _add_rows(_add_rows(dU, left.start, dU_left), right.start, dU_right)
        return (total + value, dU), None

    zeros = jnp.zeros((), W.dtype), jnp.zeros_like(W)
    return lax.scan(step, zeros, _upper_tiles(W.shape[0], block))[0]


def cross_cotangents(
    metric: Metric,
    block: int,
    W: jax.Array,
    where: jax.Array,
    V: jax.Array,
    V_where: jax.Array,
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Σ_{ij} e(w_i, v_j) of two matrices, and its cotangents added to those of both."""

    def step(carry, tile):
        total, (dU, dV) = carry
        left, right = (
            _side(metric, W, where, block, tile[0]),
            _side(metric, V, V_where, block, tile[1]),
        )
        value, dU_left, dV_right = _tile(metric, left, right, ordered=False)
        cotangents = _add_rows(dU, left.start, dU_left), _add_rows(dV, right.start, dV_right)
        return (total + value, cotangents), None

    starts = (np.arange(0, X.shape[0], block, dtype=np.int32) for X in (W, V))
    tiles = tuple(jnp.asarray(index.reshape(-1)) for index in np.meshgrid(*starts, indexing="ij"))
    return lax.scan(step, (jnp.zeros((), W.dtype), cotangents), tiles)[0]


def _upper_tiles(n: int, block: int) -> tuple[jax.Array, jax.Array]:
    """First rows of both sides of the tiles of the upper triangle."""
    i, j = np.triu_indices(-(-n // block))
    return jnp.asarray(i * block, jnp.int32), jnp.asarray(j * block, jnp.int32)


def tiled_pull(
    block: int,
    W: jax.Array,
    dU: jax.Array,
    more: Callable[[Start, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """The pull of dU to the rows, a block at a time in the memory of dU.

    `more`, called with the start of a block and its own rows, gives what is to be added to dU.
    """

    def step(gradient, start, own):
        rows, cotangent = (lax.dynamic_slice_in_dim(X, start, block) for X in (W, gradient))
        if more is not None:
            cotangent += more(start, own)
        return _write_rows(gradient, start, own, _pull_to_rows(rows, cotangent))

    return _over_blocks(step, dU, W.shape[0], block)


class _Side(NamedTuple):
    """One side of a tile: a block of rows."""

    start: jax.Array
    features: _Features
    own: jax.Array


def _side(metric: Metric, W: jax.Array, where: jax.Array, block: int, first: jax.Array) -> _Side:
    start, own = _block(W.shape[0], block, first)
    rows, present = _rows(W, where, start, own)
    return _Side(start, _features(metric, rows), present)


def _pairs(left: _Side, right: _Side, *, ordered: bool) -> jax.Array:
    """(block, block) bool: the pairs of a tile that count, of the ordered ones those with i < j."""
    pairs = left.own[:, None] & right.own[None, :]
    if not ordered:
        return pairs
    i, j = (side.start + jnp.arange(side.own.shape[0]) for side in (left, right))
    return pairs & (i[:, None] < j[None, :])


def _tile(
    metric: Metric, left: _Side, right: _Side, *, ordered: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum over the pairs of a tile, and the cotangents of the unit vectors of both sides."""
    grams = _grams(metric, left.features, right.features)
    value, dc, dh = _energy_and_slopes(metric, *grams, _pairs(left, right, ordered=ordered))
    dU_left = _pull_to_unit(metric, dc, dh, left.features, right.features)
    return value, dU_left, _pull_to_unit(metric, dc.T, dh.T, right.features, left.features)

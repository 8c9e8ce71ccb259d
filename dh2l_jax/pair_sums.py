"""The sum of a metric's energy over all pairs of rows, in closed form, dense and tiled.

Every profile lives on two Gram matrices, U Uᵀ and S Sᵀ, so no method builds an n×n×d tensor.
The dense and tiled sums carry their own derivative: the slopes are symmetric in the pair, so the
gradient is one product per Gram matrix, formed in the forward pass without a tape.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics import Metric, Profile
from dh2l_jax.numerics import safe_normalize, snap
from dh2l_jax.similarity import code_length, encode

__all__ = [
    "all_pairs",
    "closed_sum",
    "cross_gradients",
    "dense_sum",
    "pair_count",
    "scale_gradient",
    "tiled_gradient",
    "tiled_sum",
]


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


def _features(metric: Metric, W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unit vectors and their codes; h is the product of the codes over `code_length`."""
    U = safe_normalize(W)
    return U, encode(U, metric.code, metric.threshold)


def _grams(metric: Metric, left, right) -> tuple[jax.Array, jax.Array]:
    """(c, h) of every row of `left` with every row of `right`, both (U, S)."""
    (U, S), (V, T) = left, right
    return _product(U, V.T), snap(_product(S, T.T) / code_length(U.shape[1], metric.threshold))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Full float32: accelerators' default would round c to a few digits.
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=256)
def _depends_on(profile: Profile) -> tuple[bool, bool]:
    """Whether a profile uses c and h; what it does not use needs no Gram product."""
    jaxpr = jax.make_jaxpr(profile)(0.0, 0.0).jaxpr
    used = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
    uses_c, uses_h = (any(v is u for u in used) for v in jaxpr.invars)
    return uses_c, uses_h


def _energy_and_slopes(metric: Metric, c: jax.Array, h: jax.Array, weights: jax.Array):
    """Σ weights·e, and weights·∂e/∂c, weights·∂e/∂h; entries of weight 0 are never looked at."""
    e, pull = jax.vjp(metric.energy, c, h)
    used = weights != 0
    slopes = (jnp.where(used, weights * slope, 0) for slope in pull(jnp.ones_like(e)))
    return jnp.sum(jnp.where(used, weights * e, 0)), *slopes


def _pull_to_rows(metric: Metric, dc: jax.Array, dh: jax.Array, other):
    """Cotangents of (U, S) given the slopes against the rows of `other`; None is not used."""
    V, T = other
    uses_c, uses_h = _depends_on(metric.energy)
    dU = _product(dc, V) if uses_c else jnp.zeros((dc.shape[0], V.shape[1]), V.dtype)
    if not uses_h:
        return dU, jnp.zeros_like(dU)
    return dU, _product(dh, T) / code_length(T.shape[1], metric.threshold)


# Closed form.


def closed_sum(metric: Metric, W: jax.Array, where: jax.Array) -> jax.Array:
    """a Σc + b Σh + k·pairs, with Σ_{i<j} x_i·x_j = (‖Σx‖² − Σ‖x‖²)/2 in O(nd)."""
    assert metric.affine is not None
    a, b, k = metric.affine
    U, S = _features(metric, W)

    def sum_of_products(X: jax.Array) -> jax.Array:
        X = jnp.where(where[:, None], X, 0)
        total = jnp.sum(X, axis=0)
        return (jnp.dot(total, total, precision="highest") - jnp.sum(X * X)) / 2

    value = k * pair_count(where).astype(W.dtype)
    if a:
        value += a * sum_of_products(U)
    if b:
        value += b * sum_of_products(S) / code_length(W.shape[1], metric.threshold)
    return value


# Dense: value and gradient in one pass.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_sum(metric: Metric, W: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_{i<j} weights[i, j] e(w_i, w_j), weights symmetric (n, n)."""
    features = _features(metric, W)
    e = metric.energy(*_grams(metric, features, features))
    return jnp.sum(jnp.where(weights != 0, weights * e, 0)) / 2


def _dense_fwd(metric: Metric, W: jax.Array, weights: jax.Array):
    features, pull = jax.vjp(functools.partial(_features, metric), W)
    grams = _grams(metric, features, features)
    twice, dc, dh = _energy_and_slopes(metric, *grams, weights)
    # dc and dh are symmetric: half the sum over i ≠ j has the gradient dc·U, one product.
    return twice / 2, pull(_pull_to_rows(metric, dc, dh, features))[0]


def scale_gradient(*args):
    """The backward pass of a sum whose forward pass has formed the gradient."""
    *_, gradient, g = args
    return g * gradient, None


dense_sum.defvjp(_dense_fwd, scale_gradient)


# Tiled: the upper triangle of tiles, one at a time.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def tiled_sum(metric: Metric, block: int, W: jax.Array, where: jax.Array) -> jax.Array:
    """Σ_{i<j} e(w_i, w_j) with O(block·(block + d)) of temporaries."""

    def step(total, tile):
        left, right, pairs = _triangle_tile(W, where, block, *tile)
        grams = _grams(metric, _features(metric, left.rows), _features(metric, right.rows))
        return total + jnp.sum(jnp.where(pairs, metric.energy(*grams), 0)), None

    return lax.scan(step, jnp.zeros((), W.dtype), _upper_tiles(W.shape[0], block))[0]


def tiled_gradient(
    metric: Metric, block: int, W: jax.Array, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`tiled_sum` and its gradient, in one pass."""

    def step(carry, tile):
        total, gradient = carry
        left, right, pairs = _triangle_tile(W, where, block, *tile)
        value, gi, gj = _tile_gradients(metric, left.rows, right.rows, pairs)
        gradient = _add_rows(_add_rows(gradient, left.start, gi), right.start, gj)
        return (total + value, gradient), None

    start = (jnp.zeros((), W.dtype), jnp.zeros_like(W))
    return lax.scan(step, start, _upper_tiles(W.shape[0], block))[0]


tiled_sum.defvjp(tiled_gradient, scale_gradient)


def cross_gradients(
    metric: Metric, block: int, W: jax.Array, where: jax.Array, V: jax.Array, V_where: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_{ij} e(w_i, v_j) of two matrices, and its gradients with respect to both."""

    def step(carry, tile):
        total, gradient, V_gradient = carry
        left, right = _side(W, where, block, tile[0]), _side(V, V_where, block, tile[1])
        pairs = left.own[:, None] & right.own[None, :]
        value, gi, gj = _tile_gradients(metric, left.rows, right.rows, pairs)
        gradient = _add_rows(gradient, left.start, gi)
        return (total + value, gradient, _add_rows(V_gradient, right.start, gj)), None

    starts = (jnp.arange(0, X.shape[0], block, dtype=jnp.int32) for X in (W, V))
    i, j = (index.reshape(-1) for index in jnp.meshgrid(*starts, indexing="ij"))
    start = (jnp.zeros((), W.dtype), jnp.zeros_like(W), jnp.zeros_like(V))
    return lax.scan(step, start, (i, j))[0]


def _tile_gradients(metric: Metric, wi: jax.Array, wj: jax.Array, pairs: jax.Array):
    """The sum over the pairs of a tile, and its gradients with respect to both sides."""
    features = functools.partial(_features, metric)
    left, pull_left = jax.vjp(features, wi)
    right, pull_right = jax.vjp(features, wj)
    value, dc, dh = _energy_and_slopes(metric, *_grams(metric, left, right), pairs)
    (gi,) = pull_left(_pull_to_rows(metric, dc, dh, right))
    (gj,) = pull_right(_pull_to_rows(metric, dc.T, dh.T, left))
    return value, gi, gj


class _Side(NamedTuple):
    """One side of a tile.

    A ragged last block starts early instead of being padded; `own` leaves out the rows that it
    shares with the block before.
    """

    start: jax.Array
    rows: jax.Array
    index: jax.Array
    own: jax.Array


def _side(W: jax.Array, where: jax.Array, block: int, first: jax.Array) -> _Side:
    start = jnp.minimum(first, W.shape[0] - block)
    index = start + jnp.arange(block)
    own = (index >= first) & lax.dynamic_slice_in_dim(where, start, block)
    return _Side(start, lax.dynamic_slice_in_dim(W, start, block), index, own)


def _upper_tiles(n: int, block: int) -> tuple[jax.Array, jax.Array]:
    i, j = np.triu_indices(-(-n // block))
    return jnp.asarray(i * block, jnp.int32), jnp.asarray(j * block, jnp.int32)


def _triangle_tile(W: jax.Array, where: jax.Array, block: int, i: jax.Array, j: jax.Array):
    """Both sides of a tile, and the (block, block) mask of its pairs i < j."""
    left, right = _side(W, where, block, i), _side(W, where, block, j)
    pairs = left.own[:, None] & right.own[None, :]
    return left, right, pairs & (left.index[:, None] < right.index[None, :])


def _add_rows(target: jax.Array, start: jax.Array, update: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(target, start, update.shape[0])
    return lax.dynamic_update_slice_in_dim(target, old + update, start, 0)

"""Sums of forms affine in c and h in closed form: O(nd), and nothing of the size of W."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dh2l_jax.metrics.blocks import features, over_blocks, pair_count, product, scale_gradient
from dh2l_jax.metrics.profile import Affine, Metric
from dh2l_jax.metrics.similarity import code_length, encode
from dh2l_jax.numerics import inverse_norm

__all__ = ["Linear", "closed_sum", "linear"]

CODES_BLOCK = 128  # rows whose codes are summed at once


def closed_sum(metric: Metric, affine: Affine, W: jax.Array, where: jax.Array) -> jax.Array:
    """a Σc + b Σh + k·pairs, with Σ_{i<j} x_i·x_j = (‖Σx‖² − Σ‖x‖²)/2 in O(nd).

    Args:
      metric: whose code h compares.
      affine: (a, b, k).
      W: (n, d).
      where: (n,) bool.

    >>> import dh2l_jax as dh2l
    >>> cosine, W = dh2l.get_metric("cosine"), jnp.ones((3, 2))
    >>> round(float(closed_sum(cosine, (1.0, 0.0, 0.0), W, jnp.ones(3, bool))), 4)
    3.0
    """
    a, b, k = affine
    b /= code_length(W.shape[1], metric.threshold)
    pairs = k * pair_count(where).astype(W.dtype)
    if b and metric.threshold:
        parts = features(metric, W, inverse_norm(W))
        U, S = (jnp.where(where[:, None], X, 0) for X in parts)
        return pairs + a * _sum_of_products(U) + b * _sum_of_products(S)
    return jnp.add(pairs, _closed_sum(metric, (a, b), W, where))


def _sum_of_products(X: jax.Array) -> jax.Array:
    total = jnp.sum(X, axis=0)
    return (product(total, total) - jnp.sum(X * X)) / 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _closed_sum(
    metric: Metric, slopes: tuple[float, float], W: jax.Array, where: jax.Array
) -> jax.Array:
    """Σ_{i<j} a u_i·u_j + b s_i·s_j for codes without a dead zone, in O(n + d) of memory."""
    return _closed_fwd(metric, slopes, W, where)[0]


def _closed_fwd(metric: Metric, slopes: tuple[float, float], W: jax.Array, where: jax.Array):
    value, total, r = linear(metric, slopes, W, inverse_norm(W), where)
    b = slopes[1]
    S = encode(W, metric.code) if b else jnp.zeros_like(W)
    # w·s = Σ|w|, written so that XLA keeps no |W| for this sum and the norm's maximum.
    length = jnp.sum(jnp.maximum(W, -W), axis=1) if b else 0.0
    along = r * (product(W, total) - b * length)
    # r·along first: r² is out of range for very short vectors.
    gradient = r[:, None] * (total[None, :] - b * S - (r * along)[:, None] * W)
    return value, gradient


class Linear(NamedTuple):
    """What the pairs of a form affine in c and h add up to.

    The cotangent of u_i is total − b s_i, less a multiple of u_i that the pull to w_i removes.
    """

    value: jax.Array
    total: jax.Array
    r: jax.Array  # u_i = r_i w_i, 0 for rows that take no part


def linear(
    metric: Metric,
    slopes: tuple[float, float],
    W: jax.Array,
    r: jax.Array,
    where: jax.Array,
) -> Linear:
    """Σ_{i<j} a u_i·u_j + b s_i·s_j of rows with inverse norms r, and what its gradient needs."""
    a, b = slopes
    where &= jnp.sum(where) > 1  # one row is no pair: exactly 0, without a rounding error
    r = jnp.where(where, r, 0)
    sum_u, num_u = product(r, W), jnp.sum(r > 0)
    sum_s, num_s = _sum_of_codes(metric, W, where) if b else (jnp.zeros_like(sum_u), 0.0)
    value = a * (product(sum_u, sum_u) - num_u) + b * (product(sum_s, sum_s) - num_s)
    return Linear(value / 2, a * sum_u + b * sum_s, r)


def _sum_of_codes(metric: Metric, W: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ s, (d,), and Σ‖s‖², a block at a time: a sum over columns would write all codes first."""

    def step(sums, start, own):
        rows, present = (lax.dynamic_slice_in_dim(X, start, own.shape[0]) for X in (W, where))
        present &= own
        S = jnp.where(present[:, None], encode(rows, metric.code), 0)
        binary = metric.code == "binary"
        squares = W.shape[1] * jnp.sum(present, dtype=W.dtype) if binary else jnp.sum(S * S)
        return sums[0] + jnp.sum(S, axis=0), sums[1] + squares

    zeros = jnp.zeros(W.shape[1], W.dtype), jnp.zeros((), W.dtype)
    return over_blocks(step, zeros, W.shape[0], CODES_BLOCK)


_closed_sum.defvjp(_closed_fwd, scale_gradient)

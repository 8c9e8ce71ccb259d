"""Scalar products of binary codes, on CPU counted on packed bits, which is as exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["code_products"]

WORD = 32  # bits
WORDS = 16  # that one pass over the counts takes in; fewer are not worth a pass
# Fewer rows or shorter codes are multiplied as fast.
MIN_ROWS = 128
MIN_LENGTH = 1024


@jax.custom_jvp
def code_products(S: jax.Array, T: jax.Array) -> jax.Array:
    """S Tᵀ of codes −1 and +1; for many long codes a third of a matrix product's time on CPU.

        s·t = d − 2 |{k : s[k] ≠ t[k]}|

    Args:
      S: (n, d); a row of NaN gives NaN.
      T: (m, d).

    Returns:
      (n, m), equal to the matrix product in every bit, which is what other devices compute.

    >>> code_products(jnp.array([[1.0, -1.0, 1.0]]), jnp.array([[1.0, 1.0, 1.0]])).tolist()
    [[1.0]]

    Reference: DH²L, Eq. (7).
    """
    if min(len(S), len(T)) < MIN_ROWS or S.shape[1] < MIN_LENGTH:
        return _multiplied(S, T)
    return lax.platform_dependent(S, T, cpu=_counted, default=_multiplied)


@code_products.defjvp
def _code_products_jvp(primals, tangents):
    (S, T), (dS, dT) = primals, tangents
    return code_products(S, T), _multiplied(dS, T) + _multiplied(S, dT)


def _multiplied(S: jax.Array, T: jax.Array) -> jax.Array:
    return jnp.dot(S, T.T, precision=lax.Precision.HIGHEST)


def _counted(S: jax.Array, T: jax.Array) -> jax.Array:
    a, b = _packed(S), _packed(T)

    def step(i: jax.Array, differing: jax.Array) -> jax.Array:
        for left, right in zip(a[i], b[i], strict=True):
            differing += lax.population_count(left[:, None] ^ right[None, :]).astype(jnp.int32)
        return differing

    differing = lax.fori_loop(0, len(a), step, jnp.zeros((len(S), len(T)), jnp.int32))
    nan = 0 * (S[:, :1] + T[None, :, 0])  # bits know no NaN
    return (S.shape[1] - 2 * differing).astype(S.dtype) + nan


def _packed(S: jax.Array) -> jax.Array:
    """(passes, WORDS, n): bits that say where codes are −1, and 0 beyond their end."""
    n, d = S.shape
    passes = -(-d // (WORD * WORDS))
    negative = jnp.pad(S < 0, ((0, 0), (0, passes * WORDS * WORD - d)))
    bits = negative.reshape(n, passes, WORDS, WORD).astype(jnp.uint32)
    place = lax.broadcasted_iota(jnp.uint32, bits.shape, 3)
    words = jnp.sum(bits << place, axis=3, dtype=jnp.uint32)
    return words.transpose(1, 2, 0)

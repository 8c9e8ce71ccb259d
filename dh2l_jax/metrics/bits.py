"""Products with codes: exact in one pass of bfloat16, and on CPU counted on packed bits.

Idea. Codes are −1, 0 and +1, which bfloat16 holds, and a sum of them stays an integer that float32
holds below 2²⁴: one pass of an accelerator's matrix unit is exact, where float32 takes six (TPU) or
leaves that unit (GPU). Other numbers times codes take three passes, a number being three bfloat16.
Figure. Errors of three passes: 5e-8 of the largest entry, those of float32 1e-6.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["code_products", "times_codes"]

WORD = 32  # bits
WORDS = 16  # that one pass over the counts takes in; fewer are not worth a pass
# Fewer rows or shorter codes are multiplied as fast.
MIN_ROWS = 128
MIN_LENGTH = 1024
MAX_LENGTH = 2**24  # up to which float32 holds every integer
PIECES = 3  # of 8 bits each, which are all 24 of a float32
# Multiply-adds from which three quick passes save more than a GPU's launch that takes them apart.
WORK = 2**27


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def code_products(S: jax.Array, T: jax.Array, code: str = "binary") -> jax.Array:
    """S Tᵀ of codes −1 and +1; for many long codes a third of a matrix product's time on CPU.

        s·t = d − 2 |{k : s[k] ≠ t[k]}|

    Args:
      S: (n, d); a row of NaN gives NaN.
      T: (m, d).
      code: "binary", or "ternary" for codes that have 0 too, which are not counted.

    Returns:
      (n, m), equal to the matrix product in every bit.

    >>> code_products(jnp.array([[1.0, -1.0, 1.0]]), jnp.array([[1.0, 1.0, 1.0]])).tolist()
    [[1.0]]

    Reference: DH²L, Eq. (7).
    """
    few = min(len(S), len(T)) < MIN_ROWS or S.shape[1] < MIN_LENGTH
    on_cpu = _multiplied if few or code != "binary" else _counted
    return lax.platform_dependent(S, T, cpu=on_cpu, default=_in_one_pass)


@code_products.defjvp
def _code_products_jvp(code, primals, tangents):
    (S, T), (dS, dT) = primals, tangents
    return code_products(S, T, code), _multiplied(dS, T) + _multiplied(S, dT)


@jax.custom_jvp
def times_codes(x: jax.Array, S: jax.Array) -> jax.Array:
    """x S for any x, (m, n), and codes S, (n, d), as exact as float32 or more.

    >>> times_codes(jnp.array([[0.1, 0.2]]), jnp.array([[1.0], [-1.0]])).tolist()
    [[-0.10000000149011612]]
    """
    if x.dtype != jnp.float32 or len(x) * S.size < WORK:
        return _product(x, S)
    return lax.platform_dependent(x, S, cpu=_product, default=_in_pieces)


@times_codes.defjvp
def _times_codes_jvp(primals, tangents):
    (x, S), (dx, dS) = primals, tangents
    return times_codes(x, S), _product(dx, S) + _product(x, dS)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _multiplied(S: jax.Array, T: jax.Array) -> jax.Array:
    return _product(S, T.T)


def _in_one_pass(S: jax.Array, T: jax.Array) -> jax.Array:
    if S.shape[1] > MAX_LENGTH:
        return _multiplied(S, T)
    return _one_pass(S, T.T).astype(S.dtype)


def _in_pieces(x: jax.Array, S: jax.Array) -> jax.Array:
    pieces = []
    for _ in range(PIECES):
        # A conversion and back would be taken for the number itself by XLA.
        pieces.append(lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x -= pieces[-1]
    high, middle, low = jnp.split(_one_pass(jnp.concatenate(pieces), S), PIECES)
    return high + (middle + low)


def _one_pass(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b of matrices that bfloat16 holds, summed in float32."""
    return jnp.dot(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


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

"""Similarities and angles of two vectors: c, h, θ and θ_h, and the codes that h compares."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, unknown_name
from dh2l_jax.numerics import (
    binary_sign,
    clip,
    clipped_arccos,
    inverse_norm,
    nonnegative,
    safe_norm,
    safe_normalize,
    snap,
    ternary_sign,
)

__all__ = [
    "angle",
    "check_code",
    "code_angle",
    "code_length",
    "code_similarity",
    "cosine_similarity",
    "encode",
    "exact_angle",
    "inverse_norms",
    "ratio",
    "theta",
    "theta_h",
    "two_vectors",
]

CODES = ("binary", "ternary")


def cosine_similarity(u: ArrayLike, v: ArrayLike) -> jax.Array:
    """c = u·v / (‖u‖‖v‖), in [−1, 1]; 0 if either vector is zero.

    Args:
      u: (d,).
      v: (d,).

    Raises:
      ValueError: u and v are not vectors of one length.

    >>> round(float(cosine_similarity(jnp.array([1.0, 0.0]), jnp.array([2.0, 2.0]))), 4)
    0.7071

    Reference: DH²L, §4.2.
    """
    u, v = two_vectors(u, v)
    c = jnp.dot(safe_normalize(u), safe_normalize(v), precision="highest")
    return clip(c, 1.0, "straight_through")  # rounding may leave 1 + 1e−7


def code_similarity(
    u: ArrayLike, v: ArrayLike, *, code: str = "binary", threshold: float = 0.0
) -> jax.Array:
    """h = D_h(u, v) = (1/d) Σ_k s(u[k]) s(v[k]), in [−1, 1], on u and v as given.

    With a dead zone (threshold > 0) the sum is divided by the norms of both codes instead of d,
    so that h(w, w) = 1.

    Args:
      u: (d,).
      v: (d,).
      code: "binary" or "ternary".
      threshold: dead zone of the ternary code, in units of mean|u|.

    Raises:
      ValueError: shapes differ, unknown code, or a threshold that the code does not take.

    >>> code_similarity(jnp.array([1.0, -2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 3.0, 4.0])).item()
    0.5

    Reference: DH²L, Eq. (7).
    """
    u, v = two_vectors(u, v)
    check_code(code, threshold)
    s, t = encode(u, code, threshold), encode(v, code, threshold)
    return snap(jnp.dot(s, t, precision="highest") / code_length(u.shape[0], threshold))


def angle(u: ArrayLike, v: ArrayLike, *, clamp: str = "hard") -> jax.Array:
    """θ = arccos(clip(c, ±0.99)) / π, the normalised angle of two vectors, in [0, 1].

    Args:
      u: (d,).
      v: (d,).
      clamp: "hard" (no gradient beyond the clip) or "straight_through" (the slope at the clip).

    Raises:
      ValueError: shapes differ or unknown clamp.

    >>> round(float(angle(jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0]))), 6)
    0.5

    Reference: DH²L, §4.2.
    """
    return theta(cosine_similarity(u, v), clamp)


def exact_angle(u: ArrayLike, v: ArrayLike) -> jax.Array:
    """2·atan2(‖û − v̂‖, ‖û + v̂‖) / π, in [0, 1]: the angle for measuring, 0 for duplicates.

    `angle` has the clip of training, below which no pair is told apart: 0.045 (8.11°).

    Args:
      u: (d,).
      v: (d,).

    Raises:
      ValueError: u and v are not vectors of one length.

    >>> exact_angle(jnp.array([1.0, 3.0]), jnp.array([2.0, 6.0])).item()
    0.0

    Reference: Kahan, "How futile are mindless assessments of roundoff", 2006, §12.
    """
    u, v = map(safe_normalize, two_vectors(u, v))
    return 2 / jnp.pi * jnp.arctan2(safe_norm(u - v), safe_norm(u + v))


def code_angle(
    u: ArrayLike,
    v: ArrayLike,
    *,
    code: str = "binary",
    threshold: float = 0.0,
    prime: bool = False,
    clamp: str = "hard",
) -> jax.Array:
    """θ_h = (1 − h)/2, or with `prime` arccos(clip(h, ±0.99)) / π, in [0, 1].

    Args:
      u: (d,).
      v: (d,).
      code: "binary" or "ternary".
      threshold: dead zone of the ternary code.
      prime: the arccos form of the footnote.
      clamp: "hard" or "straight_through", for the arccos form.

    Raises:
      ValueError: shapes differ, unknown code or clamp.

    >>> code_angle(jnp.array([1.0, -1.0]), jnp.array([1.0, 1.0])).item()
    0.5

    Reference: DH²L, Eq. (7), footnote 3.
    """
    return theta_h(code_similarity(u, v, code=code, threshold=threshold), prime, clamp)


def encode(u: jax.Array, code: str = "binary", threshold: float = 0.0) -> jax.Array:
    """The code of each vector: (..., d) → (..., d); unit norm if there is a dead zone.

    h of two vectors is the dot product of their codes over `code_length`.
    """
    if code == "binary":
        return binary_sign(u)
    s = ternary_sign(u, threshold)
    return safe_normalize(s) if threshold > 0 else s


def code_length(d: int, threshold: float) -> int:
    """What the dot product of two codes is divided by: d, or 1 for codes of unit norm."""
    return 1 if threshold > 0 else max(d, 1)


def theta(c: jax.Array, clamp: str = "hard") -> jax.Array:
    """θ = arccos(clip(c, ±0.99)) / π, elementwise on cosine similarities."""
    return clipped_arccos(c, clamp=clamp) / jnp.pi


def theta_h(h: jax.Array, prime: bool = False, clamp: str = "hard") -> jax.Array:
    """θ_h = (1 − h)/2 or, primed, arccos(clip(h, ±0.99)) / π, elementwise."""
    return theta(h, clamp) if prime else (1 - h) / 2


def inverse_norms(W: jax.Array, epsilon: float) -> jax.Array:
    """1/√(‖w‖² + ε) over the last axis; 0 for a zero vector.

    >>> round(float(inverse_norms(jnp.array([0.6, 0.8]), 0.0)), 6)
    1.0
    """
    if not epsilon:
        return inverse_norm(W)
    root = epsilon**0.5  # entries far below it do not count
    scale = lax.stop_gradient(jnp.max(jnp.abs(W), axis=-1, initial=root))
    square = jnp.sum((W / scale[..., None]) ** 2, axis=-1) + (root / scale) ** 2
    return jnp.where(jnp.any(W != 0, axis=-1), 1 / (jnp.sqrt(square) * scale), 0)


def two_vectors(u: ArrayLike, v: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both as at least float32 of one shape (d,), or a ValueError with both shapes."""
    u, v = as_float(u), as_float(v)
    if u.ndim != 1 or u.shape != v.shape:
        raise ValueError(f"expected two vectors of one length (d,), found {u.shape} and {v.shape}")
    return u, v


def check_code(code: str, threshold: float) -> None:
    """ValueError unless the code exists and takes the threshold."""
    if code not in CODES:
        raise ValueError(unknown_name("code", code, CODES))
    if not threshold >= 0:
        raise ValueError(f"threshold must be ≥ 0, found {threshold}")
    if threshold and code == "binary":
        raise ValueError(f"the binary code has no dead zone, found threshold = {threshold}")


def _shares(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a / (a + b) and b / (a + b) for a, b ≥ 0, with 0/0 = 0."""
    total = a + b
    positive = total > 0
    inverse = 1 / jnp.where(positive, total, 1)
    return jnp.where(positive, a * inverse, 0), jnp.where(positive, b * inverse, 0)


@jax.custom_jvp
def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """ab / (a + b) for a, b ≥ 0, with 0/0 = 0 and finite derivatives."""
    a, b = nonnegative(a), nonnegative(b)
    return _shares(a, b)[0] * b


@ratio.defjvp
def _ratio_jvp(primals, tangents):
    # The squares of the shares: autodiff of the quotient takes several times as long.
    a, b = (nonnegative(x) for x in primals)
    of_a, of_b = _shares(a, b)
    da, db = tangents
    return of_a * b, of_b * of_b * da + of_a * of_a * db

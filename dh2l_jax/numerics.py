"""Signs, norms and angles with derivatives that stay finite."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, unknown_name

__all__ = [
    "CLAMPS",
    "CLIP",
    "angle_of_gap",
    "binary_sign",
    "clip",
    "clipped_arccos",
    "cos_pi",
    "inverse_norm",
    "nonnegative",
    "safe_arccos",
    "safe_norm",
    "safe_normalize",
    "safe_sqrt",
    "sign_through",
    "sin_pi",
    "snap",
    "straight_through",
    "ternary_sign",
]

CLIP = 0.99  # similarities beyond ±0.99 have an arccos too steep to train on
CLAMPS = ("hard", "straight_through")


@jax.custom_vjp
def straight_through(x: jax.Array, code: jax.Array) -> jax.Array:
    """The saturated straight-through estimator: the value of `code`, the gradient of a clipped x.

        forward  code,    backward  ∂/∂x := 1 where |x| ≤ 1, else 0;   nothing flows to `code`

    Args:
      x: any shape.
      code: same shape and dtype as x.

    Reference: DH²L, Eq. (7) and §4.2.
    """
    del x
    return code


def _straight_through_fwd(x: jax.Array, code: jax.Array) -> tuple[jax.Array, jax.Array]:
    return code, jnp.abs(x) <= 1


def _straight_through_bwd(passes: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(passes, g, 0), jnp.zeros_like(g)


straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


@jax.custom_jvp
def sign_through(x: jax.Array, code: jax.Array) -> jax.Array:
    """`straight_through` with every derivative: slope 1 where |x| ≤ 1, second derivative 0."""
    del x
    return code


@sign_through.defjvp
def sign_through_jvp(primals, tangents):
    x, code = primals
    return sign_through(x, code), jnp.where(jnp.abs(x) <= 1, tangents[0], 0)


def binary_sign(x: ArrayLike) -> jax.Array:
    """Sign in {−1, +1} with sign(0) = +1 and a saturated straight-through gradient.

    Args:
      x: any shape.

    Returns:
      Same shape, at least float32; NaN stays NaN.

    >>> binary_sign(jnp.array([-2.0, -0.0, 3.0])).tolist()
    [-1.0, 1.0, 1.0]

    Reference: DH²L, Eq. (7).
    """
    x = as_float(x)
    return sign_through(x, jnp.where(x >= 0, 1, jnp.where(x < 0, -1, x)).astype(x.dtype))


def ternary_sign(x: ArrayLike, threshold: float = 0.0) -> jax.Array:
    """Sign in {−1, 0, +1}, 0 where |x| ≤ threshold·mean|x|, with the same gradient.

    Args:
      x: (..., d); the mean runs over the last axis.
      threshold: size of the dead zone, ≥ 0; 0.7 is the usual value, 0 keeps only exact zeros.

    Returns:
      Same shape, at least float32; NaN stays NaN.

    Raises:
      ValueError: the threshold is negative.

    >>> ternary_sign(jnp.array([-2.0, 0.1, 3.0]), 0.7).tolist()
    [-1.0, 0.0, 1.0]

    Reference: DH²L, Eq. (7), Table 1 (ter).
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be ≥ 0, found {threshold}")
    x = as_float(x)
    size = jnp.abs(x)
    dead = threshold * jnp.mean(size, axis=-1 if x.ndim else None, keepdims=True)
    return sign_through(x, jnp.where(size <= dead, 0, jnp.sign(x)).astype(x.dtype))


def _scale(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(largest magnitude or 1, is the vector not zero), both with `axis` kept.

    Dividing by the largest magnitude first keeps squares of 1e±30 in range. Its gradient is
    stopped: what is computed from x/scale does not depend on the scale.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    nonzero = ~(largest < jnp.finfo(x.dtype).tiny)  # written so that NaN counts as nonzero
    return jnp.where(nonzero, largest, 1), nonzero


def safe_normalize(x: ArrayLike, axis: int = -1) -> jax.Array:
    """u = x / ‖x‖; a zero vector gives zeros and a zero gradient. No overflow, no underflow.

    Args:
      x: (..., d).
      axis: the axis of the vectors.

    Returns:
      Same shape, at least float32, unit norm along `axis`.

    >>> safe_normalize(jnp.array([[3e30, 4e30], [0.0, 0.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]

    Reference: DH²L, §3.1 (projection onto the unit sphere).
    """
    return _unit(as_float(x), axis)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _unit(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(x/‖x‖, 1/‖x‖), both 0 for a zero vector."""
    scale, nonzero = _scale(x, axis)
    y = x / scale
    square = jnp.sum(y * y, axis=axis, keepdims=True)
    inverse = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, square, 1)), 0)
    return y * inverse, inverse / scale


@_unit.defjvp
def _unit_jvp(axis, primals, tangents):
    # (I − u uᵀ) dx / ‖x‖ in terms of what the forward pass has: autodiff would redo the scaling.
    (x,), (dx,) = primals, tangents
    u, inverse = _unit(x, axis)
    along = jnp.sum(u * dx, axis=axis, keepdims=True)
    # inverse² alone would overflow for tiny vectors.
    return (u, inverse), (inverse * (dx - u * along), -inverse * (inverse * along))


def inverse_norm(x: jax.Array) -> jax.Array:
    """1/‖x‖ over the last axis; 0 for a zero vector.

    Neither squares overflow nor underflow; NaN where the inverse does: beyond 8e37 in float32.
    """
    r, (_, nonzero) = _unit(x, -1)[1], _scale(x, -1)
    return jnp.where(nonzero & (r == 0), jnp.nan, r)[..., 0]


def safe_norm(x: ArrayLike, axis: int = -1) -> jax.Array:
    """‖x‖ with a zero gradient at x = 0, without overflow or underflow.

    Args:
      x: (..., d).
      axis: the axis of the vectors, which is removed.

    >>> round(float(safe_norm(jnp.array([3e30, 4e30]))) / 1e30, 5)
    5.0
    """
    x = as_float(x)
    scale, nonzero = _scale(x, axis)
    y = x / scale
    square = jnp.sum(y * y, axis=axis, keepdims=True)
    norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)
    return jnp.squeeze(scale * norm, axis)


def safe_sqrt(x: ArrayLike) -> jax.Array:
    """√max(x, 0) with a zero derivative for x ≤ 0.

    >>> safe_sqrt(jnp.array([-1e-8, 4.0])).tolist()
    [0.0, 2.0]
    """
    x = as_float(x)
    positive = ~(x <= 0)  # written so that NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def clip(x: jax.Array, limit: float, clamp: str = "hard") -> jax.Array:
    """Clip x to ±limit; beyond the limit its derivative is 0 ("hard") or 1 ("straight_through").

    Raises:
      ValueError: unknown clamp.
    """
    if clamp not in CLAMPS:
        raise ValueError(unknown_name("clamp", clamp, CLAMPS))
    return jnp.clip(x, -limit, limit)


@clip.defjvp
def _clip_jvp(limit, clamp, primals, tangents):
    (x,), (dx,) = primals, tangents
    passes = (jnp.abs(x) <= limit) if clamp == "hard" else jnp.ones_like(x, bool)
    return clip(x, limit, clamp), jnp.where(passes, dx, 0)


@jax.custom_jvp
def snap(h: jax.Array) -> jax.Array:
    """A code similarity with rounding removed at ±1; the gradient passes unchanged.

    XLA turns a division by d into a product with its rounded reciprocal, so equal codes may end a
    rounding error from 1, where square roots and ratios of 1 − h have no meaning. The next value
    is 1 − 2/d.
    """
    return jnp.where(jnp.abs(h) > 1 - 2 * jnp.finfo(h.dtype).eps, jnp.sign(h), h)


@snap.defjvp
def _snap_jvp(primals, tangents):
    return snap(*primals), tangents[0]


@jax.custom_jvp
def nonnegative(x: jax.Array) -> jax.Array:
    """max(x, 0) for an x ≥ 0 that rounding left at −1e−8; the gradient passes unchanged."""
    return jnp.maximum(x, 0)


@nonnegative.defjvp
def _nonnegative_jvp(primals, tangents):
    return nonnegative(*primals), tangents[0]


# Polynomials of s² for |s| ≤ 1/2, fitted at Chebyshev nodes, with errors below 5e−9. CPUs compute
# XLA's own arccos, sine and cosine of larger angles one number at a time: in a sum over all pairs
# they would take more time than the matrix products.
_ARCSIN = (1.0, 0.16666786, 0.074945346, 0.04553901, 0.023909364, 0.0425536)  # arcsin(s)/s
_SIN_PI = (3.1415927, -5.1677128, 2.5501633, -0.5992522, 0.082050402, -0.0070283864)  # sin(πs)/s


def _odd(s: jax.Array, square: jax.Array, coefficients: tuple[float, ...]) -> jax.Array:
    powers = jnp.asarray(coefficients[::-1], s.dtype)
    return s * jnp.polyval(powers, square, unroll=len(coefficients))


def _arccos(x: jax.Array, gap: jax.Array) -> jax.Array:
    """arccos x with gap = 1 − |x|, in float32 from square roots, to the library's accuracy."""
    if x.dtype != jnp.float32:
        angle = 2 * jnp.arcsin(jnp.sqrt(gap / 2))
        return jnp.where(x < 0, jnp.pi - angle, angle)
    size = jnp.abs(x)
    steep = size > 0.5  # there arccos |x| = 2 arcsin √(gap/2)
    square = jnp.where(steep, gap / 2, size * size)
    s = jnp.where(steep, jnp.sqrt(jnp.where(steep, square, 1)), size)
    arcsin = _odd(s, square, _ARCSIN)
    angle = jnp.where(steep, 2 * arcsin, jnp.pi / 2 - arcsin)
    return jnp.where(x < 0, jnp.pi - angle, angle)


@jax.custom_jvp
def safe_arccos(x: jax.Array) -> jax.Array:
    """arccos x in radians for |x| ≤ 1; its derivative −1/√(1 − x²) is taken as 0 at ±1."""
    return _arccos(x, 1 - jnp.abs(x))


@safe_arccos.defjvp
def _safe_arccos_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    square = 1 - x * x
    inside = square > 0
    slope = jnp.where(inside, -lax.rsqrt(jnp.where(inside, square, 1)), 0)
    return safe_arccos(x), slope * dx


@jax.custom_jvp
def angle_of_gap(t: jax.Array) -> jax.Array:
    """θ = arccos(1 − t) in radians for 0 ≤ t ≤ 2, exact near t = 0 where 1 − t has no digits.

    Its slope 1/√(t (2 − t)) is taken as 0 at both ends.
    """
    return _arccos(1 - t, jnp.where(t < 1, t, 2 - t))


@angle_of_gap.defjvp
def _angle_of_gap_jvp(primals, tangents):
    (t,), (dt,) = primals, tangents
    square = t * (2 - t)
    inside = square > 0
    slope = jnp.where(inside, lax.rsqrt(jnp.where(inside, square, 1)), 0)
    return angle_of_gap(t), slope * dt


@jax.custom_jvp
def sin_pi(x: jax.Array) -> jax.Array:
    """sin(πx), to 2e−7 in float32.

    >>> sin_pi(jnp.array([0.5, -1.0, 1.5])).tolist()
    [1.0, 0.0, -1.0]
    """
    if x.dtype != jnp.float32:
        return jnp.sin(jnp.pi * x)
    turn = x - 2 * jnp.round(x / 2)  # in [−1, 1]
    s = jnp.where(jnp.abs(turn) > 0.5, jnp.sign(turn) - turn, turn)
    return jnp.clip(_odd(s, s * s, _SIN_PI), -1, 1)


@sin_pi.defjvp
def _sin_pi_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return sin_pi(x), jnp.pi * cos_pi(x) * dx


@jax.custom_jvp
def cos_pi(x: jax.Array) -> jax.Array:
    """cos(πx), to 4e−7 in float32.

    >>> cos_pi(jnp.array([0.0, 0.5, 1.0])).tolist()
    [1.0, 0.0, -1.0]
    """
    return sin_pi(x + 0.5)


@cos_pi.defjvp
def _cos_pi_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return cos_pi(x), -jnp.pi * sin_pi(x) * dx


def clipped_arccos(x: ArrayLike, limit: float = CLIP, clamp: str = "hard") -> jax.Array:
    """arccos(clip(x, ±limit)) in radians, with a finite derivative everywhere.

        d/dx = −1/√(1 − x²) for |x| ≤ limit; beyond it 0 ("hard") or the slope at the
        limit ("straight_through")

    Args:
      x: any shape, similarities in [−1, 1].
      limit: in (0, 1].
      clamp: "hard" or "straight_through".

    Raises:
      ValueError: unknown clamp.

    >>> round(float(clipped_arccos(1.0)), 4)
    0.1415

    Reference: DH²L, §4.2.
    """
    return safe_arccos(clip(as_float(x), limit, clamp))

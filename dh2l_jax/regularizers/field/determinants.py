"""Volumes: logarithms of determinants of kernels between vectors.

Idea. log det(K + rI) by Cholesky, on the d×d side where there are more rows than columns; value and
gradient are one unit, since K⁻¹ gives both.
Precision. The eigenvalue that a duplicate adds to K is 0, and float32 leaves 1e−7 of noise beside a
ridge of 1e−6. So where a pivot is less than a tenth of its diagonal entry, similarities and factor
are computed again in float64, from the rows as they were given: rows that differ by rounding alone
then count as duplicates. Diverse vectors have no such pivot and cost one pass in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics.blocks import Cotangent, product, pull_to_rows
from dh2l_jax.metrics.pairs import with_gradient
from dh2l_jax.numerics import inverse_norm
from dh2l_jax.regularizers.field.spectra import exactly

__all__ = ["dpp", "log_det", "mgd"]

RIDGE = 1e-6
PIVOT = 0.1  # of the diagonal entry; float32 then knows its logarithm to 1e−6
SMALL = 128  # rows or columns; float64 then costs nothing


def mgd(
    W: ArrayLike,
    where: ArrayLike | None = None,
    *,
    half_space: bool = False,
    epsilon: float = 1.0,
    ridge: float = RIDGE,
) -> jax.Array:
    """Minus the logarithm of the Gram determinant of a Gaussian kernel on the sphere.

        −log det(K + rI),   K_ij = exp(−ε ‖û_i − û_j‖²)

    Orthonormal vectors are near its minimum; a duplicate costs −log r.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      half_space: of W ∪ −W, from two n×n determinants.
      epsilon: ε, of the kernel.
      ridge: r > 0, in each determinant.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, the ridge is not positive.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(mgd(A)), 4), round(float(mgd(A, half_space=True)), 4)
    (2.0764, 4.3742)

    Reference: Liu et al., Learning with hyperspherical uniformity, AISTATS 2021.
    """
    W, where = rows(W, where)
    kernels = (_Cosh(epsilon), _Sinh(epsilon)) if half_space else (_Gaussian(epsilon),)
    return -with_gradient(_log_det, _Kernels(kernels, _positive(ridge)), W, where)


def dpp(W: ArrayLike, where: ArrayLike | None = None, *, ridge: float = RIDGE) -> jax.Array:
    """Minus the log-volume of the unit vectors, the prior of a determinantal point process.

        −log det(C + rI),   C_ij = û_i·û_j

    More vectors than dimensions cost −log r each: only the rest of the value is theirs to change.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      ridge: r > 0.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, the ridge is not positive.
      TypeError: `where` is not boolean.

    >>> round(float(dpp(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4]]))), 4)
    0.0941

    Reference: Kwok & Adams, Priors for diversity in generative latent variable models, NIPS 2012.
    """
    W, where = rows(W, where)
    kernels = _Kernels((_identity,), _positive(ridge))
    return -with_gradient(_log_det, kernels, W, where)


def log_det(W: ArrayLike, where: ArrayLike | None = None, *, ridge: float = 1e-9) -> jax.Array:
    """The log-determinant divergence of the raw Gram matrix from the identity.

        tr G − log det(G + rI) − n,   G = W Wᵀ

    0 for orthonormal rows; it looks at lengths too. The ridge changes no digit of rows that are
    independent, and makes it finite for others, as for more rows than columns.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      ridge: r > 0.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, the ridge is not positive.
      TypeError: `where` is not boolean.

    >>> round(float(log_det(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4]]))), 4)
    29.0685

    Reference: Xie et al., Orthogonality-promoting distance metric learning, ICML 2018.
    """
    W, where = rows(W, where)
    kernels = _Kernels((_identity,), _positive(ridge), unit=False)
    trace = jnp.sum(W * W) - jnp.sum(where, dtype=W.dtype)
    return trace - with_gradient(_log_det, kernels, W, where)


def _positive(ridge: float) -> float:
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, found {ridge}")
    return ridge


# Kernels, by the cosine of two unit vectors.


def _identity(c: jax.Array) -> jax.Array:
    return c


@dataclasses.dataclass(frozen=True)
class _Gaussian:
    epsilon: float

    def __call__(self, c: jax.Array) -> jax.Array:
        return jnp.exp(-2 * self.epsilon * (1 - c))


@dataclasses.dataclass(frozen=True)
class _Cosh(_Gaussian):
    """Of W ∪ −W the kernel is [[X, Y], [Y, X]], with the eigenvalues of X + Y and of X − Y."""

    def __call__(self, c: jax.Array) -> jax.Array:
        return super().__call__(c) + super().__call__(-c)


@dataclasses.dataclass(frozen=True)
class _Sinh(_Gaussian):
    def __call__(self, c: jax.Array) -> jax.Array:
        return super().__call__(c) - super().__call__(-c)


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Whose determinants are multiplied.

    Attributes:
      of: functions of the similarities, elementwise.
      ridge: r, of each.
      unit: similarities are those of unit vectors, and a zero row's with itself is 1.
    """

    of: tuple[Callable[[jax.Array], jax.Array], ...]
    ridge: float
    unit: bool = True

    def on_columns(self, W: jax.Array) -> bool:
        """Whether the d×d matrix is the smaller one with the same determinant, but powers of r."""
        return self.of == (_identity,) and W.shape[0] > W.shape[1]


# The determinants.


class _Parts(NamedTuple):
    """What the determinants of W are computed from."""

    r: jax.Array  # the inverse norms
    X: jax.Array  # the unit rows, or those as given
    G: jax.Array  # X Xᵀ, or Xᵀ X
    ridge: jax.Array  # r, or what float64 needs to be sure of a factor
    matrices: list[jax.Array]  # K + rI of each kernel


def _log_det(kernels: _Kernels, W: jax.Array, where: jax.Array) -> Cotangent:
    """Σ log det(K + rI) over the kernels, and its gradient."""
    if not W.size:
        return jnp.zeros((), W.dtype), jnp.zeros_like(W)
    if min(W.shape) <= SMALL or W.dtype == jnp.float64:
        return exactly(_of_rows, kernels, W, where)
    parts = _parts(kernels, W, where)
    factors = _factors(parts)
    pivots = [jnp.diag(L) ** 2 / jnp.diag(K) for K, L in zip(parts.matrices, factors, strict=True)]
    return lax.cond(
        jnp.min(jnp.stack(pivots)) > PIVOT,  # which the NaN of a factor that failed is not
        functools.partial(_of_factors, kernels),
        lambda W, where, *_: exactly(_of_rows, kernels, W, where),
        *(W, where, parts, factors),
    )


def _of_rows(kernels: _Kernels, W: jax.Array, where: jax.Array) -> Cotangent:
    parts = _parts(kernels, W, where)
    return _of_factors(kernels, W, where, parts, _factors(parts))


def _parts(kernels: _Kernels, W: jax.Array, where: jax.Array) -> _Parts:
    r = inverse_norm(W) if kernels.unit else jnp.ones_like(where, W.dtype)
    X = r[:, None] * W
    on_columns = kernels.on_columns(W)
    G = product(X.T, X) if on_columns else product(X, X.T)
    eye = jnp.eye(len(G), dtype=G.dtype)
    if kernels.unit and not on_columns:
        G = jnp.where(eye == 1, 1, G)
    rounding = len(G) * jnp.finfo(jnp.float64).eps * lax.stop_gradient(jnp.max(jnp.diag(G)))
    ridge = jnp.maximum(kernels.ridge, rounding)
    if on_columns:
        return _Parts(r, X, G, ridge, [G + ridge * eye])
    # Rows that take no part are rows of the identity.
    matrices = [jnp.where(_pairs(where), K(G) + ridge * eye, eye) for K in kernels.of]
    return _Parts(r, X, G, ridge, matrices)


def _factors(parts: _Parts) -> list[jax.Array]:
    return [lax.linalg.cholesky(lax.stop_gradient(K)) for K in parts.matrices]


def _pairs(where: jax.Array) -> jax.Array:
    return where[:, None] & where[None, :]


def _of_factors(
    kernels: _Kernels, W: jax.Array, where: jax.Array, parts: _Parts, factors: list[jax.Array]
) -> Cotangent:
    r, X, G, ridge, matrices = parts
    found = [_log_det_and_inverse(K, L) for K, L in zip(matrices, factors, strict=True)]
    value = sum((log_det for log_det, _ in found), jnp.zeros((), W.dtype))
    if kernels.on_columns(W):
        value += (jnp.sum(where) - W.shape[1]) * jnp.log(ridge)
        if kernels.unit:  # a zero row's similarity with itself is 1
            value += jnp.sum(where & (r == 0)) * (jnp.log1p(ridge) - jnp.log(ridge))
        dX = 2 * product(X, found[0][1])
    else:
        S = jnp.zeros_like(G)
        for K, (_, inverse) in zip(kernels.of, found, strict=True):
            S += inverse * jax.jvp(K, (G,), (jnp.ones_like(G),))[1]
        dX = 2 * product(jnp.where(_pairs(where), S, 0), X)
    return value, pull_to_rows(W, r, dX) if kernels.unit else dX


@jax.custom_jvp
def _log_det_and_inverse(K: jax.Array, L: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log det K and K⁻¹ of K = L Lᵀ; derivatives are those by K."""
    half = lax.linalg.triangular_solve(
        L, jnp.eye(len(K), dtype=K.dtype), left_side=True, lower=True
    )
    return 2 * jnp.sum(jnp.log(jnp.diag(L))), product(half.T, half)


@_log_det_and_inverse.defjvp
def _log_det_and_inverse_jvp(primals, tangents):
    (K, L), (dK, _) = primals, tangents
    log_det, inverse = _log_det_and_inverse(K, L)
    change = product(product(inverse, dK), inverse)
    return (log_det, inverse), (jnp.sum(inverse * dK), -change)

"""Penalties of a batch of features, a sample a row: covariances of columns, and ranks of classes.

Idea. What decorrelates columns needs ‖XᵀX‖ off its diagonal, from the smaller of XᵀX and XXᵀ. The
first sample is taken off before the mean is, so that a column without variance is exactly 0.
On activations the energies of weights are the same functions: `uniformity` and `koleo` take
features as rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import integers, rows
from dh2l_jax.metrics.blocks import Cotangent, product
from dh2l_jax.metrics.pairs import with_gradient
from dh2l_jax.numerics import safe_normalize
from dh2l_jax.regularizers.field.spectra import exactly, spectral_sum

__all__ = ["barlow", "decov", "ole", "vicreg_covariance", "vicreg_variance"]


def decov(X: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """DeCov: squares of the covariances between columns.

        ½ Σ_{k≠l} Σ_kl²,   Σ the covariance of the columns with 1/b

    It decorrelates columns; for the filters of a weight matrix give it the transpose.

    Args:
      X: (b, k), a sample a row.
      where: (b,) bool, True for the samples that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: X is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> decov(jnp.array([[1.0, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]])).item()
    2.3125

    Reference: Cogswell et al., Reducing overfitting in deep networks by decorrelating
    representations, ICLR 2016.
    """
    X, count = _centred(X, where)
    return with_gradient(_off_diagonal, None, X) / (2 * jnp.maximum(count, 1) ** 2)


def vicreg_covariance(X: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """The covariance term of VICReg.

        Σ_{k≠l} Σ_kl² / k,   Σ the covariance of the k columns with 1/(b − 1)

    Args:
      X: (b, k), a sample a row.
      where: (b,) bool, True for the samples that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32; 0 for one sample.

    Raises:
      ValueError: X is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> X = jnp.array([[1.0, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]])
    >>> round(float(vicreg_covariance(X)), 4)
    2.7407

    Reference: Bardes, Ponce & LeCun, VICReg, ICLR 2022.
    """
    X, count = _centred(X, where)
    scale = max(X.shape[1], 1) * jnp.maximum(count - 1, 1) ** 2
    return with_gradient(_off_diagonal, None, X) / scale


def vicreg_variance(X: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """The variance term of VICReg, for features alone: on weights it raises norms.

        mean_k max(0, 1 − √(var_k + 1e−4)),   var with 1/(b − 1)

    Args:
      X: (b, k), a sample a row.
      where: (b,) bool, True for the samples that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: X is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> X = jnp.array([[1.0, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]])
    >>> round(float(vicreg_variance(X)), 4)
    0.0611

    Reference: Bardes, Ponce & LeCun, VICReg, ICLR 2022.
    """
    X, count = _centred(X, where)
    variance = jnp.sum(X * X, axis=0) / jnp.maximum(count - 1, 1)
    lacking = jnp.maximum(0, 1 - jnp.sqrt(variance + 1e-4))
    return jnp.sum(lacking) / max(X.shape[1], 1)


def barlow(X: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """The half of Barlow Twins that one view has: squares of the correlations between columns.

        Σ_{k≠l} ρ_kl²

    Columns without variance count 0.

    Args:
      X: (b, k), a sample a row.
      where: (b,) bool, True for the samples that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: X is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> X = jnp.array([[1.0, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]])
    >>> round(float(barlow(X)), 4)
    2.0

    Reference: Zbontar et al., Barlow Twins, ICML 2021.
    """
    X, _ = _centred(X, where)
    return with_gradient(_off_diagonal, None, safe_normalize(X, axis=0))


def _centred(X: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Samples less their mean, 0 for those that take no part, and how many do."""
    X, where = rows(X, where)
    if not X.size:
        return X, jnp.zeros((), X.dtype)
    # The shift is no constant of the result, which does not depend on it.
    X = jnp.where(where[:, None], X - lax.stop_gradient(X[jnp.argmax(where)])[None, :], 0)
    count = jnp.sum(where, dtype=X.dtype)
    mean = jnp.sum(X, axis=0, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(where[:, None], X - mean, 0), count


def _off_diagonal(_: None, X: jax.Array) -> Cotangent:
    """Σ_{k≠l} (XᵀX)_kl², and its gradient."""
    if X.shape[0] >= X.shape[1]:
        S = product(X.T, X)
        S = jnp.where(jnp.eye(len(S), dtype=bool), 0, S)
        return jnp.sum(S * S), 4 * product(X, S)
    G, squares = product(X, X.T), jnp.sum(X * X, axis=0, keepdims=True)
    return jnp.sum(G * G) - jnp.sum(squares**2), 4 * (product(G, X) - X * squares)


def ole(X: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """OLÉ: classes of low rank in a space of high rank, by nuclear norms.

        (Σ_c max(1, ‖X_c‖_*) − ‖X‖_*) / b,   c the classes of the batch

    0 where classes are orthogonal. Its subgradient is U Vᵀ over singular values beyond 1e−6, which
    are found in float64, so that equal ones and missing rank are no trouble. O(b³).

    Args:
      X: (b, k), a sample a row.
      labels: (b,) integers.
      where: (b,) bool, True for the samples that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: X is not a matrix, `labels` or `where` has another length.
      TypeError: `where` is not boolean, or labels are not integers.

    >>> X = jnp.array([[1.0, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]])
    >>> round(float(ole(X, jnp.array([0, 0, 1, 1]))), 4)
    0.5607

    Reference: Lezama et al., OLÉ: orthogonal low-rank embedding, CVPR 2018.
    """
    X, where = rows(X, where)
    labels = jnp.asarray(labels)
    integers("labels", labels, X.shape[:1], "like the rows")
    same = (labels[:, None] == labels[None, :]) & where[:, None] & where[None, :]
    total = with_gradient(_excess_rank, None, X, same)
    return total / jnp.maximum(jnp.sum(where), 1)


def _excess_rank(_: None, X: jax.Array, same: jax.Array) -> Cotangent:
    if not X.size:
        return jnp.zeros((), X.dtype), jnp.zeros_like(X)
    return exactly(_nuclear_norms, None, X, same)


def _nuclear_norms(_: None, X: jax.Array, same: jax.Array) -> Cotangent:
    """Σ_c max(1, ‖X_c‖_*) − ‖X‖_*, and its gradient.

    The Gram matrix of all classes, 0 between them, has the eigenvalues of each; rows of a function
    of it are rows of the class's.
    """
    G = product(X, X.T)
    blocks = jnp.where(same, G, 0)
    _, slope = spectral_sum(_root, blocks)  # (X_c X_cᵀ)^−½ / 2
    norms = 2 * jnp.sum(jnp.where(same, product(same.astype(X.dtype), blocks * slope), 0), axis=1)
    size = jnp.maximum(jnp.sum(same, axis=1), 1)
    present = jnp.diag(same)
    value = jnp.sum(jnp.where(present, jnp.maximum(norms, 1) / size, 0))
    gradient = 2 * product(jnp.where((norms > 1)[:, None], slope, 0), X)
    if X.shape[0] <= X.shape[1]:
        norm, slope = spectral_sum(_root, G)
        return value - norm, gradient - 2 * product(slope, X)
    norm, slope = spectral_sum(_root, product(X.T, X))
    return value - norm, gradient - 2 * product(X, slope)


def _root(eigenvalue: jax.Array) -> jax.Array:
    """The singular value beyond 1e−6, else 0."""
    kept = eigenvalue > 1e-12
    return jnp.where(kept, jnp.sqrt(jnp.where(kept, eigenvalue, 1)), 0)

"""Penalties of the eigenvalues of a Gram matrix, on its smaller side.

Idea. A sum Σ f(λ) is tr G g(G) for a function g of the matrix, and its gradient is one more such
function times the rows. A derivative of eigenvectors, which fails where eigenvalues are equal, is
nowhere: that of g(G) has divided differences instead, whose limit is g′.
Precision. Eigenvalues that are 0 come out as rounding; their logarithm multiplies the rows' part
along their eigenvectors, which is 0 as well, so the gradient is finite without a ridge.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics.blocks import Cotangent, product
from dh2l_jax.metrics.pairs import with_gradient
from dh2l_jax.numerics import safe_normalize

__all__ = ["matrix_function", "uer", "von_neumann"]


def uer(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Uniform eigenvalue regulariser: how far the spectrum of the raw rows is from flat.

        Σ_k p_k log p_k + log k,   p = eigenvalues of WᵀW over their sum, k = min(n, d)

    0 for tight frames alone; invariant to a common scale. Columns are not centred.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32; 0 if all rows are 0.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(uer(A)), 4)
    0.1992

    Reference: Xie, Singh & Xing, Uncorrelation and evenness, ICML 2017.
    """
    W, where = rows(W, where)
    X = safe_normalize(W.reshape(-1)).reshape(W.shape)  # eigenvalues that add up to 1
    k = jnp.clip(jnp.sum(where), 1, max(W.shape[1], 1)).astype(X.dtype)
    return jnp.where(jnp.any(X != 0), with_gradient(_entropy, None, X) + jnp.log(k), 0)


def von_neumann(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """The von Neumann divergence of the raw Gram matrix from the identity.

        tr(G log G − G + I),   G = W Wᵀ

    0 for orthonormal rows; it looks at lengths too. Finite for any rows, as 0 log 0 is 0.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> A = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> round(float(von_neumann(A)), 3)
    81.208

    Reference: Xie et al., Orthogonality-promoting distance metric learning, ICML 2018.
    """
    W, where = rows(W, where)
    rest = jnp.sum(where, dtype=W.dtype) - jnp.sum(W * W)
    return with_gradient(_entropy, None, W) + rest


def _entropy(_: None, X: jax.Array) -> Cotangent:
    """tr G log G of G = X Xᵀ, and its gradient 2 (log G + I) X."""
    if not X.size:
        return jnp.zeros((), X.dtype), jnp.zeros_like(X)
    wide = X.shape[0] <= X.shape[1]
    G = product(X, X.T) if wide else product(X.T, X)
    log = matrix_function(_log, G)
    return jnp.sum(G * log), 2 * (product(log, X) if wide else product(X, log)) + 2 * X


def _log(eigenvalue: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(eigenvalue, jnp.finfo(eigenvalue.dtype).tiny))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def matrix_function(f: Callable[[jax.Array], jax.Array], G: jax.Array) -> jax.Array:
    """f(G) = V f(Λ) Vᵀ of a symmetric matrix, with derivatives also where eigenvalues are equal.

    Args:
      f: of an eigenvalue, differentiable.
      G: (n, n), symmetric.

    >>> matrix_function(jnp.exp, jnp.zeros((2, 2))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Reference: Daleckii & Krein, 1965 (the derivative).
    """
    eigenvalues, V = jnp.linalg.eigh(G, symmetrize_input=False)
    return product(V * f(eigenvalues)[None, :], V.T)


@matrix_function.defjvp
def _matrix_function_jvp(f, primals, tangents):
    (G,), (dG,) = primals, tangents
    eigenvalues, V = jnp.linalg.eigh(G, symmetrize_input=False)
    a, b = eigenvalues[:, None], eigenvalues[None, :]
    gap = a - b
    # Nearer to each other than a thousandth they have lost digits, and the mean's slope has not.
    near = jnp.abs(gap) <= 1e-3 * jnp.maximum(jnp.abs(a), jnp.abs(b))
    values = f(eigenvalues)
    slope = jax.jvp(f, ((a + b) / 2,), (jnp.ones_like(gap),))[1]
    differences = (values[:, None] - values[None, :]) / jnp.where(near, 1, gap)
    inner = jnp.where(near, slope, differences) * product(product(V.T, dG), V)
    return product(V * f(eigenvalues)[None, :], V.T), product(product(V, inner), V.T)

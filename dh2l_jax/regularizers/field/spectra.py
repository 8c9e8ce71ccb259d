"""Penalties of the eigenvalues of a Gram matrix, on its smaller side.

Idea. The gradient of a sum Σ F(λ) is a function of the matrix, F′(G), times the rows. A derivative
of eigenvectors, which fails where eigenvalues are equal, is nowhere: that of F′(G) has divided
differences instead, whose limit is F″.
Precision. Eigenvalues that are 0 come out as rounding; their logarithm multiplies the rows' part
along their eigenvectors, which is 0 as well, so the gradient needs no ridge to be finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.metrics.blocks import Cotangent, product
from dh2l_jax.metrics.pairs import with_gradient
from dh2l_jax.numerics import safe_normalize

__all__ = ["exactly", "spectral_sum", "uer", "von_neumann"]


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
    k = jnp.clip(jnp.sum(where), 1, max(W.shape[1], 1)).astype(W.dtype)
    # Of eigenvalues with the mean 1 it is the divergence from 1, without differences of logarithms.
    X = jnp.sqrt(k) * safe_normalize(W.reshape(-1)).reshape(W.shape)
    total = with_gradient(_divergence, None, X) + (k - min(W.shape))
    return jnp.where(jnp.any(X != 0), total / k, 0)


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
    more = jnp.sum(where, dtype=W.dtype) - min(W.shape)  # eigenvalues 0, which count 1 each
    return with_gradient(_divergence, None, W) + more


def _divergence(_: None, X: jax.Array) -> Cotangent:
    """tr(G log G − G + I) of the smaller of X Xᵀ and Xᵀ X, and its gradient 2 log(G) X."""
    if not X.size:
        return jnp.zeros((), X.dtype), jnp.zeros_like(X)
    wide = X.shape[0] <= X.shape[1]
    value, log = spectral_sum(_from_1, product(X, X.T) if wide else product(X.T, X))
    return value, 2 * (product(log, X) if wide else product(X, log))


def _from_1(eigenvalue: jax.Array) -> jax.Array:
    x = jnp.maximum(eigenvalue, jnp.finfo(eigenvalue.dtype).tiny)
    return x * (jnp.log(x) - 1) + 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectral_sum(F: Callable[[jax.Array], jax.Array], G: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ F(λ) over the eigenvalues of G, and its gradient F′(G) = V F′(Λ) Vᵀ.

    Both have derivatives also where eigenvalues are equal.

    Args:
      F: of an eigenvalue, twice differentiable.
      G: (n, n), symmetric.

    >>> spectral_sum(jnp.square, jnp.eye(2))
    (Array(2., dtype=float32), Array([[2., 0.],
           [0., 2.]], dtype=float32))

    Reference: Daleckii & Krein, 1965 (the derivative of F′).
    """
    eigenvalues, V = jnp.linalg.eigh(G, symmetrize_input=False)
    return jnp.sum(F(eigenvalues)), product(V * _slope(F, eigenvalues)[None, :], V.T)


@spectral_sum.defjvp
def _spectral_sum_jvp(F, primals, tangents):
    (G,), (dG,) = primals, tangents
    eigenvalues, V = jnp.linalg.eigh(G, symmetrize_input=False)
    slopes = _slope(F, eigenvalues)
    gradient = product(V * slopes[None, :], V.T)
    a, b = eigenvalues[:, None], eigenvalues[None, :]
    # Of nearer ones the difference has lost more digits than the slope in their middle has.
    near = jnp.abs(a - b) <= 1e-3 * jnp.maximum(jnp.abs(a), jnp.abs(b))
    apart = (slopes[:, None] - slopes[None, :]) / jnp.where(near, 1, a - b)
    middle = _slope(functools.partial(_slope, F), (a + b) / 2)
    inner = jnp.where(near, middle, apart) * product(product(V.T, dG), V)
    values = jnp.sum(F(eigenvalues)), gradient
    return values, (jnp.sum(gradient * dG), product(product(V, inner), V.T))


def _slope(F: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.jvp(F, (x,), (jnp.ones_like(x),))[1]


# Double precision.


def in_float64(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn computed in float64 between arrays of float32, whatever `jax_enable_x64` says.

    Under jit and vmap. It has no derivative: JAX transposes outside of the context in which
    float64 is allowed, so what calls it needs a rule of its own.

    Args:
      fn: arrays → a tree of float arrays.

    >>> in_float64(lambda x: (1 + x) - 1)(jnp.float32(1e-12)).round(14).item() > 0
    True
    """

    @jax.custom_batching.custom_vmap
    def exact(*args: jax.Array) -> Any:
        dtype = jnp.result_type(*(x for x in args if jnp.issubdtype(x.dtype, jnp.floating)))
        with jax.enable_x64(True):
            wide = (x.astype(jnp.float64) if x.dtype == dtype else x for x in args)
            return jax.tree.map(lambda x: x.astype(dtype), fn(*wide))

    @exact.def_vmap
    def _(size: int, batched: list[bool], *args: jax.Array) -> Any:
        # Batched in the context too: outside of it the rules of primitives round to float32.
        axes = tuple(0 if of else None for of in batched)
        found = in_float64(jax.vmap(fn, axes, axis_size=size))(*args)
        return found, jax.tree.map(lambda _: True, found)

    return exact


def exactly(total: Callable[..., Cotangent], options: Any, W: jax.Array, *constants: Any):
    """total(options, W, *constants) → (value, gradient of W), computed in float64, W in any.

    First and second derivatives are too.

    Raises:
      NotImplementedError: a third derivative of float32.
    """
    if W.dtype == jnp.float64:
        return total(options, W, *constants)
    return _exactly(total, options, W, *constants)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _exactly(total: Callable[..., Cotangent], options: Any, W: jax.Array, *constants: Any):
    return in_float64(functools.partial(total, options))(W, *constants)


@_exactly.defjvp
def _exactly_jvp(total, options, primals, tangents):
    value, gradient = _exactly(total, options, *primals)
    known, dW = (_last(primals[0]), *primals[1:]), tangents[0]

    def change(_: Any, dW: jax.Array) -> jax.Array:
        def of_gradient(dW: jax.Array, W: jax.Array, *constants: Any) -> jax.Array:
            return jax.jvp(lambda W: total(options, W, *constants)[1], (W,), (dW,))[1]

        return in_float64(of_gradient)(dW, *known)

    # The gradient's derivative is symmetric and so its own transpose, which JAX cannot form of what
    # left its precision; of its primitives this one takes an operator's transpose on trust.
    tangent = lax.custom_linear_solve(lambda x: x, dW, solve=change, symmetric=True)
    return (value, gradient), (jnp.sum(gradient * dW), tangent)


@jax.custom_jvp
def _last(W: jax.Array) -> jax.Array:
    return W


@_last.defjvp
def _last_jvp(primals, tangents):
    raise NotImplementedError(
        "third derivatives of float32 are not computed in float64: set jax_enable_x64 for them"
    )

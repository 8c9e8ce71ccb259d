"""Penalties of one singular value: of G − I (SRIP), and of W.

Idea. A symmetric matrix A of the smaller side, Wᵀ W − I or W Wᵀ − I, has its largest |eigenvalue|
at a vector x, of which ‖A x‖ is it. A power iteration looks for x by products with W alone, and
takes no derivative; an eigendecomposition finds it exactly.
Memory. O(n + d) beside W and its gradient; exact, the smaller side.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, rows
from dh2l_jax.metrics.blocks import product
from dh2l_jax.numerics import safe_norm, safe_normalize
from dh2l_jax.regularizers.field.orthogonal import gram, less_identity

__all__ = ["spectral", "srip", "srip_step"]


def srip(
    W: ArrayLike, where: ArrayLike | None = None, *, iterations: int | None = None
) -> jax.Array:
    """Spectral restricted isometry: the largest singular value of G − I, of the smaller side.

        σ(W Wᵀ − I) for n ≤ d,   σ(Wᵀ W − I) for n > d, where the other side has always σ ≥ 1

    Exact by default, O(min(n, d)³). With `iterations` it is ‖A x‖ at a vector x that a power
    iteration has found from a fixed start: O(nd), a lower bound, and x a constant to autodiff.
    A training step that keeps x has the same from one product with A, see `srip_step`.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others. Iterations
        stay on the side of all n rows, and start from another vector than those of fewer.
      iterations: normalised products with A before the value; None for the exact one.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, iterations < 0.
      TypeError: `where` is not boolean.

    >>> round(srip(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])).item(), 4)
    24.8125

    Reference: Bansal et al., NeurIPS 2018 (SRIP), whose code has one iteration, a new random start
    at each call and the square. Its coefficient over epochs is `optax.piecewise_constant_schedule(
    λ, {20: 1e-3, 50: 1e-1, 70: 1e-2, 120: 0})`.
    """
    return _largest(W, where, iterations, 1.0)


def srip_step(
    W: ArrayLike, x: ArrayLike, where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """SRIP at a vector that is kept between steps of training: one product with A a step.

        ‖A x‖ and A x / ‖A x‖,   A = W Wᵀ − I for n ≤ d, Wᵀ W − I for n > d,   x ← x / ‖x‖

    While W moves slowly, x follows the singular vector. No gradient flows to x.

    Args:
      W: (n, d), a vector a row.
      x: (min(n, d),), of any length but 0: random at first, then what the last step returned.
      where: (n,) bool, True for the rows that take part; equal to dropping the others. Entries of x
        wait for theirs.

    Returns:
      The value, a scalar of at least float32, and the next x.

    Raises:
      ValueError: W is not a matrix, x or `where` has another length.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> step = jax.jit(jax.value_and_grad(srip_step, has_aux=True))
    >>> x = jnp.ones(3)
    >>> for _ in range(3):
    ...     (value, x), gradient = step(W, x)
    >>> round(value.item(), 4)
    21.0112

    Reference: Bansal et al., NeurIPS 2018 (SRIP); Miyato et al., ICLR 2018 (the vector kept).
    """
    W, used = rows(W, where)
    x = lax.stop_gradient(as_float(x)).astype(W.dtype)
    if x.shape != (min(W.shape),):
        raise ValueError(f"x must have shape {(min(W.shape),)} for W {W.shape}, found {x.shape}")
    here = _entries(W, used)
    at = safe_normalize(jnp.where(here, x, 0))
    y = _times(W, 1.0, at)
    return safe_norm(y), jnp.where(here, _normalized(lax.stop_gradient(y), at), x)


def spectral(
    W: ArrayLike, where: ArrayLike | None = None, *, iterations: int | None = None
) -> jax.Array:
    """Half of the squared spectral norm.

        σ(W)² / 2

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      iterations: of a power iteration, as of `srip`; None for the exact value.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, iterations < 0.
      TypeError: `where` is not boolean.

    >>> round(spectral(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])).item(), 4)
    12.9062

    Reference: Yoshida and Miyato, Spectral Norm Regularization, 2017.
    """
    return _largest(W, where, iterations, 0.0) / 2


def _largest(
    W: ArrayLike, where: ArrayLike | None, iterations: int | None, shift: float
) -> jax.Array:
    """The largest singular value of A, which is W Wᵀ − shift·I or the columns', if smaller."""
    W, used = rows(W, where)
    if not min(W.shape):
        return jnp.zeros((), W.dtype)
    if iterations is None:
        return _exact(W, used, shift)
    if operator.index(iterations) < 0:
        raise ValueError(f"iterations must be ≥ 0, found {iterations}")
    fixed = lax.stop_gradient(W)
    x = jnp.asarray(np.random.default_rng(0).normal(size=min(W.shape)), W.dtype)
    x = safe_normalize(jnp.where(_entries(W, used), x, 0))
    x = lax.fori_loop(0, iterations, lambda _, x: _normalized(_times(fixed, shift, x), x), x)
    return safe_norm(_times(W, shift, x))


def _entries(W: jax.Array, used: jax.Array) -> jax.Array:
    """Which entries of x take part: those of the rows that do, or all columns."""
    return used if W.shape[0] <= W.shape[1] else jnp.ones(W.shape[1], bool)


def _times(W: jax.Array, shift: float, x: jax.Array) -> jax.Array:
    """A x, for an x that is 0 where it takes no part."""
    rows_first = W.shape[0] <= W.shape[1]
    return (product(W, product(x, W)) if rows_first else product(product(W, x), W)) - shift * x


def _normalized(y: jax.Array, x: jax.Array) -> jax.Array:
    """y/‖y‖; x where y is 0, which is the vector of no eigenvalue but 0."""
    return jnp.where(jnp.any(y != 0), safe_normalize(y), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _exact(W: jax.Array, used: jax.Array, shift: float) -> jax.Array:
    return jnp.max(_sizes(jnp.linalg.eigvalsh(_side(W, used, shift)), W, used))


@_exact.defjvp
def _exact_jvp(shift, primals, tangents):
    # |λ| at x has the slope ±xᵀ dA x. No derivative of x is needed for it, and none is taken, which
    # would be infinite between equal eigenvalues; second derivatives differentiate x here.
    (W, used), (dW, _) = primals, tangents
    values, vectors = jnp.linalg.eigh(_side(W, used, shift))
    sizes = _sizes(values, W, used)
    i = jnp.argmax(sizes)
    x = vectors[:, i]
    Wx, dWx = (product(x, X) if W.shape[0] <= W.shape[1] else product(X, x) for X in (W, dW))
    return sizes[i], 2 * jnp.sign(values[i]) * product(Wx, dWx)


def _side(W: jax.Array, used: jax.Array, shift: float) -> jax.Array:
    """A."""
    rows_first = W.shape[0] <= W.shape[1]
    return less_identity(gram(W if rows_first else W.T), shift * _entries(W, used))


def _sizes(values: jax.Array, W: jax.Array, used: jax.Array) -> jax.Array:
    """|λ| of the eigenvalues of A, in rising order; 0 of those that go with the dropped rows.

    Fewer rows present than columns have the rows' side as the smaller one, without the −1 of each
    direction that no row has.
    """
    n, d = W.shape
    missing = jnp.maximum(d - jnp.sum(used), 0) if n > d else 0
    return jnp.where(jnp.arange(len(values)) >= missing, jnp.abs(values), 0)

"""How far vectors are from an orthonormal set: penalties of the raw Gram matrix G = W Wᵀ.

Idea. ‖W Wᵀ − I‖² and ‖Wᵀ W − I‖² differ by n − d, so the smaller side tells both; the identity is
taken off entry by entry, where ‖G‖² − 2 tr G + n would lose its digits near orthonormal rows.
Memory. The smaller side; for the largest entry or row of G a tile of it.
Figure. The derivative of `gram` is one product where autodiff has two: value and gradient of `so`
take two thirds of the time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.checks import rows, unknown_name
from dh2l_jax.metrics.blocks import block_of, even_block, product
from dh2l_jax.numerics import nonnegative, safe_norm

__all__ = ["brock", "dso", "gram", "less_identity", "mc", "orthogonality", "so"]

BLOCK = 640  # rows of a tile of G, at most
REDUCED = {"entry": (jnp.max, jnp.maximum), "row_sum": (jnp.sum, jnp.add)}  # a row, two tiles of it


def orthogonality(C: ArrayLike) -> jax.Array:
    """‖C Cᵀ − I‖_F of the centres as rows (the paper's ‖W_cᵀ W_c − I‖), gradient 0 at 0.

    The norm itself; `so` is its square.

    Args:
      C: (groups, d).

    Raises:
      ValueError: C is not a matrix.

    >>> orthogonality(jnp.eye(3)).item()
    0.0

    Reference: DH²L, §4.1 (λ_o).
    """
    C, used = rows(C)
    return safe_norm(less_identity(gram(C), used).reshape(-1))


def so(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Soft orthogonality: 0 for orthonormal rows, at least n − d for more rows than columns.

        ‖W Wᵀ − I‖_F²

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> so(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])).item()
    740.0

    Reference: Bansal et al., Can We Gain More from Orthogonality Regularizations, NeurIPS 2018.
    """
    of_rows, _ = _both_sides(*rows(W, where))
    return of_rows


def dso(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Double soft orthogonality: `so` of rows and columns, with exactly twice the gradient of one.

        ‖W Wᵀ − I‖_F² + ‖Wᵀ W − I‖_F²

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> dso(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])).item()
    1479.0

    Reference: Bansal et al., NeurIPS 2018.
    """
    of_rows, of_columns = _both_sides(*rows(W, where))
    return of_rows + of_columns


def brock(W: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Orthogonal rows of any length: what G has beside its diagonal.

        ‖W Wᵀ ⊙ (1 − I)‖_F²

    For n > d it is ‖Wᵀ W‖² − Σ‖w_i‖⁴, exact to a rounding error of the first.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, or `where` has another length.
      TypeError: `where` is not boolean.

    >>> brock(jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])).item()
    80.0

    Reference: Brock et al., Large Scale GAN Training, ICLR 2019, Eq. (3); its code has half of the
    gradient.
    """
    W, _ = rows(W, where)
    n, d = W.shape
    if n <= d:
        return _square(jnp.where(jnp.eye(n, dtype=bool), 0, gram(W)))
    return nonnegative(_square(gram(W.T)) - _square(jnp.sum(W * W, axis=1)))


def mc(W: ArrayLike, where: ArrayLike | None = None, *, norm: str = "entry") -> jax.Array:
    """Mutual coherence of the raw Gram matrix: its one entry, or row, farthest from the identity.

        max_ij |G_ij − δ_ij|   or   max_i Σ_j |G_ij − δ_ij|

    Its gradient reaches the two rows of one entry, or goes through one row of G; of equals the
    first wins.

    Args:
      W: (n, d), a vector a row.
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      norm: "entry", or "row_sum", the operator norm that ‖·‖_∞ stands for.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown norm.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]])
    >>> mc(W).item(), mc(W, norm="row_sum").item()
    (24.0, 30.0)

    Reference: Bansal et al., NeurIPS 2018 (MC).
    """
    if norm not in REDUCED:
        raise ValueError(unknown_name("norm", norm, REDUCED))
    W, used = rows(W, where)
    if not len(W):
        return jnp.zeros((), W.dtype)

    def gaps(V: jax.Array, i: jax.Array) -> jax.Array:
        """|G_ij − δ_ij| of all j."""
        return jnp.abs(product(V, V[i]) - (used & (jnp.arange(len(V)) == i)))

    fixed = lax.stop_gradient(W)
    i = jnp.argmax(_of_rows(fixed, used, norm))
    if norm == "row_sum":
        return jnp.sum(gaps(W, i))
    j = jnp.argmax(gaps(fixed, i))
    return jnp.abs(product(W[i], W[j]) - (used[i] & (i == j)))


@jax.custom_jvp
def gram(X: jax.Array) -> jax.Array:
    """X Xᵀ; the gradient (Ḡ + Ḡᵀ) X is one product.

    >>> jax.grad(lambda X: gram(X).sum())(jnp.ones((2, 3))).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    return product(X, X.T)


@gram.defjvp
def _gram_jvp(primals, tangents):
    (X,), (dX,) = primals, tangents
    half = product(dX, X.T)
    return gram(X), half + half.T


def less_identity(G: jax.Array, used: jax.Array) -> jax.Array:
    """G − I over the rows of an (n,) mask; G is 0 at the others."""
    return G - jnp.diag(used.astype(G.dtype))


def _square(X: jax.Array) -> jax.Array:
    return jnp.sum(X * X)


def _both_sides(W: jax.Array, used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """‖W Wᵀ − I‖² and ‖Wᵀ W − I‖², from the smaller one."""
    n, d = W.shape
    surplus = jnp.sum(used, dtype=W.dtype) - d
    if n <= d:
        square = _square(less_identity(gram(W), used))
        return square, square - surplus
    square = _square(less_identity(gram(W.T), jnp.ones(d, bool)))
    return square + surplus, square


def _of_rows(W: jax.Array, used: jax.Array, norm: str) -> jax.Array:
    """max_j or Σ_j of |G_ij − δ_ij|, (n,), by the upper triangle of tiles."""
    n, block = len(W), even_block(len(W), BLOCK)
    reduce, combine = REDUCED[norm]

    def side(i: jax.Array) -> tuple[jax.Array, ...]:
        start, own = block_of(n, block, i)
        here, present = (lax.dynamic_slice_in_dim(X, start, block) for X in (W, used))
        return start, start + jnp.arange(block), here, own & present

    def tile(result: jax.Array, numbers: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (i, at, left, here), (j, to, right, there) = map(side, numbers)
        gaps = jnp.abs(product(left, right.T) - (at[:, None] == to[None, :]))
        gaps = jnp.where(here[:, None] & there[None, :], gaps, 0)
        # A tile of the diagonal is symmetric: its rows count once.
        parts = (i, reduce(gaps, 1)), (j, jnp.where(numbers[0] == numbers[1], 0, reduce(gaps, 0)))
        for start, part in parts:
            old = lax.dynamic_slice_in_dim(result, start, block)
            result = lax.dynamic_update_slice_in_dim(result, combine(old, part), start, 0)
        return result, None

    i, j = np.triu_indices(-(-n // block))
    tiles = jnp.asarray(i, jnp.int32), jnp.asarray(j, jnp.int32)
    return lax.scan(tile, jnp.zeros(n, W.dtype), tiles)[0]

"""Orthogonality of convolutions: a kernel against its own shifted copies.

Idea. The convolution of a kernel with itself is, at each shift, one product over the taps that the
two copies share; shifts Δ and −Δ are transposes. Of 3×3 taps and 25 shifts that is 45 products of
tap with tap, where a padded convolution has 225, and most CPUs differentiate it slowly.
Figure. Value and gradient of (3, 3, 512, 512): 0.32 of what PyTorch's convolution takes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, mask
from dh2l_jax.metrics.blocks import product
from dh2l_jax.regularizers.field.orthogonal import gram, less_identity, so

__all__ = ["ocnn"]


def ocnn(
    K: ArrayLike, where: ArrayLike | None = None, *, stride: int = 1, columns: bool = False
) -> jax.Array:
    """Orthogonality of a convolution: filters against all of each other's shifts by the stride.

        Σ_Δ ‖C_Δ − δ_{Δ0} I‖_F²,   C_Δ[a, b] = Σ_{p, c} K[p + Δ, c, a] K[p, c, b]

    It is ‖𝒦𝒦ᵀ − I‖² of the convolution's matrix 𝒦 for each position of the output; from a stride of
    the kernel's size on it is `so`. For cout > cin·stride² no kernel reaches 0; `columns` is then
    ‖𝒦ᵀ𝒦 − I‖², less by cout − cin. For stride 1 either is computed on the smaller side.

    Args:
      K: (kh, kw, cin, cout).
      where: (cout,) bool, True for the filters that take part; equal to dropping the others.
      stride: of the convolution.
      columns: of the inputs instead of the filters, for stride 1.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: K is no kernel, `where` has another length, stride < 1, columns of a stride.
      TypeError: `where` is not boolean.

    >>> K = jnp.array([[[1.0, 0, 0], [0, 2, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, -1], [0, -1, 0]]])
    >>> [ocnn(K.transpose(1, 2, 0)[:, :, None], stride=s).item() for s in (1, 2, 3)]
    [104.0, 40.0, 34.0]

    Reference: Wang et al., Orthogonal Convolutional Neural Networks, CVPR 2020; its code's default
    padding leaves shifts out, and asks a shifted copy to be the identity for stride 2.
    """
    K = as_float(K)
    if K.ndim != 4:
        raise ValueError(f"expected a kernel (kh, kw, cin, cout), found shape {K.shape}")
    if stride < 1 or (columns and stride > 1):
        least = "1 for columns" if columns else "≥ 1"
        raise ValueError(f"stride must be {least}, found {stride}")
    used = mask(where, K.shape[-1:], "like the filters")
    if where is not None:
        K = jnp.where(used, K, 0)
    (height, width, cin, cout), shifts = K.shape, _half_of_shifts(K.shape[:2], stride)
    surplus = jnp.sum(used, dtype=K.dtype) - cin
    filters = K.transpose(3, 0, 1, 2)
    if stride == 1 and cin < cout:
        of_rows = _distance(K.transpose(2, 0, 1, 3), jnp.ones(cin, bool), shifts) + surplus
    elif shifts:
        of_rows = _distance(filters, used, shifts)
    else:
        of_rows = so(filters.reshape(cout, height * width * cin), used)
    return of_rows - surplus if columns else of_rows


def _half_of_shifts(size: tuple[int, ...], stride: int) -> list[tuple[int, int]]:
    """Multiples of the stride by which two copies still overlap, one of each pair ±Δ, and not 0."""
    down, right = ((side - 1) // stride * stride for side in size)
    return [
        (y, x)
        for y in range(0, down + 1, stride)
        for x in range(-right, right + 1, stride)
        if (y, x) > (0, 0)
    ]


def _distance(V: jax.Array, used: jax.Array, shifts: list[tuple[int, int]]) -> jax.Array:
    """Σ_Δ ‖C_Δ − δ_{Δ0} I‖² of vectors V, (n, kh, kw, channels)."""
    n, height, width, _ = V.shape

    def moved(y: int, x: int) -> jax.Array:
        """What a copy moved by (y, x) shares with one that is not."""
        part = V[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        return part.reshape(n, -1)

    total = jnp.sum(less_identity(gram(V.reshape(n, -1)), used) ** 2)
    for y, x in shifts:
        total += 2 * jnp.sum(product(moved(y, x), moved(-y, -x).T) ** 2)
    return total

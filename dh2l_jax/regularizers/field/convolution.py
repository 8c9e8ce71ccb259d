"""Orthogonality of convolutions: a kernel against its own shifted copies.

Idea. All taps of a row of the kernel with all of another are one matrix product; what it has along
a diagonal belongs to one shift. Rows moved by y and by −y are transposes, so a kernel of kh rows is
kh products and no tap meets a padded zero: for 3×3 taps 54 products of tap with tap, where the
convolution of the kernel with itself has 225, which CPUs differentiate slowly besides.
Memory. kw²·n² for the n filters, or for the inputs where they are fewer.
Figure. Value and gradient of (3, 3, 512, 512): 0.25 of what PyTorch takes for its convolution.
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
    height, width, cin, cout = K.shape
    surplus = jnp.sum(used, dtype=K.dtype) - cin
    if stride == 1 and cin < cout:
        of_rows = _distance(K.transpose(1, 2, 0, 3), jnp.ones(cin, bool), 1) + surplus
    elif stride < max(height, width):
        of_rows = _distance(K.transpose(1, 3, 0, 2), used, stride)
    else:
        of_rows = so(K.reshape(height * width * cin, cout).T, used)
    return of_rows - surplus if columns else of_rows


def _distance(V: jax.Array, used: jax.Array, stride: int) -> jax.Array:
    """Σ_Δ ‖C_Δ − δ_{Δ0} I‖² of vectors V, (kw, n, kh, channels)."""
    width, n, height, _ = V.shape
    most, total = -(-width // stride), jnp.zeros((), V.dtype)
    for y in range(0, height, stride):
        C = jnp.zeros((n, 2 * most - 1, n), V.dtype)  # of the shifts (y, −x), from −most + 1 on
        for phase in (V[first::stride] for first in range(min(stride, width))):
            taps = len(phase)
            moved = phase[:, :, y:].reshape(taps * n, -1)
            still = phase[:, :, : height - y].reshape(taps * n, -1)
            products = product(moved, still.T) if y else gram(moved)
            for x, of_tap in enumerate(products.reshape(taps, n, taps, n)):
                C += jnp.pad(of_tap, ((0, 0), (most - 1 - x, most - taps + x), (0, 0)))
        if not y:
            C = C.at[:, most - 1].set(less_identity(C[:, most - 1], used))
        total += (2 if y else 1) * jnp.sum(C * C)
    return total

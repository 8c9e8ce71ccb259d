"""How far vectors are from an orthonormal set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dh2l_jax.checks import rows
from dh2l_jax.numerics import safe_norm

__all__ = ["orthogonality"]


def orthogonality(C: ArrayLike) -> jax.Array:
    """‖C Cᵀ − I‖_F of the centres as rows (the paper's ‖W_cᵀ W_c − I‖), gradient 0 at 0.

    Args:
      C: (groups, d).

    Raises:
      ValueError: C is not a matrix.

    >>> orthogonality(jnp.eye(3)).item()
    0.0

    Reference: DH²L, §4.1 (λ_o).
    """
    C, _ = rows(C)
    gram = jnp.dot(C, C.T, precision="highest")
    return safe_norm((gram - jnp.eye(C.shape[0], dtype=C.dtype)).reshape(-1))

"""Which images make a batch: a function of (seed, epoch, step), so a resumed run sees the same."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = ["epoch_order", "num_steps", "padded_batches", "take_batch"]


def epoch_order(seed: ArrayLike, epoch: ArrayLike, size: int) -> Array:
    """The order of one epoch: a permutation that depends on `seed` and `epoch` alone.

    It sorts `size` random keys, so call it once an epoch and slice the result with `take_batch`.

    Args:
      seed: integer scalar, may be traced.
      epoch: integer scalar, may be traced.
      size: number of images, static.

    Returns:
      (size,) int32, a permutation of 0..size−1.

    >>> sorted(epoch_order(0, 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    # The generator is named so that a global setting can't change the order of a resumed run.
    key = jax.random.key(seed, impl="threefry2x32")
    return _permutation(jax.random.fold_in(key, epoch), size)


@functools.partial(jax.jit, static_argnums=1)
def _permutation(key: Array, size: int) -> Array:
    return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))


def take_batch(order: Array, step: ArrayLike, batch_size: int) -> Array:
    """Indices of batch `step` of an epoch with the given order.

    The last size % batch_size images of an order are left out, so every batch is full; the next
    epoch leaves out others.

    Args:
      order: (size,) int32, from `epoch_order`.
      step: integer scalar in 0..size // batch_size − 1, the step within the epoch, may be traced.
      batch_size: static, at most size.

    Returns:
      (batch_size,) int32.

    Raises:
      ValueError: there is no such batch (only a Python or NumPy `step` is checked).

    >>> take_batch(jnp.arange(10), step=1, batch_size=4).tolist()
    [4, 5, 6, 7]
    """
    steps = num_steps(order.shape[0], batch_size)
    if isinstance(step, int | np.integer) and not 0 <= step < steps:
        raise ValueError(f"step must lie in 0..{steps - 1}, found {step}")
    return lax.dynamic_slice_in_dim(order, jnp.asarray(step) * batch_size, batch_size)


def num_steps(size: int, batch_size: int) -> int:
    """Full batches of an epoch; refuses a batch that no epoch fills."""
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must lie in 1..{size} (the images), found {batch_size}")
    return size // batch_size


def padded_batches(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of one shape in which every image counts exactly once, for evaluation.

    The last batch is filled up with index 0, masked out.

    Args:
      size: number of images, ≥ 1.
      batch_size: may exceed size.

    Returns:
      index: (steps, batch_size) int32, valid everywhere.
      where: (steps, batch_size) bool, True for the entries that count.

    >>> index, where = padded_batches(5, 2)
    >>> index.tolist(), where.tolist()
    ([[0, 1], [2, 3], [4, 0]], [[True, True], [True, True], [True, False]])
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"expected size ≥ 1 and batch_size ≥ 1, found {size} and {batch_size}")
    steps = -(-size // batch_size)
    index = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)
    where = index < size
    return np.where(where, index, 0), where

"""Which images make a batch: a function of (seed, epoch, step), so a resumed run sees the same."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = [
    "SAMPLING",
    "epoch_order",
    "num_steps",
    "order_of",
    "padded_batches",
    "sampled_order",
    "take_batch",
]

SAMPLING = {"uniform": 1.0, "sqrt": 0.5, "balanced": 0.0}
"""The power of a label's number of images that its share of an epoch is proportional to."""


def epoch_order(seed: ArrayLike, epoch: ArrayLike, size: int) -> Array:
    """The order of one epoch: a permutation of 0..size−1, (size,) int32, of `seed` and `epoch`.

    Sorting `size` random keys takes a while: call this once an epoch and slice with `take_batch`.

    >>> sorted(epoch_order(0, 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    # The generator is named, so that a global setting can't change the order of a resumed run.
    key = jax.random.key(seed, impl="threefry2x32")
    return _permutation(key, epoch, size)


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key: Array, epoch: ArrayLike, size: int) -> Array:
    key = jax.random.fold_in(key, epoch)
    return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))


def order_of(
    seed: ArrayLike, epoch: ArrayLike, size: int, labels: np.ndarray | None, sampling: str
) -> Array:
    """The order of one epoch by the name of a `SAMPLING`; "uniform" needs no labels."""
    if labels is None:
        return epoch_order(seed, epoch, size)
    return sampled_order(seed, epoch, labels, SAMPLING[sampling])


def sampled_order(seed: ArrayLike, epoch: ArrayLike, labels: np.ndarray, power: float) -> Array:
    """An epoch in which a label of n images has a share ∝ nᵖᵒʷᵉʳ, (size,) int32.

    The slots of an epoch are given to the labels by their shares, rounded up or down at random, and
    each label fills its own with its images in turn, in a random order: none is drawn for the k-th
    time before all others were drawn k − 1 times. Power 1 draws every image once, 0 all labels
    alike.

    Args:
      seed: as for `epoch_order`.
      epoch: as for `epoch_order`.
      labels: (size,) integers.
      power: in [0, 1].

    >>> labels = np.array([7] * 8 + [3] * 2)
    >>> sorted(labels[sampled_order(0, 3, labels, power=0.0)].tolist())
    [3, 3, 3, 3, 3, 7, 7, 7, 7, 7]
    """
    of, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    shares = sizes.astype(np.float64) ** power
    ends = np.cumsum(shares) * (len(labels) / shares.sum())
    ends[-1] = len(labels)
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
    whole, part = np.floor(ends), (ends % 1).astype(np.float32)
    return _drawn(key, *(x.astype(np.int32) for x in (of, sizes, whole)), part)


@jax.jit
def _drawn(key: Array, of: Array, sizes: Array, whole: Array, part: Array) -> Array:
    """`of` is each image's label, `whole` and `part` where the slots of each label end."""
    slots = jnp.arange(of.shape[0], dtype=jnp.int32)
    images, offset, order = jax.random.split(key, 3)
    mixed = jax.random.permutation(images, slots)
    mixed = mixed[jnp.argsort(of[mixed], stable=True)]  # label after label
    ends = whole + (part + jax.random.uniform(offset) >= 1)
    label = jnp.searchsorted(ends, slots, side="right")
    turn = slots - jnp.where(label > 0, ends[label - 1], 0)
    first = jnp.cumsum(sizes) - sizes
    return jax.random.permutation(order, mixed[first[label] + turn % sizes[label]])


def take_batch(order: Array, step: ArrayLike, batch_size: int) -> Array:
    """Indices of batch `step` = 0..size // batch_size − 1 of an epoch: (batch_size,) int32.

    Every batch is full: the last size % batch_size images of an order are left out, others in the
    next epoch. A traced `step` is not checked.

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

    Returns:
      index: (steps, batch_size) int32; the last batch is filled up with 0.
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

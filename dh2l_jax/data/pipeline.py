"""The input pipeline as pure functions: order, crop and flip, normalisation, evaluation batches.

The training images stay on the device as one uint8 array; a batch is a function of (seed, epoch,
step) and of the augmentation key, so a resumed run sees what an uninterrupted one would have seen.

    order = epoch_order(seed, epoch, size)                       # once an epoch
    index = take_batch(order, step, batch_size)                  # in the jitted step, and below
    pixels = random_crop_flip(key, images[index])
    inputs = normalize(pixels, dataset.mean, dataset.std)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = [
    "batch_indices",
    "epoch_order",
    "normalize",
    "padded_batches",
    "random_crop_flip",
    "take_batch",
]


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
    steps = _num_steps(order.shape[0], batch_size)
    if isinstance(step, int | np.integer) and not 0 <= step < steps:
        raise ValueError(f"step must lie in 0..{steps - 1}, found {step}")
    return lax.dynamic_slice_in_dim(order, jnp.asarray(step) * batch_size, batch_size)


def batch_indices(
    seed: ArrayLike, epoch: ArrayLike, step: ArrayLike, size: int, batch_size: int
) -> Array:
    """Indices of one batch as a function of (seed, epoch, step): what training sees, by definition.

    Equal to `take_batch(epoch_order(seed, epoch, size), step, batch_size)`, the two calls that a
    training loop makes apart, the first once an epoch. Arguments and result as there.

    >>> batch_indices(0, epoch=1, step=2, size=100, batch_size=8).shape
    (8,)
    """
    return take_batch(epoch_order(seed, epoch, size), step, batch_size)


def _num_steps(size: int, batch_size: int) -> int:
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must lie in 1..{size} (the images), found {batch_size}")
    return size // batch_size


def random_crop_flip(key: Array, images: Array, *, pad: int = 4, flip: bool = True) -> Array:
    """Pads with zeros, crops to the old size at a random place, mirrors at random.

    What torchvision's `RandomCrop(size, padding=pad)` and `RandomHorizontalFlip()` do to a tensor
    before `Normalize`: the border is black, not the mean colour. Each image draws its own offsets.
    Neither the padded images nor the crops exist as arrays: the output pixel's index in the input
    is computed, and one gather fetches all of them, with 0 where the index lies outside.

    Args:
      key: PRNG key.
      images: (b, h, w, c), any dtype; uint8 moves the fewest bytes.
      pad: zeros added on each side, ≥ 0; 0 for no crop.
      flip: whether to mirror left–right with probability 1/2.

    Returns:
      (b, h, w, c) of the dtype of `images`.

    >>> images = jnp.full((2, 8, 8, 3), 255, jnp.uint8)
    >>> random_crop_flip(jax.random.key(0), images).shape
    (2, 8, 8, 3)
    """
    if images.ndim != 4 or pad < 0:
        raise ValueError(f"expected images (b, h, w, c) and pad ≥ 0, found {images.shape}, {pad}")
    b, h, w, c = images.shape
    row, column = _source_pixels(key, b, h, w, pad, flip)
    inside = ((row >= 0) & (row < h))[:, :, None] & ((column >= 0) & (column < w))[:, None, :]
    pixel = jnp.where(inside, row[:, :, None] * w + column[:, None, :], h * w)
    # vmap keeps the batch a batch dimension of the gather; indices over the whole batch would make
    # a partitioner collect every device's images before the gather.
    take = jax.vmap(lambda image, index: image.at[index].get(mode="fill", fill_value=0))
    return take(images.reshape(b, h * w, c), pixel)


def _source_pixels(key: Array, b: int, h: int, w: int, pad: int, flip: bool) -> tuple[Array, Array]:
    """Row (b, h) and column (b, w) of the input from which each output pixel comes."""
    offset_key, flip_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (b, 2, 1), -pad, pad + 1)
    column = jnp.broadcast_to(jnp.arange(w), (b, w))
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1))
        column = jnp.where(mirrored, w - 1 - column, column)
    return jnp.broadcast_to(jnp.arange(h), (b, h)) + offset[:, 0], column + offset[:, 1]


def normalize(images: Array, mean: ArrayLike, std: ArrayLike) -> Array:
    """(images / 255 − mean) / std in float32.

    Args:
      images: (..., c) uint8.
      mean: (c,), in units of 0..1.
      std: (c,), in units of 0..1.

    Returns:
      (..., c) float32.

    >>> normalize(jnp.array([[0, 255]], jnp.uint8), [0.5, 0.5], [0.5, 0.25]).tolist()
    [[-1.0, 2.0]]
    """
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


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

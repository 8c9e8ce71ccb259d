"""The input pipeline as pure functions: order, crop and flip, normalisation, evaluation batches.

A batch is a function of (seed, epoch, step) and of the run's key, so a resumed run sees what an
uninterrupted one would have seen. The images stay on the device as one array of pixels where they
fit (`crop_images`); else the host cuts the same crops (`dh2l_jax.data.streaming`).

    order = epoch_order(seed, epoch, size)                       # once an epoch
    plan = training_plan(key, step, order, sizes, ...)           # in the jitted step, and below
    crops = crop_images(pixels, start[plan.index], sizes[plan.index], plan.crops, crop)
    inputs = normalize(crops, dataset.mean, dataset.std)
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = [
    "Crops",
    "Plan",
    "batch_indices",
    "center_crops",
    "crop_images",
    "draw_crops",
    "epoch_order",
    "normalize",
    "padded_batches",
    "random_crop_flip",
    "take_batch",
    "training_plan",
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


class Crops(NamedTuple):
    """Where the crop of each image of a batch lies.

    Attributes:
      top: (b,) int32, the row of the image that is the crop's first; negative inside the padding.
      left: (b,) int32, likewise the column.
      mirrored: (b,) bool, whether the crop is mirrored left–right.
    """

    top: Array
    left: Array
    mirrored: Array


def draw_crops(
    key: Array, size: Array, crop: tuple[int, int], *, pad: int = 0, flip: bool = True
) -> Crops:
    """Draws a random place and direction for each image, on its own.

    Args:
      key: PRNG key.
      size: (b, 2) int32, height and width of the images, at least crop − 2·pad.
      crop: height and width of the crops, static.
      pad: zeros that count as part of the image on each side, ≥ 0.
      flip: whether to mirror with probability 1/2.

    Returns:
      The crops; every place inside the padded image is equally likely.

    >>> crops = draw_crops(jax.random.key(0), jnp.array([[256, 300]]), (224, 224))
    >>> bool((crops.top >= 0).all() & (crops.left <= 300 - 224).all())
    True
    """
    offset_key, flip_key = jax.random.split(key)
    highest = size + pad + 1 - jnp.asarray(crop)[None]
    offset = jax.random.randint(offset_key, size.shape, -pad, highest)
    mirrored = jnp.zeros(size.shape[0], bool)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (size.shape[0], 1))[:, 0]
    return Crops(offset[:, 0], offset[:, 1], mirrored)


def center_crops(size: Array, crop: tuple[int, int]) -> Crops:
    """The crops in the middle, as torchvision's `CenterCrop` places them.

    >>> center_crops(jnp.array([[256, 301]]), (224, 224)).left.tolist()
    [38]
    """
    offset = jnp.round((size - jnp.asarray(crop)[None]) / 2).astype(jnp.int32)
    return Crops(offset[:, 0], offset[:, 1], jnp.zeros(size.shape[0], bool))


def crop_images(
    pixels: Array, start: Array, size: Array, crops: Crops, crop: tuple[int, int]
) -> Array:
    """Cuts the crops out of images that lie one after another in memory.

    Neither the images nor their padding exist as arrays of their own: the place in `pixels` of
    every pixel of the result is computed, and one gather fetches all of them.

    Args:
      pixels: (p, c), the pixels of all images, row by row.
      start: (b,) int, the first pixel of each image.
      size: (b, 2) int, height and width of each image.
      crops: where the crops lie; what is outside of the image is 0.
      crop: height and width of the crops, static.

    Returns:
      (b, *crop, c) of the dtype of `pixels`.

    >>> pixels, size = jnp.arange(12)[:, None], jnp.array([[3, 4]])
    >>> crops = Crops(jnp.array([1]), jnp.array([-1]), jnp.array([False]))
    >>> crop_images(pixels, jnp.array([0]), size, crops, (2, 3))[0, ..., 0].tolist()
    [[0, 4, 5], [0, 8, 9]]
    """
    pixel = _source_pixels(size, crops, crop)
    pixel = jnp.where(pixel < 0, pixels.shape[0], pixel + start[:, None, None])
    return pixels.at[pixel].get(mode="fill", fill_value=0)


def random_crop_flip(key: Array, images: Array, *, pad: int = 4, flip: bool = True) -> Array:
    """Pads with zeros, crops to the old size at a random place, mirrors at random.

    What torchvision's `RandomCrop(size, padding=pad)` and `RandomHorizontalFlip()` do to a tensor
    before `Normalize`: the border is black, not the mean colour. Each image draws its own offsets.

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
    size = jnp.broadcast_to(jnp.array([h, w]), (b, 2))
    pixel = _source_pixels(size, draw_crops(key, size, (h, w), pad=pad, flip=flip), (h, w))
    pixel = jnp.where(pixel < 0, h * w, pixel)
    # vmap keeps the batch a batch dimension of the gather; indices over the whole batch would make
    # a partitioner collect every device's images before the gather.
    take = jax.vmap(lambda image, index: image.at[index].get(mode="fill", fill_value=0))
    return take(images.reshape(b, h * w, c), pixel)


def _source_pixels(size: Array, crops: Crops, crop: tuple[int, int]) -> Array:
    """(b, *crop): which pixel of its image each pixel of a crop is; −1 outside of the image."""
    column = jnp.arange(crop[1])[None, :]
    column = jnp.where(crops.mirrored[:, None], crop[1] - 1 - column, column) + crops.left[:, None]
    row = jnp.arange(crop[0])[None, :] + crops.top[:, None]
    height, width = size[:, :1], size[:, 1:]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    return jnp.where(inside, row[:, :, None] * width[:, :, None] + column[:, None, :], -1)


class Plan(NamedTuple):
    """Which images make a batch, and where their crops lie.

    Attributes:
      index: (b,) int32.
      crops: of each of them.
    """

    index: Array
    crops: Crops


def training_plan(
    key: Array,
    step: Array,
    order: Array,
    size: Array,
    *,
    batch_size: int,
    crop: tuple[int, int],
    pad: int,
    flip: bool,
) -> Plan:
    """What step `step` of a run sees: the one definition, for resident and for streamed images.

    Args:
      key: the key of the run.
      step: () int, counted from the start of the run.
      order: (n,) int32, of the step's epoch.
      size: (n, 2) int32, height and width of all images.
      batch_size: static.
      crop: as in `draw_crops`.
      pad: likewise.
      flip: likewise.

    Returns:
      The plan of one batch.
    """
    index = take_batch(order, step % _num_steps(order.shape[0], batch_size), batch_size)
    crops = draw_crops(jax.random.fold_in(key, step), size[index], crop, pad=pad, flip=flip)
    return Plan(index, crops)


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

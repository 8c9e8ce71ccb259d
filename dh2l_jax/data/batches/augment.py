"""Crops, flips and normalisation as pure functions, and the plan of a batch.

A batch is a function of (seed, epoch, step) and of the run's key, so a resumed run sees what an
uninterrupted one would have seen. Images that fit on the device stay there as one array of pixels
(`crop_images`); of others the host cuts the same crops (`dh2l_jax.data.batches.stream`).

    order = epoch_order(seed, epoch, size)                       # once an epoch
    plan = training_plan(key, step, order, sizes, ...)           # in the jitted step, and below
    crops = crop_images(pixels, start[plan.index], sizes[plan.index], plan.crops, crop)
    inputs = normalize(crops, dataset.mean, dataset.std)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dh2l_jax.data.batches.order import num_steps, take_batch

__all__ = [
    "BatchPlan",
    "Crops",
    "center_crops",
    "crop_images",
    "draw_crops",
    "normalize",
    "training_plan",
]


class Crops(NamedTuple):
    """Where the crop of each image of a batch lies: three arrays (b,)."""

    top: Array
    """int32, the image's row that is the crop's first; negative inside the padding."""
    left: Array
    """int32, the column."""
    mirrored: Array
    """bool, left–right."""


def draw_crops(
    key: Array, size: Array, crop: tuple[int, int], *, pad: int = 0, flip: bool = True
) -> Crops:
    """A random place for each image, top ∈ −pad..h + pad − crop, and with `flip` a fair coin.

    Args:
      key: PRNG key.
      size: (b, 2) int32, height and width of the images, at least crop − 2·pad.
      crop: height and width of the crops, static.
      pad: zeros that count as part of the image on each side.
      flip: whether half of the crops are mirrored.

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
      size: (b, 2) int, height and width of each image; what a crop sees beyond them is 0.
      crops: of b images.
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


def _source_pixels(size: Array, crops: Crops, crop: tuple[int, int]) -> Array:
    """(b, *crop): which pixel of its image each pixel of a crop is; −1 outside of the image."""
    column = jnp.arange(crop[1])[None, :]
    column = jnp.where(crops.mirrored[:, None], crop[1] - 1 - column, column) + crops.left[:, None]
    row = jnp.arange(crop[0])[None, :] + crops.top[:, None]
    height, width = size[:, :1], size[:, 1:]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    return jnp.where(inside, row[:, :, None] * width[:, :, None] + column[:, None, :], -1)


class BatchPlan(NamedTuple):
    """Which images make a batch, (b,) int32, and where their crops lie."""

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
) -> BatchPlan:
    """What a step sees: the one definition, for resident and for streamed images.

    Args:
      key: the run's, into which `step` is folded.
      step: () int, counted from the start of the run.
      order: (n,) int32, of the step's epoch.
      size: (n, 2) int32, height and width of all images.
      batch_size: static, as the options of `draw_crops` are.
      crop: see `draw_crops`.
      pad: see `draw_crops`.
      flip: see `draw_crops`.
    """
    index = take_batch(order, step % num_steps(order.shape[0], batch_size), batch_size)
    crops = draw_crops(jax.random.fold_in(key, step), size[index], crop, pad=pad, flip=flip)
    return BatchPlan(index, crops)


def normalize(images: Array, mean: ArrayLike, std: ArrayLike) -> Array:
    """(images / 255 − mean) / std: (..., c) uint8 with mean, std (c,) → (..., c) float32.

    >>> normalize(jnp.array([[0, 255]], jnp.uint8), [0.5, 0.5], [0.5, 0.25]).tolist()
    [[-1.0, 2.0]]
    """
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std

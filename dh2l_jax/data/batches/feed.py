"""How the images of a split reach the steps: from the device's memory, or streamed to it.

Both feeds follow the same plan (`augment.training_plan`), so a step sees the same pixels from
either. A feed has two halves: outside of jit it iterates over batches, inside it turns the arrays
of a batch into crops and labels. With several processes each follows the whole plan, but reads only
its share: of a resident split a part of the pixels, of a streamed batch its own devices' rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.batches.augment import BatchPlan, center_crops, crop_images, training_plan
from dh2l_jax.data.batches.order import padded_batches
from dh2l_jax.data.batches.placement import gather_pixels, join_rows, own_copy, own_rows, place
from dh2l_jax.data.batches.stream import stream
from dh2l_jax.data.store.images import Images, RaggedImages, channels, flat_pixels, sizes

__all__ = ["CropOptions", "Feed", "Resident", "Streamed", "check_sizes", "make_feed"]

CroppedBatch = tuple[jax.Array, jax.Array]  # crops (b, h, w, c) uint8 and labels (b,)


@dataclasses.dataclass(frozen=True)
class CropOptions:
    """How training crops are cut.

    Attributes:
      crop: height and width.
      pad: zeros on each side of an image before the random crop.
      flip: mirror at random.
      batch_size: of training.
    """

    crop: tuple[int, int]
    pad: int
    flip: bool
    batch_size: int

    def plan(self, key: jax.Array, step: jax.Array, order: jax.Array, size: jax.Array) -> BatchPlan:
        """What a training step sees."""
        return training_plan(key, step, order, size, **dataclasses.asdict(self))


class DeviceSplit(NamedTuple):
    """The images of a split in the memory of a device.

    Attributes:
      pixels: (p, c) uint8, image after image.
      start: (n,) int32, the first pixel of each image.
      size: (n, 2) int32, height and width of each image.
      labels: (n,) int32.
    """

    pixels: jax.Array
    start: jax.Array
    size: jax.Array
    labels: jax.Array


class Resident:
    """A feed whose images stay on the device, replicated over the mesh; a step takes its batch."""

    def __init__(
        self, images: Images, labels: np.ndarray, options: CropOptions, mesh: jax.sharding.Mesh
    ):
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._over_devices = NamedSharding(mesh, PartitionSpec("data"))
        size = sizes(images)
        count = size.astype(np.int64).prod(axis=1)
        start = (np.cumsum(count) - count).astype(np.int32)
        rest = place((start, size, labels), self.replicated)
        self._split = DeviceSplit(self._pixels(images), *rest)
        self._options = options

    def _pixels(self, images: Images) -> jax.Array:
        """The pixels of all images, one after another, without gaps."""
        if jax.process_count() > 1:
            return gather_pixels(images, self._over_devices, self.replicated)
        if isinstance(images, RaggedImages):
            images = images.compact()
        return place(flat_pixels(images)[0], self.replicated)

    def __len__(self) -> int:
        return len(self._split.labels)

    def training(
        self, key: jax.Array, order: jax.Array, first_step: int, steps: int
    ) -> Iterator[tuple[Any, ...]]:
        """Batches of `steps` steps of one epoch."""
        order = place(order, self.replicated)
        for _ in range(steps):
            yield self._split, order

    def training_crops(
        self, key: jax.Array, step: jax.Array, split: DeviceSplit, order: jax.Array
    ) -> CroppedBatch:
        """In jit: the crops and labels of a training batch."""
        return self._crops(split, self._options.plan(key, step, order, split.size))

    def evaluation(self, batch_size: int) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """Batches in which every image counts once, each with its mask."""
        for index, where in zip(*padded_batches(len(self), batch_size), strict=True):
            yield (self._split, index), where

    def evaluation_crops(self, split: DeviceSplit, index: jax.Array) -> CroppedBatch:
        """In jit: the central crops and the labels of an evaluation batch."""
        crops = center_crops(split.size[index], self._options.crop)
        return self._crops(split, BatchPlan(index, crops))

    def _crops(self, split: DeviceSplit, plan: BatchPlan) -> CroppedBatch:
        index, crops = jax.lax.with_sharding_constraint(plan, self._over_devices)
        start, size = split.start[index], split.size[index]
        pixels = crop_images(split.pixels, start, size, crops, self._options.crop)
        return pixels, split.labels[index]


class Streamed:
    """A feed whose crops are cut on the host, ahead of time, and sent to the device."""

    def __init__(
        self, images: Images, labels: np.ndarray, options: CropOptions, mesh: jax.sharding.Mesh
    ):
        self._images, self._labels, self._options = images, labels, options
        self._size = sizes(images)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._over_devices = NamedSharding(mesh, PartitionSpec("data"))
        self._plan = jax.jit(jax.vmap(options.plan, in_axes=(None, 0, None, None)))
        # The central crops are fetched before the run: in the middle of it, the host would wait for
        # all steps that have been sent to the device.
        self._central = jax.device_get(center_crops(jnp.asarray(self._size), options.crop))

    def __len__(self) -> int:
        return len(self._labels)

    def training(
        self, key: jax.Array, order: jax.Array, first_step: int, steps: int
    ) -> Iterator[tuple[Any, ...]]:
        """Batches of `steps` steps of one epoch, the first of them step `first_step` of the run.

        The plan is sent to the device at once and fetched with the first batch: call it an epoch
        ahead, and no step is waited for.
        """
        step = first_step + jnp.arange(steps)
        return self._batches(self._plan(own_copy(key), step, order, self._size))

    def training_crops(
        self, key: jax.Array, step: jax.Array, pixels: jax.Array, labels: jax.Array
    ) -> CroppedBatch:
        """In jit: the batch as it came."""
        return pixels, labels

    def evaluation(self, batch_size: int) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """Batches in which every image counts once, each with its mask."""
        index, where = padded_batches(len(self), batch_size)
        crops = jax.tree.map(lambda values: values[index], self._central)
        plan = BatchPlan(index, crops)  # pyright: ignore[reportArgumentType]
        return zip(self._batches(plan), where, strict=True)

    def evaluation_crops(self, pixels: jax.Array, labels: jax.Array) -> CroppedBatch:
        """In jit: the batch as it came."""
        return pixels, labels

    def _batches(self, plan: BatchPlan) -> Iterator[tuple[Any, ...]]:
        size = plan.index.shape[1]
        rows = own_rows(self._over_devices, size)
        plan = jax.tree.map(lambda values: values[:, rows], jax.device_get(plan))
        crops = stream(self._images, plan, self._options.crop)
        for pixels, index in zip(crops, plan.index, strict=True):
            yield join_rows((pixels, self._labels[index]), self._over_devices, size)


Feed = Resident | Streamed


def check_sizes(images: Images, crop: tuple[int, int], pad: int = 0) -> None:
    """Raises a `ValueError` if an image with `pad` zeros on each side is smaller than the crop."""
    smallest = sizes(images).min(axis=0)
    if np.any(smallest + 2 * pad < crop):
        raise ValueError(
            f"the smallest image is {smallest[0]} × {smallest[1]}, expected at least the crop, "
            f"{crop[0]} × {crop[1]}: set data.resize"
        )


def make_feed(
    images: Images,
    labels: np.ndarray,
    options: CropOptions,
    mesh: jax.sharding.Mesh,
    *,
    device_gb: float,
) -> Feed:
    """A feed from the memory of each device if the images fit in `device_gb`, else a streamed one.

    Batches are split over the devices of the mesh, axis "data".
    """
    # A device finds pixels by 32-bit indices, so a larger split is streamed too.
    count = int(sizes(images).astype(np.int64).prod(axis=1).sum())
    fits = count * channels(images) <= device_gb * 1e9 and count < 2**31
    return (Resident if fits else Streamed)(images, labels, options, mesh)

"""Crops of images that do not fit on the device, cut on the host and read ahead by Grain.

The plan of a batch (which images, which crops) comes from `augment.training_plan`, as that of
images on the device does, so both ways give the same pixels; only who cuts them differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dh2l_jax.data.batches.augment import BatchPlan
from dh2l_jax.data.store.images import Images, channels

__all__ = ["crop_image", "stream"]


def crop_image(
    image: np.ndarray, top: int, left: int, mirrored: bool, crop: tuple[int, int]
) -> np.ndarray:
    """One crop of an image (h, w, c) as `augment.crop_images` cuts it: (*crop, c), a new array.

    >>> crop_image(np.arange(12).reshape(3, 4, 1), 1, -1, False, (2, 3))[..., 0].tolist()
    [[0, 4, 5], [0, 8, 9]]
    """
    result = np.zeros((*crop, image.shape[-1]), image.dtype)
    first = max(top, 0), max(left, 0)
    inside = image[first[0] : max(top + crop[0], 0), first[1] : max(left + crop[1], 0)]
    height, width = inside.shape[:2]
    row, column = first[0] - top, first[1] - left
    result[row : row + height, column : column + width] = inside
    return result[:, ::-1] if mirrored else result


def stream(
    images: Images, plan: BatchPlan, crop: tuple[int, int], *, threads: int = 2, ahead: int = 4
) -> Iterator[np.ndarray]:
    """The batches of a plan, (b, *crop, c) uint8 each, cut in other threads while the device works.

    Args:
      images: of the split; a memory map is read where a crop lies and no further.
      plan: arrays (steps, b).
      crop: height and width of the crops.
      threads: how many cut.
      ahead: batches that may wait, ready.

    Raises:
      ValueError: Grain is not installed.
    """
    # Grain takes a second to import, and images that fit on the device do without it.
    try:
        import grain.python as grain
    except ImportError as error:
        raise ValueError(
            "images beyond data.device_gb are streamed by Grain, which is not installed: "
            "pip install 'dh2l_jax[data]'"
        ) from error
    batch_size = plan.index.shape[1]
    crops = grain.MapDataset.source(_Crops(images, plan, crop))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead * batch_size)
    return iter(crops.to_iter_dataset(options).batch(batch_size))


class _Crops:
    """The crops of a plan, batch after batch, as Grain reads a source."""

    def __init__(self, images: Images, plan: BatchPlan, crop: tuple[int, int]):
        flat = [np.asarray(values).reshape(-1) for values in (plan.index, *plan.crops)]
        self._images, self._crop = images, crop
        self._index, self._top, self._left, self._mirrored = flat

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self._images[int(self._index[index])]
        top, left = int(self._top[index]), int(self._left[index])
        return crop_image(image, top, left, bool(self._mirrored[index]), self._crop)

    def __repr__(self) -> str:
        shape = (*self._crop, channels(self._images))
        return f"{len(self)} crops {shape}"

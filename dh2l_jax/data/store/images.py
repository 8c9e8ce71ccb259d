"""The images of a split: an array where all have one size, a `RaggedImages` where they do not.

Both are pixels in one block of memory, image after image, so a crop of any image of a batch is one
gather on the device and a plain slice on the host.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import numpy as np

__all__ = [
    "Images",
    "RaggedImages",
    "channels",
    "digest",
    "digests",
    "flat_pixels",
    "pixel_counts",
    "pixel_rows",
    "sizes",
    "take",
    "thumbnails",
]


@dataclasses.dataclass(frozen=True, eq=False)
class RaggedImages:
    """Images of different sizes, one after another.

    Attributes:
      pixels: (p, c) uint8, row by row; may be a memory map.
      start: (n,) int64, the first pixel of each image.
      size: (n, 2) int32, height and width of each image.

    Raises:
      ValueError: the arrays have other shapes or dtypes, or an image lies outside of `pixels`.

    >>> pixels = np.arange(10, dtype=np.uint8)[:, None]
    >>> images = RaggedImages(pixels, np.array([0, 6]), np.array([[2, 3], [4, 1]]))
    >>> len(images), images[1].shape, images[0][..., 0].tolist()
    (2, (4, 1, 1), [[0, 1, 2], [3, 4, 5]])
    """

    pixels: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def __post_init__(self) -> None:
        start, size = np.asarray(self.start, np.int64), np.asarray(self.size, np.int32)
        if self.pixels.ndim != 2 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"expected pixels (p, c) of uint8, found {self.pixels.shape} {self.pixels.dtype}"
            )
        if start.ndim != 1 or size.shape != (len(start), 2):
            raise ValueError(f"expected start (n,), size (n, 2), found {start.shape}, {size.shape}")
        end = start + size.astype(np.int64).prod(axis=1)
        if np.any(size < 1) or np.any(start < 0) or np.any(end > len(self.pixels)):
            raise ValueError(f"an image is empty or lies outside of the {len(self.pixels)} pixels")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "size", size)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, (h, w, c) uint8, without a copy."""
        (height, width), start = self.size[index].tolist(), int(self.start[index])
        return self.pixels[start : start + height * width].reshape(height, width, -1)

    def compact(self) -> RaggedImages:
        """The same images without pixels of others between them; a copy only where there are some.

        >>> pixels = np.zeros((10, 1), np.uint8)
        >>> RaggedImages(pixels, np.array([6]), np.array([[2, 2]])).compact().pixels.shape
        (4, 1)
        """
        count = self.size.astype(np.int64).prod(axis=1)
        if count.sum() == len(self.pixels):
            return self
        pixels = np.empty((count.sum(), self.pixels.shape[1]), np.uint8)
        start = np.cumsum(count) - count
        for index, first in enumerate(start):
            pixels[first : first + count[index]] = self[index].reshape(count[index], -1)
        return RaggedImages(pixels, start, self.size)


Images = np.ndarray | RaggedImages


def take(images: Images, index: np.ndarray) -> Images:
    """Some of the images, by integers or a mask; those of a `RaggedImages` share its pixels."""
    if isinstance(images, RaggedImages):
        return RaggedImages(images.pixels, images.start[index], images.size[index])
    return images[index]


def thumbnails(
    images: Images, index: np.ndarray, crop: tuple[int, int], side: int = 96
) -> np.ndarray:
    """The central crops of some images, made smaller by averages over whole squares.

    Args:
      index: (k,) which of them.
      crop: height and width.
      side: neither height nor width becomes larger.

    Returns:
      (k, h, w, c) uint8.

    >>> images = np.arange(72, dtype=np.uint8).reshape(2, 6, 6, 1)
    >>> thumbnails(images, np.array([1]), (4, 4), side=2)[0, ..., 0].tolist()
    [[46, 48], [58, 60]]
    """
    factor = -(-max(crop) // side)
    height, width = (max(1, length // factor) for length in crop)
    found = np.zeros((len(index), height, width, channels(images)), np.uint8)
    for place, number in enumerate(index):
        image = images[int(number)]
        top, left = (round((a - b) / 2) for a, b in zip(image.shape, crop, strict=False))
        cut = image[top : top + height * factor, left : left + width * factor]
        squares = cut.reshape(height, factor, width, factor, -1)
        found[place] = np.rint(squares.mean(axis=(1, 3)))
    return found


def channels(images: Images) -> int:
    """Number of channels."""
    return images.pixels.shape[1] if isinstance(images, RaggedImages) else images.shape[-1]


def sizes(images: Images) -> np.ndarray:
    """(n, 2) int32: height and width of each image."""
    if isinstance(images, RaggedImages):
        return images.size
    return np.full((len(images), 2), images.shape[1:3], np.int32)


def digest(image: np.ndarray) -> bytes:
    """8 bytes of a hash of the shape and the pixels of an image."""
    state = _begun(image.shape).copy()
    state.update(np.ascontiguousarray(image).data)
    return state.digest()


@functools.lru_cache(256)
def _begun(shape: tuple[int, ...]) -> hashlib.blake2b:
    """The hash of an image when its shape alone is known: most images have one size."""
    return hashlib.blake2b(np.array(shape, "<i8").tobytes(), digest_size=8)


def digests(images: Images) -> np.ndarray:
    """(n,) uint64: the `digest` of each image.

    >>> a, b, c = digests(np.array([[[[1]]], [[[2]]], [[[1]]]], np.uint8)).tolist()
    >>> a == c, a == b
    (True, False)
    """
    found = b"".join(digest(images[index]) for index in range(len(images)))
    return np.frombuffer(found, "<u8").astype(np.uint64)


def flat_pixels(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """All pixels (p, c) uint8, and the first pixel of each image (n,) int64; nothing is copied."""
    if isinstance(images, RaggedImages):
        return images.pixels, images.start
    count, height, width, c = images.shape
    return images.reshape(-1, c), np.arange(count, dtype=np.int64) * (height * width)


def pixel_rows(images: Images, first: int, last: int) -> np.ndarray:
    """Pixels `first` to `last` − 1 of all images, one after another: (last − first, c) uint8.

    Only the images in which they lie are read; pixels beyond the last image are 0.

    >>> images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    >>> pixel_rows(images, 3, 5)[:, 0].tolist(), pixel_rows(images, 7, 10)[:, 0].tolist()
    ([3, 4], [7, 0, 0])
    """
    end = np.cumsum(sizes(images).astype(np.int64).prod(axis=1))
    rows = np.zeros((last - first, channels(images)), np.uint8)
    begin, stop = np.searchsorted(end, (first, last - 1), side="right")
    for index in range(begin, min(stop + 1, len(images))):
        pixels = images[index].reshape(-1, channels(images))
        start = end[index] - len(pixels)
        part = pixels[max(first - start, 0) : last - start]
        offset = max(start - first, 0)
        rows[offset : offset + len(part)] = part
    return rows


def pixel_counts(images: Images) -> np.ndarray:
    """(c, 256) int64: how often each value occurs in each channel.

    >>> pixel_counts(np.array([[[[0], [7]]]], np.uint8))[0, [0, 7]].tolist()
    [1, 1]
    """
    counts = np.zeros((channels(images), 256), np.int64)
    for pixels in _chunks(images):
        for channel, values in enumerate(pixels.T):
            counts[channel] += np.bincount(values, minlength=256)
    return counts


def _chunks(images: Images) -> Iterator[np.ndarray]:
    """The pixels (p, c) of the images, a few megabytes at a time."""
    if isinstance(images, RaggedImages):
        for index in range(len(images)):
            yield images[index].reshape(-1, channels(images))
    else:
        for first in range(0, len(images), 256):
            yield images[first : first + 256].reshape(-1, channels(images))

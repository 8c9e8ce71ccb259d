"""What a trained network sees of pictures that it has never seen: files, or arrays of pixels.

    sight = Sight((32, 32), channels=3, resize=36, cut=True)
    for picture, pixels in seen(["a.jpg", "b.png"], sight):        # (32, 32, 3) uint8 each

Pixels are those of training: decoded by `decode`, scaled, and the crop in the middle.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dh2l_jax.data.store.decode import WHITE, decode, scaled
from dh2l_jax.files import open_plain

__all__ = ["Picture", "Sight", "seen"]

Picture = str | os.PathLike[str] | Any
"""The path of a file, or an array (h, w), (h, w, 1) or (h, w, 3): uint8, or float in 0..1."""

_GREY = np.array([19595, 38470, 7471])  # of red, green, blue in 2¹⁶ parts: Pillow's "L", to the bit


@dataclasses.dataclass(frozen=True)
class Sight:
    """How a picture becomes what a network sees.

    Attributes:
      size: height and width of what the network sees.
      channels: 3 for RGB, 1 for grey.
      resize: shorter side to which pictures are scaled before they are cut; 0 to keep their size.
      cut: the network sees crops of larger images. Otherwise it has seen whole images of one size,
        and others are scaled so that they just cover it.
      background: behind transparent pixels.
    """

    size: tuple[int, int]
    channels: int = 3
    resize: int = 0
    cut: bool = False
    background: str = WHITE

    def of(self, picture: Picture) -> np.ndarray:
        """(*size, channels) uint8.

        Raises:
          ValueError: it is no whole image, an array of another kind, or smaller than the crop.
          OSError: the file cannot be read.

        >>> Sight((4, 4)).of(np.zeros((8, 12), np.uint8)).shape
        (4, 4, 3)
        """
        is_file = isinstance(picture, str | os.PathLike)
        if self.cut and is_file:
            pixels = self._decoded(picture, self.resize)
        else:
            pixels = self._decoded(picture, 0) if is_file else self._of_array(picture)
            side = self.resize if self.cut else self._covering(pixels)
            pixels = scaled(pixels, side) if side else pixels
        if np.any(np.less(pixels.shape[:2], self.size)):
            raise ValueError(
                f"{pixels.shape[0]} × {pixels.shape[1]} pixels, expected at least the crop, "
                f"{self.size[0]} × {self.size[1]}"
            )
        top, left = (
            round((length - side) / 2)
            for length, side in zip(pixels.shape, self.size, strict=False)
        )
        return pixels[top : top + self.size[0], left : left + self.size[1]]

    def _decoded(self, path: str | os.PathLike[str], resize: int) -> np.ndarray:
        # Links are followed; a pipe, which would be waited for, is no picture.
        with open_plain(Path(os.path.realpath(path))) as file:
            encoded = file.read()
        return decode(encoded, channels=self.channels, resize=resize, background=self.background)

    def _covering(self, pixels: np.ndarray) -> int:
        """The shorter side at which an image just covers the size; 0 where it has it already."""
        (height, width), (h, w) = self.size, pixels.shape[:2]
        if (h, w) == self.size:
            return 0
        return max(width, -(-height * w // h)) if w <= h else max(height, -(-width * h // w))

    def _of_array(self, array: Any) -> np.ndarray:
        pixels = np.asarray(array)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
            raise ValueError(
                f"expected an image (h, w), (h, w, 1) or (h, w, 3), found shape {np.shape(array)}"
            )
        if np.issubdtype(pixels.dtype, np.floating):
            if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN too
                raise ValueError(
                    f"expected floats in 0..1, found {pixels.min():g}..{pixels.max():g}: pixels in "
                    "0..255 are given as uint8"
                )
            pixels = np.rint(pixels * 255).astype(np.uint8)
        elif pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8, or floats in 0..1, found {pixels.dtype}")
        if pixels.shape[-1] == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=-1)
        return ((pixels @ _GREY + 2**15) >> 16).astype(np.uint8)[..., None]


def seen(
    pictures: Iterable[Picture], sight: Sight, *, ahead: int = 0
) -> Iterator[tuple[Picture, np.ndarray | str]]:
    """Each picture, in order, with what a network sees of it, or the reason why that is nothing.

    Several threads decode, and no more than `ahead` pictures before the one that is asked for, but
    four for each thread at least.
    """
    threads = os.cpu_count() or 1

    def one(picture: Picture) -> np.ndarray | str:
        try:
            return np.ascontiguousarray(sight.of(picture))  # of a large image the crop alone stays
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)

    waiting: collections.deque[tuple[Picture, concurrent.futures.Future]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for picture in pictures:
                waiting.append((picture, pool.submit(one, picture)))
                if len(waiting) > max(ahead, 4 * threads):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

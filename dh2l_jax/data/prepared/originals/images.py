"""What the builders check before they hand it to TFDS: encoded images and bounding boxes.

Every image is decoded once, here, so that a damaged one stops the preparation and not a training.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from dh2l_jax.data.store.decode import MAX_PIXELS

__all__ = ["box", "encode_png", "rgb_image"]


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of an array (h, w) or (h, w, 3) of uint8.

    >>> encode_png(np.zeros((2, 2), np.uint8))[1:4]
    b'PNG'
    """
    return _png(Image.fromarray(pixels))


def rgb_image(data: bytes, what: str) -> tuple[bytes, tuple[int, int]]:
    """Checks one encoded image, which every reader must decode to (h, w, 3).

    Args:
      data: a JPEG or PNG file, untrusted.
      what: what a message calls it.

    Returns:
      The file, and (width, height) in pixels. A JPEG or PNG of 8-bit RGB is returned as it is; a
      grey or CMYK one, which readers decode to other shapes, as a PNG of the RGB pixels.

    Raises:
      ValueError: the file is damaged, no such image, or declares more than `MAX_PIXELS`.
    """
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        found = repr(data[:12]) if data else "an empty file"
        raise ValueError(f"{what}: expected a JPEG or PNG image, found {found}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return _as_rgb(image, data), image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{what}: expected a whole image, found a damaged header") from error
    except Exception as error:  # Pillow's decoders raise far more kinds than they document.
        raise ValueError(f"{what}: expected a whole image, found: {error}") from error


def box(
    corners: tuple[float, float, float, float], size: tuple[int, int], what: str
) -> tfds.features.BBox:
    """A bounding box relative to its image, as TFDS wants it.

    Args:
      corners: x and y of the first corner, x and y of the second, in pixels.
      size: width and height of the image in pixels.
      what: what a message calls it.

    Returns:
      The box; what lies beyond the right or lower edge is cut off, as the stock builder does.

    Raises:
      ValueError: the box is not finite, turned around or outside of the image.
    """
    x1, y1, x2, y2 = corners
    width, height = size
    if not (0 <= x1 <= x2 < float("inf") and 0 <= y1 <= y2 < float("inf")):
        raise ValueError(f"{what}: expected a box with 0 ≤ x1 ≤ x2, 0 ≤ y1 ≤ y2, found {corners}")
    if x1 >= width or y1 >= height:
        raise ValueError(f"{what}: expected a box inside of {width} × {height}, found {corners}")
    return tfds.features.BBox(
        ymin=y1 / height,
        xmin=x1 / width,
        ymax=min(y2 / height, 1.0),
        xmax=min(x2 / width, 1.0),
    )


def _as_rgb(image: Any, data: bytes) -> bytes:
    """Decodes the image; `data` if that gives 8-bit RGB, else a PNG."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} × {image.height} pixels, more than {MAX_PIXELS}")
    # Byte 24 of a PNG is its bit depth, which Pillow hides where it reduces 16 bits to 8.
    if image.mode not in ("RGB", "L", "CMYK") or (image.format == "PNG" and data[24] != 8):
        depth = f" of {data[24]} bits" if image.format == "PNG" else ""
        raise ValueError(f"mode {image.mode}{depth}, not one of RGB, L and CMYK of 8 bits")
    image.load()
    return data if image.mode == "RGB" else _png(image.convert("RGB"))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

"""What the builders check before they hand it to TFDS: encoded images and bounding boxes.

Every image is decoded once, here, so that a damaged one stops the preparation and not a training.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds

# Pillow is imported in the functions: without it, a missing copy is still named.
if TYPE_CHECKING:
    from PIL import Image

__all__ = ["box", "encode_png", "rgb_image"]


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of an array (h, w) or (h, w, 3) of uint8.

    >>> encode_png(np.zeros((2, 2), np.uint8))[1:4]
    b'PNG'
    """
    from PIL import Image

    return _png(Image.fromarray(pixels))


def rgb_image(data: bytes, what: str) -> tuple[bytes, tuple[int, int]]:
    """Checks one encoded image, which every reader must decode to (h, w, 3).

    Returns:
      The file, and (width, height) in pixels. A JPEG or PNG of 8-bit RGB is returned as it is; a
      grey or CMYK one, which readers decode to other shapes, as a PNG of the RGB pixels.

    Raises:
      ValueError: see `opened`, or the image has other colours; the message begins with `what`.
    """
    from dh2l_jax.data.store.decode import opened

    try:
        with opened(data, ("JPEG", "PNG")) as image:
            # Byte 24 of a PNG is its bit depth, which Pillow hides where it reduces 16 bits to 8.
            depth = data[24] if image.format == "PNG" else 8
            if image.mode not in ("RGB", "L", "CMYK") or depth != 8:
                raise ValueError(
                    f"mode {image.mode} of {depth} bits, not one of RGB, L and CMYK of 8 bits"
                )
            image.load()
            return data if image.mode == "RGB" else _png(image.convert("RGB")), image.size
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def box(
    corners: tuple[float, float, float, float], size: tuple[int, int], what: str
) -> tfds.features.BBox:
    """A bounding box relative to its image, as TFDS wants it.

    Args:
      corners: (x1, y1, x2, y2) in pixels; what lies beyond the right or lower edge is cut off, as
        the stock builder does.
      size: (width, height) in pixels.
      what: what a message calls it.

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


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.info.get("exif", b""))  # which says where its top is
    return file.getvalue()

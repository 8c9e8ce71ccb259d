"""One encoded image → one array of pixels, by Pillow; the one check of an untrusted image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import numpy as np

try:
    from PIL import Image, UnidentifiedImageError
except ImportError as missing:
    raise ValueError(
        "Pillow, which decodes images, is not installed: pip install 'dh2l_jax[data]'"
    ) from missing

__all__ = ["FORMATS", "MAX_PIXELS", "decode", "opened"]

FORMATS = ("PNG", "JPEG")
"""Pillow's parsers of other formats are not exposed to what a file holds."""

MAX_PIXELS = 2**26
"""Larger images are refused before they are inflated; a photograph of 64 megapixels passes."""


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """An image whose header has been checked; the pixels are read, and checked, within.

    Raises:
      ValueError: these bytes are not a whole PNG or JPEG, or declare more than `MAX_PIXELS`.
    """
    if not encoded.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        found = repr(encoded[:12]) if encoded else "an empty file"
        raise ValueError(f"expected a JPEG or PNG image, found {found}")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} × {image.height}"
                raise ValueError(f"{size} pixels, more than {MAX_PIXELS}")
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("expected a whole image, found a damaged header") from error
    except Exception as error:  # Pillow's decoders raise far more kinds than they document.
        found = str(error) or type(error).__name__
        raise ValueError(f"expected a whole image, found: {found}") from error


def decode(encoded: bytes, *, channels: int = 3, resize: int = 0) -> np.ndarray:
    """The pixels of one image.

    Args:
      encoded: PNG or JPEG, untrusted.
      channels: 3 for RGB, 1 for grey; whatever the image holds is converted.
      resize: shorter side in pixels, by antialiased bilinear scaling as torchvision's `Resize`; 0
        to keep the size.

    Returns:
      (h, w, channels) uint8.

    Raises:
      ValueError: see `opened`.

    >>> file = io.BytesIO()
    >>> Image.new("L", (30, 20), 7).save(file, "PNG")
    >>> decode(file.getvalue(), resize=10).shape
    (10, 15, 3)
    """
    with opened(encoded) as image:
        image.load()
        converted = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    if resize:
        size = _resized(converted.size, resize)
        converted = converted.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits; Pillow would clip it."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 257).astype(np.uint8))


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height scaled so that the shorter is `shorter`, the longer rounded down."""
    width, height = size
    if width <= height:
        return shorter, max(shorter * height // width, 1)
    return max(shorter * width // height, 1), shorter

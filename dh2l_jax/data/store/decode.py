"""One encoded image → one array of pixels, by Pillow; the one check of an untrusted image.

The pixels are what people see: upright as EXIF has it, on a background where they are transparent,
the first picture where a file holds several.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

try:
    from PIL import Image, ImageColor, UnidentifiedImageError
except ImportError as missing:
    raise ValueError(
        "Pillow, which decodes images, is not installed: pip install 'dh2l_jax[data]'"
    ) from missing

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "VERSION",
    "WHITE",
    "Decoded",
    "check_background",
    "decode",
    "decode_traced",
    "opened",
    "scaled",
    "scaled_size",
]

VERSION = 2
"""Of the pixels that a file becomes. Version 1 knew PNG and JPEG alone, no EXIF, no background."""

FORMATS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
}
"""How the files begin. Pillow's parsers of other formats are not exposed to what a file holds."""

MAX_PIXELS = 2**26
"""Larger images are refused, before they are inflated and before they are scaled: a photograph of
64 megapixels passes."""

WHITE = "white"

_FIRST_FORMATS = ("PNG", "JPEG")

# What else is found under the name of an image, by how it begins.
_OTHERS = {
    "an empty file": rb"\Z",
    "a web page": rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)",
    "an SVG or XML text": rb"(?i)\s*<(\?xml|svg)",
    "the pointer of a file in Git LFS (git lfs pull fetches it)": rb"version https://git-lfs",
    "the pointer of a file in git-annex": rb"/annex/objects/",
    "a PDF document": rb"%PDF",
    "a zip archive": rb"PK(\x03\x04|\x05\x06)",
    "a gzip archive": rb"\x1f\x8b",
    "a HEIC image": rb"....ftyp(hei|hev|mif1|msf1)",
    "an AVIF image": rb"....ftypavi[fs]",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a Photoshop document": rb"8BPS",
    "an icon": rb"\0\0[\1\2]\0",
    "a NumPy array": rb"\x93NUMPY",
    "the resource file of a Mac": rb"\0\x05\x16[\0\x07]",
    "zeros alone": rb"\0+\Z",
}

_ORIENTATION = 0x0112  # EXIF's tag
# By EXIF's orientation, upright pixels as the file has them: views, so that no image is copied.
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
_LYING = 5  # from this orientation on, the file's rows are columns
_STRIPE = 2**20  # pixels that are converted at a time: whole images of 64 megapixels take 0.5 GB
_TILE_SIDES = 322, 323  # TIFF's tags


class Decoded(NamedTuple):
    """One image, and what was done to it."""

    pixels: np.ndarray
    """(h, w, channels) uint8."""
    is_turned: bool
    """EXIF says that the file holds it rotated or mirrored."""
    is_transparent: bool
    """The background shows through some pixel."""
    kind: str
    """One of `FORMATS`."""

    @property
    def is_new(self) -> bool:
        """Whether version 1 made other pixels of the file, or refused it."""
        return self.is_turned or self.is_transparent or self.kind not in _FIRST_FORMATS


@contextlib.contextmanager
def opened(encoded: bytes, formats: Sequence[str] = tuple(FORMATS)) -> Iterator[Image.Image]:
    """An image whose header has been checked; the pixels are read, and checked, within.

    Raises:
      ValueError: these bytes are no whole image of these formats, or declare more than
        `MAX_PIXELS`.
    """
    kind = _kind(encoded, formats)
    try:
        with Image.open(io.BytesIO(encoded), formats=[kind]) as image:
            sides = [image.size]
            if kind == "TIFF":  # whose tiles may be larger than the image
                sides.append(tuple(image.tag_v2.get(tag, 1) for tag in _TILE_SIDES))  # pyright: ignore[reportAttributeAccessIssue]
            for width, height in sides:
                _check_size(width, height)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("expected a whole image, found a damaged header") from error
    except Exception as error:  # Pillow's decoders raise far more kinds than they document.
        found = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"expected a whole image, found: {found}") from error


def decode(
    encoded: bytes, *, channels: int = 3, resize: int = 0, background: str = WHITE
) -> np.ndarray:
    """The pixels of one image.

    Args:
      encoded: a file of one of `FORMATS`, untrusted.
      channels: 3 for RGB, 1 for grey; whatever the image holds is converted.
      resize: shorter side in pixels, by antialiased bilinear scaling as torchvision's `Resize`; 0
        to keep the size.
      background: the colour behind transparent pixels, see `check_background`.

    Returns:
      (h, w, channels) uint8.

    Raises:
      ValueError: see `opened`, or the scaled image would have more than `MAX_PIXELS`.

    >>> file = io.BytesIO()
    >>> Image.new("L", (30, 20), 7).save(file, "PNG")
    >>> decode(file.getvalue(), resize=10).shape
    (10, 15, 3)
    """
    return decode_traced(encoded, channels=channels, resize=resize, background=background).pixels


def decode_traced(
    encoded: bytes, *, channels: int = 3, resize: int = 0, background: str = WHITE
) -> Decoded:
    """What `decode` returns, with what was done to the image."""
    found = _upright(encoded, channels, resize, background)
    if not resize:
        return found
    image = Image.fromarray(found.pixels.squeeze(-1) if channels == 1 else found.pixels)
    found = found._replace(pixels=np.empty(0))  # the memory is needed
    return found._replace(pixels=_scaled(image, resize, channels))


def scaled(pixels: np.ndarray, resize: int) -> np.ndarray:
    """Decoded pixels (h, w, channels) scaled as `decode` does it.

    >>> scaled(np.zeros((20, 30, 3), np.uint8), 10).shape
    (10, 15, 3)
    """
    channels = pixels.shape[2]
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    return _scaled(image, resize, channels)


def _scaled(image: Image.Image, resize: int, channels: int) -> np.ndarray:
    image = image.resize(scaled_size(image.size, resize), Image.Resampling.BILINEAR)
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    for rows, part in _stripes(image):
        pixels[rows] = np.asarray(part).reshape(-1, image.width, channels)
    return pixels


def _upright(encoded: bytes, channels: int, resize: int, background: str) -> Decoded:
    """The image in its own size; refused if `resize` would blow it up."""
    mode, is_transparent = "L" if channels == 1 else "RGB", False
    with opened(encoded) as image:
        scaled_size(image.size, resize)  # before it is inflated
        kind = _kind(encoded)
        turns_itself = kind == "TIFF" and _orientation(image) > 1
        image.load()
        orientation = _orientation(image)  # not before: of a PNG it loads, and hides an error
        depth = encoded[24] if kind == "PNG" else 8  # which Pillow hides
        size = image.size if orientation >= _LYING else image.size[::-1]
        pixels = np.empty((*size, channels), np.uint8)
        stored = _AS_STORED[orientation](pixels)
        for rows, part in _stripes(image):
            flat, shows_through = _flattened(_eight_bits(part, depth), background)
            is_transparent |= shows_through
            flat = flat if flat.mode == mode else flat.convert(mode)
            stored[rows] = np.asarray(flat).reshape(-1, flat.width, channels)
    return Decoded(pixels, turns_itself or orientation > 1, is_transparent, kind)


def _stripes(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Rows of an image, as a slice and as an image of their own, from the top down."""
    step = max(_STRIPE // image.width, 1)
    if step >= image.height:
        yield slice(image.height), image
        return
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height scaled so that the shorter is `shorter`, the longer rounded down.

    Args:
      size: width and height.
      shorter: 0 to keep them.

    Raises:
      ValueError: that would be more than `MAX_PIXELS`.

    >>> scaled_size((30, 20), 10)
    (15, 10)
    """
    width, height = size
    if shorter and width <= height:
        width, height = shorter, max(shorter * height // width, 1)
    elif shorter:
        width, height = max(shorter * width // height, 1), shorter
    _check_size(width, height, f", scaled from {size[0]} × {size[1]}" if shorter else "")
    return width, height


def check_background(background: str) -> tuple[int, int, int]:
    """The colour's red, green and blue, each 0..255.

    Raises:
      ValueError: Pillow knows no such colour.

    >>> check_background("#ff8000")
    (255, 128, 0)
    """
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError as error:
        raise ValueError(
            f"the background must be a colour such as white or #ff8000, found {background!r}"
        ) from error


def _kind(encoded: bytes, formats: Sequence[str] = tuple(FORMATS)) -> str:
    for name, beginning in FORMATS.items():
        if name in formats and re.match(beginning, encoded, re.DOTALL):
            return name
    names = {name: beginning for name, beginning in FORMATS.items() if name not in formats}
    for name, beginning in ({f"a {n} image": b for n, b in names.items()} | _OTHERS).items():
        if re.match(beginning, encoded[:4096], re.DOTALL):
            found = name
            break
    else:
        found = repr(encoded[:12])
    *others, last = formats
    raise ValueError(f"expected a {', '.join(others)} or {last} image, found {found}")


def _check_size(width: int, height: int, what: str = "") -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels{what}, more than {MAX_PIXELS}")


def _orientation(image: Image.Image) -> int:
    # `ImageOps.exif_transpose` would write the EXIF block anew too, and fail on a damaged one.
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in _AS_STORED else 1
    except Exception:  # A damaged block turns nothing, whatever its parser raises.
        return 1


def _eight_bits(image: Image.Image, depth: int) -> Image.Image:
    """Scales deep grey to 8 bits, which Pillow would clip, and the colour that is transparent."""
    key = image.info.get("transparency")
    if image.mode == "F":
        raise ValueError("floating-point pixels, of which nobody knows what is white")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if low < 0 or high >= 2**16:
            raise ValueError(f"expected grey values 0..{2**16 - 1}, found {low}..{high}")
        grey = Image.fromarray((values // 257).astype(np.uint8))
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    # Of a PNG the key has the file's depth, and Pillow compares it with pixels of 8 bits.
    if image.mode == "L" and depth < 8 and isinstance(key, int):
        image.info["transparency"] = key * (255 // (2**depth - 1))
    elif image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _flattened(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """The image on a background, and whether that shows through anywhere."""
    if not image.has_transparency_data:
        return image, False
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image, False
    flat = Image.new("RGB", image.size, check_background(background))
    flat.paste(image, mask=image)
    return flat, True

"""One image: upright, on a background, of every format; what is none is named; limits hold."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.folders import encoded, noise

from dh2l_jax.data.store import decode as decode_module
from dh2l_jax.data.store.decode import MAX_PIXELS, check_background, decode, decode_traced

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}}
ORIENTATION = 0x0112


def test_every_mode_becomes_what_was_asked_for():
    grey = noise(6, 5, channels=1)
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(grey)), three)
    np.testing.assert_array_equal(decode(encoded(grey), channels=1)[..., 0], grey)
    colour = noise(6, 5)
    alpha = Image.fromarray(colour).convert("RGBA")
    np.testing.assert_array_equal(decode(encoded(alpha)), colour)
    assert np.array_equal(decode(encoded(alpha), background="red"), colour), (
        "nothing is transparent"
    )
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encoded(deep)), three)
    cmyk = Image.new("CMYK", (5, 6), (0, 255, 255, 0))
    red = decode(encoded(cmyk, "JPEG", quality=100))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() < 6
    palette = Image.new("P", (5, 6), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette))[0, 0].tolist() == [10, 20, 30]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_the_shorter_side_is_as_asked_and_the_longer_in_proportion(height, width, resize):
    pixels = decode(encoded(noise(height, width)), resize=resize)
    shorter, longer = min(height, width), max(height, width)
    expected = {True: (resize, max(resize * longer // shorter, 1))}
    found = sorted(pixels.shape[:2])
    assert found == sorted(expected[True])


def test_scaling_is_antialiased():
    """A checkerboard of pixels becomes grey, not stripes."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(encoded(board), channels=1, resize=8)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_a_huge_image_is_refused_before_it_is_inflated():
    for size in ((2**13 + 1, 2**13), (2**14, 2**13), (2**15, 2**15)):
        huge = Image.new("1", (1, 1))
        data = bytearray(encoded(huge))
        data[16:24] = struct.pack(">II", *size)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with pytest.raises(ValueError, match=r"expected a whole image, found: .* pixels"):
            decode(bytes(data))


# What people see.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(noise(6, 9), kind, exif=exif, **LOSSLESS.get(kind, {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decode_traced(data)
    np.testing.assert_array_equal(found.pixels, upright)
    assert found.pixels.shape == ((9, 6, 3) if orientation > 4 else (6, 9, 3))
    assert found.is_turned == found.is_new == (orientation > 1) or kind not in ("PNG", "JPEG")
    assert found.is_turned == (orientation > 1)
    assert decode(data, resize=3).shape == ((4, 3, 3) if orientation > 4 else (3, 4, 3))


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0"]
)
def test_a_damaged_exif_block_turns_nothing(block):
    found = decode_traced(encoded(noise(6, 9), exif=block))
    np.testing.assert_array_equal(found.pixels, noise(6, 9))
    assert not found.is_new


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "I;16"])
def test_large_images_are_converted_in_stripes(monkeypatch, mode):
    grey = noise(23, 17, channels=1)
    image = Image.fromarray(noise(23, 17)).convert({"I;16": "L"}.get(mode, mode))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(grey))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encoded(image, exif=exif)
        monkeypatch.setattr(decode_module, "_STRIPE", 2**20)
        whole = decode_traced(data, background="red", resize=9)
        monkeypatch.setattr(decode_module, "_STRIPE", 40)
        stripes = decode_traced(data, background="red", resize=9)
        np.testing.assert_array_equal(stripes.pixels, whole.pixels)
        assert stripes[1:] == whole[1:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, depth, colours, row, key=b"", *chunks):
    """A PNG file of one row, as bytes; `key` is its tRNS chunk."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colours, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, *([(b"tRNS", key)] if key else [])]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# A row of pixels, of which the last is transparent, and what is seen of it on red.
TRANSPARENT = {
    "grey of 1 bit": (png(2, 1, 0, b"\x40", b"\0\1"), [0]),
    "grey of 2 bits": (png(2, 2, 0, b"\x60", b"\0\2"), [85]),
    "grey of 4 bits": (png(2, 4, 0, b"\x35", b"\0\5"), [51]),
    "grey of 8 bits": (png(2, 8, 0, b"\x35\x36", b"\0\x36"), [0x35]),
    "grey of 16 bits": (png(2, 16, 0, b"\x12\x34\x12\x35", b"\x12\x35"), [0x12]),
    "RGB of 8 bits": (png(2, 8, 2, bytes(range(1, 7)), b"\0\4\0\5\0\6"), [1, 2, 3]),
    "RGB of 16 bits": (
        png(2, 16, 2, b"\1\x11\2\x12\3\x13\4\x14\5\x15\6\x16", b"\4\x14\5\x15\6\x16"),
        [1, 2, 3],
    ),
    "palette": (png(2, 8, 3, b"\0\1", b"\xff\0", (b"PLTE", bytes(range(1, 7)))), [1, 2, 3]),
    "grey and alpha": (png(2, 8, 4, b"\x35\xff\x36\0"), [0x35]),
    "RGBA": (png(2, 8, 6, b"\1\2\3\xff\4\5\6\0"), [1, 2, 3]),
    "RGBA of 16 bits": (png(2, 16, 6, b"\1\0\2\0\3\0\xff\xff" + bytes(8)), [1, 2, 3]),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_pixels_become_the_background(case):
    data, opaque = TRANSPARENT[case]
    opaque = opaque if len(opaque) == 3 else opaque * 3
    for background, colour in {"#ff8001": [255, 128, 1], "white": [255] * 3}.items():
        found = decode_traced(data, background=background)
        assert found.pixels.tolist() == [[opaque, colour]]
        assert found.is_transparent
        assert found.is_new
    np.testing.assert_array_equal(decode(data), decode(data, background="white"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_half_transparent_pixels_are_mixed(kind):
    image = Image.fromarray(noise(6, 9))
    image.putalpha(Image.fromarray(noise(6, 9, 1, channels=1)))
    values = np.asarray(image).astype(float)
    share = values[..., 3:] / 255
    expected = values[..., :3] * share + np.array([10, 200, 30]) * (1 - share)
    options = LOSSLESS[kind] | ({"exact": True} if kind == "WEBP" else {})
    found = decode(encoded(image, kind, **options), background="#0ac81e")
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_a_background_is_a_colour():
    assert check_background("hsl(0, 100%, 50%)") == (255, 0, 0)
    with pytest.raises(ValueError, match="must be a colour such as white or #ff8000, found 'blak'"):
        check_background("blak")


# Formats.


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_format_gives_the_same_pixels(kind):
    data = encoded(noise(6, 9), kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(decode(data), noise(6, 9))
    assert decode_traced(data).is_new == (kind != "PNG")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several(kind):
    first, second = (Image.new("RGB", (9, 6), colour) for colour in ("red", "blue"))
    options = {"save_all": True, "append_images": [second], **LOSSLESS.get(kind, {})}
    assert decode(encoded(first, kind, **options)).tolist() == [[[255, 0, 0]] * 9] * 6


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        ("1", {}),
        ("1", {"compression": "group4"}),
        ("L", {"compression": "tiff_lzw"}),
        ("P", {"compression": "packbits"}),
        ("I;16", {}),
        ("I;16B", {}),
        ("I", {}),
        ("CMYK", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_tiffs_of_scanners(pixels, options):
    """Black, grey and white of each kind come out as such."""
    grey = np.array([[0, 51, 255]] * 9, np.uint8)
    image = Image.fromarray(grey).convert({"CMYK": "RGB"}.get(pixels, "L"))
    if pixels.startswith("I"):
        deep = grey.astype({"I": "<i4", "I;16B": ">u2"}.get(pixels, "<u2")) * 257
        image = Image.frombytes(pixels, image.size, deep.tobytes())
    else:
        image = image.convert(pixels, dither=Image.Dither.NONE)
    expected = np.where(grey > 127, 255, 0) if pixels == "1" else grey
    found = decode(encoded(image, "TIFF", **options), channels=1)[..., 0]
    np.testing.assert_array_equal(found, expected)


NOT_IMAGES = {
    b"": "an empty file",
    b"\n <!DOCTYPE html><p>404": "a web page",
    b"<!-- x\n -->\n<HTML>": "a web page",
    b"<?xml version='1.0'?><svg/>": "an SVG or XML text",
    b"version https://git-lfs.github.com/spec/v1\n": "the pointer of a file in Git LFS",
    b"%PDF-1.7": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b\x08": "a gzip archive",
    b"\0\0\0\x18ftypheic": "a HEIC image",
    b"\0\0\0\x18ftypavif": "an AVIF image",
    b"\0\0\0\x18ftypisom": "a video",
    b"\0\x05\x16\x07\0\x02": "the resource file of a Mac",
    b"\x93NUMPY": "a NumPy array",
    bytes(10_000): "zeros alone",
    b"Not found\x1b[2J\n": r"b'Not found\\x1b\[2'",
}


@pytest.mark.parametrize("data", NOT_IMAGES, ids=lambda data: repr(data[:12]))
def test_what_is_no_image_is_named(data):
    message = f"expected a JPEG, PNG, WEBP, GIF, BMP or TIFF image, found {NOT_IMAGES[data]}"
    with pytest.raises(ValueError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (9, 6)), "floating-point pixels, of which nobody knows what is white"),
        (Image.new("I", (9, 6), 70_000), r"grey values 0\.\.65535, found 70000\.\.70000"),
        (Image.new("I", (9, 6), -1), r"grey values 0\.\.65535, found -1\.\.-1"),
    ],
)
def test_pixels_without_a_known_white_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        decode(encoded(image, "TIFF"))


# Limits.


def test_the_limit_holds_after_scaling():
    thin = encoded(Image.new("1", (1, 40_000)))
    assert len(thin) < 300
    assert decode(thin, resize=1).shape == (40_000, 1, 3)
    with pytest.raises(ValueError, match="72 × 2880000 pixels, scaled from 1 × 40000, more than"):
        decode(thin, resize=72)
    flat = encoded(Image.new("1", (2**22, 1)))
    with pytest.raises(ValueError, match=f"134217728 × 32 pixels, .* more than {MAX_PIXELS}"):
        decode(flat, resize=32)


def animated_webp():
    """Whose canvas may be larger than its pictures."""
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


# A file, and where its width and height stand, as two bytes from the low one up.
HUGE = {
    "GIF": (encoded(Image.new("L", (9, 6)), "GIF"), (6, 8)),
    "BMP": (encoded(Image.new("L", (9, 6)), "BMP"), (18, 22)),
    "WebP": (animated_webp(), (24, 27)),
    "TIFF": (
        tiff := encoded(Image.new("L", (9, 6)), "TIFF"),
        [tiff.index(bytes([n, 1, 4, 0])) + 8 for n in (0, 1)],
    ),
}


@pytest.mark.parametrize("case", HUGE)
def test_headers_of_huge_images_are_refused(case):
    data, places = HUGE[case]
    data = bytearray(data)
    for place in places:
        data[place : place + 2] = (2**14 - 1).to_bytes(2, "little")
    with pytest.raises(ValueError, match=r"1638[34] × 1638[34] pixels, more than|exceeds limit"):
        decode(bytes(data))


def test_texts_of_a_png_have_a_limit():
    text = (b"zTXt", b"key\0\0" + zlib.compress(bytes(2**24)))
    with pytest.raises(ValueError, match=r"expected a whole image, found: .*too large"):
        decode(png(1, 8, 0, b"\0", b"", text))


ALL = {
    **{f"{kind} RGB": encoded(noise(20, 30), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")},
    "CMYK with EXIF": encoded(
        Image.fromarray(noise(20, 30)).convert("CMYK"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08"
    ),
    "GIF": encoded(Image.fromarray(noise(20, 30)).quantize(), "GIF"),
    "TIFF": encoded(noise(20, 30), "TIFF"),
    "TIFF LZW": encoded(noise(20, 30), "TIFF", compression="tiff_lzw"),
    "WebP with alpha": encoded(np.dstack([noise(20, 30), noise(20, 30, 1)[..., :1]]), "WEBP"),
}


def outcome(data):
    """The pixels, or the line that refuses them."""
    try:
        return decode(data, resize=8)
    except ValueError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")  # Pillow's; commands leave them out too
@pytest.mark.parametrize("case", ALL)
def test_mutations_are_images_or_refused_in_one_line(case):
    generator = np.random.default_rng(len(case))
    for number in range(80):
        data = bytearray(ALL[case])
        place = int(generator.integers(len(data)))
        if number % 4 == 0:
            del data[place:]
        elif number % 4 == 1:
            data += generator.bytes(100)
        else:
            place %= (len(data), 64)[number % 4 - 2]
            data[place : place + 4] = generator.bytes(min(4, len(data) - place))
        found = outcome(bytes(data))
        assert found.isprintable() if isinstance(found, str) else min(found.shape[:2]) == 8

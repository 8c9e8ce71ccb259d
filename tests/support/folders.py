"""Folders of made pictures, and what is found wrong with them."""

import io
import os
import zlib

import numpy as np
import pytest

from dh2l_jax.data.folders.scan import open_folder, scan

Image = pytest.importorskip("PIL.Image", reason="needs the extra `data`")


def picture(number=0, *, size=(40, 36), mode="RGB", suffix=".png", **options):
    """An encoded image; another number is another image."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    formats = {".jpg": "JPEG", ".jfif": "JPEG", ".tif": "TIFF"}
    Image.fromarray(pixels).convert(mode).save(file, formats.get(suffix, suffix[1:]), **options)
    return file.getvalue()


def write(root, *names):
    """Files, each with an image of its own; returns the root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = zlib.crc32(os.fsencode(name))
        path.write_bytes(picture(number, suffix=path.suffix.lower()))
    return root


def birds(root, *, train="train", test="test"):
    """A good folder: two levels, three classes, both splits."""
    for split, numbers in ((train, range(3)), (test, range(3, 5))):
        for name in ("gulls/ivory_gull", "gulls/herring_gull", "owls/snowy_owl"):
            write(root, *(f"{split}/{name}/{number}.png" for number in numbers))
    return root


def files(examples):
    """{path below the root: label}, in order."""
    return {examples.describe(i): examples[i][1] for i in range(len(examples))}


def problems(root, **options):
    """{kind: where}; `open_folder` must name the first problem in one line."""
    found = {finding.what: list(finding.where) for finding in scan(root, **options).problems}
    if found:
        first = next(iter(found))
        with pytest.raises(ValueError) as caught:
            open_folder(root, **options)
        assert "\n" not in str(caught.value)
        assert f"{root}: {first}: {found[first][0]}" in str(caught.value)
    else:
        open_folder(root, **options)
    return found


def remarks(root, **options):
    return {finding.what: list(finding.where) for finding in scan(root, **options).remarks}


def numbered(root, count, *classes, start=0):
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (root / name / f"{number}.png").touch()
    return root


def flat_birds(root, *classes):
    return numbered(root, 3, *(classes or ("ivory_gull", "herring_gull", "snowy_owl")))


CSV = "class,parent,grandparent\nsnowy_owl,owls,birds\nivory_gull,gulls,birds\n"


CSV += "herring_gull,gulls,birds\n"


FILE = "train/gulls/ivory_gull/0.png"


def encoded(pixels, kind="PNG", **options):
    """The file of an array, or of an image of Pillow's."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height, width, seed=0, channels=3):
    """(h, w, c) uint8, or (h, w) for one channel."""
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

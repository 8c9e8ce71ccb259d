"""CUB-200-2011 as a TFDS builder that needs no TensorFlow, no OpenCV and no segmentations.

Name, version, features, keys and therefore the order of the examples are the stock builder's. The
second archive, `segmentations.tgz`, is not read: every `segmentation_mask` is all 0, of the size of
its image, so that the stock reader finds what it expects.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import caltech_birds

from dh2l_jax.data.prepared.originals import archives, files, images
from dh2l_jax.hierarchy.published import taxonomy

__all__ = ["CaltechBirds2011"]

_ROOT = "CUB_200_2011/"
# The columns of each table; the first is the number of the image.
_TABLES = {
    "images.txt": 2,
    "image_class_labels.txt": 2,
    "train_test_split.txt": 2,
    "bounding_boxes.txt": 5,
}
_FILE_NAME = re.compile(r"(\d{3}\.\w+)/\w+\.jpg", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Photo:
    """What the tables say about one image; the corners of its box are in pixels."""

    member: str
    label: int
    corners: tuple[float, float, float, float]
    is_training: bool


with registered.skip_registration():

    class CaltechBirds2011(caltech_birds.CaltechBirds2011):
        """CUB-200-2011 without TensorFlow, from the archive of the images alone."""

        url_infos = {  # noqa: RUF012 (TFDS's own attribute)
            url: info
            for url, info in files.url_infos("caltech_birds2011").items()
            if url.startswith("https://data.caltech.edu/") and info.filename == "CUB_200_2011.tgz"
        }

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
            path = Path(dl_manager.download(self._caltech_birds_info.images_url))
            photos = _read_tables(path)
            splits = {"train": True, "test": False}
            return {
                split: self._generate_examples(
                    path, {p.member: p for p in photos if p.is_training is training}
                )
                for split, training in splits.items()
            }

        def _generate_examples(
            self, path: Path, photos: Mapping[str, _Photo]
        ) -> Iterator[tuple[str, dict]]:
            for name, data in archives.iter_members(path, photos):
                what = f"{path}: {name}"
                image, size = images.rgb_image(data, what)
                photo = photos[name]
                folder = name.split("/")[-2]
                yield (
                    name,
                    {
                        "image": io.BytesIO(image),
                        "image/filename": name,
                        "label": photo.label,
                        "label_name": folder[4:].lower(),
                        "bbox": images.box(photo.corners, size, what),
                        "segmentation_mask": io.BytesIO(_empty_mask(size)),
                    },
                )


@functools.lru_cache(maxsize=1024)
def _empty_mask(size: tuple[int, int]) -> bytes:
    width, height = size
    return images.encode_png(np.zeros((height, width), np.uint8))


def _read_tables(path: Path) -> list[_Photo]:
    """The four tables of the archive, joined and checked."""
    members = archives.read_members(path, [_ROOT + name for name in _TABLES])
    names, labels, splits, boxes = (
        _table(members[_ROOT + name], columns, f"{path}: {name}")
        for name, columns in _TABLES.items()
    )
    for name, table in zip(_TABLES, (names, labels, splits, boxes), strict=True):
        if odd := table.keys() ^ names.keys():
            raise ValueError(
                f"{path}: expected the same images in every table, found image {min(odd)} only in "
                f"one of images.txt and {name}"
            )
    photos = [
        _photo(names[i][0], labels[i][0], splits[i][0], boxes[i], f"{path}: image {i}")
        for i in names
    ]
    _check_whole(photos, path)
    return photos


def _table(data: bytes, columns: int, what: str) -> dict[int, list[str]]:
    """Number of the image → the other columns."""
    rows: dict[int, list[str]] = {}
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: expected ASCII text, found: {error}") from error
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) != columns or not cells[0].isdecimal():
            raise ValueError(
                f"{what}: expected a number and {columns - 1} more columns, found "
                f"{line[:80]!r} in line {number}"
            )
        if int(cells[0]) in rows:
            raise ValueError(f"{what}: image {int(cells[0])} occurs twice")
        rows[int(cells[0])] = cells[1:]
    return rows


def _photo(name: str, label: str, split: str, box: list[str], what: str) -> _Photo:
    classes = taxonomy("cub200").names(2)
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{what}: expected NUMBER.CLASS/FILE.jpg in images.txt, found {name!r}")
    if not label.isdecimal() or not 1 <= int(label) <= len(classes):
        raise ValueError(f"{what}: expected a class from 1 to {len(classes)}, found {label!r}")
    folder = f"{int(label):03d}.{classes[int(label) - 1]}"
    if match[1] != folder:
        raise ValueError(f"{what}: expected the folder {folder} of class {label}, found {match[1]}")
    if split not in ("0", "1"):
        raise ValueError(f"{what}: expected 0 or 1 in train_test_split.txt, found {split!r}")
    try:
        x, y, width, height = map(float, box)
    except ValueError as error:
        raise ValueError(f"{what}: expected four numbers as a box, found {box}") from error
    corners = (x, y, x + width, y + height)
    return _Photo(f"{_ROOT}images/{name}", int(label) - 1, corners, split == "1")


def _check_whole(photos: list[_Photo], path: Path) -> None:
    """Every image once, and some for training as well as for the test."""
    members = {photo.member for photo in photos}
    if len(members) != len(photos):
        raise ValueError(f"{path}: expected a file an image, found one file for several images")
    if {photo.is_training for photo in photos} != {True, False}:
        raise ValueError(f"{path}: expected images for training and for the test, found no such")

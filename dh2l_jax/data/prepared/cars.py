"""Cars196 as a TFDS builder that needs no TensorFlow.

Name, version, features, keys and therefore the order of the examples are the stock builder's.
Stanford has not served the originals since 2023, so nothing is downloaded: the builder reads the
four original archives, whose checksums TFDS verifies, or the folders into which torchvision's
`StanfordCars` wants them extracted.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import cars196

from dh2l_jax.data.prepared.originals import archives, files, matlab
from dh2l_jax.data.prepared.originals.images import box, rgb_image

__all__ = ["Cars196", "find_folder"]

NUM_CLASSES = 196

_FOLDER = {
    "cars_train": True,
    "cars_test": True,
    "devkit/cars_train_annos.mat": False,
    "cars_test_annos_withlabels.mat": False,
}
_TABLES = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
_FILE_NAME = re.compile(r"\w+\.jpg", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Car:
    """What the tables say about one image; the corners of its box are in pixels."""

    label: int
    corners: tuple[float, float, float, float]


def find_folder(manual: Path) -> tuple[Path, list[str]]:
    """The extracted layout in `manual` or in its `stanford_cars/`, and what is missing there."""
    folders = (manual, manual / "stanford_cars")
    lacks = {folder: _lacking(folder) for folder in folders}
    best = min(folders, key=lambda folder: len(lacks[folder]))
    return best, lacks[best]


def _lacking(folder: Path) -> list[str]:
    return [
        f"{name}/" if is_folder else name
        for name, is_folder in _FOLDER.items()
        if not ((folder / name).is_dir() if is_folder else (folder / name).is_file())
    ]


with registered.skip_registration():

    class Cars196(cars196.Cars196):
        """Cars196 without TensorFlow.

        Attributes:
          folder: where the extracted layout lies; None to read the archives.
        """

        url_infos = files.url_infos("cars196")
        folder: Path | None = None

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
            if self.folder is not None:
                return self._from_folder(self.folder)
            urls = {info.filename: url for url, info in (self.url_infos or {}).items()}
            paths = {name: Path(path) for name, path in dl_manager.download(urls).items()}
            devkit, table = paths["car_devkit.tgz"], _TABLES["train"]
            tables = {
                "train": (archives.read_members(devkit, [table])[table], f"{devkit}: {table}"),
                "test": _read_file(paths[_TABLES["test"]]),
            }
            splits = {split: _read_cars(*table) for split, table in tables.items()}
            return {
                split: self._generate_examples(
                    cars, _from_archive(paths[f"cars_{split}.tgz"], f"cars_{split}/", cars)
                )
                for split, cars in splits.items()
            }

        def _from_folder(self, folder: Path) -> dict[str, Iterator[tuple[str, dict]]]:
            splits = {
                split: _read_cars(*_read_file(folder / name)) for split, name in _TABLES.items()
            }
            return {
                split: self._generate_examples(cars, _from_files(folder / f"cars_{split}", cars))
                for split, cars in splits.items()
            }

        def _generate_examples(
            self, cars: Mapping[str, _Car], images: Iterable[tuple[str, bytes, str]]
        ) -> Iterator[tuple[str, dict]]:
            for name, data, what in images:
                image, size = rgb_image(data, what)
                key = name.split(".")[0]
                yield (
                    key,
                    {
                        "image": io.BytesIO(image),
                        "label": cars[name].label,
                        "bbox": box(cars[name].corners, size, what),
                        "id": key,
                    },
                )


def _from_archive(
    path: Path, prefix: str, names: Iterable[str]
) -> Iterator[tuple[str, bytes, str]]:
    for member, data in archives.iter_members(path, [prefix + name for name in names]):
        yield member.removeprefix(prefix), data, f"{path}: {member}"


def _from_files(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes, str]]:
    if lacking := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder}: {archives.missing_names(lacking)} missing")
    for name in names:
        yield name, *_read_file(folder / name)


def _read_file(path: Path) -> tuple[bytes, str]:
    """The content of a file, and what a message calls it."""
    if path.stat().st_size > archives.MAX_MEMBER:
        raise ValueError(
            f"{path}: expected at most {archives.MAX_MEMBER} bytes, found {path.stat().st_size}"
        )
    return path.read_bytes(), str(path)


def _read_cars(data: bytes, what: str) -> dict[str, _Car]:
    """File name → what the table says about it."""
    cars: dict[str, _Car] = {}
    for index, row in enumerate(matlab.read_table(data, "annotations", _FIELDS, what), 1):
        x1, y1, x2, y2, label, name = row
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{what}: expected FILE.jpg as fname of row {index}, found {name!r}")
        if name in cars:
            raise ValueError(f"{what}: the fname {name} occurs twice")
        if label not in range(1, NUM_CLASSES + 1):
            raise ValueError(
                f"{what}: expected a class from 1 to {NUM_CLASSES} in row {index}, found {label!r}"
            )
        try:
            corners = float(x1), float(y1), float(x2), float(y2)
        except ValueError as error:
            raise ValueError(f"{what}: expected four numbers as a box, found {row[:4]}") from error
        cars[name] = _Car(int(label) - 1, corners)
    if not cars:
        raise ValueError(f"{what}: expected a row an image, found no row")
    return cars

"""CIFAR-10 and CIFAR-100 as TFDS builders that need no TensorFlow.

Names, versions, features, keys and therefore the order of the examples are the stock builders'.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import cifar

from dh2l_jax.data.prepared.originals import archives, images
from dh2l_jax.data.prepared.originals.files import url_infos as infos_of
from dh2l_jax.hierarchy.published import taxonomy

__all__ = ["Cifar10", "Cifar100"]

_PIXELS = 3 * 32 * 32


class _RowReader:
    """Replaces the parts of the stock builders that read files with TensorFlow."""

    info: Any
    _cifar_info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        source = self._cifar_info
        names = [*source.train_files, *source.test_files, *source.label_files]
        path = Path(dl_manager.download(source.url))
        members = archives.read_members(path, [source.prefix + name for name in names])
        files = {name: members[source.prefix + name] for name in names}
        for key, name in zip(source.label_keys, source.label_files, strict=True):
            feature = self.info.features[key]
            feature.names = _names(files[name], feature.num_classes, f"{path}: {name}")
        sizes = {key: self.info.features[key].num_classes for key in source.label_keys}
        rows = {name: _rows(files[name], sizes, f"{path}: {name}") for name in names[: -len(sizes)]}
        self._check_tree(rows, path)
        return {
            "train": self._generate_examples("train_", [rows[name] for name in source.train_files]),
            "test": self._generate_examples("test_", [rows[name] for name in source.test_files]),
        }

    def _check_tree(self, rows: Mapping[str, np.ndarray], path: Path) -> None:
        """CIFAR-10 has no tree."""

    def _generate_examples(
        self, prefix: str, tables: list[np.ndarray]
    ) -> Iterator[tuple[int, dict]]:
        keys = self._cifar_info.label_keys
        for index, row in enumerate(row for table in tables for row in table):
            pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield (
                index,
                {
                    **dict(zip(keys, row.tolist(), strict=False)),
                    "id": f"{prefix}{index:05d}",
                    "image": io.BytesIO(images.encode_png(np.ascontiguousarray(pixels))),
                },
            )


with registered.skip_registration():

    class Cifar10(_RowReader, cifar.Cifar10):  # pyright: ignore[reportIncompatibleMethodOverride]
        """CIFAR-10 without TensorFlow."""

        url_infos = infos_of("cifar10")

    class Cifar100(_RowReader, cifar.Cifar100):  # pyright: ignore[reportIncompatibleMethodOverride]
        """CIFAR-100 without TensorFlow; its coarse labels must be the published ones."""

        url_infos = infos_of("cifar100")

        def _check_tree(self, rows: Mapping[str, np.ndarray], path: Path) -> None:
            tree = taxonomy("cifar100")
            for level, key in enumerate(self._cifar_info.label_keys, 1):
                found, expected = self.info.features[key].names, tree.names(level)
                if tuple(found) != expected:
                    first = next(i for i in range(len(expected)) if found[i] != expected[i])
                    raise ValueError(
                        f"{path}: expected {expected[first]!r} as {key} {first}, as published, "
                        f"found {found[first]!r}"
                    )
            parents = np.asarray(tree.parents(2))
            for name, table in rows.items():
                wrong = np.flatnonzero(parents[table[:, 1]] != table[:, 0])
                if len(wrong):
                    coarse, fine = table[wrong[0], :2].tolist()
                    raise ValueError(
                        f"{path}: {name}: expected the published coarse label {parents[fine]} for "
                        f"label {fine}, found {coarse} in row {wrong[0]}"
                    )


def _names(data: bytes, count: int, what: str) -> list[str]:
    """The class names in a text file, one a line."""
    try:
        names = [line.strip() for line in data.decode("ascii").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: expected ASCII text, found: {error}") from error
    if len(set(names)) != count or len(names) != count:
        raise ValueError(f"{what}: expected {count} different names, found {len(set(names))}")
    return names


def _rows(data: bytes, num_classes: Mapping[str, int], what: str) -> np.ndarray:
    """The rows of a batch file: one byte a label, then the pixels; (n, labels + 3072) uint8."""
    width = len(num_classes) + _PIXELS
    if not data or len(data) % width:
        raise ValueError(f"{what}: expected rows of {width} bytes, found {len(data)} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)
    for column, (key, count) in enumerate(num_classes.items()):
        index = int(rows[:, column].argmax())
        if rows[index, column] >= count:
            raise ValueError(
                f"{what}: expected {key} 0..{count - 1}, found {rows[index, column]} in row {index}"
            )
    return rows

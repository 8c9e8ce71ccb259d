"""The builders behind our names, and the copies they prepared: images, labels, the class tree."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from dh2l_jax.data.facts import FACTS
from dh2l_jax.data.store.source import Source
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.published import taxonomy

__all__ = ["BUILDERS", "check_copy", "source", "source_of_any"]


def _builder(path: str) -> type[tfds.core.GeneratorBasedBuilder]:
    module, name = path.split(".")
    return getattr(importlib.import_module(f"dh2l_jax.data.prepared.{module}"), name)


# A builder needs no TensorFlow. Its class attribute `url_infos` holds exactly the files that it
# reads; its name, version and features are those of the stock builder.
BUILDERS = {name: _builder(facts.builder) for name, facts in FACTS.items() if facts.builder}

_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    """The examples of one split, for several threads, as TFDS's reader is."""

    records: Any
    folder: Path
    split: str
    num_classes: int
    image: str = "image"
    label: str = "label"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> tuple[bytes, int]:
        example = self._read(index)
        label = int(example[self.label])
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{self._what(index)}: expected a label 0..{self.num_classes - 1}, found {label}"
            )
        return bytes(example[self.image]), label

    def describe(self, index: int) -> str:
        example = self._read(index)
        name = bytes(example.get("image/filename", example.get("id", b""))).decode()
        return self._what(index) + (f" ({name})" if name else "")

    def _what(self, index: int) -> str:
        return f"{self.folder}: {self.split} example {index}"

    def _read(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index 0..{len(self) - 1}, found {index}")
        try:
            return self.records[index]
        except Exception as error:  # Of whatever array_record and protobuf find damaged.
            raise ValueError(
                f"{self._what(index)}: the prepared copy is damaged, remove that folder and "
                f"prepare again: {' '.join(str(error).split())}"
            ) from error


def check_copy(builder: Any, splits: tuple[str, ...] = _SPLITS) -> None:
    """Refuses a prepared copy that is not whole, or not in a format with random access."""
    folder = Path(builder.data_dir)
    again = "remove that folder and prepare again"
    if not builder.is_prepared() or not set(splits) <= builder.info.splits.keys():
        raise ValueError(f"{folder}: the prepared copy is not whole: {again}")
    found = builder.info.file_format.value
    if found != "array_record":
        raise ValueError(f"{folder}: expected array_record files, found {found}: {again}")
    files = [Path(file) for split in splits for file in builder.info.splits[split].filepaths]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder}: {lacking[0]} is missing: {again}")


def source(name: str, builder: Any) -> Source:
    """The prepared copy behind a builder, as `prepare.open_prepared` returns it."""
    check_copy(builder)
    tree = _tree(name, builder.info.features["label"], Path(builder.data_dir))
    return _source(name, builder, tree, _SPLITS, "image", "label")


def source_of_any(name: str, data_dir: Path | None) -> Source:
    """The copy of any image set that lies prepared, read from its files alone; its tree is flat.

    Raises:
      ValueError: there is no such copy, with what prepares it; it is damaged; or it has no images
        with one class each.
    """
    where = {} if data_dir is None else {"data_dir": str(data_dir.absolute())}
    try:
        builder: Any = builder_from_files(name, **where)
    except Exception as error:  # of whatever TFDS finds, or does not
        place = "TFDS's folder" if data_dir is None else str(data_dir)
        raise ValueError(
            f"tfds:{name} is not prepared in {place}: where TensorFlow is installed, "
            f'tfds.builder({name!r}).download_and_prepare(file_format="array_record") does it'
        ) from error
    folder = Path(builder.data_dir)
    splits = ("train", "test" if "test" in builder.info.splits else "validation")
    check_copy(builder, splits)
    features = builder.info.features
    image = _only(features, tfds.features.Image, "image", folder)
    label = _only(features, tfds.features.ClassLabel, "label", folder)
    names = tuple(map(str, features[label].names))
    tree = Hierarchy.flat(features[label].num_classes, names=names)
    return _source(f"tfds:{name}", builder, tree, splits, image, label)


def _only(features: Any, kind: type, usual: str, folder: Path) -> str:
    """The name of the only feature of a kind, or of the one that has the usual name."""
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if usual in found:
        return usual
    if len(found) != 1:
        raise ValueError(
            f"{folder}: expected one feature of the kind {kind.__name__}, or one called {usual!r}, "
            f"found {', '.join(found) or 'none'}"
        )
    return found[0]


def _source(
    name: str, builder: Any, tree: Hierarchy, splits: tuple[str, ...], image: str, label: str
) -> Source:
    folder, features = Path(builder.data_dir), builder.info.features
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    train, test = (
        _Examples(
            builder.as_data_source(split, decoders=skip),
            folder,
            split,
            tree.num_classes,
            image,
            label,
        )
        for split in splits
    )
    channels = 1 if features[image].shape[-1] == 1 else 3
    return Source(name, _fingerprint(folder, tree), tree, train, test, channels)


def _tree(name: str, label: Any, folder: Path) -> Hierarchy:
    """The class tree, whose leaves must be the labels of the copy."""
    if not FACTS[name].tree:
        return Hierarchy.flat(label.num_classes, names=label.names)
    tree = taxonomy(FACTS[name].tree)
    leaves = tree.names(tree.num_levels)
    # CUB's copy has no names of labels: its builder has compared them.
    found = leaves if name == "cub200" else tuple(label.names)
    if label.num_classes != len(leaves) or found != leaves:
        raise ValueError(
            f"{folder}: expected the {len(leaves)} classes of the tree of {name} in its order, "
            f"found {label.num_classes} or other names"
        )
    return tree


def _fingerprint(folder: Path, tree: Hierarchy) -> str:
    """Changes with the files of the copy (their sizes and times are compared) and with the tree."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((stats, tree.parent_table, tree.node_names)).encode()).hexdigest()

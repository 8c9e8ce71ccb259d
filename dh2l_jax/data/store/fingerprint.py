"""What tells the data of a run from others: classes in order, tree, labels, pixels of every image.

Where the images lie, and when they were written, is no part of it: a copy is the same data. Eight
bytes an image are kept, so that a difference can be named and not only noticed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dh2l_jax.hierarchy import Hierarchy

__all__ = ["SPLITS", "DataRecord", "Fingerprint", "difference", "image_number"]

SPLITS = {"train": "training", "test": "test"}
FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """Of the training and the test images of a data set, by the names "train" and "test".

    Attributes:
      tree: above the labels.
      labels: {split: (n,) int32}.
      digests: {split: (n,) uint64}, see `images.digests`.
      decoding: version of `decode` that made the pixels; 0 where they come decoded.
    """

    tree: Hierarchy
    labels: Mapping[str, np.ndarray]
    digests: Mapping[str, np.ndarray]
    decoding: int = 0

    @functools.cached_property
    def sha256(self) -> str:
        """One text for all of it; the same for equal data, however they were decoded."""
        depths = [self.tree.class_depths] if self.tree.class_depths else []
        tree = json.dumps([self.tree.parent_table, self.tree.node_names, *depths])
        whole = hashlib.sha256(tree.encode())
        for split in SPLITS:
            for values, dtype in ((self.labels[split], "<i4"), (self.digests[split], "<u8")):
                whole.update(b"%d " % len(values))
                whole.update(values.astype(dtype).tobytes())
        return whole.hexdigest()

    def summary(self) -> dict[str, int | str]:
        """What a result says of its data, as JSON values."""
        images = {split: len(labels) for split, labels in self.labels.items()}
        classes = self.tree.num_classes
        return {**images, "classes": classes, "decoding": self.decoding, "sha256": self.sha256}


class DataRecord(NamedTuple):
    """What a checkpoint holds of its data: what they were, and what a prediction needs of them.

    Attributes:
      fingerprint: of the data set.
      image_shape: height, width and channels; None where images differ in size.
      mean: (c,) float32, what pixels / 255 are normalised by.
      std: (c,) float32.
    """

    fingerprint: Fingerprint
    image_shape: tuple[int | None, int | None, int]
    mean: np.ndarray
    std: np.ndarray

    def pack(self) -> bytes:
        """An npz file without pickles; `unpack` is the inverse."""
        print_, file = self.fingerprint, io.BytesIO()
        facts = {
            "format": FORMAT,
            "parents": print_.tree.parent_table,
            "names": print_.tree.node_names,
            "decoding": print_.decoding,
            "image_shape": self.image_shape,
        }
        if print_.tree.class_depths:
            facts["depths"] = print_.tree.class_depths
        arrays: dict[str, Any] = {
            f"{split}_labels": labels for split, labels in print_.labels.items()
        }
        arrays |= {f"{split}_digests": digests for split, digests in print_.digests.items()}
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez_compressed(file, facts=text, mean=self.mean, std=self.std, **arrays)
        return file.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> DataRecord:
        """The record that was packed."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            facts, arrays = json.loads(file["facts"].tobytes()), dict(file)
        if facts["format"] != FORMAT:
            raise ValueError(f"expected a record of format {FORMAT}, found {facts['format']!r}")
        parents, names = (tuple(map(tuple, facts[name])) for name in ("parents", "names"))
        tree = Hierarchy(parents, names, tuple(facts.get("depths", ())))
        labels = {split: arrays[f"{split}_labels"] for split in SPLITS}
        digests = {split: arrays[f"{split}_digests"] for split in SPLITS}
        print_ = Fingerprint(tree, labels, digests, facts["decoding"])
        return cls(print_, tuple(facts["image_shape"]), arrays["mean"], arrays["std"])


def difference(
    before: Fingerprint, now: Fingerprint, name: Callable[[str, int], str] | None = None
) -> str | None:
    """None if both are of the same data, else what has changed, in one line.

    Args:
      name: (split, i) → the name of image i of a split of those of now.

    >>> tree, labels = Hierarchy.flat(2, names=["trout", "perch"]), np.array([0, 1, 1])
    >>> of = lambda tree, labels, *digests: Fingerprint(
    ...     tree, {"train": labels, "test": labels}, {"train": np.array(digests), "test": labels})
    >>> old = of(tree, labels, 7, 8, 9)
    >>> difference(old, of(Hierarchy.flat(2, names=["aaa", "perch"]), labels, 7, 8, 9))
    "class 'trout' is now 'aaa'"
    >>> difference(old, of(tree, labels, 7, 8, 5))
    'training image 2 has other pixels'
    """
    if before.sha256 == now.sha256:
        return None
    found = _of_classes(before.tree, now.tree)
    if found:
        return found
    parts = [
        part for split in SPLITS for part in _of_images(split, before, now, name or image_number)
    ]
    if parts and before.decoding != now.decoding:
        parts.append(f"images are decoded by version {now.decoding}, were by {before.decoding}")
    return "; ".join(parts) or "the nodes of the tree are in another order"


def image_number(split: str, index: int) -> str:
    """What a message calls an image that has no name."""
    return f"{SPLITS[split]} image {index}"


def _of_classes(before: Hierarchy, now: Hierarchy) -> str | None:
    """How the classes and what lies above them differ, but for the order of inner nodes."""
    old, new = _paths(before), _paths(now)
    gone = [path for path in old if path not in set(new)]
    come = [path for path in new if path not in set(old)]
    if not gone and not come:
        moved = next((i for i, path in enumerate(new) if path != old[i]), None)
        if moved is None:
            return None
        place = old.index(new[moved])
        return (
            f"the classes are in another order: {new[moved][-1]!r} is number {moved}, was {place}"
        )
    leaves = {path[-1]: path for path in come}
    moved = [path for path in gone if path[-1] in leaves]
    if moved:
        leaf = moved[0][-1]
        there, here = ("/".join(path[:-1]) for path in (moved[0], leaves[leaf]))
        more = f", and {len(moved) - 1} more classes" if len(moved) > 1 else ""
        return f"class {leaf!r} lies below {here!r}, was below {there!r}{more}"
    if len(gone) == len(come) == 1:
        return f"class {gone[0][-1]!r} is now {come[0][-1]!r}"
    parts = [
        f"{_number(len(paths), 'class', 'classes')} {what}, {paths[0][-1]!r}"
        + (" the first" if len(paths) > 1 else "")
        for paths, what in ((gone, "gone"), (come, "new"))
        if paths
    ]
    return "; ".join(parts)


def _paths(tree: Hierarchy) -> list[tuple[str, ...]]:
    """The names from the root down to each class."""
    paths: list[tuple[str, ...]] = [()]
    for level in range(1, tree.num_levels + 1):
        names, parents = tree.names(level), tree.parents(level)
        paths = [(*paths[parent], name) for name, parent in zip(names, parents, strict=True)]
    depths = tree.node_depths()[: tree.num_classes]
    return [path[:depth] for path, depth in zip(paths, depths, strict=True)]


def _of_images(
    split: str, before: Fingerprint, now: Fingerprint, name: Callable[[str, int], str]
) -> Iterator[str]:
    """How the images of a split and their labels differ, in phrases."""
    old, new = (
        list(zip(p.digests[split].tolist(), p.labels[split].tolist(), strict=True))
        for p in (before, now)
    )
    if old == new:
        return
    what, plural = f"{SPLITS[split]} image", f"{SPLITS[split]} images"
    come, gone = _more(new, old), _more(old, new)
    tree = now.tree
    classes = (*tree.names(tree.num_levels), *tree.unique_names()[tree.num_classes :])
    first = name(split, come[0]) if come else ""
    if come and first != image_number(split, come[0]):
        first = f"image {first!r}"
    if not come and not gone:
        yield f"the {plural} are in another order"
    elif not _more([d for d, _ in new], [d for d, _ in old]) and len(old) == len(new):
        label = classes[new[come[0]][1]]
        yield f"{_number(len(come), what, plural)} of another class, {first} of {label!r}"
    elif come == gone and [label for _, label in old] == [label for _, label in new]:
        if len(come) == 1:
            yield f"{first} has other pixels"
        else:
            yield f"{len(come)} {plural} have other pixels, {first} the first"
    else:
        if come:
            yield f"{_number(len(come), what, plural)} added, {first}" + (
                " the first" if len(come) > 1 else ""
            )
        if gone:
            label = classes[old[gone[0]][1]]
            yield f"{_number(len(gone), what, plural)} removed, of class {label!r}" + (
                " the first" if len(gone) > 1 else ""
            )


def _more(values: list, others: list) -> list[int]:
    """Positions of the values that occur more often than among the others."""
    left, found = Counter(others), []
    for index, value in enumerate(values):
        left[value] -= 1
        if left[value] < 0:
            found.append(index)
    return found


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"

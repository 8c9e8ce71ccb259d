"""From the name of a data set to its images, labels and tree.

dataset = load("fashion_mnist_mini")                              # embedded, 6,000 + 2,000
dataset = load("fashion_mnist", data_dir="~/data/fashion-mnist")  # its four IDX files
dataset = load("cifar100")                                        # as `prepare` left it
dataset = load("folder", data_dir="~/birds", resize=256)          # <super>/<class>/*.jpg
dataset = load("package.module:function")                         # your own arrays
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dh2l_jax import checks
from dh2l_jax.checks import unknown_name
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.facts import FACTS
from dh2l_jax.data.prepared.originals import idx
from dh2l_jax.data.store.cache import Splits, open_cached
from dh2l_jax.data.store.source import Source
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.published import taxonomy

__all__ = ["from_function", "load"]


DATASETS = (*FACTS, "folder")
TFDS = "tfds:"  # before the name of any image set that lies prepared

# Options of a folder of images, with what others are loaded by.
_OF_FOLDERS = {"csv": None, "background": "white", "on_bad_image": "refuse", "inner": "label"}

# The embedded file's, as `mini/make.py` prints it.
MINI_SHA256 = "ed0f14a1145d25d64829bc671309c929342a47e0ea3d7f1e4ad7f83519932fde"


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    csv: str | Path | None = None,
    tree: str = "",
    resize: int = 0,
    background: str = "white",
    on_bad_image: str = "refuse",
    inner: str = "label",
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> Dataset:
    """Loads a data set by name; nothing is downloaded.

    Args:
      name: "fashion_mnist_mini", the subset inside the package (6,000 + 2,000 images 28 × 28);
        another of `FACTS`, which `dh2l data prepare NAME` has prepared; "folder", your own
        images; "tfds:NAME", any image set that lies prepared; or "package.module:function", see
        `from_function`.
      data_dir: the folder of images; of a prepared data set, TFDS's data folder (None for its
        default); of "fashion_mnist", also the folder of its four IDX files; what a function of
        your own is called with, if it is set.
      csv: of "folder", a file `class,parent[,grandparent]` with the tree.
      tree: a taxonomy of the same classes instead of the data set's own, such as
        "cifar100_five_level", or "flat" for none.
      resize: shorter side in pixels; 0 to keep the images' sizes.
      background: of "folder", the colour behind transparent pixels, a name or #rrggbb.
      on_bad_image: of "folder", "refuse", or "skip" to leave out what cannot be decoded.
      inner: of "folder", what becomes of images at inner nodes, see `open_folder`.
      cache_dir: where decoded images are kept, see `cache.open_cached`.
      progress: show a bar on a terminal while images are decoded.

    Raises:
      ValueError: the name is unknown, an option is missing or superfluous, a file is damaged.
      OSError: a file is missing or cannot be read.

    >>> dataset = load("fashion_mnist_mini")
    >>> dataset.train_images.shape, dataset.test_images.shape, dataset.hierarchy
    ((6000, 28, 28, 1), (2000, 28, 28, 1), Hierarchy({2, 6, 10}))
    """
    own = {"csv": csv, "background": background, "on_bad_image": on_bad_image, "inner": inner}
    dataset = _load(name, data_dir, own, resize, cache_dir, progress=progress)
    return _with_tree(dataset, tree) if tree else dataset


def _load(
    name: str,
    data_dir: str | Path | None,
    own: dict[str, Any],
    resize: int,
    cache_dir: str | Path | None,
    *,
    progress: bool,
) -> Dataset:
    """`own` are the options of a folder of images, which no other data set takes."""
    if name not in DATASETS and not (checks.is_own(name) or name.startswith(TFDS)):
        raise ValueError(unknown_name("data set", name, DATASETS))
    for option, default in _OF_FOLDERS.items():
        if name != "folder" and own[option] != default:
            raise ValueError(
                f"{name} is no folder of own images and takes no {option}, found "
                f"{str(own[option])!r}"
            )
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if resize and (name.startswith("fashion_mnist") or checks.is_own(name)):
        raise ValueError(f"{name} has images as they are and takes no resize, found {resize}")
    if checks.is_own(name):
        return from_function(name, folder)
    if name == "fashion_mnist_mini":
        return _load_mini(folder)
    if name == "fashion_mnist" and folder and not (folder / name).is_dir():
        return _load_idx(folder)
    from dh2l_jax.data.store.decode import VERSION  # needs Pillow

    source = _open_source(name, folder, own.pop("csv"), own.pop("inner"))
    splits = open_cached(source, cache_dir, resize=resize, progress=progress, **own)
    train, test = splits.values()
    return Dataset(
        source.name,
        train.images,
        train.labels,
        test.images,
        test.labels,
        source.hierarchy,
        known_digests=(train.digests, test.digests),
        first_new=train.first_new or test.first_new,
        decoding=VERSION,
        name_of=_names(source, splits),
    )


def _names(source: Source, splits: Splits) -> Callable[[str, int], str]:
    """(split, i) → the path of image i, counted without those that were left out."""
    examples = {"train": source.train, "test": source.test}
    left_out = {split: splits[split].left_out for split in examples}

    @functools.cache
    def kept(split: str) -> Sequence[int]:
        every, gone = range(len(examples[split])), left_out[split]
        return [i for i in every if examples[split].describe(i) not in gone] if gone else every

    return lambda split, index: examples[split].describe(kept(split)[index])


def _with_tree(dataset: Dataset, tree: str) -> Dataset:
    classes = dataset.hierarchy.names(dataset.hierarchy.num_levels)
    if max(dataset.train_labels.max(), dataset.test_labels.max()) >= len(classes):
        raise ValueError(
            f"{dataset.name} has images at inner nodes, which the tree {tree!r} need not have: "
            "expected inner=skip or class, or its own tree"
        )
    if tree == "flat":
        flat = Hierarchy.flat(len(classes), names=classes)
        return dataclasses.replace(dataset, hierarchy=flat)
    other = taxonomy(tree)
    theirs = other.names(other.num_levels)
    if classes != theirs:
        raise ValueError(
            f"expected a tree of the {len(classes)} classes of {dataset.name}, found {tree!r} of "
            f"{len(theirs)} classes, the first of them {theirs[0]!r}"
        )
    return dataclasses.replace(dataset, hierarchy=other)


def from_function(name: str, folder: Path | None = None) -> Dataset:
    """What the user's function "package.module:function" returns, called with a folder if given.

    That is a `Dataset`, or (train_images, train_labels, test_images, test_labels) of NumPy arrays
    with a `Hierarchy` as a fifth, without which the tree is flat. Images are (n, h, w, c) or
    (n, h, w), uint8 or floats in 0..1, which become the nearest of 256 levels.

    Raises:
      MissingPart: there is no such module.
      ValueError: the function fails, or returns something else.
    """
    function = checks.own("data.name", name)
    found = function() if folder is None else function(folder)
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, tuple) or len(found) not in (4, 5):
        raise ValueError(
            f"{name}: expected a Dataset, or (train_images, train_labels, test_images, "
            f"test_labels) and a Hierarchy, found {type(found).__name__}"
        )
    train, test = (
        (_as_pixels(f"{name}, {split}", images), np.asarray(labels))
        for split, images, labels in (("train", *found[:2]), ("test", *found[2:4]))
    )
    tree = found[4] if len(found) == 5 else None
    if tree is None:
        if not np.issubdtype(train[1].dtype, np.integer) or not train[1].size:
            raise ValueError(f"{name}, train: expected integer labels, found {train[1].dtype}")
        tree = Hierarchy.flat(int(train[1].max()) + 1)
    if not isinstance(tree, Hierarchy):
        raise ValueError(f"{name}: expected a Hierarchy, found {type(tree).__name__}")
    return Dataset.from_splits(name, train, test, tree)


def _as_pixels(what: str, images: Any) -> np.ndarray:
    """Images of uint8; of floats in 0..1 the nearest level, as a picture is predicted."""
    images = np.asarray(images)
    if images.size and np.issubdtype(images.dtype, np.floating):
        low, high = images.min(), images.max()
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(
                f"{what}: expected floats in 0..1, found {low:g}..{high:g}: pixels in 0..255 are "
                "given as uint8, and before they are normalised"
            )
        return np.rint(images * 255).astype(np.uint8)
    return images


def _load_mini(folder: Path | None) -> Dataset:
    name = "fashion_mnist_mini"
    if folder is not None:
        raise ValueError(f"{name} is embedded and takes no data_dir, found {str(folder)!r}")
    data = resources.files("dh2l_jax.data").joinpath("mini", "images.npz").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != MINI_SHA256:
        raise ValueError(
            f"the images of {name} are damaged, reinstall the package: expected the sha256 "
            f"{MINI_SHA256}, found {digest}"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        train, test = ((file[f"{s}_images"], file[f"{s}_labels"]) for s in ("train", "test"))
    return Dataset.from_splits(name, train, test, taxonomy(FACTS[name].tree))


def _load_idx(folder: Path) -> Dataset:
    tree = taxonomy("fashion_mnist")
    splits = idx.read_folder(folder, num_classes=tree.num_classes)
    return Dataset.from_splits("fashion_mnist", splits["train"], splits["test"], tree)


def _open_source(name: str, folder: Path | None, csv: str | Path | None, inner: str) -> Source:
    # tensorflow_datasets and Pillow load late: only these readers need them.
    if name == "folder":
        if folder is None:
            raise ValueError("folder needs data.data_dir, the folder that holds the images")
        from dh2l_jax.data.folders.scan import open_folder

        return open_folder(folder, classes_csv=csv, inner=inner)
    if name.startswith(TFDS):
        from dh2l_jax.data.prepared.read import source_of_any

        return source_of_any(name.removeprefix(TFDS), folder)
    from dh2l_jax.data.prepared.prepare import open_prepared

    return open_prepared(name, folder)

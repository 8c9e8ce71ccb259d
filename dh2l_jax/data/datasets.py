"""Image data sets in memory, and where they come from.

dataset = load("fashion_mnist_mini")                              # embedded, 6,000 + 2,000
dataset = load("fashion_mnist", data_dir="~/data/fashion-mnist")  # its four IDX files
tuning = hold_out(dataset, 1_000, seed=0)                         # choose settings on this
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from dh2l_jax.data import idx
from dh2l_jax.data.taxonomies import taxonomy
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.messages import unknown_name

__all__ = ["DATASETS", "Dataset", "balanced_indices", "hold_out", "load"]

# Of the embedded file; `make_fashion_mnist_mini` prints it.
MINI_SHA256 = "ed0f14a1145d25d64829bc671309c929342a47e0ea3d7f1e4ad7f83519932fde"

Split = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images, labels and the tree above the labels. The arrays are read-only.

    Attributes:
      name: what results report; it tells a held-out split from the test set.
      train_images: (n, h, w, c) uint8.
      train_labels: (n,) int32, the leaf of `hierarchy`.
      test_images: (m, h, w, c) uint8.
      test_labels: (m,) int32.
      hierarchy: the tree of classes; a flat one where no tree is known.
      mean: (c,) float32, of the training pixels divided by 255.
      std: (c,) float32, likewise; 1 for a channel without variation.

    Raises:
      ValueError: an array has another shape or dtype, or a label is not a leaf.
    """

    name: str
    train_images: np.ndarray = dataclasses.field(repr=False)
    train_labels: np.ndarray = dataclasses.field(repr=False)
    test_images: np.ndarray = dataclasses.field(repr=False)
    test_labels: np.ndarray = dataclasses.field(repr=False)
    hierarchy: Hierarchy
    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        arrays = {
            **_canonical(self, "train", self.train_images, self.train_labels),
            **_canonical(self, "test", self.test_images, self.test_labels),
            "mean": np.asarray(self.mean, np.float32),
            "std": np.asarray(self.std, np.float32),
        }
        if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
            raise ValueError(
                f"{self.name}: expected images of one shape, found {self.train_images.shape[1:]} "
                f"for training and {self.test_images.shape[1:]} for the test"
            )
        for field, array in arrays.items():
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    @classmethod
    def from_splits(cls, name: str, train: Split, test: Split, hierarchy: Hierarchy) -> Dataset:
        """A data set with the mean and standard deviation of its training images.

        Args:
          name: any name.
          train: images (n, h, w, c), or (n, h, w) for one channel, uint8; labels (n,) integers.
          test: likewise, (m, ...).
          hierarchy: the tree above the labels.

        Returns:
          The data set; what is wrong with the arrays is a `ValueError`.

        >>> split = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 2])
        >>> mine = Dataset.from_splits("mine", split, split, Hierarchy.two_level([0, 0, 1]))
        >>> mine.train_images.shape, mine.mean, mine.hierarchy
        ((3, 8, 8, 1), array([0.], dtype=float32), Hierarchy({2, 3}))
        """
        unscaled = cls(name, *train, *test, hierarchy, np.zeros(1), np.ones(1))
        mean, std = _channel_statistics(unscaled.train_images)
        return dataclasses.replace(unscaled, mean=mean, std=std)


def load(name: str, *, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name; nothing is downloaded.

    Args:
      name: "fashion_mnist_mini", the subset inside the package (6,000 + 2,000 images 28 × 28), or
        "fashion_mnist", the whole (60,000 + 10,000).
      data_dir: folder of the files of a data set that is not embedded.

    Returns:
      The data set with its class tree.

    Raises:
      ValueError: the name is unknown, `data_dir` is missing or superfluous, a file is damaged.
      OSError: a file is missing or cannot be read.

    >>> dataset = load("fashion_mnist_mini")
    >>> dataset.train_images.shape, dataset.test_images.shape, dataset.hierarchy
    ((6000, 28, 28, 1), (2000, 28, 28, 1), Hierarchy({2, 6, 10}))
    """
    if name in _EMBEDDED:
        if data_dir is not None:
            raise ValueError(f"{name} is embedded and takes no data_dir, found {str(data_dir)!r}")
        return _EMBEDDED[name]()
    if name in _FROM_FOLDER:
        if data_dir is None:
            raise ValueError(f"{name} needs data_dir, the folder that holds its files")
        return _FROM_FOLDER[name](Path(data_dir).expanduser())
    raise ValueError(unknown_name("data set", name, DATASETS))


def hold_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    """A validation split from the training images, so that no setting is chosen on the test set.

    Args:
      dataset: its test part is neither used nor kept.
      count: number of validation images, a multiple of the number of classes.
      seed: ≥ 0; the split is a function of the training labels, `count` and `seed`.

    Returns:
      A data set that trains on the remaining images, in their old order, and whose test part is the
      class-balanced validation split. Its name says so.

    Raises:
      ValueError: `count` is not a positive multiple, or a class would have no image left.

    >>> tuning = hold_out(load("fashion_mnist_mini"), 1_000, seed=0)
    >>> tuning.name, len(tuning.train_labels), np.bincount(tuning.test_labels).tolist()[:3]
    ('fashion_mnist_mini/hold_out(1000, seed=0)', 5000, [100, 100, 100])
    """
    classes = dataset.hierarchy.num_classes
    if count < 1 or count % classes:
        raise ValueError(f"count must be a positive multiple of {classes} classes, found {count}")
    labels = dataset.train_labels
    smallest = int(np.bincount(labels, minlength=classes).min())
    if count // classes >= smallest:
        raise ValueError(
            f"count must be below {classes * smallest}, since the smallest of {classes} classes of "
            f"{dataset.name} has {smallest} training images, found {count}"
        )
    held = np.zeros(len(labels), bool)
    held[balanced_indices(labels, count // classes, seed)] = True
    return Dataset.from_splits(
        f"{dataset.name}/hold_out({count}, seed={seed})",
        (dataset.train_images[~held], labels[~held]),
        (dataset.train_images[held], labels[held]),
        dataset.hierarchy,
    )


def balanced_indices(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Indices of `per_class` random members of every class that occurs, in ascending order.

    Args:
      labels: (n,) integers.
      per_class: at most the size of the smallest class.
      seed: ≥ 0.

    Returns:
      (per_class · classes,) int64.

    >>> labels = np.array([1, 0, 0, 1, 1, 0])
    >>> labels[balanced_indices(labels, 2, seed=0)].tolist().count(1)
    2
    """
    # Ranks of raw generator output: NumPy fixes that stream for good, unlike its shuffles.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    short = min(len(members) for members in chosen)
    if short < per_class:
        raise ValueError(f"expected {per_class} images of every class, found {short} of one")
    return np.sort(np.concatenate(chosen))


def _load_mini() -> Dataset:
    name = "fashion_mnist_mini"
    data = resources.files("dh2l_jax.data").joinpath(f"{name}.npz").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != MINI_SHA256:
        raise ValueError(
            f"{name}.npz is damaged, reinstall the package: expected the sha256 {MINI_SHA256}, "
            f"found {digest}"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        train, test = ((file[f"{s}_images"], file[f"{s}_labels"]) for s in ("train", "test"))
    return Dataset.from_splits(name, train, test, taxonomy("fashion_mnist"))


def _load_fashion_mnist(folder: Path) -> Dataset:
    tree = taxonomy("fashion_mnist")
    splits = idx.read_folder(folder, num_classes=tree.num_classes)
    return Dataset.from_splits("fashion_mnist", splits["train"], splits["test"], tree)


_EMBEDDED: dict[str, Callable[[], Dataset]] = {"fashion_mnist_mini": _load_mini}
_FROM_FOLDER: dict[str, Callable[[Path], Dataset]] = {"fashion_mnist": _load_fashion_mnist}
DATASETS = (*_EMBEDDED, *_FROM_FOLDER)


def _canonical(
    dataset: Dataset, split: str, images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Checks one split and returns its fields: images (n, h, w, c) uint8, labels (n,) int32."""
    what, classes = f"{dataset.name}, {split}", dataset.hierarchy.num_classes
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise ValueError(
            f"{what}: expected images (n, h, w, c) of uint8, found {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{what}: expected {len(images)} integer labels, found {labels.shape} of {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{what}: expected labels 0..{classes - 1}, found {labels.min()}..{labels.max()}"
        )
    return {f"{split}_images": images, f"{split}_labels": labels.astype(np.int32)}


def _channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in units of 0..1, each (c,) float32."""
    # Exact integer sums, a few images at a time: a float copy of CIFAR's pixels takes a gigabyte.
    total = np.zeros((2, images.shape[-1]), np.int64)
    for start in range(0, len(images), 256):
        pixels = images[start : start + 256].reshape(-1, images.shape[-1]).astype(np.int64)
        total += pixels.sum(axis=0), (pixels * pixels).sum(axis=0)
    mean, square = total / (images.size // images.shape[-1]) / np.array([[255.0], [255.0**2]])
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)

"""Image data sets in memory: images, labels, the tree above them, and parts of them.

tuning = hold_out(dataset, 1_000, seed=0)                         # choose settings on this
small = subsample(dataset, 0.1)                                   # a tenth of every class
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dh2l_jax.data.store.fingerprint import SPLITS, Fingerprint, image_number
from dh2l_jax.data.store.images import (
    Images,
    RaggedImages,
    channels,
    digests,
    pixel_counts,
    take,
)
from dh2l_jax.hierarchy import Hierarchy

__all__ = ["Dataset", "Split", "balanced_indices", "halve_test", "hold_out", "subsample"]


Split = tuple[Images, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images, labels and the tree above the labels. The arrays are read-only.

    Attributes:
      name: what results report; it tells a held-out split from the test set.
      train_images: (n, h, w, c) uint8, or `RaggedImages`.
      train_labels: (n,) int32, nodes of `hierarchy` but the root: the classes, or inner nodes where
        no more is known; see `Hierarchy` for their numbers.
      test_images: (m, h, w, c) uint8, or `RaggedImages`.
      test_labels: (m,) int32.
      hierarchy: the tree of classes; a flat one where no tree is known.
      normalization: `mean` and `std`; None for those of the training images.
      known_digests: `digests`, where a cache has them; None where they are not known yet.
      first_new: the first image of which an earlier version decoded other pixels, see
        `decode.VERSION`; empty if there is none.
      decoding: `decode.VERSION` of the pixels; 0 where they come decoded.
      name_of: (split, i) → the path of image i of the split "train" or "test", or what else it is
        called; parts of a data set keep the names of the whole.

    Raises:
      ValueError: an array has another shape or dtype, or a label is no node.
    """

    name: str
    train_images: Images = dataclasses.field(repr=False)
    train_labels: np.ndarray = dataclasses.field(repr=False)
    test_images: Images = dataclasses.field(repr=False)
    test_labels: np.ndarray = dataclasses.field(repr=False)
    hierarchy: Hierarchy
    normalization: tuple[np.ndarray, np.ndarray] | None = None
    known_digests: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(
        default=None, repr=False
    )
    first_new: str = ""
    decoding: int = 0
    name_of: Callable[[str, int], str] = dataclasses.field(default=image_number, repr=False)

    def __post_init__(self) -> None:
        arrays = {
            **_canonical(self, "train", self.train_images, self.train_labels),
            **_canonical(self, "test", self.test_images, self.test_labels),
        }
        train, test = _shape(arrays["train_images"]), _shape(arrays["test_images"])
        if train[-1] != test[-1] or (None not in (*train, *test) and train != test):
            raise ValueError(
                f"{self.name}: expected images of one shape, found {train} for training and {test} "
                "for the test"
            )
        _refuse_classes_never_seen(self)
        for field, array in arrays.items():
            object.__setattr__(self, field, _read_only(array))

    @property
    def mean(self) -> np.ndarray:
        """(c,) float32, what is subtracted from the pixels divided by 255."""
        return self._statistics[0]

    @property
    def std(self) -> np.ndarray:
        """(c,) float32, what they are divided by then; 1 for a channel without variation."""
        return self._statistics[1]

    @functools.cached_property
    def _statistics(self) -> np.ndarray:
        # The statistics read every pixel, so they wait until somebody asks: of a data set, its
        # subset and what a hold-out leaves of that, only the last is trained on.
        values = np.array(self.normalization or _channel_statistics(self.train_images), np.float32)
        values.flags.writeable = False
        return values

    @functools.cached_property
    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) and (m,) uint64: a hash of the shape and pixels of each training and test image."""
        return self.known_digests or (digests(self.train_images), digests(self.test_images))

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells this data set from others."""
        labels = dict(zip(SPLITS, (self.train_labels, self.test_labels), strict=True))
        digests = dict(zip(SPLITS, self.digests, strict=True))
        return Fingerprint(self.hierarchy, labels, digests, self.decoding)

    @property
    def label_counts(self) -> np.ndarray:
        """(num_nodes,) int64: how many training images each node is the label of."""
        return np.bincount(self.train_labels, minlength=self.hierarchy.num_nodes)

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """Height, width and channels; height and width are None where images differ in size."""
        return _shape(self.train_images)

    @classmethod
    def from_splits(cls, name: str, train: Split, test: Split, hierarchy: Hierarchy) -> Dataset:
        """A data set that is normalised by the statistics of its training images.

        Args:
          name: any name.
          train: images (n, h, w, c), or (n, h, w) for one channel, uint8; labels (n,) integers.
          test: the same of m images.
          hierarchy: the tree above the labels.

        >>> split = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 2])
        >>> mine = Dataset.from_splits("mine", split, split, Hierarchy.two_level([0, 0, 1]))
        >>> mine.train_images.shape, mine.mean, mine.hierarchy
        ((3, 8, 8, 1), array([0.], dtype=float32), Hierarchy({2, 3}))
        """
        return cls(name, *train, *test, hierarchy)


def subsample(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """The same `fraction` in (0, 1] of every class, at least one image, of both splits.

    >>> from dh2l_jax.data.catalog import load
    >>> small = subsample(load("fashion_mnist_mini"), 0.1)
    >>> len(small.train_labels), len(small.test_labels)
    (600, 200)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], found {fraction}")

    def chosen(labels: np.ndarray) -> np.ndarray:
        counts = np.bincount(labels)
        return balanced_indices(labels, np.ceil(fraction * counts).astype(int), seed)

    train, test = chosen(dataset.train_labels), chosen(dataset.test_labels)
    name = f"{dataset.name}/fraction({fraction:g})"
    return _parts(dataset, name, ("train", train), ("test", test))


def hold_out(dataset: Dataset, count: float, seed: int) -> Dataset:
    """A validation split from the training images, so that no setting is chosen on the test set.

    The remaining images keep their order; the test part is replaced by the validation images, a
    function of the training labels, `count` and `seed`. Each class gives its share of them, rounded
    by the largest remainders, and keeps an image at least; of a multiple of the number of classes
    all give the same number, where they can.

    Args:
      dataset: labels at inner nodes give their share too.
      count: a whole number ≥ 1, or a share of the training images below 1.
      seed: of the choice within the classes.

    Raises:
      ValueError: `count` is neither, or a class would have no image left.

    >>> from dh2l_jax.data.catalog import load
    >>> tuning = hold_out(load("fashion_mnist_mini"), 1_000, seed=0)
    >>> tuning.name, len(tuning.train_labels), np.bincount(tuning.test_labels).tolist()[:3]
    ('fashion_mnist_mini/hold_out(1000, seed=0)', 5000, [100, 100, 100])
    """
    labels = dataset.train_labels
    held = balanced_indices(labels, _held_of_each(dataset, count), seed)
    kept = np.delete(np.arange(len(labels)), held)
    name = f"{dataset.name}/hold_out({count:.16g}, seed={seed})"
    return _parts(dataset, name, ("train", kept), ("train", held))


def _held_of_each(dataset: Dataset, count: float) -> np.ndarray:
    """(largest label + 1,) how many images of each label are held out."""
    sizes, classes = np.bincount(dataset.train_labels), dataset.hierarchy.num_classes
    if not (count >= 1 and count == int(count)) and not 0 < count < 1:
        raise ValueError(
            f"count must be a whole number ≥ 1, or a share of the images below 1, found {count}"
        )
    number = round(count * sizes.sum()) if count < 1 else int(count)
    room = np.maximum(sizes - 1, 0)
    if not 1 <= number <= room.sum():
        found = f"{count:.16g}" + (f", {number} images" if count < 1 else "")
        raise ValueError(
            f"count must be at least one image and at most {room.sum()}, so that every class of "
            f"{dataset.name} keeps a training image, found {found}"
        )
    each, rest = divmod(number, classes)
    if count >= 1 and not rest and len(sizes) == classes and each <= room.min():
        return np.full(classes, each)
    shares, remainders = np.divmod(number * sizes, sizes.sum())
    held, order = np.minimum(shares, room), np.argsort(-remainders, kind="stable")
    while missing := number - held.sum():  # more than once where classes have no room
        order = order[held[order] < room[order]]
        held[order[:missing]] += 1
    return held


def _parts(
    whole: Dataset, name: str, train: tuple[str, np.ndarray], test: tuple[str, np.ndarray]
) -> Dataset:
    """A data set of some images of a split for each of its own; they keep their names."""
    origins = {"train": train, "test": test}
    whole_splits = {
        "train": (whole.train_images, whole.train_labels),
        "test": (whole.test_images, whole.test_labels),
    }

    def part(split: str, index: np.ndarray) -> Split:
        images, labels = whole_splits[split]
        return take(images, index), labels[index]

    def name_of(part: str, number: int) -> str:
        split, index = origins[part]
        return whole.name_of(split, int(index[number]))

    dataset = Dataset.from_splits(name, part(*train), part(*test), whole.hierarchy)
    return dataclasses.replace(dataset, name_of=name_of)


def halve_test(dataset: Dataset) -> tuple[Dataset, Split]:
    """The data set with half of its test part, and the images and labels of the other half.

    Each class is halved, the larger half is kept; a function of the labels alone.

    Raises:
      ValueError: no class has two images.

    >>> from dh2l_jax.data.catalog import load
    >>> kept, (images, labels) = halve_test(load("fashion_mnist_mini"))
    >>> len(kept.test_labels), len(labels)
    (1000, 1000)
    """
    images, labels = dataset.test_images, dataset.test_labels
    taken = balanced_indices(labels, np.bincount(labels) // 2, seed=0)
    rest = np.delete(np.arange(len(labels)), taken)
    if not len(taken):
        raise ValueError("expected two images of a class or more, found none")

    def name_of(split: str, number: int) -> str:
        return dataset.name_of(split, int(rest[number]) if split == "test" else number)

    kept = dataclasses.replace(
        dataset,
        test_images=take(images, rest),
        test_labels=labels[rest],
        known_digests=None,
        name_of=name_of,
    )
    return kept, (take(images, taken), labels[taken])


def balanced_indices(labels: np.ndarray, per_class: int | np.ndarray, seed: int) -> np.ndarray:
    """Indices of random members of every class that occurs, in ascending order.

    Args:
      labels: (n,) integers.
      per_class: how many of each class, one number or one for each label 0, 1, …; at most as many
        as there are.
      seed: ≥ 0.

    Returns:
      (Σ per_class,) int64.

    >>> labels = np.array([1, 0, 0, 1, 1, 0])
    >>> labels[balanced_indices(labels, 2, seed=0)].tolist().count(1)
    2
    """
    # Ranks of raw generator output: NumPy fixes that stream for good, unlike its shuffles.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    wanted = np.broadcast_to(per_class, labels.max() + 1)
    chosen = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        if len(members) < wanted[label]:
            raise ValueError(
                f"expected {wanted[label]} images of every class, found {len(members)} of one"
            )
        chosen.append(members[: wanted[label]])
    return np.sort(np.concatenate(chosen))


def _shape(images: Images) -> tuple[int | None, int | None, int]:
    if isinstance(images, RaggedImages):
        return None, None, channels(images)
    return images.shape[1:]


def _read_only(values: Images) -> Images:
    if isinstance(values, np.ndarray):
        values = values.view()
        values.flags.writeable = False
    return values


def _canonical(
    dataset: Dataset, split: str, images: Images, labels: np.ndarray
) -> dict[str, Images]:
    """Checks one split and returns its fields: images as documented, labels (n,) int32."""
    what, nodes = f"{dataset.name}, {split}", dataset.hierarchy.num_nodes - 1
    if isinstance(images, np.ndarray):
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
            raise ValueError(
                f"{what}: expected images (n, h, w, c) of uint8, found {images.shape} of "
                f"{images.dtype}"
            )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{what}: expected {len(images)} integer labels, found {labels.shape} of {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= nodes:
        raise ValueError(
            f"{what}: expected labels 0..{nodes - 1}, found {labels.min()}..{labels.max()}"
        )
    return {f"{split}_images": images, f"{split}_labels": labels.astype(np.int32)}


def _refuse_classes_never_seen(dataset: Dataset) -> None:
    """Labels that are counted from 1 would make an inner node of the last class."""
    name, labels, tree = dataset.name, dataset.train_labels, dataset.hierarchy
    C = tree.num_classes
    missing = np.flatnonzero(np.bincount(labels, minlength=C)[:C] == 0)
    if labels.max() >= C and missing.size:
        raise ValueError(
            f"{name}, train: label {labels.max()} is an inner node, and class {missing[0]}, "
            f"{tree.names(tree.num_levels)[missing[0]]!r}, has no image: classes are 0..{C - 1}"
        )


def _channel_statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in units of 0..1, each (c,)."""
    # Integer counts of the 256 values are exact; a float copy of CIFAR would take a gigabyte.
    counts, values = pixel_counts(images), np.arange(256) / 255.0
    mean, square = (counts @ values**power / counts.sum(axis=1) for power in (1, 2))
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean, np.where(std > 0, std, 1.0)

"""The fingerprint of a data set: what is no difference, and what each difference is called."""

import dataclasses
import io
import json

import numpy as np
import pytest

from dh2l_jax.data.catalog import load
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.store.fingerprint import DataRecord, Fingerprint, difference
from dh2l_jax.hierarchy import Hierarchy

PATHS = {"gull": "water", "trout": "water", "owl": "land", "ant": "land"}
LABELS = np.array([0, 0, 1, 2, 3, 3])


def of(paths=PATHS, labels=LABELS, digests=(1, 2, 3, 4, 5, 6), **test):
    tree = Hierarchy.from_paths(paths)
    test = {"labels": np.arange(4), "digests": np.arange(4)} | test
    return Fingerprint(
        tree,
        {"train": np.asarray(labels), "test": np.asarray(test["labels"])},
        {"train": np.asarray(digests), "test": np.asarray(test["digests"])},
    )


def renamed(old, new, paths=PATHS):
    """Sorted as folders are, by the path."""
    found = {new if name == old else name: path for name, path in paths.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


SORTED = renamed("", "")


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (of(), of(), None),
        (of(SORTED), of(renamed("trout", "aaa")), "class 'trout' is now 'aaa'"),
        (of(), of(SORTED), "the classes are in another order: 'ant' is number 0, was 3"),
        (
            of(),
            of(PATHS | {"owl": "water"}),
            "class 'owl' lies below 'water', was below 'land'",
        ),
        (
            of(),
            of({name: name[0] for name in PATHS}),
            "class 'gull' lies below 'g', was below 'water', and 3 more classes",
        ),
        (of(), of(PATHS | {"bee": "land"}), "1 class new, 'bee'"),
        (of(PATHS | {"bee": "land"}), of(), "1 class gone, 'bee'"),
        (
            of(PATHS | {"bee": "land", "fly": "land"}),
            of(PATHS | {"new\nt": "land"}),
            "2 classes gone, 'bee' the first; 1 class new, 'new\\nt'",
        ),
        (of(), of(digests=(1, 2, 3, 4, 9, 6)), "training image 4 has other pixels"),
        (of(), of(digests=(7, 2, 3, 4, 9, 6)), "2 training images have other pixels, training"),
        (of(), of(digests=(2, 1, 3, 4, 5, 6)), "the training images are in another order"),
        (of(), of(labels=(0, 0, 1, 2, 3, 2)), "1 training image of another class, training im"),
        (
            of(),
            of(labels=(0, 0, 1, 2, 3, 3, 3), digests=range(1, 8)),
            "1 training image added, training image 6",
        ),
        (
            of(),
            of(labels=(0, 1, 2, 3, 3), digests=(1, 3, 4, 5, 6)),
            "1 training image removed, of class 'gull'",
        ),
        (
            of(),
            of(labels=(0, 1, 2, 2, 3, 3), digests=(1, 3, 4, 7, 5, 6)),
            "1 training image added, training image 3; 1 training image removed, of class 'gull'",
        ),
        (of(), of(digests=(1, 2, 3, 4, 5, 5)), "training image 5 has other pixels"),
    ],
)
def test_what_differs_is_named(before, now, line):
    found = difference(before, now)
    assert found == line if line is None else found.startswith(line)
    assert (before.sha256 == now.sha256) == (line is None)


def test_the_test_images_count_too():
    now = of(digests=(1, 2, 3, 4, 9, 6))
    now = dataclasses.replace(now, digests=now.digests | {"test": np.array([0, 1, 2, 9])})
    line = "image 'train/4' has other pixels; image 'test/3' has other pixels"
    assert difference(of(), now, lambda split, i: f"{split}/{i}") == line
    now = dataclasses.replace(now, decoding=2)
    assert difference(of(), now).endswith("; images are decoded by version 2, were by 0")


def test_how_images_are_kept_is_no_difference():
    mini = load("fashion_mnist_mini")
    copy = Dataset.from_splits(
        "another name",
        (mini.train_images.copy(), mini.train_labels.astype(np.int64)),
        (np.asfortranarray(mini.test_images), mini.test_labels),
        mini.hierarchy,
    )
    assert difference(mini.fingerprint, copy.fingerprint) is None
    pixels = mini.train_images.copy()
    pixels[3, 0, 0] ^= 1
    other = dataclasses.replace(mini, train_images=pixels)
    line = "training image 3 has other pixels"
    assert difference(mini.fingerprint, other.fingerprint) == line


@pytest.mark.parametrize("shape", [(28, 28, 1), (None, None, 3)])
def test_a_record_comes_back(shape):
    mean, std = np.float32([0.1, 1 / 3]), np.float32([1.0, 2.0])
    packed = DataRecord(of(), shape, mean, std).pack()
    found = DataRecord.unpack(packed)
    assert found.fingerprint.sha256 == of().sha256
    assert found.image_shape == shape
    np.testing.assert_array_equal([found.mean, found.std], [mean, std])
    assert found.pack() == packed
    with pytest.raises(ValueError, match="format 1, found 2"):
        DataRecord.unpack(packed_as(packed, 2))


def packed_as(packed, number):
    """The same record as of another format."""
    with np.load(io.BytesIO(packed)) as file:
        arrays = dict(file)
    facts = json.loads(arrays["facts"].tobytes()) | {"format": number}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()

"""The embedded data set against its record and its source, the class tree, loading, hold-out.

Tests against the source need DH2L_FASHION_MNIST_DIR, a folder with the four original IDX files.
"""

import io
import os
import re
from importlib import resources

import numpy as np
import pytest
from support.idx_files import NAMES, encode, write_folder

from dh2l_jax.data import catalog
from dh2l_jax.data.catalog import load
from dh2l_jax.data.datasets import Dataset, balanced_indices, hold_out
from dh2l_jax.data.mini import make
from dh2l_jax.data.prepared.originals import idx
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.published import taxonomy

SOURCE = os.environ.get("DH2L_FASHION_MNIST_DIR")

PATHS = {
    "T-shirt/top": ("Clothes", "Tops"),
    "Trouser": ("Clothes", "Bottoms"),
    "Pullover": ("Clothes", "Tops"),
    "Dress": ("Clothes", "Dresses"),
    "Coat": ("Clothes", "Outers"),
    "Sandal": ("Goods", "Shoes"),
    "Shirt": ("Clothes", "Tops"),
    "Sneaker": ("Goods", "Shoes"),
    "Bag": ("Goods", "Accessories"),
    "Ankle boot": ("Goods", "Shoes"),
}


@pytest.fixture(scope="module")
def mini():
    return load("fashion_mnist_mini")


@pytest.fixture(scope="module")
def record():
    """The arrays of the embedded file, with the record of where they come from."""
    data = resources.files("dh2l_jax.data").joinpath("mini", "images.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def synthetic(counts=(7, 5, 6), channels=3, seed=0):
    """A data set with `counts[i]` training images of class i, each image unlike all others."""
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 6, 5, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    order = rng.permutation(len(labels))
    train = images[order], labels[order]
    return Dataset.from_splits("toy", train, (images[:4], labels[:4]), Hierarchy.flat(len(counts)))


def test_mini_shapes_and_classes(mini):
    assert mini.train_images.shape == (6000, 28, 28, 1)
    assert mini.test_images.shape == (2000, 28, 28, 1)
    assert mini.train_images.dtype == mini.test_images.dtype == np.uint8
    assert mini.train_labels.dtype == mini.test_labels.dtype == np.int32
    assert np.bincount(mini.train_labels).tolist() == [600] * 10
    assert np.bincount(mini.test_labels).tolist() == [200] * 10


def test_mini_has_no_image_twice(mini):
    images = np.concatenate([mini.train_images, mini.test_images]).reshape(8000, -1)
    assert len(np.unique(images, axis=0)) == 8000


def test_mini_has_its_licence():
    text = resources.files("dh2l_jax.data").joinpath("mini", "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "Permission is hereby granted, free of charge" in text


def test_mini_is_checked_against_its_sha256(monkeypatch):
    monkeypatch.setattr(catalog, "MINI_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"damaged, reinstall .* found [0-9a-f]{64}$"):
        load("fashion_mnist_mini")


def test_mini_records_its_origin(record):
    assert int(record["seed"]) == make.SEED
    assert str(record["source"]) == make.SOURCE
    for split, count, size in (("train", 6000, 60_000), ("test", 2000, 10_000)):
        index = record[f"{split}_indices"]
        assert index.shape == (count,)
        assert index[0] >= 0
        assert index[-1] < size
        assert (np.diff(index) > 0).all()


@pytest.mark.skipif(not SOURCE, reason="DH2L_FASHION_MNIST_DIR is not set")
def test_mini_equals_its_source(record):
    for split, (images, labels) in idx.read_folder(SOURCE or "").items():
        index = record[f"{split}_indices"]
        np.testing.assert_array_equal(record[f"{split}_images"], images[index])
        np.testing.assert_array_equal(record[f"{split}_labels"], labels[index])


@pytest.mark.skipif(not SOURCE, reason="DH2L_FASHION_MNIST_DIR is not set")
def test_mini_is_made_again_alike(record):
    made = make.make_subset(SOURCE or "")
    assert made.keys() == record.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(record[name], array, strict=True)


@pytest.mark.skipif(not SOURCE, reason="DH2L_FASHION_MNIST_DIR is not set")
def test_the_whole_fashion_mnist():
    dataset = load("fashion_mnist", data_dir=SOURCE)
    assert np.bincount(dataset.train_labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    np.testing.assert_allclose([dataset.mean[0], dataset.std[0]], [0.2860, 0.3530], atol=1e-4)


def test_the_script_from_files_to_file(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "mini.npz"
    source.mkdir()
    write_folder(source, train=6100, test=2100)
    assert make.main([str(source), "--out", str(out)]) == 0
    first = out.read_bytes()
    assert make.main([str(source), "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert f"{len(first)} bytes, sha256 " in capsys.readouterr().out
    with np.load(out) as file:
        assert np.bincount(file["train_labels"]).tolist() == [600] * 10


def test_the_script_says_what_is_wrong(tmp_path, capsys):
    assert make.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (tmp_path / "other.deb").write_bytes(b"")
    write_folder(tmp_path)
    assert make.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte" in error
    assert "expected 600 images of every class, found 2" in error
    assert not (tmp_path / "out").exists()


def test_fashion_mnist_tree():
    tree = taxonomy("fashion_mnist")
    assert [tree.size(level) for level in (1, 2, 3)] == [2, 6, 10]
    assert tree.names(1) == ("Clothes", "Goods")
    assert tree.names(2) == ("Accessories", "Bottoms", "Dresses", "Outers", "Shoes", "Tops")
    assert tree.names(3) == tuple(PATHS)
    for leaf, (top, middle, _) in enumerate(tree.ancestors().T):
        assert (tree.names(1)[top], tree.names(2)[middle]) == PATHS[tree.names(3)[leaf]]


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"'fashion-mnist'.*'fashion_mnist'"):
        taxonomy("fashion-mnist")
    with pytest.raises(ValueError, match=r"'FashionMNIST_mini'.*'fashion_mnist_mini'") as caught:
        load("FashionMNIST_mini")
    assert all(name in str(caught.value) for name in catalog.DATASETS)


def test_loads_a_folder(tmp_path):
    arrays = write_folder(tmp_path)
    dataset = load("fashion_mnist", data_dir=tmp_path)
    assert dataset.name == "fashion_mnist"
    assert dataset.hierarchy == taxonomy("fashion_mnist")
    np.testing.assert_array_equal(dataset.train_images[..., 0], arrays["train_images"])
    np.testing.assert_array_equal(dataset.test_labels, arrays["test_labels"])


def test_data_dir_is_needed_or_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run .*data prepare cifar100 --data-dir"):
        load("cifar100", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"folder needs data\.data_dir"):
        load("folder")
    with pytest.raises(
        ValueError, match="cifar10 is no folder of own images and takes no csv, found 'x'"
    ):
        load("cifar10", csv="x")
    with pytest.raises(ValueError, match="has images as they are and takes no resize, found 40"):
        load("fashion_mnist", data_dir=tmp_path, resize=40)
    with pytest.raises(ValueError, match="fashion_mnist_mini is embedded and takes no data_dir"):
        load("fashion_mnist_mini", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load("fashion_mnist", data_dir=tmp_path)
    write_folder(tmp_path)
    (tmp_path / NAMES["train_labels"]).write_bytes(encode(np.full(20, 10)))
    with pytest.raises(ValueError, match=r"labels 0\.\.9, found 10"):
        load("fashion_mnist", data_dir=tmp_path)


def test_another_tree_of_the_same_classes(mini):
    flat = load("fashion_mnist_mini", tree="flat")
    assert flat.hierarchy == Hierarchy.flat(10, names=mini.hierarchy.names(3))
    np.testing.assert_array_equal(flat.train_labels, mini.train_labels)
    assert load("fashion_mnist_mini", tree="fashion_mnist").hierarchy == mini.hierarchy
    with pytest.raises(ValueError, match="10 classes of fashion_mnist_mini, found 'cub"):
        load("fashion_mnist_mini", tree="cub200")
    with pytest.raises(ValueError, match="unknown taxonomy 'cifar100_five': did you mean 'cifar"):
        load("fashion_mnist_mini", tree="cifar100_five")


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_those_of_the_training_images(channels):
    dataset = synthetic(counts=(200, 300), channels=channels)
    pixels = dataset.train_images.reshape(-1, channels) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-6)
    assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_a_dataset_is_read_only(mini):
    with pytest.raises(ValueError, match="read-only"):
        mini.train_images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        mini.test_labels[0] = 0


GOOD = np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 2])
BAD_SPLITS = {
    "float images": ((GOOD[0] / 255, GOOD[1]), "images .* of uint8, found .* float64"),
    "flat images": ((GOOD[0].reshape(3, -1), GOOD[1]), r"found \(3, 64\)"),
    "no images": ((GOOD[0][:0], GOOD[1][:0]), r"found \(0, 8, 8, 1\)"),
    "float labels": ((GOOD[0], GOOD[1] + 0.5), "3 integer labels, found .* float64"),
    "one-hot labels": ((GOOD[0], np.eye(3, dtype=int)), r"found \(3, 3\)"),
    "fewer labels": ((GOOD[0], GOOD[1][:2]), r"3 integer labels, found \(2,\)"),
    "label too large": ((GOOD[0], GOOD[1] + 1), r"labels 0\.\.2, found 1\.\.3"),
    "label that wraps": ((GOOD[0], GOOD[1] + 2**32), r"labels 0\.\.2, found 4294967296"),
    "negative label": ((GOOD[0], GOOD[1] - 1), r"found -1\.\.1"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bad_arrays_are_refused(case, split):
    bad, match = BAD_SPLITS[case]
    train, test = (bad, GOOD) if split == "train" else (GOOD, bad)
    with pytest.raises(ValueError, match=f"mine, {split}: expected .*{match}"):
        Dataset.from_splits("mine", train, test, Hierarchy.flat(3))


def test_image_shapes_must_agree():
    other = GOOD[0][:, :7], GOOD[1]
    with pytest.raises(ValueError, match="expected images of one shape"):
        Dataset.from_splits("mine", GOOD, other, Hierarchy.flat(3))


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (6, 1), (12, 2)])
def test_hold_out_is_balanced_and_disjoint(count, seed):
    dataset = synthetic()
    tuning = hold_out(dataset, count, seed)
    assert np.bincount(tuning.test_labels).tolist() == [count // 3] * 3
    assert len(tuning.train_labels) == len(dataset.train_labels) - count
    # Every training image is in exactly one part, with its own label.
    both = np.concatenate([tuning.train_images, tuning.test_images])
    labels = np.concatenate([tuning.train_labels, tuning.test_labels])
    order, old = np.argsort(both[:, 0, 0, 0]), np.argsort(dataset.train_images[:, 0, 0, 0])
    np.testing.assert_array_equal(both[order], dataset.train_images[old])
    np.testing.assert_array_equal(labels[order], dataset.train_labels[old])


def largest_remainder(sizes, count):
    """One image after another, to the class that is the furthest below its share."""
    held = [min(count * n // sum(sizes), n - 1) for n in sizes]
    rest = [count * n % sum(sizes) for n in sizes]
    order = sorted(range(len(sizes)), key=lambda k: -rest[k])
    while sum(held) < count:
        for k in order:
            if held[k] < sizes[k] - 1 and sum(held) < count:
                held[k] += 1
    return held


@pytest.mark.parametrize("sizes", [(7, 5, 6), (40, 1, 3, 9), (1, 1, 2)])
def test_hold_out_of_any_number_is_stratified(sizes):
    dataset = synthetic(sizes)
    for count in range(1, sum(sizes) - len(sizes) + 1):
        held = np.bincount(hold_out(dataset, count, 1).test_labels, minlength=len(sizes)).tolist()
        each, rest = divmod(count, len(sizes))
        even = not rest and each < min(sizes)  # as all multiples have been held out since 0.1
        assert held == ([each] * len(sizes) if even else largest_remainder(sizes, count))
    share = hold_out(dataset, 0.3, 1)
    assert len(share.test_labels) == round(0.3 * sum(sizes)) or sum(sizes) == 4
    assert share.name == "toy/hold_out(0.3, seed=1)"


def test_an_old_hold_out_holds_the_same_images(mini):
    old = np.sort(balanced_indices(mini.train_labels, 50, seed=3))
    np.testing.assert_array_equal(
        hold_out(mini, 500, 3).test_images, np.asarray(mini.train_images)[old]
    )


TREE = Hierarchy.from_paths({"sun": "", "gull": "birds", "tern": "birds"})


def test_labels_at_inner_nodes():
    """Held out and subsampled as classes are; the root, and labels counted from 1, are refused."""
    labels = np.repeat(np.array([0, 1, 2, 3]), [4, 3, 2, 11])
    images = np.arange(20, dtype=np.uint8)[:, None, None, None]
    whole = Dataset.from_splits("toy", (images, labels), (images, labels), TREE)
    assert whole.label_counts.tolist() == [4, 3, 2, 11, 0]
    assert np.bincount(hold_out(whole, 0.25, 0).test_labels).tolist() == [1, 1, 0, 3]
    with pytest.raises(ValueError, match=r"labels 0\.\.3, found 1\.\.4"):
        Dataset.from_splits("toy", (images, labels + 1), (images, labels), TREE)
    message = "label 3 is an inner node, and class 0, 'sun', has no image: classes are 0..2"
    with pytest.raises(ValueError, match=re.escape(message)):
        Dataset.from_splits("toy", (images[:3], np.array([1, 2, 3])), (images, labels), TREE)


def test_hold_out_depends_on_the_seed_alone(mini):
    first, again, other = (hold_out(mini, 500, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert (first.test_images != other.test_images).any()
    assert first.name == "fashion_mnist_mini/hold_out(500, seed=3)"
    np.testing.assert_allclose(first.mean, first.train_images.mean() / 255, rtol=1e-5)


@pytest.mark.parametrize("count", [0, -3, 2.5, 16, 300, 0.9, 0.01])
def test_hold_out_refuses_bad_counts(count):
    with pytest.raises(ValueError, match=f"count must be .*found {count}"):
        hold_out(synthetic(), count, 0)

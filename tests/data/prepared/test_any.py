"""Any image set that lies prepared as array_record, by its name in TFDS."""

import json
import shutil
import sys

import numpy as np
import pytest
from support import archives

from dh2l_jax.data.catalog import load


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with TFDS's, `data`, in which there is a tiny copy of CIFAR-10."""
    root = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as monkeypatch:
        archives.prepare_tiny(monkeypatch, "cifar10", root)
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """The version's folder of a copy that may be changed."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    return next((tmp_path / "data/cifar10").iterdir())


def read(data_dir, name="tfds:cifar10"):
    return load(name, data_dir=data_dir, cache_dir=data_dir.parent / "cache")


def test_it_is_what_the_named_data_set_is(prepared):
    one, two = (read(prepared / "data", name) for name in ("tfds:cifar10", "cifar10"))
    assert one.name == "tfds:cifar10"
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert np.array_equal(getattr(one, field), getattr(two, field))
    assert one.hierarchy.names(1) == two.hierarchy.names(1)
    assert "tensorflow" not in sys.modules


def change_features(folder, change):
    path = folder / "features.json"
    features = json.loads(path.read_text())
    change(features["featuresDict"]["features"])
    path.write_text(json.dumps(features))


def two_labels(features):
    features["fine"] = features["coarse"] = features.pop("label")


def test_validation_stands_in_where_there_is_no_test(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["name"] = {"test": "validation"}.get(split["name"], split["name"])
    (copy / "dataset_info.json").write_text(json.dumps(info))
    for path in copy.glob("*-test.*"):
        path.rename(copy / path.name.replace("-test.", "-validation."))
    assert len(read(copy.parents[1]).test_labels) > 0


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("tfds:nothing", lambda folder: None, "tfds:nothing is not prepared in .*array_record"),
        (
            "tfds:cifar10",
            lambda folder: change_features(folder, lambda found: found.pop("label")),
            "expected one feature of the kind ClassLabel, or one called 'label', found none",
        ),
        (
            "tfds:cifar10",
            lambda folder: change_features(folder, two_labels),
            "found (fine, coarse|coarse, fine)",
        ),
        (
            "tfds:cifar10",
            lambda folder: [path.unlink() for path in folder.glob("*-train.*")],
            "is missing",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(copy, name, change, line):
    change(copy)
    with pytest.raises(ValueError, match=line) as refused:
        read(copy.parents[1], name)
    assert "\n" not in str(refused.value)

"""Folders of images: the source they make, the report on them, and everything that can be wrong."""

import concurrent.futures
import io
import os
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.folders import CSV, FILE, birds, files, flat_birds, numbered, picture, remarks, write

from dh2l_jax.data.folders import check
from dh2l_jax.data.folders.scan import SUFFIXES, open_folder, scan
from dh2l_jax.hierarchy import Hierarchy

# Layouts.


def test_train_and_test_folders(tmp_path):
    source = open_folder(birds(tmp_path / "birds"))
    assert source.name == "birds"
    assert source.hierarchy == Hierarchy.from_paths(
        {"herring_gull": "gulls", "ivory_gull": "gulls", "snowy_owl": "owls"}
    )
    assert files(source.train) == {
        f"train/{path}/{number}.png": label
        for label, path in enumerate(("gulls/herring_gull", "gulls/ivory_gull", "owls/snowy_owl"))
        for number in range(3)
    }
    assert len(source.test) == 6
    assert scan(tmp_path / "birds").layout == "train/ and test/"


def test_an_example_is_the_bytes_of_its_file(tmp_path):
    root = write(tmp_path, "a/1.png", "a/2.JPG", "b/1.jpeg", "b/2.png")
    source = open_folder(root)
    for examples in (source.train, source.test):
        for index in range(len(examples)):
            encoded, label = examples[index]
            assert encoded == (root / examples.describe(index)).read_bytes()
            assert type(label) is int


def test_bytes_are_handed_on_as_they_are(tmp_path):
    """Opening decodes nothing, so even a file that is no image is an example."""
    for name in ("a/1.jpg", "a/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = open_folder(tmp_path)
    assert {source.train[0][0], source.test[0][0]} == {b"a/1.jpg", b"a/2.jpg"}


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "Test", "VAL"])
@pytest.mark.parametrize("train", ["train", "Train"])
def test_names_of_the_splits(tmp_path, train, test):
    found = scan(birds(tmp_path, train=train, test=test))
    assert (len(found.train), len(found.test)) == (9, 6)
    assert found.layout == f"{train}/ and {test}/"


def test_test_goes_before_val(tmp_path):
    write(birds(tmp_path), "val/gulls/ivory_gull/9.png")
    assert len(open_folder(tmp_path).test) == 6


def test_train_alone_is_split(tmp_path):
    write(tmp_path, *(f"train/a/{n}.png" for n in range(9)), "train/b/1.png", "train/b/2.png")
    source = open_folder(tmp_path)
    assert source.hierarchy == Hierarchy.flat(2, names=("a", "b"))
    assert len(source.train) + len(source.test) == 11
    assert files(source.train).keys() | files(source.test).keys() <= {
        f"train/{name}" for name in (*(f"a/{n}.png" for n in range(9)), "b/1.png", "b/2.png")
    }


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, *(f"{name}/{n}.png" for name in ("bus", "train") for n in range(3)))
    assert open_folder(tmp_path).hierarchy.names(1) == ("bus", "train")


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_any_depth(tmp_path, depth):
    above = "/".join(f"group{level}" for level in range(1, depth))
    root = write(tmp_path, *(str(Path(above, c, f"{n}.png")) for c in "ab" for n in (1, 2)))
    source = open_folder(root)
    assert source.hierarchy == Hierarchy.from_paths({"a": above, "b": above})
    assert source.hierarchy.num_levels == depth


# Classes at any depth, and images at inner nodes.

UNEVEN = (
    *(f"{path}/{n}.png" for path in ("sun", "birds/gull", "birds/owls/barn") for n in "123"),
    *("birds/7.png", "birds/8.png", "birds/owls/9.png", "toys/sun/1.png", "toys/sun/2.png"),
)


def labels_by_path(source):
    """{path of the folder: label} of both splits."""
    both = files(source.train) | files(source.test)
    return {str(Path(name).parent): label for name, label in both.items()}


def test_classes_at_any_depth(tmp_path):
    """A class is its path; images beside folders are labelled by their node."""
    source = open_folder(write(tmp_path, *UNEVEN))
    tree = source.hierarchy
    paths = {"gull": "birds", "barn": "birds/owls", "sun": "", "toys/sun": "toys"}
    assert tree == Hierarchy.from_paths(paths)
    assert labels_by_path(source) == {
        "birds/gull": 0,
        "birds/owls/barn": 1,
        "sun": 2,
        "toys/sun": 3,
        "birds": tree.node_id("birds"),
        "birds/owls": tree.node_id("birds/owls"),
    }
    assert len(source.train) + len(source.test) == len(UNEVEN)


def test_what_becomes_of_images_at_inner_nodes(tmp_path, caplog):
    root = write(tmp_path, *UNEVEN)
    found = {inner: scan(root, inner=inner) for inner in ("label", "class", "skip", "refuse")}
    assert (
        len({x.fingerprint for x in found.values()}) == 3
    )  # skipped and refused ones are not there
    own = open_folder(root, inner="class")
    paths = {"gull": "birds", "barn": "birds/owls", "owls/·": "birds/owls", "birds/·": "birds"}
    assert own.hierarchy == Hierarchy.from_paths(paths | {"sun": "", "toys/sun": "toys"})
    assert labels_by_path(own)["birds"] == 3
    # Which images are for the test does not depend on it.
    assert set(files(own.test)) == set(files(open_folder(root).test))
    skipped = open_folder(root, inner="skip")
    assert len(skipped.train) + len(skipped.test) == len(UNEVEN) - 3
    assert "inner=skip leaves out 3 images at inner nodes" in caplog.text
    with pytest.raises(
        ValueError, match=r"beside folders, in no class .*: birds/7.png \(2\) and 1"
    ):
        open_folder(root, inner="refuse")
    with pytest.raises(ValueError, match="unknown inner 'labels': did you mean 'label'"):
        open_folder(root, inner="labels")


def test_an_uneven_csv_file(tmp_path):
    """Trailing cells may be empty; a folder named after an inner node holds its labels."""
    numbered(tmp_path, 3, "sun", "gull", "barn", "owls")
    (tmp_path / "classes.csv").write_text(
        "class,parent,grandparent\ngull,birds,\nbarn,owls,birds\nsun,,\n"
    )
    source = open_folder(tmp_path)
    tree = Hierarchy.from_csv(tmp_path / "classes.csv")
    assert source.hierarchy == tree
    expected = {"gull": 0, "barn": 1, "sun": 2, "owls": tree.node_id("owls")}
    assert labels_by_path(source) == expected
    own = open_folder(tmp_path, inner="class")
    assert own.hierarchy.names(3) == ("gull", "barn", "sun", "owls/·")
    assert labels_by_path(own)["owls"] == 3
    (tmp_path / "birds").mkdir()  # without images it says nothing
    assert not scan(tmp_path).problems


def test_suffixes_and_what_is_skipped(tmp_path):
    names = ("1.jpg", "2.JPG", "3.Jpeg", "4.jfif", "5.PNG", "6.webp", "7.gif", "8.bmp", "9.Tiff")
    write(tmp_path, *(f"a/{name}" for name in names))
    skipped = (
        ".DS_Store",
        "._1.jpg",
        ".hidden.png",
        "Thumbs.db",
        "desktop.ini",
        ".git/x.png",
        "@eaDir/x.jpg",
    )
    for name in (*(f"a/{name}" for name in skipped), "__MACOSX/a/1.png", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = open_folder(tmp_path)
    both = files(source.train) | files(source.test)
    assert both.keys() == {f"a/{name}" for name in names}
    assert {Path(name.lower()).suffix for name in names} | {".jpeg", ".tif"} == set(SUFFIXES)
    assert not remarks(tmp_path)


def test_order_is_that_of_code_points(tmp_path):
    names = ["10.png", "9.png", "B.png", "a.png", "É.png", "ä.png", "あ.png"]
    write(tmp_path, *(f"train/c/{name}" for name in reversed(names)), "test/c/1.png")
    assert [Path(name).name for name in files(open_folder(tmp_path).train)] == sorted(names)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_a_mac_are_composed(tmp_path, form):
    """A Mac hands out decomposed names; a CSV file is typed with composed ones."""
    folder = unicodedata.normalize(form, "Möwe café")
    write(tmp_path, *(f"{folder}/{n}.png" for n in range(3)))
    (tmp_path / "classes.csv").write_text("class,parent\nMöwe café,Vögel\n", "utf-8")
    assert open_folder(tmp_path).hierarchy.names(2) == ("Möwe café",)


def test_odd_names_stay_in_one_line(tmp_path):
    for name in (b"\xff\xfe", b"two\nlines", b"\x1b[2J"):
        folder = Path(tmp_path, os.fsdecode(name))
        write(folder, *(f"{n}.png" for n in range(3)))
        (folder / os.fsdecode(b"\xff\n.png")).write_bytes(picture(7))
    source = open_folder(tmp_path)
    assert source.hierarchy.num_classes == 3
    shown = [*files(source.train), *files(source.test)]
    assert all(name.isprintable() for name in shown)
    console = Console(file=io.StringIO(), width=80)
    report = check.inspect(tmp_path)
    check.show(report, console)
    assert "\x1b" not in console.file.getvalue()
    assert all(line.isprintable() for line in check.lines(report))


def test_examples_are_read_from_threads(tmp_path):
    source = open_folder(birds(tmp_path))
    indices = list(range(len(source.train))) * 20
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.train.__getitem__, indices))
    assert found == [source.train[index] for index in indices]


def test_an_index_too_large_is_an_error(tmp_path):
    source = open_folder(birds(tmp_path))
    with pytest.raises(IndexError):
        source.train[len(source.train)]


def test_a_file_that_vanishes_is_an_os_error(tmp_path):
    source = open_folder(birds(tmp_path))
    (tmp_path / source.train.describe(0)).unlink()
    with pytest.raises(OSError, match=r"0\.png"):
        source.train[0]


# Random trees.

NAMES = (
    st.text(
        st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cc", "Cs")),
        min_size=1,
        max_size=12,
    )
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(lambda text: text and text[0] != "." and len(text.encode()) < 200)
    .filter(lambda text: text.lower() not in {"train", "__macosx", "thumbs.db", "desktop.ini"})
)


@st.composite
def trees(draw):
    """{path of a class: names of its images}, all at one depth."""
    depth = draw(st.integers(1, 3))
    groups = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    leaves = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    tree = {}
    for leaf in leaves:
        above = [draw(st.sampled_from(groups)) for _ in range(depth - 1)]
        stems = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
        tree[(*above, leaf)] = [f"{stem}{draw(st.sampled_from(SUFFIXES))}" for stem in stems]
    return tree


@given(tree=trees(), seed=st.integers(0, 3), fraction=st.floats(0.01, 0.99))
def test_round_trip_of_random_trees(tree, seed, fraction):
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for path, images in tree.items():
            Path(folder, *path).mkdir(parents=True)
            for name in images:
                Path(folder, *path, name).touch()
                expected["/".join((*path, name))] = sorted(tree).index(path)
        source = open_folder(folder, seed=seed, test_fraction=fraction)
        assert source.hierarchy == Hierarchy.from_paths({p[-1]: p[:-1] for p in sorted(tree)})
        train, test = (
            {(str(x.path(i).relative_to(folder))): x[i][1] for i in range(len(x))}
            for x in (source.train, source.test)
        )
        assert train | test == expected
        assert len(train) + len(test) == len(expected)
        assert set(train.values()) == set(test.values()) == set(range(len(tree)))
        again = open_folder(folder, seed=seed, test_fraction=fraction)
        assert again.fingerprint == source.fingerprint
        assert files(again.train) == files(source.train)


# The fixed split.


def by_class(examples):
    """{class folder and file name}, without what stands above the class."""
    return {"/".join(name.split("/")[-2:]) for name in files(examples)}


def test_the_share_is_right_on_average(tmp_path):
    numbered(tmp_path, 500, "a", "b", "c", "d")
    for fraction in (0.1, 0.5, 0.8):
        share = len(open_folder(tmp_path, test_fraction=fraction).test) / 2000
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 2000) ** 0.5


def test_classes_with_the_same_file_names_split_independently(tmp_path):
    test = open_folder(numbered(tmp_path, 400, "a", "b"), test_fraction=0.5).test
    a, b = ({name[2:] for name in by_class(test) if name[0] == letter} for letter in "ab")
    assert 60 < len(a & b) < 140  # 100 expected


def test_another_seed_is_another_split(tmp_path):
    numbered(tmp_path, 50, "a")
    splits = {frozenset(by_class(open_folder(tmp_path, seed=seed).test)) for seed in range(5)}
    assert len(splits) == 5


def test_new_images_move_no_old_ones(tmp_path):
    before = open_folder(numbered(tmp_path, 100, "a", "b"))
    old_train, old_test = by_class(before.train), by_class(before.test)
    numbered(tmp_path, 100, "a", "b", "c", start=100)
    after = open_folder(tmp_path)
    assert old_train <= by_class(after.train)
    assert old_test <= by_class(after.test)


def test_another_tree_over_the_same_classes_splits_alike(tmp_path):
    flat = open_folder(numbered(tmp_path / "flat", 60, "a", "b"))
    deep = open_folder(numbered(tmp_path / "deep", 60, "x/y/a", "x/z/b"))
    assert by_class(flat.test) == by_class(deep.test)


@pytest.mark.parametrize("fraction", [1e-6, 0.2, 1 - 1e-6])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_classes_keep_a_training_image(tmp_path, count, fraction):
    numbered(tmp_path, count, "small")
    numbered(tmp_path, 30, "large")
    found = scan(tmp_path, test_fraction=fraction)
    train, test = (np.bincount(x.labels, minlength=2) for x in (found.train, found.test))
    assert not found.problems
    assert train[1] >= 1
    assert test[1] == min(count - 1, max(1, test[1]))
    said = {finding.what: finding.where for finding in found.remarks}
    assert said.get("classes without test images") == (("small",) if count == 1 else None)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1, found"):
        open_folder(birds(tmp_path), test_fraction=fraction)


# The fingerprint.


def rewrite(path, data):
    """Other bytes at the old time."""
    time = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


CHANGES = {
    "a new image": lambda root: write(root, "train/gulls/ivory_gull/new.png"),
    "a new size": lambda root: rewrite(root / FILE, b"123"),
    "a new time": lambda root: os.utime(root / FILE, ns=(1, 1)),
    "a new name": lambda root: (root / FILE).rename(root / f"{FILE}.png"),
    "no image": lambda root: (root / FILE).unlink(),
    "another split": lambda root: (root / FILE).rename(root / FILE.replace("train", "test")),
    "another class": lambda root: (root / FILE).rename(root / "train/owls/snowy_owl/9.png"),
    "another parent": lambda root: [
        (root / split / "gulls").rename(root / split / "larids") for split in ("train", "test")
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_follows(tmp_path, change):
    birds(tmp_path)
    before = open_folder(tmp_path).fingerprint
    assert open_folder(tmp_path).fingerprint == before
    CHANGES[change](tmp_path)
    assert open_folder(tmp_path).fingerprint != before


def test_the_fingerprint_ignores_what_does_not_matter(tmp_path):
    birds(tmp_path / "here")
    before = open_folder(tmp_path / "here").fingerprint
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there" / "README.md").touch()
    assert open_folder(tmp_path / "there", seed=5, test_fraction=0.5).fingerprint == before


def test_the_fingerprint_follows_split_and_csv(tmp_path):
    flat_birds(tmp_path)
    found = {open_folder(tmp_path).fingerprint}
    found.add(open_folder(tmp_path, seed=1).fingerprint)
    found.add(open_folder(tmp_path, test_fraction=0.3).fingerprint)
    (tmp_path / "classes.csv").write_text(CSV)
    found.add(open_folder(tmp_path).fingerprint)
    (tmp_path / "classes.csv").write_text(CSV.replace(",birds", ",fowl"))
    found.add(open_folder(tmp_path).fingerprint)
    assert len(found) == 5

"""Folders of images with CSV files or links, and those that are refused."""

import os
import unicodedata
from pathlib import Path

import pytest
from support.folders import CSV, birds, files, flat_birds, problems, remarks, write

from dh2l_jax.data.folders import check, walk
from dh2l_jax.data.folders.scan import open_folder
from dh2l_jax.hierarchy import Hierarchy

# CSV files.


def test_csv_gives_tree_and_order(tmp_path):
    flat_birds(tmp_path)
    (tmp_path / "classes.csv").write_text(CSV)
    source = open_folder(tmp_path)
    assert source.hierarchy == Hierarchy.from_csv(tmp_path / "classes.csv")
    assert source.hierarchy.names(3) == ("snowy_owl", "ivory_gull", "herring_gull")
    for name, label in (files(source.train) | files(source.test)).items():
        assert source.hierarchy.names(3)[label] == name.split("/")[0]


def test_csv_elsewhere_goes_before_the_one_in_the_folder(tmp_path):
    root = flat_birds(tmp_path / "images")
    (root / "classes.csv").write_text("nonsense")
    (tmp_path / "mine.csv").write_text(CSV.replace(",grandparent", "").replace(",birds", ""))
    assert open_folder(root, classes_csv=tmp_path / "mine.csv").hierarchy.num_levels == 2


def test_csv_with_train_and_test(tmp_path):
    for split in ("train", "test"):
        flat_birds(tmp_path / split)
    (tmp_path / "classes.csv").write_text(CSV)
    assert open_folder(tmp_path).hierarchy.num_levels == 3


def test_flat_folders_without_csv_make_a_flat_tree(tmp_path):
    source = open_folder(flat_birds(tmp_path))
    assert source.hierarchy == Hierarchy.flat(3, names=("herring_gull", "ivory_gull", "snowy_owl"))


def test_links_to_files_and_to_folders_elsewhere_are_followed(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "x/1.png", "x/2.png", "y.png")
    root = write(tmp_path / "root", "b/1.png")
    (root / "b" / "2.png").symlink_to(elsewhere / "y.png")
    (root / "a").symlink_to(elsewhere / "x")
    source = open_folder(root)
    assert source.hierarchy.names(1) == ("a", "b")
    both = files(source.train) | files(source.test)
    assert both.keys() == {"a/1.png", "a/2.png", "b/1.png", "b/2.png"}


# What is wrong.


def flat_with(csv, *classes):
    def build(root):
        flat_birds(root, *classes)
        (root / "classes.csv").write_text(csv, "utf-8")

    return build


def birds_and(*names, folders=()):
    def build(root):
        write(birds(root), *names)
        for name in folders:
            (root / name).mkdir(parents=True, exist_ok=True)

    return build


def linked(names, links):
    """Images, and links {path: target}."""

    def build(root):
        write(root, *names)
        for name, target in links.items():
            (root / name).symlink_to(target)

    return build


def spelt_twice(root):
    for form in ("NFC", "NFD"):
        write(root, *(f"{unicodedata.normalize(form, 'café')}/{n}.png" for n in range(2)))
    return len(list(root.iterdir())) == 2  # a Mac makes one folder of them


def csv_spelt_twice():
    lines = ["class,parent", *(f"{unicodedata.normalize(f, 'café')},a" for f in ("NFC", "NFD"))]
    return flat_with("\n".join(lines), "café")


def pipe(root):
    write(root, "a/1.png", "a/2.png")
    os.mkfifo(root / "a" / "3.png")


def birds_with_csv(root):
    birds(root)
    (root / "classes.csv").write_text(CSV)


AGAIN, BAD_CSV = "folders that a link leads to again", "CSV file that cannot be used"
NO_TRAINING_IN, BESIDE = (
    "classes without training images",
    "images beside folders, in no class (how many)",
)
NO_TRAINING = {"no training images": ["expected <class>/*.jpg, at any depth"]}
NO_LINE, NO_FOLDER = (
    "folders without a line in the CSV file",
    "classes of the CSV file without a folder",
)
WITHOUT_IMAGES = "folders without images"
ROUND = ("a/x/1.png", "a/x/2.png", "b/y/1.png", "b/y/2.png")
# How the folder is made, and a part of what is found, by kind.
PROBLEMS = {
    "csv and folders differ": (
        flat_with(CSV, "ivory_gull", "hering_gull", "snowy_owl", "wren"),
        {
            NO_FOLDER: ["'herring_gull' (nearest: 'hering_gull')"],
            NO_LINE: [
                "'hering_gull' (nearest: 'herring_gull')",
                "'wren' (nearest: 'herring_gull')",
            ],
        },
    ),
    "the nearest of all where none is spare": (
        flat_with(CSV, "ivory_gull", "snowy_owl"),
        {NO_FOLDER: ["'herring_gull' (nearest: 'ivory_gull')"]},
    ),
    **{
        f"csv: {message}": (flat_with(text), {BAD_CSV: [message]})
        for text, message in {
            "": "expected the header class,parent",
            "class,parent\n": "no classes below the header",
            "class,parent,top\na,,b\n": "line 2: class 'a' has a blank name before 'b'",
            "class,parent\na,b\na,c\n": "line 3: class 'a' occurs twice",
            "class,parent\na\n": "line 2: class 'a' has 1 columns, expected 2",
            "class,parent\na,a\n": "line 2: 'a' is a parent here and a class on line 2",
        }.items()
    },
    "two spellings in the csv": (csv_spelt_twice(), {BAD_CSV: ["accents"]}),
    "csv with nested folders": (
        birds_with_csv,
        {
            "classes at another depth": [
                "train/gulls/herring_gull: 2, expected 1, as the CSV file has it",
                *[", expected 1, as the CSV file has it"] * 5,
            ],
            NO_FOLDER: ["'snowy_owl'", "'ivory_gull'", "'herring_gull'"],
            "no training images": [""],
        },
    ),
    **{
        f"link to {target}": (
            linked(ROUND, {"a/link": target}),
            {AGAIN: ["a/link is "], WITHOUT_IMAGES: ["a/link"]},
        )
        for target in (".", "..", "../b", "../../root")
    },
    "test that is a link to train": (
        linked(["train/a/1.png"], {"test": "train"}),
        {AGAIN: ["test is train"], "no test images": [""]},
    ),
    "links to nothing and to themselves": (
        linked(["a/1.png", "a/2.png"], {"a/gone.png": "nowhere", "a/self.png": "self.png"}),
        {"images that are links to nothing": ["a/gone.png", "a/self.png"]},
    ),
    "pipe": (pipe, {"images that are no files": ["a/3.png"]}),
    "nothing": (lambda root: None, NO_TRAINING),
    "image without a class": (lambda root: write(root, "1.png"), NO_TRAINING),
    "images directly in train": (
        lambda root: write(root, "train/1.png", "test/1.png"),
        {BESIDE: ["train/1.png (1)", "test/1.png (1)"], **NO_TRAINING},
    ),
    "empty classes and groups": (
        birds_and(folders=["train/owls/barn_owl", "train/wrens"]),
        {WITHOUT_IMAGES: ["train/owls/barn_owl", "train/wrens"]},
    ),
    "a node whose folders are all empty": (
        birds_and("train/wrens/1.png", "test/wrens/2.png", folders=["train/wrens/house_wren"]),
        {WITHOUT_IMAGES: ["train/wrens/house_wren"]},
    ),
    "a class in training that is a group in the test": (
        birds_and("train/wrens/1.png", "test/wrens/house_wren/2.png"),
        {NO_TRAINING_IN: ["wrens/house_wren (1 for the test)"]},
    ),
    "a class that training lacks": (
        birds_and("test/owls/barn_owl/1.png", "test/owls/barn_owl/2.png"),
        {NO_TRAINING_IN: ["owls/barn_owl (2 for the test)"]},
    ),
    "empty test": (
        lambda root: (write(root, "train/a/1.png"), (root / "test").mkdir()),
        {"no test images": [""]},
    ),
    "one image a class": (lambda root: write(root, "a/1.png"), {"no test images": [""]}),
    "blank names": (
        lambda root: write(root, " /1.png", " /2.png", "a/1.png", "a/2.png"),
        {"names that cannot be used": ["blank name"]},
    ),
    "two spellings of an accent": (
        spelt_twice,
        {"folders whose names differ only in how accents are written": [""]},
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems(tmp_path, case):
    build, expected = PROBLEMS[case]
    root = tmp_path / "root"
    root.mkdir()
    if build(root) is False:
        pytest.skip("this file system composes names")
    found = problems(root)
    assert found.keys() == expected.keys()
    for what, wheres in expected.items():
        assert len(found[what]) == len(wheres)
        assert all(part in where for part, where in zip(wheres, found[what], strict=True))
    # The report begins with them, and opens nothing that is no file.
    assert [finding.what for finding in check.inspect(root).problems][: len(found)] == list(found)


def test_what_is_missing_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of images, found no folder"):
        open_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="expected a folder of images"):
        open_folder(tmp_path / "file")
    with pytest.raises(OSError, match="expected a CSV file with the classes, found no file"):
        open_folder(birds(tmp_path), classes_csv=tmp_path / "no.csv")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """As without permission, which root always has."""
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "snowy_owl":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    birds(tmp_path)
    monkeypatch.setattr(walk.os, "scandir", refuse)
    assert problems(tmp_path)["folders that cannot be read"] == [
        "train/owls/snowy_owl: Permission denied",
        "test/owls/snowy_owl: Permission denied",
    ]


def test_the_message_counts_further_cases(tmp_path):
    birds_and(folders=[f"train/owls/{name}" for name in "xyz"])(tmp_path)
    with pytest.raises(
        ValueError, match=r"images: train/owls/x and 2 more; .*data check` lists all"
    ):
        open_folder(tmp_path)


# What is remarked on, and is no problem.


def val_too(root):
    write(birds(root), "val/gulls/ivory_gull/9.png", "annotations/1.png")


def other_suffixes(root):
    write(root, "a/1.png", "a/2.png")
    for name in ("a/3.HEIC", "a/4.heic", "a/notes"):
        (root / name).write_bytes(b"")


TWOFOLD = "class names that stand under several parents"
REMARKS = {
    "class under two parents": (
        birds_and("train/wrens/ivory_gull/1.png", "test/wrens/ivory_gull/1.png"),
        {TWOFOLD: ["ivory_gull under gulls and wrens"]},
    ),
    "images beside folders": (
        birds_and("train/gulls/8.png", "test/gulls/9.png"),
        {"images at inner nodes, which are their labels (how many)": ["train/gulls/8.png (2)"]},
    ),
    "class that the test lacks": (
        birds_and("train/owls/barn_owl/1.png"),
        {"classes without test images": ["owls/barn_owl"]},
    ),
    "group under two parents": (
        lambda root: write(
            root, *(f"{a}/small/{a}{b}/{n}.png" for a in "xy" for b in "pq" for n in "12")
        ),
        {"names of groups that stand under several parents": ["small under x and y"]},
    ),
    "names that people take for one": (
        birds_and(*(f"{s}/Gulls/Ivory_ gull/1.png" for s in ("train", "test"))),
        {
            "names that differ only in case or blanks": [
                "'Gulls' and 'gulls'",
                "'Ivory_ gull' and 'ivory_gull'",
            ]
        },
    ),
    "val beside test": (
        val_too,
        {"folders beside those of the splits, not read": ["annotations", "val"]},
    ),
    "other suffixes": (
        other_suffixes,
        {
            "files with other suffixes, not read": [
                "without suffix: 1, the first is a/notes",
                ".heic: 2, the first is a/3.HEIC",
            ]
        },
    ),
    "images beside all folders": (
        lambda root: write(root, "overview.png", "a/1.png", "a/2.png"),
        {"images beside all folders, not read": ["overview.png (1)"]},
    ),
}


@pytest.mark.parametrize("case", REMARKS)
def test_remarks(tmp_path, case):
    build, expected = REMARKS[case]
    build(tmp_path)
    assert not problems(tmp_path)
    assert remarks(tmp_path) == expected


def test_a_group_may_stand_under_two_parents(tmp_path):
    REMARKS["group under two parents"][0](tmp_path)
    assert open_folder(tmp_path).hierarchy == Hierarchy.from_paths(
        {f"{a}{b}": f"{a}/small" for a in "xy" for b in "pq"}
    )

"""Folders of images with CSV files or links, and those that are refused."""

import os
import unicodedata
from pathlib import Path

import pytest
from support.folders import CSV, birds, files, flat_birds, problems, remarks, write

from dh2l_jax.commands.data import main
from dh2l_jax.data.folders import walk
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
    (tmp_path / "mine.csv").write_text(
        "class,parent\n" + CSV.split("\n", 1)[1].replace(",birds", "")
    )
    assert open_folder(root, classes_csv=tmp_path / "mine.csv").hierarchy.num_levels == 2


def test_csv_with_train_and_test(tmp_path):
    for split in ("train", "test"):
        flat_birds(tmp_path / split)
    (tmp_path / "classes.csv").write_text(CSV)
    assert open_folder(tmp_path).hierarchy.num_levels == 3


def test_flat_folders_without_csv_make_a_flat_tree(tmp_path):
    source = open_folder(flat_birds(tmp_path))
    assert source.hierarchy == Hierarchy.flat(3, names=("herring_gull", "ivory_gull", "snowy_owl"))


def test_csv_and_folders_that_differ(tmp_path):
    flat_birds(tmp_path, "ivory_gull", "hering_gull", "snowy_owl", "wren")
    (tmp_path / "classes.csv").write_text(CSV)
    assert problems(tmp_path) == {
        "classes of the CSV file without a folder": ["'herring_gull' (nearest: 'hering_gull')"],
        "folders without a line in the CSV file": [
            "'hering_gull' (nearest: 'herring_gull')",
            "'wren' (nearest: 'herring_gull')",
        ],
    }


def test_a_class_of_the_csv_file_without_a_folder_names_the_nearest_of_all(tmp_path):
    flat_birds(tmp_path, "ivory_gull", "snowy_owl")
    (tmp_path / "classes.csv").write_text(CSV)
    assert problems(tmp_path) == {
        "classes of the CSV file without a folder": ["'herring_gull' (nearest: 'ivory_gull')"]
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the header class,parent"),
        ("class,parent\n", "no classes below the header"),
        ("class,parent\na,\n", "line 2: class 'a' has a blank name"),
        ("class,parent\na,b\na,c\n", "line 3: class 'a' occurs twice"),
        ("class,parent\na\n", "line 2: class 'a' has 1 columns, expected 2"),
    ],
)
def test_a_bad_csv_file_is_a_problem(tmp_path, text, message):
    flat_birds(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    ((where,),) = problems(tmp_path).values()
    assert message in where


def test_csv_with_nested_folders_is_a_problem(tmp_path):
    birds(tmp_path)
    (tmp_path / "classes.csv").write_text(CSV)
    assert problems(tmp_path)["classes at another depth"][0] == (
        "train/gulls/herring_gull: 2, expected 1, as the CSV file has it"
    )


def test_a_missing_csv_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="expected a CSV file with the classes, found no file"):
        open_folder(birds(tmp_path), classes_csv=tmp_path / "no.csv")


# Links.


def test_links_to_files_and_to_folders_elsewhere_are_followed(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "x/1.png", "x/2.png", "y.png")
    root = write(tmp_path / "root", "b/1.png")
    (root / "b" / "2.png").symlink_to(elsewhere / "y.png")
    (root / "a").symlink_to(elsewhere / "x")
    source = open_folder(root)
    assert source.hierarchy.names(1) == ("a", "b")
    both = files(source.train) | files(source.test)
    assert both.keys() == {"a/1.png", "a/2.png", "b/1.png", "b/2.png"}


@pytest.mark.parametrize("target", [".", "..", "../b", "../../root"])
def test_links_that_go_round_are_a_problem(tmp_path, target):
    root = write(tmp_path / "root", "a/x/1.png", "a/x/2.png", "b/y/1.png", "b/y/2.png")
    (root / "a" / "link").symlink_to(target)
    (where,) = problems(root)["folders that a link leads to again"]
    assert where.startswith("a/link is ")


def test_a_test_that_is_a_link_to_train_is_a_problem(tmp_path):
    write(tmp_path, "train/a/1.png")
    (tmp_path / "test").symlink_to("train")
    assert problems(tmp_path)["folders that a link leads to again"] == ["test is train"]


def test_links_to_nothing_and_to_themselves_are_a_problem(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    assert problems(tmp_path) == {"images that are links to nothing": ["a/gone.png", "a/self.png"]}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_opened(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png")
    os.mkfifo(tmp_path / "a" / "3.png")
    assert problems(tmp_path) == {"images that are no files": ["a/3.png"]}
    assert main(["check", str(tmp_path)]) == 1


# What else is wrong.


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of images, found no folder"):
        open_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="expected a folder of images"):
        open_folder(tmp_path / "file")


@pytest.mark.parametrize("names", [[], ["1.png"]])
def test_no_classes(tmp_path, names):
    write(tmp_path, *names)
    assert problems(tmp_path) == {
        "no training images": ["expected <class>/*.jpg or *.png, at any depth"]
    }


def test_images_beside_folders(tmp_path):
    write(birds(tmp_path), "train/gulls/8.png", "train/gulls/9.png")
    assert problems(tmp_path) == {
        "images beside folders, in no class (how many)": ["train/gulls/8.png (2)"]
    }


def test_classes_at_different_depths(tmp_path):
    write(birds(tmp_path), "train/wren/1.png", "train/a/b/c/1.png")
    assert problems(tmp_path) == {
        "classes at another depth": [
            "train/a/b/c: 3, expected 2, as most are",
            "train/wren: 1, expected 2, as most are",
        ]
    }


def test_empty_classes_and_groups(tmp_path):
    birds(tmp_path)
    (tmp_path / "train/owls/barn_owl").mkdir()
    (tmp_path / "train/wrens").mkdir()
    assert problems(tmp_path) == {
        "folders without images": ["train/wrens"],
        "classes without training images": ["owls/barn_owl"],
    }


def test_a_class_of_the_test_that_training_lacks(tmp_path):
    write(birds(tmp_path), "test/owls/barn_owl/1.png", "test/owls/barn_owl/2.png")
    assert problems(tmp_path) == {
        "classes without training images": ["owls/barn_owl (2 for the test)"]
    }


def test_a_class_that_the_test_lacks_is_remarked_on(tmp_path):
    write(birds(tmp_path), "train/owls/barn_owl/1.png")
    assert not problems(tmp_path)
    assert remarks(tmp_path) == {"classes without test images": ["owls/barn_owl"]}


def test_an_empty_test(tmp_path):
    write(tmp_path, "train/a/1.png")
    (tmp_path / "test").mkdir()
    assert "no test images" in problems(tmp_path)


def test_a_class_under_two_parents(tmp_path):
    write(birds(tmp_path), "train/wrens/ivory_gull/1.png", "test/wrens/ivory_gull/1.png")
    assert problems(tmp_path) == {
        "class names that stand under several parents": ["ivory_gull under gulls and wrens"]
    }


def test_a_group_under_two_parents_is_remarked_on(tmp_path):
    write(tmp_path, *(f"{a}/small/{a}{b}/{n}.png" for a in "xy" for b in "pq" for n in "12"))
    assert not problems(tmp_path)
    assert remarks(tmp_path) == {
        "names of groups that stand under several parents": ["small under x and y"]
    }
    assert open_folder(tmp_path).hierarchy == Hierarchy.from_paths(
        {f"{a}{b}": f"{a}/small" for a in "xy" for b in "pq"}
    )


def test_blank_names(tmp_path):
    write(tmp_path, " /1.png", " /2.png", "a/1.png", "a/2.png")
    assert "blank name" in problems(tmp_path)["names that cannot be used"][0]


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
    for name in "xyz":
        (birds(tmp_path) / "train/owls" / name).mkdir()
    with pytest.raises(ValueError, match=r"images: owls/x and 2 more; .*data check` lists all"):
        open_folder(tmp_path)


def test_two_spellings_of_an_accent(tmp_path):
    for form in ("NFC", "NFD"):
        write(tmp_path, *(f"{unicodedata.normalize(form, 'café')}/{n}.png" for n in range(2)))
    what = "folders whose names differ only in how accents are written"
    if len(list(tmp_path.iterdir())) == 2:  # a Mac makes one folder of them
        assert problems(tmp_path).keys() == {what}


def test_two_spellings_of_an_accent_in_the_csv_file(tmp_path):
    write(tmp_path, "café/1.png", "café/2.png")
    lines = ["class,parent", *(f"{unicodedata.normalize(f, 'café')},a" for f in ("NFC", "NFD"))]
    (tmp_path / "classes.csv").write_text("\n".join(lines), "utf-8")
    (where,) = problems(tmp_path)["CSV file that cannot be used"]
    assert "accents" in where

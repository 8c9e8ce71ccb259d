"""`dh2l predict`: pictures in, lines out, whatever they are called and however they are given."""

import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import encoded, noise
from support.runs import make_run

from dh2l_jax.__main__ import main
from dh2l_jax.commands import predict
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.training.finished.predictor import Predictor

PATHS = {"=ivory": ("birds", "gulls"), "herring": ("birds", "gulls"), "sun\x1b[2J": ()}
TREE = Hierarchy.from_paths(PATHS)
HEAD = ["path", "answer", "level", "p"]
HEAD += [name for level in "123" for name in (f"level_{level}", f"p_level_{level}")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and pictures at `pictures/`."""
    root = tmp_path_factory.mktemp("made")
    make_run(root / "run", TREE, images=300, resize=8)
    for number, name in enumerate(("b.PNG", "a.jpg", "in/c.png", "in/=d\n\x1b[2J.png")):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if path.suffix == ".jpg" else "PNG"
        path.write_bytes(encoded(noise(9 + number, 12, number), kind))
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "in/__MACOSX/e.png"):
        path = root / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    (root / "pictures/in/again").symlink_to(root / "pictures")
    return root


@pytest.fixture(autouse=True)
def place(made, monkeypatch):
    monkeypatch.chdir(made)


def run(capsys, *words):
    code = main(["predict", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


NAMES = ["a.jpg", "b.PNG", "in/=d\n\x1b[2J.png", "in/c.png"]


def test_a_folder_becomes_a_table_that_a_spreadsheet_does_not_execute(capsys):
    code, out, err = run(capsys, "run", "pictures", "--best", 2)
    table = rows(out)
    assert code == 0
    assert [row["path"] for row in table] == [f"pictures/{name}" for name in NAMES]
    assert list(table[0]) == [*HEAD, "best_1", "p_best_1", "best_2", "p_best_2"]
    assert "4 of 4 pictures in" in err
    for row in table:
        found = [row[f"level_{level}"] for level in (1, 2, 3)]
        names = {"'=ivory": ["birds", "gulls", "'=ivory"], "herring": ["birds", "gulls", "herring"]}
        assert found == names.get(row["answer"], ["sun\x1b[2J", "", ""])
        assert row["level"] == str(sum(map(bool, found)))
        assert row["p"] == row[f"p_level_{row['level']}"]
        assert float(row["p_best_1"]) >= float(row["p_best_2"])


def test_lines_of_json_keep_every_name_and_steer_nothing(capsys):
    code, out, _ = run(capsys, "run", "pictures", "--json", "--threshold", 1)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["path"] for line in found] == [f"pictures/{name}" for name in NAMES]
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    names = set(TREE.unique_names())
    assert all({pair["name"] for pair in line["levels"] + line["best"]} <= names for line in found)
    assert all(line["p"] == 1 or line["level"] for line in found)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pictures/b.PNG", "pictures/a.jpg"], ["pictures/b.PNG", "pictures/a.jpg"]),
        (["pictures/*/?.png"], ["pictures/in/c.png"]),
        (["pictures/**/[=c]*.png"], ["pictures/in/=d\n\x1b[2J.png", "pictures/in/c.png"]),
        (["pictures/in"], ["pictures/in/=d\n\x1b[2J.png", "pictures/in/c.png"]),
    ],
)
def test_pictures_are_found(words, found):
    assert [path for path in predict.pictures(words) if "again" not in path] == found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a\nb c\n\n", ["a", "b c"]),
        (b"a\nb", ["a", "b"]),
        (b"a\nb\0c\0", ["a\nb", "c"]),
        (b"a", ["a"]),
        (b"\xff\n", ["\udcff"]),
        (b"", []),
    ],
)
def test_a_list_has_lines_or_nuls(content, found):
    assert list(predict.pictures(["-"], io.BytesIO(content))) == found


def test_an_unreadable_folder_is_a_picture_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def walk(folder, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/a"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    assert list(predict.pictures([str(tmp_path)])) == [str(tmp_path / "a")]


def test_damaged_pictures_are_named_left_out_and_counted(capsys, monkeypatch, tmp_path):
    (tmp_path / "bad\x1b[2J.png").write_bytes(b"<html>")
    listed = f"{tmp_path}/bad\x1b[2J.png\npictures/a.jpg\ngone.png\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    code, out, err = run(capsys, "run", "-")
    assert code == 1
    assert [row["path"] for row in rows(out)] == ["pictures/a.jpg"]
    assert "bad\\x1b[2J.png: expected a JPEG" in err
    assert "gone.png: No such file or directory" in err
    assert err.endswith("error: 2 of 3 pictures can't be read, and are left out\n")


def test_a_file_is_whole_or_not_there(capsys, tmp_path):
    out = tmp_path / "a.jsonl"
    assert run(capsys, "run", "pictures", "--out", out)[0] == 0
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()]
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(Path("pictures/in/c.png").read_bytes())
    assert run(capsys, "run", path, "--out", tmp_path / "b.csv")[0] == 0
    assert b"\xff.png," in (tmp_path / "b.csv").read_bytes()
    before = sorted(tmp_path.iterdir())
    code, _, err = run(capsys, "run", "pictures", "--out", tmp_path / "gone/c.csv")
    assert code == 4
    assert "gone/c.csv cannot be written" in err
    (tmp_path / "empty").mkdir()
    for more in ([], ["--out", tmp_path / "d.csv"]):
        code, printed, err = run(capsys, "run", tmp_path / "empty", *more)
        assert (code, printed) == (2, "")
        assert "no pictures in" in err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "empty"])


def test_a_wanted_accuracy_is_kept_or_said_to_be_out_of_reach(capsys):
    code, out, err = run(capsys, "run", "pictures", "--accuracy", 0.8, "--json")
    assert code == 0
    threshold = Predictor.load("run").threshold_for(0.8)
    assert f"at least {threshold:g}, chosen on 150 validation images" in err
    levels = [json.loads(line)["level"] for line in out.splitlines()]
    counts = ", ".join(str(levels.count(level)) for level in range(4))
    assert f"answered at level 0, 1, 2, 3: {counts} (0 is the root" in err
    assert "with a probability of 95 %, at least 80 % are right" in err
    for line in map(json.loads, out.splitlines()):
        assert line["p"] >= threshold
    code, out, err = run(capsys, "run", "pictures", "--accuracy", 0.9999)
    assert code == 0
    assert "only the root can be answered" in err
    assert {row["level"] for row in rows(out)} == {"0"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run"], "the following arguments are required: PATH"),
        (
            ["run", "pictures", "--acuracy", "0.9"],
            "unknown option '--acuracy': did you mean '--accuracy'?",
        ),
        (["run", "pictures", "--q"], "unrecognized arguments: --q"),
        (["gone", "pictures"], "gone holds no run: expected the file gone/config.json"),
        (["run", "gone"], "no picture or folder 'gone', and no file fits it as a pattern"),
        (["run", "*.gif"], "no picture or folder '*.gif', and no file fits it as a pattern"),
        (["run", "pictures", "--out", "."], "--out must be a file, found the folder ."),
        (["run", "pictures", "--accuracy", "1"], "--accuracy must be in (0, 1), found 1"),
        (["run", "pictures", "--threshold", "nan"], "--threshold must be in [0, 1], found nan"),
        (["run", "pictures", "--best", "-1"], "--best must be at least 0, found -1"),
        (
            ["run", "pictures", "--accuracy", "0.9", "--threshold", "0.9"],
            "argument --threshold: not allowed with argument --accuracy",
        ),
    ],
)
def test_bad_input_is_one_line(capsys, words, line):
    code, out, err = run(capsys, *words)
    assert (code, out, err) == (2, "", f"dh2l predict: error: {line}\n")


def test_names_do_not_steer_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run(capsys, "run", "pictures/in")
    assert "pictures/in/=d\\n\\x1b[2J.png" in out
    assert out.replace("\n", "").isprintable()


def test_a_terminal_shows_a_bar_and_the_file_has_the_lines(made, tmp_path):
    (tmp_path / "bad\n.png").write_bytes(b"")
    command = [sys.executable, "-m", "dh2l_jax", "predict", "run", "pictures", tmp_path]
    ours, theirs = pty.openpty()
    with subprocess.Popen([*command, "--out", "t.csv"], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # the terminal is gone
            while block := os.read(ours, 4096):
                text += block
        os.close(ours)
    assert process.returncode == 1
    for part in (
        b"predicting",
        b"5/5",
        b"bad\\n.png: expected a",
        b"1 of 5 pictures can't be read",
    ):
        assert part in text
    assert len(rows(Path("t.csv").read_text())) == 4

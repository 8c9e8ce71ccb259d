"""Scores of any program's answers, and of a run by its folder."""

import json

import numpy as np
import pytest

from dh2l_jax import Hierarchy
from dh2l_jax.commands import evaluate, train
from dh2l_jax.hierarchy.scores import judge_answers, score_answers

TREE = "class,parent,grandparent\ngull,birds,animals\ntern,birds,animals\ncat,animals,\nsun,,\n"
LABELS = {"1.png": "gull", "2.png": "tern", "3.png": "birds", "4.png": "sun", "5.png": "cat"}
ANSWERS = {"2.png": "birds", "1.png": "gull", "3.png": "tern", "5.png": "", "4.png": "animals/cat"}
GOOD = {"tree": TREE, "labels": ("image,label", LABELS), "predictions": ("path,answer,P", ANSWERS)}


def files(folder, **changed):
    """The arguments of the command, and its files."""
    words = []
    for name, content in (GOOD | changed).items():
        path = folder / f"{name}.csv"
        if not isinstance(content, str):
            header, rows = content
            more = "," * header.count(",")
            lines = [f"{image},{node}{more[1:]}" for image, node in rows.items()]
            content = "\n".join([header, *lines]) + "\n"
        path.write_text(content, "utf-8")
        words += [f"--{name}", str(path)]
    return words


def test_answers_of_any_program(tmp_path, capsys):
    words = files(tmp_path)
    assert evaluate.main([*words, "--json", str(tmp_path / "scores.json")]) == 0
    shown = capsys.readouterr().out
    assert "right 60.00 %, undecided 20.00 %, wrong 20.00 %; 20.00 % say nothing" in shown
    found = json.loads((tmp_path / "scores.json").read_text())
    tree = Hierarchy.from_csv(tmp_path / "tree.csv")
    answers = np.array([tree.node_id(ANSWERS[image]) for image in LABELS])
    labels = np.array([tree.node_id(name) for name in LABELS.values()])
    expected = judge_answers(answers, labels, tree) | score_answers(answers, labels, tree)
    assert found == {"nodes": [2, 3, 4], **expected}
    assert evaluate.main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert evaluate.main([*words, "--json", str(tmp_path / "no" / "x")]) == 4


def without(rows, image):
    return {name: node for name, node in rows.items() if name != image}


BAD = {
    "unknown class": (
        {"predictions": ("image,answer", ANSWERS | {"3.png": "gul"})},
        "predictions.csv, line 4: unknown class or node 'gul': did you mean 'gull'?",
    ),
    "unknown label": (
        {"labels": ("image,label", LABELS | {"4.png": "Sun"})},
        "labels.csv, line 5: unknown class or node 'Sun': did you mean 'sun'?",
    ),
    "answer without label": (
        {"labels": ("image,label", without(LABELS, "5.png"))},
        "predictions.csv, line 5: image '5.png' does not stand in",
    ),
    "label without answer": (
        {"predictions": ("image,answer", without(ANSWERS, "4.png"))},
        "labels.csv, line 5: image '4.png' does not stand in",
    ),
    "no header": (
        {"labels": ("0.png,sun", LABELS)},
        "labels.csv: expected a header, such as image,label, found '0.png,sun'",
    ),
    "an image twice": (
        {"labels": "image,label\n1.png,sun\n1.png,cat\n"},
        "labels.csv, line 3: image '1.png' occurs twice (first on line 2)",
    ),
    "one column": ({"labels": "image,label\n1.png\n"}, "line 2: expected image,label, found '1"),
    "empty": ({"predictions": ""}, "predictions.csv: expected a header, such as image,answer, and"),
    "not UTF-8": ({"tree": "class,parent\na\n"}, "line 2: class 'a' has 1 columns, expected 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, case):
    changed, message = BAD[case]
    assert evaluate.main(files(tmp_path, **changed)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dh2l evaluate: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected RUN, the folder of a finished run, or --predictions"),
        (["--predictions", "a", "--labels", "b"], "or --tree"),
        (["--predictions", "a", "--labels", "b", "--tree", "cub20"], "did you mean 'cub200'"),
        (["--predictions", "a", "--labels", "b", "--tree", "no.csv"], "no file or folder 'no.csv'"),
        (["--predictions", "a", "--labels", "b", "--tree", "cub200"], "No such file"),
        (["runs/none"], "holds no run"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(words) == 2
    assert message in capsys.readouterr().err


def test_names_that_stand_twice_are_told_apart_by_their_paths(tmp_path, capsys):
    for path in ("a/toys/1.png", "b/toys/x/1.png", "b/toys/x/2.png", "c/1.png"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).touch()
    words = files(
        tmp_path,
        labels=("image,label", {"1": "b/toys", "2": "a/toys"}),
        predictions=("image,answer", {"1": "x", "2": "toys"}),
    )
    words[1] = str(tmp_path / "images")
    assert evaluate.main(words) == 2
    assert "predictions.csv, line 3: 'toys' names 2 nodes: give one of" in capsys.readouterr().err


def test_a_run_is_what_train_evaluates(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "main", lambda words, name: seen.append((words, name)) or 0)
    assert evaluate.main(["runs/x", "--data.data_dir", "/new"]) == 0
    words = ["--eval-only", "--workdir", "runs/x", "--data.data_dir", "/new"]
    assert seen == [(words, "dh2l evaluate")]

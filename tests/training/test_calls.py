"""`dh2l.train` and `dh2l.evaluate`: what the commands do, as objects."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.runs import make_run

import dh2l_jax as dh2l
from dh2l_jax.training import loop
from dh2l_jax.training.config import override, recipes
from dh2l_jax.training.finished import calls
from dh2l_jax.training.run import folder

TREE = dh2l.Hierarchy.two_level([0, 0, 1])


def test_a_run_is_read(tmp_path):
    make_run(tmp_path / "run", TREE)
    run = dh2l.Run.load(tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert run.scores == {key: result[key] for key in result if key not in ("files", "sha256")}
    assert (run.folder, os.fspath(run)) == (tmp_path / "run", str(tmp_path / "run"))
    assert run.config == folder.read_config(run.folder)
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert "validation, 60 images" in repr(run)
    page = run._repr_html_()
    assert page.count("<svg") == page.count("</svg>") == page.count("<table>") == 1
    assert dh2l.Predictor.load(run).facts.workdir == run.folder
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.folder = Path()
    (tmp_path / "run/result.json").unlink()
    with pytest.raises(ValueError, match="holds a run that is not finished"):
        dh2l.Run.load(tmp_path / "run")


def test_a_title_is_text(tmp_path):
    make_run(tmp_path / "<b>", TREE, epochs=1)
    assert "<b>'" not in dh2l.Run.load(tmp_path / "<b>")._repr_html_().removeprefix("<b>")


def test_train_does_what_the_command_does(tmp_path, monkeypatch, capsys):
    """All checks, the run's own folder, its lock; nothing is shown where it is quiet."""
    made = make_run(tmp_path / "made", TREE)
    config = folder.read_config(tmp_path / "made")
    calls_of = []

    def trained(experiment, workdir, console):
        assert (workdir / folder.LOCK).exists()
        assert folder.read_config(workdir) == config
        calls_of.append(experiment)
        (tmp_path / "made").joinpath("config.json").replace(workdir / "config.json")
        for path in (tmp_path / "made").iterdir():
            path.rename(workdir / path.name)

    monkeypatch.setattr(loop, "build", lambda config, progress: ("built", progress))
    monkeypatch.setattr(loop, "refuse_other_data", lambda *_: True)
    monkeypatch.setattr(loop, "train", trained)
    monkeypatch.setattr(loop, "describe", lambda *_: None)
    run = dh2l.train(config, tmp_path / "run", quiet=True)
    assert calls_of == [("built", False)]
    assert run.scores["images"] == len(made.labels)
    again = dh2l.train(config, tmp_path / "run")
    assert len(calls_of) == 1  # the finished run is read
    assert again.scores == run.scores
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="holds a run with other options: seed"):
        dh2l.train(override(config, "seed=7"), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert folder.new_folder("x").parts[:1] == ("runs",)
    with pytest.raises(ValueError, match="data_dir"):
        dh2l.train(override(recipes.embedded(), "data.data_dir=x"))
    assert not Path("runs").exists()


def test_a_config_is_asked_for(tmp_path):
    with pytest.raises(TypeError, match="Config, found 'cifar100_resnet20'"):
        dh2l.train("cifar100_resnet20", tmp_path)


def test_evaluate_is_eval_only(monkeypatch, tmp_path):
    def eval_only(workdir, print_line, places):
        return {
            "split": "test",
            "images": 2,
            "accuracy": np.float64(0.5),
            "asked": (workdir, places),
        }

    monkeypatch.setattr(calls, "eval_only", eval_only)
    scores = dh2l.evaluate(tmp_path, places=["data.data_dir=x"])
    assert scores["asked"] == (tmp_path, ["data.data_dir=x"])
    assert type(scores) is dh2l.evaluation.Scores

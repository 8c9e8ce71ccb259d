"""A run that begins with the weights of another: which, with which head, and who its parent was."""

import shutil

import jax
import numpy as np
import pytest
from support import own, runs

import dh2l_jax as dh2l
from dh2l_jax.commands.arguments import parse
from dh2l_jax.commands.train import read_config
from dh2l_jax.models.weights import start_from
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, override, same_run
from dh2l_jax.training.config.parents import line_on, read_parent, weights_for
from dh2l_jax.training.experiment import build
from dh2l_jax.training.finished import export
from dh2l_jax.training.run import checkpoint

OPTIONS = (
    "data.name=support.own:arrays",
    "model.name=support.own:normed",
    "model.head=plain",
    "reg.lambda_e=0",
    "data.pad=0",
    "epochs=1",
    "batch_size=4",
    "eval_batch_size=4",
)
OTHERS = dh2l.Hierarchy.two_level([0, 0, 1, 1])


def config(*more):
    found = Config()
    for assignment in (*OPTIONS, *more):
        found = override(found, assignment)
    return found


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return dh2l.train(config(), tmp_path_factory.mktemp("parent") / "first", quiet=True)


def begun(parent, *more):
    return build(config(f"init_from={parent}", *more))


def equal(one, two):
    return jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, two)


def test_a_child_begins_where_its_parent_ended(parent, tmp_path, capsys):
    """Another rate, more epochs; it names its parent and goes on when that is gone."""
    first = shutil.copytree(parent.folder, tmp_path / "first")
    options = config(f"init_from={first}", "epochs=2", "optim.lr=0.01")
    experiment = build(options)
    state, saved = experiment.init(), checkpoint.read_state(first)
    assert jax.tree.all(equal(state.params, saved["params"]))
    assert jax.tree.all(equal(state.batch_stats, saved["batch_stats"]))
    assert int(state.step) == 0
    child = dh2l.train(options, tmp_path / "child")
    line = f"begins with the weights of {first} after step 3, with the head"
    assert line in capsys.readouterr().out
    told = child.scores["origin"]["init_from"]
    assert (told["name"], told["step"], told["head"]) == (str(first), 3, "taken")
    shutil.rmtree(first)
    (tmp_path / "child/result.json").unlink()
    shutil.rmtree(tmp_path / "child/checkpoints/6")
    again = dh2l.train(options, tmp_path / "child", quiet=True)
    assert again.scores["origin"] == child.scores["origin"]
    assert again.scores["last_epoch"] == child.scores["last_epoch"]
    grandchild = begun(tmp_path / "child")
    assert grandchild.parent["parent"] == told


def test_running_means_are_handed_on(tmp_path):
    """A parent with means is taken by them, and a child's own means begin with what it took."""
    first = dh2l.train(config("optim.ema=0.5", "optim.lr=0.1"), tmp_path / "first", quiet=True)
    saved, best = checkpoint.read_state(first.folder), checkpoint.read_params(first.folder)
    assert not jax.tree.all(equal(saved["params"], best))
    state = begun(first.folder, "optim.ema=0.9").init()
    assert jax.tree.all(equal(state.params, best))
    assert jax.tree.all(equal(state.ema["params"], best))
    assert jax.tree.all(equal(state.ema["batch_stats"], saved["ema"]["batch_stats"]))
    assert begun(first.folder).init().ema is None
    child = dh2l.train(
        config(f"init_from={first.folder}", "optim.ema=0.9"), tmp_path / "child", quiet=True
    )
    assert child.scores["origin"]["init_from"]["head"] == "taken"


def test_the_command_takes_the_options_of_the_parent(parent, tmp_path):
    def read(*words):
        return read_config(parse([*words, "--optim.lr", "0.01"], "dh2l train"))

    path = str(parent.folder)
    assert read("--init_from", path) == config(f"init_from={path}", "optim.lr=0.01")
    named = read("fashion_mnist_mini", "--init_from", path)
    assert (named.model.name, named.init_from) == (Config().model.name, path)
    assert read("--init_from", str(tmp_path / "x.safetensors")).model == named.model


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ((), "taken"),
        (("data.tree=flat",), "anew"),
        (("model.head=hierarchical",), "anew"),
        (("data.name=support.own:floats",), "anew"),
    ],
)
def test_the_head_is_anew_where_classes_or_head_are_others(parent, options, head):
    experiment = begun(parent.folder, *options)
    assert experiment.parent["head"] == head
    assert ("head anew" in line_on(experiment.parent)) == (head == "anew")
    state, saved = experiment.init(), checkpoint.read_params(parent.folder)
    assert np.array_equal(state.params["dense"]["kernel"], saved["dense"]["kernel"])
    if "kernel" in state.params["head"]:
        same = np.array_equal(state.params["head"]["kernel"], saved["head"]["kernel"])
        assert same == (head == "taken")


def test_a_file_of_weights_is_a_parent_too(parent, tmp_path):
    path = export(parent.folder, tmp_path / "x.safetensors")
    saved = checkpoint.read_params(parent.folder)
    for tree, head in ((own.TREE, "taken"), (OTHERS, "anew")):
        found = read_parent(str(path))
        like = {"params": jax.tree.map(np.zeros_like, saved), "batch_stats": {}}
        like["batch_stats"] = checkpoint.read_state(parent.folder)["batch_stats"]
        variables, taken = weights_for(found, config(), tree)(like)
        assert taken == (head == "taken")
        assert np.array_equal(variables["params"]["dense"]["kernel"], saved["dense"]["kernel"])
        assert bool(np.any(variables["params"]["head"]["kernel"])) == taken


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop("params/dense/bias"), "params/dense/bias' is missing"),
        (lambda t: t.update({"params/x": np.ones(1)}), "params/x' is not expected"),
        (
            lambda t: t.update({"params/dense/bias": np.ones(2)}),
            r"has the shape \(2,\), expected \(3,\)",
        ),
        (lambda t: t.update({"params/dense/bias": np.full(3, np.nan)}), "is not finite"),
    ],
)
def test_another_network_is_refused(change, line):
    like = {"params": {"dense": {"bias": np.zeros(3)}, "head": {"kernel": np.zeros((3, 2))}}}
    tensors = {"params/dense/bias": np.ones(3), "params/head/kernel": np.ones((3, 2))}
    change(tensors)
    with pytest.raises(ValueError, match=line):
        start_from(tensors, like, same_classes=True)


@pytest.mark.parametrize(
    ("source", "line"),
    [("nothing", "there is nothing of this name"), ("file.pth", "or FILE.safetensors$")],
)
def test_what_is_no_parent_is_refused(tmp_path, source, line):
    (tmp_path / "file.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=line):
        read_parent(str(tmp_path / source))


def test_a_parent_of_another_network_is_refused_before_anything_is_written(tmp_path):
    runs.make_run(tmp_path / "other", own.TREE)
    child = config(f"init_from={tmp_path / 'other'}")
    with pytest.raises(ValueError, match=r"init_from=.*: the weights of another network: "):
        dh2l.train(child, tmp_path / "child", quiet=True)
    assert not (tmp_path / "child").exists()


def test_two_beginnings_are_refused():
    twice = config("init_from=x", "model.name=resnet18", "model.pretrained=y.pth")
    with pytest.raises(ValueError, match="are both weights to begin with"):
        loop.refuse_conflicts(twice)


def test_a_run_is_known_by_the_name_of_its_parent():
    assert same_run(config("init_from=/a/first"), config("init_from=/b/first")) is None
    assert "init_from" in (same_run(config("init_from=first"), config()) or "")

"""Networks and data of the user's own, from the config to the answers."""

import csv
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import own

import dh2l_jax as dh2l
from dh2l_jax.data.catalog import load
from dh2l_jax.models import check_own_network, create
from dh2l_jax.models.heads import HierarchicalHead, SphereHead
from dh2l_jax.training.config import Config, override
from dh2l_jax.training.finished import export
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.step.objective import make_objective

OPTIONS = (
    "data.name=support.own:arrays",
    "data.pad=1",
    "data.holdout=3",
    "model.head=plain",
    "reg.lambda_e=0",
    "epochs=2",
    "batch_size=4",
    "eval_batch_size=4",
    "eval_every=1",
    "loggers=csv; support.own:Recorder",
)


def config(*more):
    found = Config()
    for assignment in (*OPTIONS, *more):
        found = override(found, assignment)
    return found


@pytest.fixture(scope="module", params=["normed", "plain"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return dh2l.train(config(f"model.name=support.own:{request.param}"), folder, quiet=True)


def test_a_run_is_equal_in_every_bit_over_an_interruption(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run.folder, again)
    (again / "result.json").unlink()
    *_, before, last = checkpoint.steps(again)
    shutil.rmtree(again / "checkpoints" / str(last))
    assert (before, last) == (3, 6)
    other = dh2l.train(run.config, again, quiet=True)
    one, two = (checkpoint.read_params(r.folder) for r in (run, other))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    assert run.scores["accuracy"] == other.scores["accuracy"]
    with (again / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["J"]) for row in rows] == [record["J"] for record in other.history]
    assert float(rows[-1]["accuracy_2"]) == other.scores["accuracy"][-1]
    for found in (run, other):
        found.history[-1].pop("images_per_second", None)
    assert run.history[-1] == other.history[-1]


def test_a_run_with_own_parts_is_used_like_any_other(run, tmp_path):
    assert dh2l.evaluate(run)["accuracy"] == run.scores["accuracy"]
    answers = dh2l.Predictor.load(run)(own.images(1, 6)[0])
    assert len(answers) == 6
    assert export(run.folder, tmp_path / "x.stablehlo").stat().st_size
    origin = run.scores["origin"]
    assert origin == json.loads((run.folder / "origin.json").read_text())
    assert set(origin) == {"model.name", "data.name"}
    assert origin["model.name"]["file"] == own.__file__


@pytest.mark.parametrize("part", ["model.name", "data.name"])
def test_where_a_part_is_missing_one_line_says_where_it_was(run, part, monkeypatch):
    monkeypatch.setitem(sys.modules, "support.own", None)  # as if its folder were gone
    name = {"model.name": run.config.model.name, "data.name": run.config.data.name}[part]
    line = rf"^{part}={name}: there is no module 'support.own' here: .* took it from .*own\.py$"
    if part == "model.name":
        for use in (dh2l.Predictor.load, lambda run: dh2l.train(run.config, run.folder)):
            with pytest.raises(ValueError, match=line):
                use(run)
    else:
        with pytest.raises(ValueError, match=line):
            dh2l.evaluate(run)


def test_changed_code_is_told(run, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(run.folder, again)
    (again / "result.json").unlink()
    origin = json.loads((again / "origin.json").read_text())
    origin["model.name"]["sha256"] = "0" * 64
    (again / "origin.json").write_text(json.dumps(origin))
    dh2l.train(run.config, again)
    assert f"model.name: {own.__file__} is not what {again} began with" in capsys.readouterr().out


def test_the_features_are_what_the_head_is_called_with():
    """J, its parts and the statistics of one step, against the same by hand."""
    model = create("support.own:normed", hierarchy=own.TREE)
    assert isinstance(model.head, HierarchicalHead)
    pixels, labels = own.images()
    images, key = jnp.asarray(pixels, jnp.float32) / 255, jax.random.key(3)
    variables = model.init(key, images, train=False)
    reg = override(Config(), "reg.lambda_e=0").reg
    objective = jax.jit(make_objective(model, own.TREE, reg))

    def loss(step):
        J, (statistics, terms) = objective(
            variables["params"], variables["batch_stats"], images, labels, step, key=key
        )
        return J, statistics, terms

    J, statistics, terms = loss(0)
    rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, 2**31), 0)}
    logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    L = -jax.nn.log_softmax(logits)[np.arange(15), labels].mean()
    np.testing.assert_allclose(terms["L"], L, rtol=1e-6)
    jax.tree.map(np.testing.assert_allclose, statistics, updates["batch_stats"])
    assert loss(0)[0] == J != loss(1)[0]  # another step drops others


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("support.own:norme", "unknown function of support.own 'norme': did you mean 'normed'?"),
        ("support.owl:normed", "there is no module 'support.owl' here"),
        ("sup port:x", "model.name: expected package.module:function, found 'sup port:x'"),
        ("support.own:none", "expected a Linen module with the field `head: nn.Module`"),
        ("support.own:other_head", "that holds the head it was given, found Net"),
        ("support.own:unhashable", "a field can't be hashed, one of .*: write tuples"),
        ("support.own:Headless", "Headless calls its head 0 times: expected once"),
        ("support.own:Twice", "Twice calls its head 2 times"),
        ("support.own:Halved", r"expected the head's logits \(1, 3\), found \(1, 2\)"),
        ("support.own:Counting", r"it keeps \['counts'\] beside params and batch_stats"),
        ("support.own:fails", "TypeError"),
    ],
)
def test_a_network_that_will_not_do_is_refused(name, line):
    with pytest.raises(ValueError, match=line) as refused:
        check_own_network(create(name, hierarchy=own.TREE), (8, 8, 1), name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"head": "haframe"}, "has no neck, which the head FrameHead needs"),
        ({"shortcut": "B"}, "is called with head= alone: leave out model.shortcut"),
        ({"dtype": jnp.bfloat16}, "found 'A' and bfloat16"),
    ],
)
def test_options_that_an_own_network_does_not_take_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        create("support.own:normed", hierarchy=own.TREE, **options)


@pytest.mark.parametrize("head", [{"num_classes": 3}, {"hierarchy": own.TREE, "head": "sphere"}])
def test_an_own_network_takes_other_heads(head):
    model = create("support.own:plain", **head)
    assert isinstance(model.head, nn.Dense | SphereHead)
    check_own_network(model, (8, 8, 1), "plain")


@pytest.mark.parametrize("function", ["arrays", "floats", "dataset"])
def test_own_data_are_loaded(function):
    data = load(f"support.own:{function}")
    pixels, labels = own.images()
    assert np.array_equal(data.train_images, pixels)
    assert np.array_equal(data.train_labels, labels)
    assert data.test_images.shape == (6, 8, 8, 1)
    assert data.hierarchy.num_levels == (1 if function == "floats" else 2)


def test_own_data_may_lie_in_a_folder(tmp_path):
    x, y = own.images()
    np.savez(tmp_path / "x.npz", x=x, y=y)
    data = load("support.own:of_folder", data_dir=tmp_path)
    assert np.array_equal(data.test_images, x)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("support.owl:arrays", {}, "data.name=support.owl:arrays: there is no module"),
        ("support.own:fails", {}, "support.own:fails: RuntimeError: no such shelf"),
        ("support.own:normalised", {}, "train: expected floats in 0..1, found -1"),
        ("support.own:three", {}, "expected a Dataset, or .* found tuple"),
        ("support.own:with_names", {}, "expected a Hierarchy, found list"),
        ("support.own:without_tree_of_floats", {}, "expected integer labels, found float64"),
        ("support.own:arrays", {"resize": 8}, "has images as they are and takes no resize"),
        ("support.own:arrays", {"csv": "x.csv"}, "is no folder of own images and takes no csv"),
    ],
)
def test_own_data_that_will_not_do_are_refused(name, options, line):
    with pytest.raises(ValueError, match=line) as refused:
        load(name, **options)
    assert "\n" not in str(refused.value)

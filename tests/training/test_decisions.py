"""A run with another head, loss and decision: interrupted, evaluated, tested."""

import jax
import numpy as np
import pytest
from support import resume
from support.tiny import with_head_of

from dh2l_jax.data import datasets
from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.data.catalog import load
from dh2l_jax.training import experiment, finished, loop
from dh2l_jax.training.config import from_dict
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.folder import read_result
from dh2l_jax.training.run.records import read_records

CONFIG = {
    "epochs": 2,
    "eval_every": 1,
    "batch_size": 50,
    "eval_batch_size": 16,
    "data": {"fraction": 0.05, "holdout": 50},
    "model": {"name": "resnet8", "head": "sphere"},
    "loss": {"name": "soft_labels"},
    "eval": {"decision": "crm"},
    "reg": {"lambda_e": 0, "lambda_l": 0, "lambda_o": 0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run that was left alone, and of one that a signal stopped in between."""
    folder, create = tmp_path_factory.mktemp("runs"), experiment.create
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "create", lambda *a, **k: with_head_of(create(*a, **k)))
        config = from_dict(CONFIG)
        assert resume.train(config, folder / "whole") is None
        stopped = resume.train(config, folder / "twice", interrupt=6)
        assert stopped is not None
        assert stopped % 5, "in the middle of an epoch"
        assert resume.train(config, folder / "twice") is None
        yield folder


def test_goes_on_in_every_bit(runs):
    expected = resume.end(runs / "whole")
    resume.check_equal(resume.end(runs / "twice"), expected)
    scores = [expected["result"], *expected["records"][:1]]
    assert all(0.01 <= record["temperature"] <= 100 for record in scores)
    assert "temperature" in expected["result"]["best"]
    assert all({"J", "L"} <= record.keys() for record in read_records(runs / "whole/metrics.jsonl"))


def test_directions_have_length_1(runs):
    exp = loop.build(from_dict(CONFIG))
    state = checkpoint.restore(runs / "whole", exp.init(abstract=True)).state
    lengths = np.linalg.norm(state.params["head"]["direction"], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_the_decision_by_hand(runs):
    """The best temperature in float64 on one half, and the lowest risk on the other."""
    exp, result = loop.build(from_dict(CONFIG)), read_result(runs / "whole")
    state = checkpoint.restore(runs / "whole", exp.init(abstract=True)).state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    tree = exp.dataset.hierarchy

    @jax.jit
    def logits_of(images):
        images = normalize(images, exp.dataset.mean, exp.dataset.std)
        return exp.model.apply(variables, images, train=False)

    assert exp.calibration is not None
    images, labels = exp.calibration
    assert len(labels) + len(exp.dataset.test_labels) == 50
    T = result["temperature"]
    z = np.asarray(logits_of(images), np.float64)

    def loss(T):
        log_p = z / T - np.log(np.exp(z / T).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(labels)), labels].mean()

    assert loss(T) <= min(loss(T * 1.01), loss(T / 1.01))
    z = np.asarray(logits_of(exp.dataset.test_images), np.float64) / T
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    answers = (p @ tree.lca_height()).argmin(axis=1)
    heights = tree.lca_height()[answers, exp.dataset.test_labels]
    assert result["images"] == len(heights)
    assert result["accuracy"][-1] == pytest.approx(np.mean(heights == 0))
    assert result["hierarchical_distance"]["1"] == pytest.approx(heights.mean())


def test_finished_runs_answer_as_they_did(runs):
    result = read_result(runs / "whole")
    again = finished.eval_only(runs / "whole")
    assert {name: result[name] for name in ("accuracy", "temperature")} == {
        name: again[name] for name in ("accuracy", "temperature")
    }
    scores = finished.test(runs / "whole")
    assert scores["last"]["images"] == 200 * 0.5
    assert scores["last"]["temperature"] == result["temperature"]
    assert scores["best_on_validation"]["temperature"] == result["best"]["temperature"]


def test_halves_of_the_test_part():
    """Each class is halved, nothing is lost, and what cannot be halved is refused."""
    whole = datasets.hold_out(load("fashion_mnist_mini"), 50, seed=0)
    kept, (images, labels) = datasets.halve_test(whole)
    np.testing.assert_array_equal(np.bincount(kept.test_labels), [3] * 10)
    np.testing.assert_array_equal(np.bincount(labels), [2] * 10)
    both = np.concatenate([np.asarray(kept.test_images), np.asarray(images)])
    sums = [np.sort(x.reshape(len(x), -1).sum(axis=1)) for x in (both, whole.test_images)]
    np.testing.assert_array_equal(*sums)
    with pytest.raises(ValueError, match="expected two images of a class or more, found none"):
        datasets.halve_test(datasets.hold_out(whole, 10, seed=0))
    with pytest.raises(ValueError, match=r"^data.holdout is too small for eval.decision=crm: exp"):
        loop.build(from_dict({**CONFIG, "data": {"fraction": 0.05, "holdout": 10}}))

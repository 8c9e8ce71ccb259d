"""A run answers for new pictures as its evaluation would, by its folder alone."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from oracle import learn as oracle
from support.folders import birds, encoded, noise
from support.runs import make_run

import dh2l_jax as dh2l
from dh2l_jax.hierarchy import Hierarchy, decoding
from dh2l_jax.training.config import override
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import build
from dh2l_jax.training.finished.certainty import certainty_of, halves
from dh2l_jax.training.finished.predictor import Prediction, Predictor, Unreadable
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.facts import read_facts

CLASSES = [("birds", "gulls", "ivory"), ("birds", "gulls", "herring"), ("birds", "owl"), ("sun",)]
TREE = Hierarchy.from_paths({"/".join(path[-1:]): path[:-1] for path in CLASSES})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made") / "run"
    make_run(workdir, TREE, images=400)
    return workdir


@pytest.fixture(scope="module")
def predictor(workdir):
    """Its temperature is so high that no answer is sure."""
    loaded = Predictor.load(workdir)
    logits = logits_of(loaded, np.stack([noise(8, 8, seed) for seed in range(20)]))
    result = loaded.facts.result | {"temperature": float(2 * logits.std())}
    return dataclasses.replace(loaded, facts=dataclasses.replace(loaded.facts, result=result))


def logits_of(predictor, pixels):
    images = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    apply = jax.jit(functools.partial(predictor.network.apply, train=False))
    return np.float64(apply(predictor.variables, images))


THRESHOLDS = (0, 0.4, 0.6, 0.8, 1, math.inf)


@pytest.mark.parametrize(
    ("decision", "thresholds"), [("argmax", (None, *THRESHOLDS)), ("crm", (None,))]
)
def test_answers_are_those_of_loops(predictor, decision, thresholds):
    predictor = dataclasses.replace(predictor, decision=decision)
    pixels = np.stack([noise(8, 8, seed) for seed in range(20)])
    logits = logits_of(predictor, pixels) / predictor.temperature
    depths = {}
    for threshold in thresholds:
        found = predictor(pixels, threshold, best=3)
        depths[threshold] = {told.level for told in found}
        for row, told in zip(logits, found, strict=True):
            check(told, row, threshold, decision)
    assert thresholds == (None,) or len(depths[0.4] | depths[0.6]) > 1
    assert depths.get(math.inf, {0}) == {0}


def check(told, row, threshold, decision):
    def p(node):
        return math.exp(oracle.log_p(CLASSES, row, node))

    if threshold is None:
        cost = oracle.risk(CLASSES, row) if decision == "crm" else -row
        node = end = CLASSES[int(np.argmin(cost))]
    else:
        node = oracle.answer(CLASSES, row, threshold)[0]
        end = oracle.way(CLASSES, row)[-1][0]
    assert (told.path, told.level) == (None, len(node))
    assert told.answer == (node[-1] if node else "")
    best = sorted(CLASSES, key=p, reverse=True)[:3]
    for pairs, nodes in (
        (told.levels, oracle.steps(end)),
        (told.best, best),
        ([(told.answer, told.probability)], [node]),
    ):
        assert [name for name, _ in pairs] == [n[-1] if n else "" for n in nodes]
        np.testing.assert_allclose([x for _, x in pairs], list(map(p, nodes)), rtol=1e-4)


def test_files_are_answered_as_the_evaluation_answers_them(tmp_path):
    """The decoder, the scaling, the crop and the normalisation are those of the trainer."""
    root = birds(tmp_path / "images")
    sizes = [(20, 31), (33, 20), (12, 12), (40, 13), (20, 21), (50, 60)]
    for number, path in enumerate(sorted((root / "test").rglob("*.png"))):
        path.write_bytes(encoded(noise(*sizes[number], number)))
    tree = Hierarchy.from_paths(
        {"ivory_gull": "gulls", "herring_gull": "gulls", "snowy_owl": "owls"}
    )
    make_run(tmp_path / "run", tree, resize=10)
    predictor = Predictor.load(tmp_path / "run")
    config = predictor.facts.config
    places = f"data.data_dir={root}", f"data.cache_dir={tmp_path / 'cache'}", "data.holdout=0"
    for assignment in (*places, "batch_size=2", "eval_batch_size=4"):
        config = override(config, assignment)
    experiment = build(config, training=False, split="test")
    data = dataclasses.replace(
        experiment.dataset, normalization=(predictor.facts.mean, predictor.facts.std)
    )
    state = checkpoint.restore(tmp_path / "run", experiment.init(abstract=True)).state
    experiment = dataclasses.replace(experiment, dataset=data)
    _, outputs = make_evaluator(experiment).outputs(state)
    names = [root / data.name_of("test", i) for i in range(len(outputs.logits))]
    classes, T = data.hierarchy.names(data.hierarchy.num_levels), predictor.temperature
    found = predictor(names, best=3)
    p = np.float64(jax.nn.softmax(outputs.logits / np.float32(T), axis=1))
    for row, told, path in zip(p, found, names, strict=True):
        assert told.path == str(path)
        assert told.answer == classes[row.argmax()]
        np.testing.assert_allclose([dict(told.best)[name] for name in classes], row, atol=1e-5)


def test_few_and_many_pictures_get_the_same_answers(predictor, monkeypatch):
    monkeypatch.setattr("dh2l_jax.training.finished.predictor.LARGEST_BATCH", 4)
    pixels = [noise(8, 8, seed % 7) for seed in range(2 * predictor._batch + 3)]
    many = predictor(pixels)
    few = [predictor([image])[0] for image in pixels[:7]]
    assert [told.answer for told in many] == [few[i % 7].answer for i in range(len(pixels))]
    np.testing.assert_allclose(
        [told.probability for told in many],
        [few[i % 7].probability for i in range(len(pixels))],
        rtol=1e-4,
    )
    assert predictor([]) == []


def test_some_pictures_are_unreadable_in_their_places(predictor, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"GIF89a")
    items = [noise(8, 8), str(tmp_path / "bad.png"), np.zeros((3, 3, 2)), noise(8, 8, 1)]
    kinds = [type(told) for told in predictor.stream(items)]
    assert kinds == [Prediction, Unreadable, Unreadable, Prediction]
    with pytest.raises(ValueError, match=r"bad\.png: expected a whole image"):
        predictor(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="picture 1: expected an image"):
        predictor([items[0], items[2]])
    with pytest.raises(ValueError, match=r"expected an array of images \(n, h, w, c\), or a list"):
        predictor(noise(8, 8))
    with pytest.raises(ValueError, match="threshold must be at least 0, found nan"):
        predictor(items[:1], math.nan)


def test_a_prediction_reads_well(predictor):
    (told,) = predictor(noise(8, 8)[None], 1.0)
    assert repr(told) == "Prediction(path=None, answer='', level=0, probability=1.0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.answer = "owl"
    assert repr(predictor).endswith("/run': resnet8, 8 × 8 × 3 → " + f"{TREE!r})")


def test_a_network_that_gives_nan_is_said(predictor):
    nan = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), predictor.variables)
    with pytest.raises(FloatingPointError, match="the network gives NaN for an array"):
        dataclasses.replace(predictor, variables=nan)(noise(8, 8)[None])


# How sure it is.


def with_result(facts, **values):
    return dataclasses.replace(facts, result=facts.result | values)


def test_one_half_fits_the_temperature_and_the_other_chooses_the_threshold(workdir):
    facts = read_facts(workdir)
    outputs = facts.outputs
    labels = outputs.labels.copy()
    labels[::5] = TREE.node_id("gulls")  # images at inner nodes say nothing of classes
    facts.__dict__["outputs"] = dataclasses.replace(outputs, labels=labels)
    logits, labels = outputs.logits[labels < 4], labels[labels < 4]
    fit = halves(len(labels))
    assert fit.sum() == len(labels) // 2
    T = float(decoding.temperature(logits[fit], labels[fit]))
    found = certainty_of(facts)
    assert found.temperature == pytest.approx(T)
    assert abs(T - 1) > 0.02  # it does something
    np.testing.assert_array_equal(found.labels, labels[~fit])
    np.testing.assert_allclose(found.logits, logits[~fit] / T, rtol=1e-6)
    predictor = dataclasses.replace(Predictor.load(workdir), facts=facts)
    expected = decoding.threshold_for(logits[~fit] / np.float32(T), labels[~fit], TREE, 0.8)
    assert predictor.threshold_for(0.8) == expected
    assert 0 < expected < 1


def test_a_temperature_of_the_run_leaves_all_images_to_the_threshold(workdir):
    facts = with_result(read_facts(workdir), temperature=1.5)
    found = certainty_of(facts)
    assert found.temperature == 1.5
    np.testing.assert_allclose(found.logits, facts.outputs.logits / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, facts.outputs.labels)


def test_without_validation_images_nothing_is_promised(workdir, monkeypatch):
    facts = with_result(read_facts(workdir), split="test")
    monkeypatch.setattr("dh2l_jax.training.finished.predictor.read_facts", lambda _: facts)
    lines = []
    predictor = dh2l.Predictor.load(workdir, print_line=lines.append)
    assert predictor.temperature == 1
    assert "probabilities are those of the bare logits" in lines[0]
    with pytest.raises(ValueError, match=r"held no images out.*train it with data\.holdout=0\.1"):
        predictor.threshold_for(0.95)
    with pytest.raises(ValueError, match=r"data\.holdout=0\.1"):
        dh2l.Predictor.load(workdir, decision="crm")
    with pytest.raises(ValueError, match="expected a decision of argmax or crm, found 'cmr'"):
        dh2l.Predictor.load(workdir, decision="cmr")


def test_a_result_of_another_step_is_refused(workdir, monkeypatch):
    facts = with_result(read_facts(workdir), steps=3)
    monkeypatch.setattr("dh2l_jax.training.finished.predictor.read_facts", lambda _: facts)
    with pytest.raises(ValueError, match="is of step 3, its newest intact checkpoint of step 2"):
        Predictor.load(workdir)

"""The tables' cells, configs and statistics: the paper's figures, every run that a table makes."""

import dataclasses
import itertools
import json
import math
import statistics as plain

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from oracle.tables import FACTORED, holm, key_of_config, key_of_labels, key_of_setting

import dh2l_jax as dh2l
from dh2l_jax.data import catalog, datasets
from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments import runner, runs
from dh2l_jax.experiments.plan import tables
from dh2l_jax.experiments.plan.settings import Options, Setting, Weights, config_of, recipe
from dh2l_jax.experiments.reports import statistics
from dh2l_jax.hierarchy.published import taxonomy
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, from_dict, identity, override, to_dict
from dh2l_jax.training.config.options import flat
from dh2l_jax.training.step.objective import make_regularizer

ALL_SETTINGS = list(
    dict.fromkeys(setting for name in tables.TABLES for setting in tables.table(name).settings)
)
# Spot checks against the paper, and the number and sum of all figures of each table.
FIGURES = {
    ("table1", "baseline", "E"): 90.34,
    ("table1", "baseline", "E+l2"): 92.21,
    ("table1", "d_cos_hm", "E+l2"): 92.93,
    ("table2", "baseline (no l2)", "resnet110 E"): 62.02,
    ("table2", "baseline_l2", "resnet20 E"): 68.03,
    ("table2", "angular2", "resnet110 E"): 74.40,
    ("table2", "d_h_bin", "resnet110 E+H"): 74.26,
    ("table3", "d_am_cos", "E+H"): 69.24,
    ("table3", "d_hm_cos_prime", "E+H"): 68.83,
    ("table4", "(l2, l2)", "E+H"): 68.03,
    ("table4", "(d_gm, l2)", "E+H"): 68.22,
    ("table4", "(d_gm, d_hm)", "E+H"): 69.04,
    ("table5", "d_am_cos", "resnet50 E+H"): 77.32,
    ("table5", "d_gm", "resnet18 E+H"): 76.35,
    ("table5", "baseline", "resnet50 E"): 74.21,
    ("table6", "d_am_cos", "resnet50 E+H"): 88.57,
    ("table6", "d_am_cos_prime", "resnet18 E+H"): 86.43,
    ("table6", "d_h_ter", "resnet50 E"): 85.35,
}
COUNTS = {
    "table1": (16, 1465.31),
    "table2": (40, 2823.52),
    "table3": (10, 687.52),
    "table4": (5, 342.49),
    "table5": (48, 3575.08),
    "table6": (40, 3472.1),
}
HEAVY = ("cub200", "cars196")
NO_WEIGHTS = Weights()
PARAMETERS = {
    ("cifar100", "resnet20", "plain"): 275_472,
    ("cifar100", "resnet110", "plain"): 1_733_712,
    ("cub200", "resnet18", "plain"): 11_278_912,
    ("cars196", "resnet18", "plain"): 11_276_864,
    ("cars196", "resnet50", "plain"): 23_909_440,
    ("cub200", "resnet18", "hierarchical"): 11_278_912 + 70 * 512,
}


@pytest.mark.parametrize("cell", FIGURES, ids=lambda cell: "-".join(cell).replace(" ", "_"))
def test_the_papers_figures(cell):
    name, row, column = cell
    found = [c.paper for c in tables.table(name).cells if (c.row, c.column) == (row, column)]
    assert found == [FIGURES[cell]]


@pytest.mark.parametrize("name", COUNTS)
def test_no_figure_of_the_paper_is_missing(name):
    figures = [cell.paper for cell in tables.table(name).cells if cell.paper is not None]
    assert (len(figures), round(sum(figures), 2)) == COUNTS[name]


@pytest.mark.parametrize("name", [name for name in tables.TABLES if name != tables.FIELD])
def test_every_cell_is_what_its_labels_say(name):
    plan = tables.table(name)
    cells = {(cell.row, cell.column): cell for cell in plan.cells}
    assert len(cells) == len(plan.cells)
    for (row, column), cell in cells.items():
        setting = cell.setting
        assert key_of_setting(setting) == key_of_labels(plan, row, column), (row, column)
        assert (cell.paper is None) == (name == tables.FASHION or FACTORED in column)
        if setting.variant == "E+H" and name != "table4":
            control = cells[row, column.replace("E+H", FACTORED)].setting
            assert control == dataclasses.replace(setting, variant="factored", fc_metric="")
    baselines = {Setting(plan.data, model, "l2") for model in plan.models}
    assert baselines <= set(plan.settings)
    assert set(plan.columns) == {column for _, column in cells}


@pytest.mark.parametrize("setting", ALL_SETTINGS, ids=str)
def test_every_candidate_of_every_cell_has_its_config(setting):
    names = set()
    if not setting.method:
        lambda_e = [0.1, 1.0] if setting.variant in ("E", "factored", "E+H") else [0.0]
        lambda_l = [0.1, 0.5] if setting.variant == "E+H" else [0.0]
        of = [dict(weights.values) for weights in setting.candidates]
        pairs = [(w.get("reg.lambda_e", 0.0), w.get("reg.lambda_l", 0.0)) for w in of]
        assert pairs == list(itertools.product(lambda_e, lambda_l))
    for weights in setting.candidates:
        config = config_of(setting, weights, 3, Options(data_dir="somewhere"))
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
        stored = dict(flat(config))
        assert config.seed == 3
        assert all(stored[key] == value for key, value in weights.values)
        assert config.data.holdout % FACTS[setting.data].classes == 0 < config.data.holdout
        if not setting.method:
            assert key_of_config(to_dict(config)) == (setting.data, *key_of_setting(setting))
        make_regularizer(None, dh2l.Hierarchy.flat(2), config.reg)  # raises for unknown metrics
        names.add(runs.Run(setting, weights, 3, config).name)
    assert len(names) == len(setting.candidates)


def test_the_field_is_there():
    """Every loss, head and decision of the trainer has its row, and every row is another run."""
    plan = tables.table(tables.FIELD, model="resnet8")
    changes = {change for cell in plan.cells for change in cell.setting.changes}
    for section, key in (("loss", "name"), ("model", "head"), ("eval", "decision")):
        options = getattr(Config(), section).__dataclass_fields__[key].metadata["choices"]
        found = {c.partition("=")[2] for c in changes if c.startswith(f"{section}.{key}=")}
        assert found | {"ce", "hierarchical", "plain", "argmax"} >= set(options)
    assert len(plan.rows) >= 14
    assert len(plan.settings) == len(plan.cells)
    assert plan.columns == (tables.COLUMN,)


@pytest.fixture(scope="module")
def full_size_data():
    """Black images in the true numbers of each class, of the least size that the networks take."""

    def make(name):
        facts = FACTS[name]
        tree = taxonomy(facts.tree) if facts.tree else dh2l.Hierarchy.flat(facts.classes)
        counts = np.full(facts.classes, facts.smallest)
        for i in range(facts.train - counts.sum()):
            counts[1 + i % (facts.classes - 1)] += 1
        labels = [np.arange(facts.classes).repeat(n) for n in (counts, 2)]
        side = 32 if name in HEAVY else 8
        splits = [(np.zeros((len(y), side, side, 3), np.uint8), y) for y in labels]
        assert len(labels[0]) == facts.train
        return datasets.Dataset.from_splits(name, *splits, tree)

    return {name: make(name) for name in FACTS}


@pytest.mark.parametrize(
    ("data", "model", "head"),
    dict.fromkeys(
        (s.data, s.model, "hierarchical" if s.variant in ("factored", "E+H") else "plain")
        for s in ALL_SETTINGS
    ),
)
def test_every_network_builds_on_every_data_set(monkeypatch, full_size_data, data, model, head):
    monkeypatch.setattr(catalog, "load", lambda name, **_: full_size_data[name])
    setting = next(
        s
        for s in ALL_SETTINGS
        if (s.data, s.model) == (data, model)
        and (s.variant in ("factored", "E+H")) == (head == "hierarchical")
    )
    options = Options(overrides=("data.crop=32",) if data in HEAVY else ())
    experiment = loop.build(config_of(setting, setting.candidates[-1], 1, options))
    assert experiment.split == "validation"
    assert len(experiment.dataset.test_labels) == experiment.config.data.holdout
    shapes = experiment.init(abstract=True).params
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == PARAMETERS.get((data, model, head), count)


@given(st.sampled_from(sorted(FACTS)), st.floats(1e-6, 1))
def test_any_budget_leaves_images_of_every_class(data, budget):
    facts = FACTS[data]
    whole = recipe(data, "resnet20")
    config = config_of(Setting(data, "resnet20", "l2"), NO_WEIGHTS, 0, Options(budget=budget))
    held = config.data.holdout // facts.classes
    smallest = math.ceil(config.data.fraction * facts.smallest)
    assert 1 <= held < smallest
    assert 1 <= config.batch_size <= (smallest - held) * facts.classes
    assert 1 <= config.epochs <= whole.epochs
    assert budget <= config.data.fraction <= 1
    assert config.optim.warmup_epochs <= config.epochs


def test_identity_of_a_run():
    """Where files lie is no part of it, any option that changes the training is."""
    config = config_of(Setting("cub200", "resnet18", "l2"), NO_WEIGHTS, 0, Options())
    same = ("data.data_dir=x", "data.cache_dir=y", "data.device_gb=9")
    other = ("seed=1", "optim.lr=0.2", "data.fraction=0.5", "model.dtype=bfloat16", "epochs=7")
    for text in same:
        assert identity(override(config, text)) == identity(config), text
    for text in other:
        assert identity(override(config, text)) != identity(config), text
    here, there = (override(config, f"model.pretrained={d}/r.pth") for d in ("a", "b"))
    assert identity(here) == identity(there) != identity(config)


@given(st.permutations([0.1, 0.1, 0.7, 0.7]), st.permutations(range(4)), st.integers(0, 4))
def test_choice_of_weights(accuracy, order, failed):
    """The best on validation; the smaller on a tie; a run that failed is none of them."""
    setting = Setting("cifar100", "resnet20", "E+H", "d_am", "d_am")
    config = config_of(setting, setting.candidates[0], 0, Options())
    outcomes = [
        runs.RunResult(
            runs.Run(setting, weights, 0, config),
            None if i == failed else {"accuracy": [1.0, accuracy[i]]},
        )
        for i, weights in enumerate(setting.candidates)
    ]
    best = max(accuracy[i] for i in range(4) if i != failed)
    first = next(i for i in range(4) if i != failed and accuracy[i] == best)
    assert runner.choose([outcomes[i] for i in order]) == setting.candidates[first]
    unfinished = [runs.RunResult(outcome.run) for outcome in outcomes]
    assert runner.choose(unfinished) is None
    assert runner.choose(unfinished[:1]) == setting.candidates[0]


# Statistics.

accuracies = st.integers(0, 10_000).map(lambda hits: hits / 100)
samples = st.lists(accuracies, min_size=2, max_size=8)


@given(samples)
def test_mean_and_deviation(values):
    mean, deviation = statistics.mean_and_deviation(values)
    assert mean == pytest.approx(plain.fmean(values))
    assert deviation == pytest.approx(plain.stdev(values), abs=1e-9)
    assert statistics.mean_and_deviation(values[:1]) == (values[0], None)


@given(
    st.dictionaries(st.integers(0, 9), accuracies), st.dictionaries(st.integers(0, 9), accuracies)
)
def test_paired_test(ours, baseline):
    """scipy's one-sample test of the differences over the common seeds."""
    differences = [ours[seed] - baseline[seed] for seed in ours if seed in baseline]
    delta, p = statistics.paired_difference(ours, baseline)
    assert delta == (pytest.approx(plain.fmean(differences)) if differences else None)
    if len(differences) < 2 or plain.stdev(differences) < 1e-9:
        assert p is None
    else:
        assert p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.integers(1, 20))
def test_visible_difference(differences, comparisons):
    """At that difference the test has the power that was asked for."""
    visible = statistics.visible_difference(differences, comparisons)
    if np.ptp(differences) <= 1e-9:
        assert visible is None
        return
    n, deviation = len(differences), np.std(differences, ddof=1)
    bound = scipy.stats.t.isf(0.025 / comparisons, n - 1)
    power = scipy.stats.nct.sf(bound, n - 1, visible / deviation * math.sqrt(n))
    assert power == pytest.approx(0.8, abs=1e-6)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm(p_values):
    """A corrected p is the lowest level at which the step-down procedure rejects."""
    corrected = statistics.holm(p_values)
    assert corrected == pytest.approx(holm(p_values))
    assert all(c >= p for c, p in zip(corrected, p_values, strict=True))

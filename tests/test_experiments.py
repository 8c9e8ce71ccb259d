"""The tables: their cells, the paper's figures, killed and resumed runs, every printed number."""

import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import statistics as plain
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache

import dh2l_jax as dh2l
from dh2l_jax.data import datasets
from dh2l_jax.data.taxonomies import taxonomy
from dh2l_jax.experiments import __main__ as command
from dh2l_jax.experiments import runner, runs, settings, statistics, tables
from dh2l_jax.experiments.settings import DATA, Options, Setting, config_of
from dh2l_jax.training import loop, memory
from dh2l_jax.training.config import from_dict, override, to_dict
from dh2l_jax.training.objective import make_regularizer

FACTORED = "factored (λ_l = 0)"
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
    "table1": (16, 1465.42),
    "table2": (40, 2843.07),
    "table3": (10, 687.27),
    "table4": (5, 342.49),
    "table5": (48, 3590.03),
    "table6": (40, 3475.59),
}
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


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_cell_is_what_its_labels_say(name):
    plan = tables.table(name)
    cells = {(cell.row, cell.column): cell for cell in plan.cells}
    assert len(cells) == len(plan.cells)
    for (row, column), cell in cells.items():
        setting = cell.setting
        assert key_of_setting(setting) == key_of_labels(name, row, column), (row, column)
        assert (cell.paper is None) == (name == tables.FASHION or FACTORED in column)
        if setting.variant == "E+H" and name != "table4":
            control = cells[row, column.replace("E+H", FACTORED)].setting
            assert control == dataclasses.replace(setting, variant="factored", fc_metric="")
    baselines = {Setting(plan.data, model, "l2") for model in plan.models}
    assert baselines <= set(plan.settings)
    assert set(plan.columns) == {column for _, column in cells}


def key_of_labels(name, row, column):
    """(network, variant, metric of the convolutions, of the head, l2) as the labels are read."""
    plan = tables.table(name)
    model = column.split()[0] if " E" in column or " factored" in column else plan.models[0]
    label = column.removeprefix(model).strip()
    if row in ("baseline", "baseline (no l2)") and label != "E+l2":
        return model, "baseline", "", "", False
    if row in ("baseline", "baseline_l2", "l2", "(l2, l2)"):
        return model, "l2", "", "", True
    conv, fc = row.strip("()").split(", ") if "," in row else (row, row)
    if label == FACTORED or fc == "l2":
        return model, "factored", conv, "", True
    return model, label.removesuffix("+l2"), conv, fc, (name, label) != ("table1", "E")


def key_of_setting(setting):
    decay = setting.decay and setting.variant != "baseline"
    return setting.model, setting.variant, setting.conv_metric, setting.fc_metric, decay


@pytest.mark.parametrize("setting", ALL_SETTINGS, ids=str)
def test_every_candidate_of_every_cell_has_its_config(setting):
    lambda_e = [0.1, 1.0] if setting.variant in ("E", "factored", "E+H") else [0.0]
    lambda_l = [0.1, 0.5] if setting.variant == "E+H" else [0.0]
    assert list(setting.candidates) == list(itertools.product(lambda_e, lambda_l))
    names = set()
    for weights, seed in itertools.product(setting.candidates, (0, 3)):
        config = config_of(setting, weights, seed, Options(data_dir="somewhere"))
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
        assert (config.reg.lambda_e, config.reg.lambda_l, config.seed) == (*weights, seed)
        assert config.data.holdout % DATA[setting.data].classes == 0 < config.data.holdout
        assert key_of_config(to_dict(config)) == (setting.data, *key_of_setting(setting))
        make_regularizer(None, dh2l.Hierarchy.flat(2), config.reg)  # raises for unknown metrics
        names.add(runs.Run(setting, weights, seed, config).name)
    assert len(names) == 2 * len(setting.candidates)


def key_of_config(config):
    """What a stored config trains, told from its values alone."""
    model, reg, decay = config["model"], config["reg"], config["optim"]["weight_decay"] > 0
    if model["head"] == "hierarchical":
        variant = "E+H" if reg["lambda_l"] else "factored"
    else:
        variant = "E" if reg["lambda_e"] else "l2" if decay else "baseline"
    conv = reg["conv_metric"] if reg["lambda_e"] else ""
    fc = reg["fc_metric"] if variant in ("E", "E+H") else ""
    return config["data"]["name"], model["name"], variant, conv, fc, decay


@pytest.fixture(scope="module")
def full_size_data():
    """Black images in the true numbers of each class, of the least size that the networks take."""

    def make(name):
        facts, tree = DATA[name], taxonomy(name.removesuffix("_mini"))
        counts = np.full(facts.classes, facts.smallest)
        counts[1:] += np.diff(np.linspace(0, facts.train - counts.sum(), facts.classes).round())
        labels = [np.arange(facts.classes).repeat(n) for n in (counts.astype(int), 2)]
        side = 32 if settings.WEIGHT_FILES.get(HEAVY.get(name, "")) else 8
        splits = [(np.zeros((len(y), side, side, 1), np.uint8), y) for y in labels]
        assert len(labels[0]) == facts.train
        return datasets.Dataset.from_splits(name, *splits, tree)

    return {name: make(name) for name in DATA}


HEAVY = {"cub200": "resnet18", "cars196": "resnet18"}


@pytest.mark.parametrize(
    ("data", "model", "head"),
    dict.fromkeys(
        (s.data, s.model, "hierarchical" if s.variant in ("factored", "E+H") else "plain")
        for s in ALL_SETTINGS
    ),
)
def test_every_network_builds_on_every_data_set(
    monkeypatch, full_size_data, data, model, head
):
    monkeypatch.setattr(datasets, "load", lambda name, **_: full_size_data[name])
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
    assert count == PARAMETERS.get((data, model, head), count) + 144 * 2 * 0


@given(st.sampled_from(sorted(DATA)), st.floats(1e-6, 1))
def test_any_budget_leaves_images_of_every_class(data, budget):
    facts = DATA[data]
    whole = facts.recipe(data, "resnet20")
    config = config_of(Setting(data, "resnet20", "l2"), (0.0, 0.0), 0, Options(budget=budget))
    held = config.data.holdout // facts.classes
    smallest = math.ceil(config.data.fraction * facts.smallest)
    assert 1 <= held < smallest
    assert 1 <= config.batch_size <= (smallest - held) * facts.classes
    assert 1 <= config.epochs <= whole.epochs
    assert budget <= config.data.fraction <= 1
    assert config.optim.warmup_epochs <= config.epochs


def test_identity_of_a_run():
    """Where files lie is no part of it, any option that changes the training is."""
    config = config_of(Setting("cub200", "resnet18", "l2"), (0.0, 0.0), 0, Options())
    same = ("data.data_dir=x", "data.cache_dir=y", "data.device_gb=9")
    other = ("seed=1", "optim.lr=0.2", "data.fraction=0.5", "model.dtype=bfloat16", "epochs=7")
    for text in same:
        assert runs.identity(override(config, text)) == runs.identity(config), text
    for text in other:
        assert runs.identity(override(config, text)) != runs.identity(config), text
    here, there = (override(config, f"model.pretrained={d}/r.pth") for d in ("a", "b"))
    assert runs.identity(here) == runs.identity(there) != runs.identity(config)


# Statistics.

accuracies = st.integers(0, 10_000).map(lambda hits: hits / 100)
samples = st.lists(accuracies, min_size=2, max_size=8)


@given(samples)
def test_mean_and_deviation(values):
    mean, deviation = statistics.mean_and_deviation(values)
    assert mean == pytest.approx(plain.fmean(values))
    assert deviation == pytest.approx(plain.stdev(values), abs=1e-9)
    assert statistics.mean_and_deviation(values[:1]) == (values[0], None)


@given(st.dictionaries(st.integers(0, 9), accuracies), st.dictionaries(st.integers(0, 9), accuracies))
def test_paired_test(ours, baseline):
    """scipy's one-sample test of the differences over the common seeds."""
    differences = [ours[seed] - baseline[seed] for seed in ours if seed in baseline]
    p = statistics.paired_p(ours, baseline)
    if len(differences) < 2 or plain.stdev(differences) < 1e-9:
        assert p is None
    else:
        assert p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm(p_values):
    """A corrected p is the lowest level at which the step-down procedure rejects."""
    corrected = statistics.holm(p_values)
    assert corrected == pytest.approx(holm(p_values))
    assert all(c >= p for c, p in zip(corrected, p_values, strict=True))


def holm(p_values):
    def rejects(level, i):
        for left, j in zip(range(len(p_values), 0, -1), np.argsort(p_values, kind="stable")):
            if p_values[j] * left > level:
                return False
            if j == i:
                return True

    levels = sorted({1.0, *(p * k for p in p_values for k in range(1, len(p_values) + 1))})
    return [min((x for x in levels if rejects(x, i)), default=1.0) for i in range(len(p_values))]

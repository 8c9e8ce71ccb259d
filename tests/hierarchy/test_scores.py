"""Hierarchical evaluation: every number by brute force, any batches, one trace, hostile padding."""

import dataclasses
import functools
import itertools
import json
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from oracle import evaluation as oracle_evaluation
from oracle import learn
from support.trees import EVEN, TREES, hierarchy, ids

from dh2l_jax import Hierarchy
from dh2l_jax.data.batches.order import padded_batches
from dh2l_jax.hierarchy.scores import (
    Counts,
    count,
    evaluate,
    judge_answers,
    score_answers,
    summarize,
    tree_order,
)

PARENTS = ((0, 0), (0, 1, 1, 0, 1), (0, 1, 1, 2, 4, 3, 4, 4, 2))
TREE = Hierarchy.from_parents(PARENTS[1:])
C = TREE.num_classes
IMAGES = 12

counted = jax.jit(count, static_argnames=("hierarchy", "confusion"))
seeds = st.integers(0, 2**32 - 1)


def tree_of(parents):
    below = parents[1:]
    return Hierarchy.from_parents(below) if below else Hierarchy.flat(len(parents[0]))


@st.composite
def trees(draw):
    """Parent tables (p_1, ..., p_L) of depth 1 to 4: flat, singletons, unsorted groups."""
    table = [(0,) * draw(st.integers(1, 6))]
    for _ in range(draw(st.integers(0, 3))):
        size = len(table[-1])
        extra = draw(st.lists(st.integers(0, size - 1), max_size=4))
        table.append(tuple(draw(st.permutations([*range(size), *extra]))))
    return tuple(table)


def normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


def tied(rng, shape):
    """Three values, two of them equal; what they sum to in exp is exact."""
    return rng.choice([0.0, -0.0, -200.0], shape).astype(np.float32)


def batch(seed, parents, draw):
    """Logits, labels and mask with about a third masked; what is masked is poison."""
    rng = np.random.default_rng(seed)
    classes = len(parents[-1])
    logits, labels = draw(rng, (IMAGES, classes)), rng.integers(0, classes, IMAGES)
    where = rng.random(IMAGES) < 0.7
    where[0] = True
    logits[~where] = rng.choice([np.nan, np.inf, -np.inf, 1e30], logits[~where].shape)
    labels[~where] = rng.choice([-1, classes, 2**31 - 1], labels[~where].shape)
    return logits, labels, where


def assert_scores(found, expected, tree):
    """Counts and their quotients to the last bit, the loss to float32."""
    found, loss = dict(found), expected["loss"]
    np.testing.assert_allclose(found.pop("loss"), loss, rtol=1e-5, atol=1e-6)
    recalls = expected["balanced_accuracy"]
    np.testing.assert_allclose(found.pop("balanced_accuracy"), recalls, rtol=1e-14)
    names = [tree.names(tree.num_levels)[i] for i in tree_order(tree)]
    assert found.pop("confusion_names") == names
    apart = ("loss", "balanced_accuracy")
    assert found == {key: value for key, value in expected.items() if key not in apart}


def decided(parents, row):
    """Whether no node is so close to the most probable one that float32 may not tell them apart."""
    for level in range(1, len(parents)):
        masses = sorted(oracle_evaluation.probabilities(parents, row, level))
        if len(masses) > 1 and masses[-1] - masses[-2] < 1e-5:
            return False
    return True


@hypothesis.given(parents=trees(), seed=seeds)
@hypothesis.settings(max_examples=15)
@hypothesis.example(parents=((0,),), seed=0)
@hypothesis.example(parents=((0,), (0,), (0,)), seed=0)
@hypothesis.example(parents=((0,) * 30,), seed=0)
def test_every_number_against_brute_force(parents, seed):
    tree = tree_of(parents)
    for draw in (normal, tied):
        logits, labels, where = batch(seed, parents, draw)
        rows = logits[where].tolist()
        hypothesis.assume(draw is tied or all(decided(parents, row) for row in rows))
        expected = oracle_evaluation.evaluate(parents, rows, labels[where].tolist())
        assert_scores(evaluate(logits, labels, tree, where=where), expected, tree)


@hypothesis.given(parents=trees(), seed=seeds)
@hypothesis.settings(max_examples=8)
def test_given_logits_of_inner_levels_against_brute_force(parents, seed):
    tree = tree_of(parents)
    logits, labels, where = batch(seed, parents, normal)
    rng = np.random.default_rng(seed)
    inner = [rng.integers(-1, 2, (IMAGES, len(row))).astype(float) for row in parents[:-1]]
    expected = oracle_evaluation.evaluate(
        parents,
        logits[where].tolist(),
        labels[where].tolist(),
        [level[where].tolist() for level in inner],
    )
    for level in inner:
        level[~where] = np.nan
    scores = evaluate(logits, labels, tree, where=where, level_logits=inner)
    assert_scores(scores, expected, tree)


def test_by_hand():
    """Classes 0 and 1 under node 1, class 2 under node 0, so that the tree's order is 2, 0, 1."""
    tree = Hierarchy.two_level([1, 1, 0], names=(["vehicle", "animal"], ["cat", "dog", "car"]))
    probabilities = [
        [0.50, 0.30, 0.20],  # a cat called a cat
        [0.35, 0.25, 0.40],  # a cat called a car, though an animal is the more probable
        [0.60, 0.30, 0.10],  # a dog called a cat
        [0.10, 0.10, 0.80],  # a car called a car
    ]
    scores = evaluate(np.log(probabilities), np.array([0, 0, 1, 2]), tree)
    loss = -(math.log(0.5) + math.log(0.35) + math.log(0.3) + math.log(0.8)) / 4
    assert scores.pop("loss") == pytest.approx(loss, rel=1e-6)
    assert scores == {
        "images": 4,
        "accuracy": [0.75, 0.5],
        "balanced_accuracy": [(1 + 2 / 3) / 2, 0.5],
        "level_images": [4, 4],
        "level_classes": [3, 3],
        "class_images": 4,
        "top5": 1.0,
        "mistake_severity": 1.5,
        "hierarchical_distance": {"1": 0.75, "5": 13 / 12, "20": 13 / 12},
        "best_of_k_height": {"1": 0.75, "5": 0.0, "20": 0.0},
        "hierarchical_precision": {"1": 0.625, "5": 1.0, "20": 1.0},
        "hP": 0.625,
        "hR": 0.625,
        "hF1": 0.625,
        "full_path_accuracy": 0.5,
        "inconsistent_path_ratio": 0.25,
        "independent_accuracy": [1.0, 0.5],
        "independent_hP": 6 / 9,
        "independent_hR": 6 / 8,
        "independent_hF1": 12 / 17,
        "confusion": [[1, 0, 0], [1, 1, 0], [0, 1, 0]],
        "confusion_names": ["car", "cat", "dog"],
    }


# Published values, uneven trees, and answers at inner nodes.


def test_published_values_of_the_best_k():
    """Of five classes on three levels; the answers are 0 and 3, the labels 1 and 2."""
    logits = np.array([[2.0, 1, 0, 0, -1], [0, 0, 1, 3, 1]])
    scores = evaluate(logits, np.array([1, 2]), hierarchy(EVEN), ranks=(1, 2, 5))
    assert scores["mistake_severity"] == 2
    assert scores["hierarchical_distance"] == {"1": 2, "2": 1, "5": 1.9}
    assert scores["best_of_k_height"]["2"] == 0
    assert scores["hierarchical_precision"]["1"] == pytest.approx(1 / 3)
    assert scores["hierarchical_precision"]["2"] == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match=r"ranks must be in 1\.\.20, found \[0\]"):
        evaluate(logits, np.array([1, 2]), hierarchy(EVEN), ranks=[0])


def test_published_values_of_answers_at_inner_nodes():
    tree = hierarchy(EVEN)
    answers = np.array([tree.node_id("0/00"), 4, 0])
    scores = score_answers(answers, np.array([1, 3, -1]), tree, where=np.arange(3) < 2)
    expected = {"hP": 4 / 5, "hR": 2 / 3, "hF1": 8 / 11}
    expected |= {"macro_hP": 5 / 6, "macro_hR": 2 / 3, "macro_hF1": 11 / 15}
    assert scores == pytest.approx(expected)
    root = tree.num_nodes - 1
    scores = score_answers(np.array([root, root]), np.array([1, root]), tree)
    assert [scores[f"macro_h{name}"] for name in ("P", "R", "F1")] == [1, 0.5, 0.5]
    assert [scores[f"h{name}"] for name in ("P", "R", "F1")] == [1, 0, 0]
    for wrong in ({"answers": [11, 0]}, {"labels": [0, -1]}, {"where": [False, False]}):
        arguments = {"answers": [0, 0], "labels": [0, 0], "where": [True, True]} | wrong
        with pytest.raises(ValueError, match=r"nodes are 0\.\.10|at least one image"):
            score_answers(
                *(np.array(arguments[k]) for k in ("answers", "labels")),
                tree,
                where=np.array(arguments["where"]),
            )


@pytest.mark.parametrize("name", ["uneven", "random"])
def test_uneven_trees_against_loops(name):
    """Heights and sets of true nodes; a class that is shown again below its depth counts once."""
    classes, rng = TREES[name], np.random.default_rng(7)
    tree, count = hierarchy(classes), len(classes)
    logits, labels = normal(rng, (40, count)), rng.integers(0, count, 40)
    inner = [rng.normal(size=(40, tree.size(level))) for level in range(1, tree.num_levels)]
    scores = evaluate(logits, labels, tree, ranks=(1, 3), level_logits=inner)
    height = learn.height(classes, ())
    far = np.array([[learn.distance(classes, a, b) for b in classes] for a in classes])
    best = np.argsort(-logits, axis=1)
    heights, wrong = far[labels[:, None], best], best[:, 0] != labels
    assert scores["mistake_severity"] == pytest.approx(heights[wrong, 0].mean())
    assert scores["best_of_k_height"]["3"] == pytest.approx(heights[:, :3].min(1).mean())
    nearest = np.sort(far[labels], axis=1)
    precision = (height - heights[:, :3]).sum() / (height - nearest[:, :3]).sum()
    assert scores["hierarchical_precision"]["3"] == pytest.approx(precision)

    paths = {number: node for node, number in ids(classes, tree).items()}
    levels = [*inner, logits]
    chosen = [
        [paths[tree.level_nodes(n)[x[i].argmax()]] for n, x in enumerate(levels, 1)]
        for i in range(40)
    ]
    for prefix, predicted in (
        ("h", [set(learn.steps(classes[k])) for k in best[:, 0]]),
        ("independent_h", [{s for node in nodes for s in learn.steps(node)} for nodes in chosen]),
    ):
        true = [set(learn.steps(classes[k])) for k in labels]
        common = sum(len(p & t) for p, t in zip(predicted, true, strict=True))
        assert scores[f"{prefix}P"] == pytest.approx(common / sum(map(len, predicted)))
        assert scores[f"{prefix}R"] == pytest.approx(common / sum(map(len, true)))
    of_classes = score_answers(best[:, 0], labels, tree)
    assert [of_classes[k] for k in ("hP", "hR", "hF1")] == [scores[k] for k in ("hP", "hR", "hF1")]
    broken = sum(
        any(low[: len(high)] != high for high, low in itertools.pairwise(nodes)) for nodes in chosen
    )
    assert scores["inconsistent_path_ratio"] == broken / 40


@pytest.mark.parametrize("name", ["flat", "even", "uneven", "random"])
def test_labels_at_any_node_against_loops(name):
    """Every level over the images that reach it; scores of classes as without inner labels."""
    classes, rng = TREES[name], np.random.default_rng(11)
    tree, b = hierarchy(classes), 40
    paths = {number: node for node, number in ids(classes, tree).items()}
    logits, labels = normal(rng, (b, len(classes))), rng.integers(0, tree.num_nodes, b)
    at_class = labels < len(classes)
    scores = evaluate(logits, labels, tree)
    truth = [paths[i] for i in labels]
    costs = [-learn.log_p(classes, row, node) for row, node in zip(logits, truth, strict=True)]
    assert scores["loss"] == pytest.approx(np.mean(costs), rel=1e-6)
    guesses = [classes[row.argmax()] for row in logits]
    expected = oracle_evaluation.of_levels(classes, guesses, truth)
    assert {key: scores[key] for key in expected} == {
        key: pytest.approx(value, rel=1e-14) for key, value in expected.items()
    }
    assert scores["class_images"] == at_class.sum()
    assert scores["images"] == b
    alone = evaluate(logits[at_class], labels[at_class], tree)
    of_all = {"loss", "images", *expected}
    assert {k: v for k, v in scores.items() if k not in of_all} == {
        k: v for k, v in alone.items() if k not in of_all
    }
    answers = rng.integers(0, tree.num_nodes, b)
    found = judge_answers(answers, labels, tree)
    expected = {
        "images": b,
        **oracle_evaluation.of_levels(classes, [paths[i] for i in answers], truth),
        **oracle_evaluation.judged(classes, [paths[i] for i in answers], truth),
    }
    assert found == {key: pytest.approx(value, rel=1e-13) for key, value in expected.items()}
    leaves = judge_answers(np.array([row.argmax() for row in logits]), labels, tree)
    assert {k: leaves[k] for k in ("accuracy", "balanced_accuracy", "mistake_severity")} == {
        k: pytest.approx(scores[k]) for k in ("accuracy", "balanced_accuracy", "mistake_severity")
    }


def test_without_an_image_at_a_class_scores_of_classes_are_none():
    tree = hierarchy(TREES["uneven"])
    scores = evaluate(np.eye(6), np.full(6, tree.node_id("animal")), tree)
    assert scores["level_images"] == [6, 0, 0, 0]
    assert scores["accuracy"] == [0.5, None, None, None]
    assert (scores["class_images"], scores["top5"], scores["mistake_severity"]) == (0, None, 0.0)


# Sums.


def make_step():
    """total, batch → total + counts, the total's memory reused; a second trace is an error."""

    @functools.partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(total, logits, labels, where):
        return total + count(logits, labels, TREE, where=where)

    return step


def assert_same_counts(a, b):
    a, b = jax.device_get((a, b))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
    chex.assert_trees_all_equal(dataclasses.replace(a, loss=b.loss), b)


@functools.cache
def data(images=53, seed=1):
    rng = np.random.default_rng(seed)
    return normal(rng, (images, C)), rng.integers(0, C, images)


def test_one_jitted_pass_over_padded_batches():
    chex.clear_trace_counter()
    logits, labels = data()
    step, total = make_step(), Counts.zero(TREE)
    for index, where in zip(*padded_batches(len(labels), 8), strict=True):
        total = step(total, logits[index], labels[index], where)
    assert_same_counts(total, counted(logits, labels, TREE))
    assert_scores(
        summarize(total, TREE),
        oracle_evaluation.evaluate(PARENTS, logits.tolist(), labels.tolist()),
        TREE,
    )


@functools.cache
def small_step():
    chex.clear_trace_counter()
    return make_step()


@hypothesis.given(seed=seeds)
def test_any_split_into_batches_in_any_order_gives_the_same_counts(seed):
    logits, labels = data()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    cuts = np.unique(rng.integers(0, len(labels), 20))
    total = Counts.zero(TREE)
    for part in np.split(order, cuts):
        for start in range(0, len(part), 8):
            index = np.resize(part[start : start + 8], 8)
            where = rng.permutation(np.arange(8) < len(part[start : start + 8]))
            rows, truth = np.full((8, C), np.nan, np.float32), np.full(8, -7)
            rows[where], truth[where] = logits[index[: where.sum()]], labels[index[: where.sum()]]
            total = small_step()(total, rows, truth, where)
    assert_same_counts(total, counted(logits, labels, TREE))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_images_leave_no_trace(poison):
    logits, labels = data(8)
    where = np.arange(8) % 3 > 0
    hurt, wrong = logits.copy(), labels.copy()
    hurt[~where], wrong[~where] = poison, 999
    clean = counted(logits, labels, TREE, where=where)
    chex.assert_trees_all_equal(counted(hurt, wrong, TREE, where=where), clean)
    assert_same_counts(counted(logits[where], labels[where], TREE), clean)


def test_two_devices_count_as_one():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    logits, labels = data(16)
    split = jax.device_put((logits, labels), NamedSharding(mesh, PartitionSpec("data")))
    both = jax.jit(lambda x, y: count(x, y, TREE))(*split)
    assert_same_counts(both, counted(logits, labels, TREE))
    halves = [counted(logits[part], labels[part], TREE) for part in (slice(8), slice(8, None))]
    assert_same_counts(halves[0] + halves[1], both)


@pytest.mark.parametrize("confusion", [True, False])
def test_zero_is_neutral_and_shapes_are_as_documented(confusion):
    zero = Counts.zero(TREE, confusion=confusion)
    sums = counted(*data(8), TREE, confusion=confusion)
    chex.assert_trees_all_equal(zero + sums, sums)
    chex.assert_trees_all_equal_shapes_and_dtypes(zero, sums)
    shapes: dict = dict.fromkeys(("hits", "independent_hits"), (3,))
    shapes |= dict.fromkeys(("rank_hits", "rank_heights", "best_heights", "ideal_heights"), (C,))
    shapes |= {"leaf_nodes": (3,), "confusion": (C, C)}
    shapes |= dict.fromkeys(("labelled", "met"), (TREE.num_nodes,))
    for field in dataclasses.fields(Counts):
        value = getattr(sums, field.name)
        if field.name == "confusion" and not confusion:
            assert value is None
            continue
        chex.assert_shape(value, shapes.get(field.name, ()))
        assert value.dtype == (jnp.float32 if field.name == "loss" else jnp.int32)
    assert ("confusion" in summarize(sums, TREE)) == confusion


def test_ten_thousand_classes_fit():
    """Temporaries are a few times the logits: neither (b, C, C) nor (C, C) is ever built."""
    b, classes = 4, 10_000
    tree = Hierarchy.from_parents(
        ([i % 40 for i in range(1000)], [i % 1000 for i in range(classes)])
    )
    arguments = jnp.zeros((b, classes)), jnp.zeros(b, jnp.int32)
    step = jax.jit(lambda x, y: count(x, y, tree, confusion=False))
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 20 * arguments[0].nbytes


# Properties.


@hypothesis.given(seed=seeds, scale=st.sampled_from([0.0, 1.0, 30.0]))
def test_relations_between_the_numbers(seed, scale):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, IMAGES)
    logits = scale * np.eye(C)[labels] + 3 * rng.normal(size=(IMAGES, C))
    scores = evaluate(logits.astype(np.float32), labels, TREE)
    wrong = 1 - scores["accuracy"][-1]
    distance = scores["hierarchical_distance"]
    assert (scores["hF1"] == 1) == (wrong == 0)
    assert (scores["independent_hF1"] == 1) == (scores["full_path_accuracy"] == 1)
    assert 1 <= scores["mistake_severity"] <= 3 if wrong else scores["mistake_severity"] == 0
    assert distance["1"] == pytest.approx(wrong * scores["mistake_severity"])
    assert scores["hP"] == scores["hR"] == pytest.approx(np.mean(scores["accuracy"]))
    assert scores["hF1"] == pytest.approx(1 - distance["1"] / 3)
    assert scores["accuracy"] == sorted(scores["accuracy"], reverse=True)
    assert scores["independent_accuracy"][-1] == scores["accuracy"][-1] <= scores["top5"]
    assert scores["full_path_accuracy"] <= min(scores["independent_accuracy"])
    assert scores["independent_hP"] <= scores["independent_hR"]
    assert np.sum(scores["confusion"]) == scores["images"] == IMAGES
    assert np.trace(scores["confusion"]) == round((1 - wrong) * IMAGES)


@hypothesis.given(seed=seeds)
def test_a_class_above_one_half_decides_every_level(seed):
    rng = np.random.default_rng(seed)
    rest = rng.dirichlet(np.full(C, 0.5), IMAGES)
    guesses = rng.integers(0, C, IMAGES)
    share = rng.uniform(0.51, 0.99, (IMAGES, 1))
    logits = np.log((1 - share) * rest + share * np.eye(C)[guesses])
    scores = evaluate(logits.astype(np.float32), rng.integers(0, C, IMAGES), TREE)
    assert scores["inconsistent_path_ratio"] == 0
    assert scores["independent_accuracy"] == scores["accuracy"]
    assert scores["full_path_accuracy"] == scores["accuracy"][-1]
    assert scores["independent_hF1"] == scores["hF1"]


@hypothesis.given(parents=trees())
def test_every_subtree_is_contiguous_in_tree_order(parents):
    tree = tree_of(parents)
    order = tree_order(tree)
    assert order.dtype == np.int32
    assert order.tolist() == oracle_evaluation.tree_order(parents)
    assert sorted(order) == list(range(tree.num_classes))
    for row in tree.ancestors()[:, order]:
        assert np.count_nonzero(np.diff(row)) == len(set(row)) - 1


# What comes in and goes out.


def test_json_keeps_everything():
    scores = evaluate(*data(8), TREE)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_logits_of_any_real_type_are_read_as_float32(dtype):
    logits, labels = (10 * data(8)[0]).astype(dtype), data(8)[1]
    expected = counted(logits.astype(np.float32), labels.astype(np.uint8), TREE)
    chex.assert_trees_all_equal(counted(logits, labels, TREE), expected)


@pytest.mark.parametrize("wrong", [[3], [3, 5], range(8)])
def test_nan_is_no_hit(wrong):
    """Under jit: the ranks of a row of NaN are those of an image that shares the root alone."""
    logits, labels = map(np.copy, data(8))
    known = np.isin(np.arange(len(labels)), wrong, invert=True)
    logits[~known] = np.nan  # of all: the label's own class would be a hit
    found, n = counted(logits, labels, TREE), np.sum(~known)
    rest = counted(logits, labels, TREE, where=known)
    assert math.isnan(found.loss)
    for name in ("hits", "rank_hits", "independent_hits", "full_paths", "path_common", "confusion"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rest, name))
    np.testing.assert_array_equal(found.rank_heights, rest.rank_heights + n * TREE.num_levels)
    assert found.path_nodes == rest.path_nodes + n * TREE.num_levels
    assert (found.images, found.inconsistent_paths) == (
        rest.images + n,
        rest.inconsistent_paths + n,
    )


def test_nan_of_inner_levels_is_no_independent_hit():
    logits, labels = map(np.copy, data(8))
    inner = [np.eye(TREE.size(level))[TREE.ancestors()[level - 1][labels]] for level in (1, 2)]
    inner[1][2, 0] = np.nan
    found = counted(logits, labels, TREE, level_logits=inner)
    assert found.independent_hits[:2].tolist() == [len(labels) - 1] * 2
    np.testing.assert_array_equal(found.hits, counted(logits, labels, TREE).hits)
    with pytest.raises(ValueError, match="the logits of row 2 hold NaN"):
        evaluate(logits, labels, TREE, level_logits=inner)


@pytest.mark.parametrize("fn", [evaluate, count])
@pytest.mark.parametrize("place", [(3, 0), (3, C - 1)])
def test_nan_is_refused_by_the_name_of_its_row(fn, place):
    logits, labels = map(np.copy, data(8))
    logits[place] = logits[5, 2] = np.nan
    with pytest.raises(ValueError, match="the logits of row 3 hold NaN"):
        fn(logits, labels, TREE)
    fn(logits, labels, TREE, where=np.isin(np.arange(len(labels)), [3, 5], invert=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": np.zeros((4, 8))}, ValueError, r"logits \(b, 9\) .* found \(4, 8\) and \(4,\)"),
        ({"labels": np.zeros(3, int)}, ValueError, r"labels \(b,\), found \(4, 9\) and \(3,\)"),
        ({"logits": np.zeros(9), "labels": 0}, ValueError, r"found \(9,\) and \(\)"),
        ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(4,\).* found \(3,\)"),
        ({"where": np.ones(4)}, TypeError, "where must be boolean, found dtype float32"),
        ({"where": np.zeros(4, bool)}, ValueError, "at least one image, found 0"),
        ({"logits": np.zeros((0, 9)), "labels": np.zeros(0, int)}, ValueError, "image, found 0"),
        ({"labels": np.zeros(4)}, TypeError, "labels must be integers, found dtype float32"),
        ({"labels": [0, 17, -1, 0]}, ValueError, r"label 17 at index 1 .* nodes are 0\.\.16"),
        ({"labels": [0, 8, -1, 0]}, ValueError, "label -1 at index 2 does not exist"),
        (
            {"level_logits": [np.zeros((4, 2))]},
            ValueError,
            r"shapes \[\(4, 2\), \(4, 5\)\], one an inner level, found \[\(4, 2\)\]",
        ),
        (
            {"level_logits": [np.zeros((4, 5)), np.zeros((4, 2))]},
            ValueError,
            r"found \[\(4, 5\), \(4, 2\)\]",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(change, error, message):
    arguments = {"logits": np.zeros((4, C)), "labels": np.zeros(4, int), **change}
    with pytest.raises(error, match=message) as caught:
        evaluate(hierarchy=TREE, **arguments)
    assert "\n" not in str(caught.value)

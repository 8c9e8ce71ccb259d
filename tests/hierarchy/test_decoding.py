"""Decisions against loops: probabilities of nodes, risks, answers, temperature and guarantee."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import learn as oracle
from support.trees import EVEN, TREES, hierarchy, ids, level_arrays

from dh2l_jax.hierarchy import Hierarchy, decoding, losses

T = hierarchy(EVEN)
TAUS = [0.0, 0.2, 0.45, 0.5, 0.7, 0.95, 1.0, math.inf]


@jax.jit(static_argnames="tree")
def everything(z, x, taus, tree):
    return (
        decoding.log_probs(z, tree),
        decoding.crm_risk(z, tree),
        decoding.crm(z, tree),
        jax.vmap(lambda tau: decoding.answer(z, tree, tau))(taus),
        decoding.conditional_log_probs(x, tree),
        decoding.hrn_log_probs(x, tree),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "tol"),
    [("uneven", np.float64, 1e-11), ("uneven", np.float32, 2e-6), ("random", np.float64, 1e-11)],
)
def test_every_decision_against_loops(name, dtype, tol):
    classes, rng = TREES[name], np.random.default_rng(8)
    tree = hierarchy(classes)
    numbers, nodes = ids(classes, tree), oracle.nodes(classes)
    for scale in (2, 1e4):
        z = np.round(scale * rng.normal(size=(12, len(classes))), 2)
        scores = [dict(zip(nodes, scale * rng.normal(size=len(nodes)), strict=True)) for _ in z]
        with jax.enable_x64(dtype is np.float64):
            x = [jnp.asarray(a, dtype) for a in level_arrays(scores, classes, tree)]
            found = everything(jnp.asarray(z, dtype), x, jnp.asarray(TAUS, dtype), tree)
        log_p, risk, best, (answers, P), conditional, hrn = jax.device_get(found)
        assert {a.dtype for a in (log_p, risk, P, conditional, hrn)} == {np.dtype(dtype)}
        assert best.dtype == answers.dtype == np.int32
        for i, row in enumerate(z):
            for node, number in numbers.items():
                expected = oracle.log_p(classes, row, node)
                assert log_p[i, number] == pytest.approx(expected, rel=tol, abs=tol)
            D_p = oracle.risk(classes, row)
            np.testing.assert_allclose(risk[i], D_p, atol=4 * tol)
            assert D_p[best[i]] == pytest.approx(min(D_p), abs=8 * tol)
            for j, tau in enumerate(TAUS):
                node, p = oracle.answer(classes, row, tau)
                assert answers[j, i] == numbers[node]
                assert P[j, i] == pytest.approx(p, rel=4 * tol)
            for k, path in enumerate(classes):
                leaf = -oracle.conditional(classes, scores[i], path)
                assert conditional[i, k] == pytest.approx(leaf, rel=tol, abs=tol)
                leaf = -oracle.hrn(classes, scores[i], path)
                assert hrn[i, k] == pytest.approx(leaf, rel=tol, abs=tol)


def test_the_first_of_equals_and_what_cannot_be_known():
    z = np.zeros((2, 5), np.float32)
    z[1, 2] = np.nan
    with pytest.raises(ValueError, match="row 1 hold NaN"):
        decoding.answer(z, T, 0.5)
    run = jax.jit(lambda z: (*decoding.answer(z, T, 0.1), decoding.crm(z, Hierarchy.flat(5))))
    answers, P, best = run(z)
    assert answers.tolist() == [0, T.num_nodes - 1]
    np.testing.assert_allclose(P, [0.2, np.nan], rtol=1e-6)
    assert best[0] == 0


def test_excluded_classes():
    """A logit of −∞ is a class that cannot be; all below a node may be excluded."""
    z = np.array([[0.0, 0, 0, -np.inf, -np.inf]], np.float32)

    @jax.jit
    def run(z):
        def loss(z):
            return losses.hxe(z, np.array([2]), T, alpha=0.5)

        return decoding.log_probs(z, T), decoding.crm_risk(z, T), jax.grad(loss)(z)

    log_p, risk, slope = jax.device_get(run(z))
    np.testing.assert_allclose(np.exp(log_p[0, :5]), [1 / 3] * 3 + [0] * 2, rtol=1e-6)
    assert np.exp(log_p[0, T.node_id("1")]) == 0
    np.testing.assert_allclose(risk[0], [1, 1, 4 / 3, 3, 3], rtol=1e-6)
    assert np.isfinite(slope).all()
    assert not slope[0, 3:].any()


# Temperature.


def nll(z, y, t):
    return np.mean([oracle.log_sum(row / t) - row[k] / t for row, k in zip(z, y, strict=True)])


@pytest.mark.parametrize("scale", [0.3, 1, 25])
def test_temperature_has_the_least_loss(scale):
    rng = np.random.default_rng(4)
    z = rng.normal(size=(60, 5))
    y = np.array([rng.choice(5, p=np.exp(row - oracle.log_sum(row))) for row in z])
    z = (scale * z).astype(np.float32)
    t = float(decoding.temperature(z, y))
    losses = [nll(z.astype(float), y, t * f) for f in (0.99, 1, 1.01)]
    assert losses[1] == min(losses)
    masked = np.concatenate([z, np.full((3, 5), np.nan, np.float32)])
    where = np.arange(63) < 60
    assert decoding.temperature(masked, np.append(y, [-1] * 3), where=where) == pytest.approx(
        t, 1e-4
    )


def test_temperature_ends_where_nothing_bounds_it():
    z = np.eye(3, dtype=np.float32)
    assert decoding.temperature(z, np.arange(3)) == pytest.approx(0.01, rel=1e-5)
    assert decoding.temperature(1e4 * z, np.arange(3)) == pytest.approx(0.01, rel=1e-5)
    assert decoding.temperature(z, (np.arange(3) + 1) % 3) == pytest.approx(100, rel=1e-5)
    assert np.isnan(decoding.temperature(z, np.array([0, 1, 3])))
    assert np.isnan(decoding.temperature(np.nan * z, np.arange(3)))
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        decoding.temperature(z, np.arange(2))


# The guarantee.


def lower_bound(hits, n, delta):
    """Clopper and Pearson's, by bisection on sums of binomials."""
    low, high = 0.0, 1.0
    for _ in range(40):
        p = (low + high) / 2
        tail = math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits, n + 1))
        low, high = (p, high) if tail < delta else (low, p)
    return low


def expected_threshold(classes, z, y, accuracy, delta):
    found = math.inf
    for k in range(101):
        tau = (100 - k) / 100
        answers = [oracle.answer(classes, row, tau)[0] for row in z]
        hits = sum(
            classes[label][: len(node)] == node for node, label in zip(answers, y, strict=True)
        )
        if not hits or lower_bound(hits, len(y), delta) < accuracy - 1e-12:
            return found
        found = tau
    return found


def test_threshold_against_its_definition():
    classes, rng = TREES["uneven"], np.random.default_rng(1)
    tree = hierarchy(classes)
    for sharp in (1.0, 4.0):
        z = sharp * rng.normal(size=(80, len(classes)))
        y = np.array([rng.choice(len(classes), p=np.exp(r - oracle.log_sum(r))) for r in z])
        where = rng.random(80) < 0.8
        for accuracy, delta in ((0.6, 0.05), (0.8, 0.2)):
            expected = expected_threshold(classes, z[where], y[where], accuracy, delta)
            labels = np.where(where, y, -1)
            found = decoding.threshold_for(z, labels, tree, accuracy, delta, where=where)
            assert found == expected


@pytest.mark.parametrize(("accuracy", "needed"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_how_many_images_a_guarantee_needs(accuracy, needed):
    z = np.tile(np.array([[50.0, 0, 0, 0, 0]], np.float32), (needed, 1))
    y = np.zeros(needed, int)
    assert decoding.threshold_for(z, y, T, accuracy) == 0
    with pytest.warns(UserWarning, match=f"on these {needed - 1} images.* {needed} images are"):
        assert decoding.threshold_for(z[1:], y[1:], T, accuracy) == math.inf


@pytest.mark.parametrize("over_confident", [1.0, 3.0])
def test_the_guarantee_holds_over_draws_of_validation_images(over_confident):
    """Missed in at most δ of 1,000 draws, up to sampling; also where the model is too sure."""
    classes, rng = EVEN, np.random.default_rng(2)
    z = 2.5 * rng.normal(size=(400, 5)).astype(np.float32)  # the kinds of images there are
    p = np.exp(z - np.log(np.sum(np.exp(z), axis=1, keepdims=True)))
    y = np.array([rng.choice(5, p=row / row.sum(), size=1000) for row in p.astype(float)])
    delta, accuracy, n, draws = 0.1, 0.8, 120, 1000
    shown = over_confident * z
    right = {}
    for tau in [(100 - k) / 100 for k in range(101)]:
        answers = np.asarray(decoding.answer(shown, T, np.float32(tau))[0])
        under = np.array(
            [[k in oracle.below(classes, node) for k in range(5)] for node in nodes_of(answers)]
        )
        right[tau] = np.mean(np.sum(p * under, axis=1))
    right[math.inf] = 1.0
    missed, taus = 0, []
    for draw in range(draws):
        kinds = rng.integers(0, 400, n)
        tau = decoding.threshold_for(shown[kinds], y[kinds, draw], T, accuracy, delta)
        missed += right[tau] < accuracy
        taus.append(tau)
    assert missed <= delta * draws + 3 * math.sqrt(draws * delta * (1 - delta))
    assert missed > 0, "the bound would be too cautious to be seen"
    assert 0 < np.median(taus) < 1


def nodes_of(answers):
    paths = {number: node for node, number in ids(EVEN, T).items()}
    return [paths[int(number)] for number in answers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.0}, r"accuracy must be in \(0, 1\), found 1.0"),
        ({"delta": 0}, r"delta must be in \(0, 1\), found 0"),
        ({"labels": np.array([0, 5])}, r"label 5 at index 1 .* classes are 0\.\.4"),
        ({"labels": np.array([0])}, r"labels must have shape \(2,\)"),
        ({"logits": np.full((2, 5), np.nan)}, "row 0 hold NaN"),
        ({"logits": np.zeros((2, 4))}, r"expected logits \(b, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"logits": np.zeros((2, 5)), "labels": np.array([0, 1]), "accuracy": 0.5} | change
    with pytest.raises(ValueError, match=message):
        decoding.threshold_for(tree=T, **arguments)

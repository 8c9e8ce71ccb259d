"""Losses on trees: published values, every path and state in loops, limits, and hostile numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import learn as oracle
from support.trees import EVEN, TREES, hierarchy, ids, level_arrays

from dh2l_jax.hierarchy import Hierarchy, decoding, losses

# name → loss of (logits, node logits, labels, tree), and what loops make of it.
CASES = {
    "hxe": (
        lambda z, x, y, tree, **o: losses.hxe(z, y, tree, alpha=0.3, **o),
        lambda tree, row, scores, label: oracle.hxe(tree, row, label, 0.3),
    ),
    "hxe by height": (
        lambda z, x, y, tree, **o: losses.hxe(
            z, y, tree, alpha=0.3, by="height", normalise="tree", **o
        ),
        lambda tree, row, scores, label: oracle.hxe(tree, row, label, 0.3, "height", "tree"),
    ),
    "soft_labels": (
        lambda z, x, y, tree, **o: losses.soft_labels(z, y, tree, beta=2.5, **o),
        lambda tree, row, scores, label: oracle.soft_labels(tree, row, label, 2.5),
    ),
    "marginal": (
        lambda z, x, y, tree, **o: losses.marginal(z, y, tree, **o),
        lambda tree, row, scores, label: oracle.marginal(tree, row, label),
    ),
    "conditional": (
        lambda z, x, y, tree, **o: losses.conditional(x, y, tree, **o),
        lambda tree, row, scores, label: oracle.conditional(tree, scores, label),
    ),
    "hrn": (
        lambda z, x, y, tree, **o: losses.hrn(x, y, tree, **o),
        lambda tree, row, scores, label: oracle.hrn(tree, scores, label),
    ),
}
T = hierarchy(EVEN)
Z = np.array([[2.0, 1, 0, 0, -1], [0, 0, 1, 3, 1]])
X = [np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 2, 0], [0, 0, 1]]), Z]
Y = np.array([1, 2])
INNER = np.array([T.node_id("0"), T.node_id("01")])
# (loss, its published value on the tree T).
GOLDEN = [
    (lambda z, x: losses.hxe(z, Y, T, alpha=0), 1.9193667026),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.1), 1.6012113794),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.5), 0.8353429940),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.1, by="height"), 1.7182748925),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.5, by="height"), 1.1982245706),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0, normalise="tree"), 0.1744878821),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.1, normalise="tree"), 0.1785082320),
    (lambda z, x: losses.hxe(z, Y, T, alpha=0.5, normalise="tree"), 0.1884650153),
    (lambda z, x: losses.soft_labels(z, Y, T, beta=4), 1.9120901424),
    (lambda z, x: losses.conditional(x, Y, T), 2.4730969653),
    (lambda z, x: losses.hrn(x, Y, T), 3.0476042662),
    (lambda z, x: losses.hrn(x, INNER, T), 1.9769681818),
    (lambda z, x: losses.marginal(z, INNER, T), 1.2155637204),
    (
        lambda z, x: jnp.exp(decoding.conditional_log_probs(x, T))[0],
        [0.1437348405, 0.0528770928, 0.5344466454, 0.1966119332, 0.0723294881],
    ),
    (
        lambda z, x: decoding.crm_risk(z, T),
        [
            [0.7071556263, 1.0815598658, 1.9493298962, 2.7005455879, 2.7512156917],
            [2.7195605835, 2.7195605835, 2.6310294174, 0.6130755632, 1.2441049806],
        ],
    ),
]


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 1e-6)])
def test_published_values(dtype, rtol):
    with jax.enable_x64(dtype is np.float64):
        cast = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
        found = jax.jit(lambda z, x: [call(z, x) for call, _ in GOLDEN])(cast(Z), cast(X))
        for value, (_, expected) in zip(found, GOLDEN, strict=True):
            assert value.dtype == dtype
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=6e-11)


@functools.partial(jax.jit, static_argnames="tree")
def every_loss(z, x, y, tree):
    """Each loss of each image, and the gradients of their sum."""

    def run(name, z, x):
        values = CASES[name][0](z, x, y, tree, reduction="none")
        return jnp.sum(values), values

    return {name: jax.grad(run, (1, 2), has_aux=True)(name, z, x) for name in CASES}


def images(classes, scale, seed=3):
    """One with each node as its label: labels, rows of logits, dicts of scores."""
    rng = np.random.default_rng(seed)
    labels = [*oracle.nodes(classes), ()]
    rows = rng.normal(size=(len(labels), len(classes)))
    scores = rng.normal(size=(len(labels), len(labels) - 1))
    if scale > 1:
        rows, scores = (
            np.round(scale * rng.choice([-1, 0, 1], a.shape) + a) for a in (rows, scores)
        )
    return labels, rows, [dict(zip(labels, row, strict=False)) for row in scores]


@pytest.mark.parametrize(
    ("name", "dtype", "rtol"),
    [("uneven", np.float64, 1e-11), ("uneven", np.float32, 2e-6), ("random", np.float64, 1e-11)],
)
def test_every_node_as_a_label_against_loops(name, dtype, rtol):
    """Also with logits of ±10⁴, where every gradient stays finite."""
    classes = TREES[name]
    tree = hierarchy(classes)
    for scale in (1, 1e4):
        labels, rows, scores = images(classes, scale)
        y = np.array([ids(classes, tree)[label] for label in labels])
        with jax.enable_x64(dtype is np.float64):
            x = [jnp.asarray(a, dtype) for a in level_arrays(scores, classes, tree)]
            found = jax.device_get(every_loss(jnp.asarray(rows, dtype), x, y, tree))
        for case, ((dz, dx), values) in found.items():
            loss = functools.partial(CASES[case][1], classes)
            expected = list(map(loss, rows, scores, labels))
            np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol, err_msg=case)
            assert values.dtype == dtype
            assert values[-1] == 0, "the root says nothing"
            assert all(np.isfinite(g).all() for g in (dz, *dx))
            if (name, dtype, scale) == ("uneven", np.float64, 1):
                check_slopes(loss, (dz, dx), rows, scores, labels, classes, tree)


def check_slopes(loss, found, rows, scores, labels, classes, tree, step=1e-5):
    """Gradients against central differences of the loops."""
    by_row = np.zeros_like(rows)
    by_score = [dict.fromkeys(row, 0.0) for row in scores]
    for i, (row, score, label) in enumerate(zip(rows, scores, labels, strict=True)):
        for k in range(len(row)):
            ends = [loss(row + h * np.eye(len(row))[k], score, label) for h in (step, -step)]
            by_row[i, k] = (ends[0] - ends[1]) / (2 * step)
        for node in score:
            ends = [loss(row, {**score, node: score[node] + h}, label) for h in (step, -step)]
            by_score[i][node] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found[0], by_row, atol=1e-9)
    for dx, expected in zip(found[1], level_arrays(by_score, classes, tree), strict=True):
        np.testing.assert_allclose(dx, np.nan_to_num(expected), atol=1e-9)


def test_limits():
    """Cross-entropy is the loss of a flat tree, of α = 0 and of a large β."""
    flat = Hierarchy.flat(5)

    @jax.jit
    def run(z):
        log_p = jax.nn.log_softmax(z)
        extra = jax.nn.log_softmax(jnp.pad(z, ((0, 0), (0, 1))))  # HRN's empty state
        ce, with_empty = (-jnp.mean(p[jnp.arange(2), Y]) for p in (log_p, extra))
        return [
            (losses.hxe(z, Y, T, alpha=0), ce),
            (losses.hxe(z, Y, flat, alpha=1), ce / np.e),
            (losses.soft_labels(z, Y, T, beta=1e4), ce),
            (losses.soft_labels(z, Y, flat, beta=0), -jnp.mean(log_p)),
            (losses.marginal(z, Y, T), ce),
            (losses.conditional([z], Y, flat), ce),
            (losses.hrn([z], Y, flat), with_empty),
            (jax.nn.softmax(decoding.hrn_log_probs([z], flat)), jax.nn.softmax(z)),
        ]

    for found, expected in run(Z):
        np.testing.assert_allclose(found, expected, rtol=2e-6)


@jax.jit
def masked(z, x, y, where):
    """Means of all losses, losses of all images, and gradients of the sum of the means."""

    def run(z, x):
        each = [call(z, x, y, T, where=where, reduction="none") for call, _ in CASES.values()]
        means = [call(z, x, y, T, where=where) for call, _ in CASES.values()]
        return sum(means), (means, each)

    slopes, (means, each) = jax.grad(run, (0, 1), has_aux=True)(z, x)
    return jnp.stack(means), jnp.stack(each), slopes


def test_masked_images_leave_no_trace():
    z, x, y = np.tile(Z, (2, 1)), [np.tile(a, (2, 1)) for a in X], np.tile(Y, 2)
    clean, where = masked(z, x, y, np.ones(4, bool)), np.array([True, True, False, False])
    for a in (z, *x):
        a[2:] = np.nan
    y[2:] = [-1, 99]
    means, each, slopes = masked(z, x, y, where)
    np.testing.assert_allclose(means, clean[0], rtol=1e-6)
    np.testing.assert_allclose(each[:, :2], clean[1][:, :2], rtol=1e-6)
    np.testing.assert_array_equal(each[:, 2:], 0)
    for found, of_both in zip(*map(jax.tree.leaves, (slopes, clean[2])), strict=True):
        np.testing.assert_allclose(found[:2], 2 * of_both[:2], rtol=1e-5, atol=1e-7)
        assert not found[2:].any()
    np.testing.assert_array_equal(masked(z, x, y, np.zeros(4, bool))[0], 0)
    y[0] = T.num_nodes
    assert np.isnan(masked(z, x, y, where)[0]).all()
    with pytest.raises(ValueError, match=r"label -1 at index 1 .* nodes are 0\.\.10"):
        losses.marginal(Z, np.array([1, -1]), T)


def test_one_image_at_a_time_under_vmap():
    def single(z, x, y):
        z, x, y = jax.tree.map(lambda a: a[None], (z, x, y))
        return jnp.stack([call(z, x, y, T) for call, _ in CASES.values()])

    z, x, y = np.tile(Z, (2, 1)), [np.tile(a, (2, 1)) for a in X], np.tile(Y, 2)
    found = jax.jit(jax.vmap(single, out_axes=1))(z, x, y)
    np.testing.assert_allclose(found, masked(z, x, y, np.ones(4, bool))[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.marginal(Z[:, :4], Y, T), ValueError, r"logits \(b, 5\), found .*\(2, 4\)"),
        (lambda: losses.marginal(Z, Y[:1], T), ValueError, r"labels must have shape \(2,\)"),
        (lambda: losses.marginal(Z, Z[:, 0], T), TypeError, "labels must be integers"),
        (lambda: losses.marginal(Z, Y, T, where=Y), TypeError, "where must be boolean"),
        (lambda: losses.marginal(Z, Y, T, reduction="sum"), ValueError, "reduction 'sum'"),
        (lambda: losses.hxe(Z, Y, T, alpha=0, by="dept"), ValueError, "did you mean 'depth'"),
        (lambda: losses.hxe(Z, Y, T, alpha=0, normalise="t"), ValueError, "mean 'tree'"),
        (lambda: losses.hrn(X[1:], Y, T), ValueError, r"\[\(2, 2\), \(2, 3\), \(2, 5\)\]"),
        (lambda: losses.conditional([], Y, T), ValueError, r"one a level, found \[\]"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(call)


def test_dtypes():
    cast = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.bfloat16))
    *values, slopes = jax.eval_shape(masked, cast(Z), cast(X), Y, np.ones(2, bool))
    assert {v.dtype for v in values} == {jnp.dtype("float32")}
    assert {g.dtype for g in jax.tree.leaves(slopes)} == {jnp.dtype("bfloat16")}


def test_memory_grows_with_the_nodes():
    """Values, gradients and risks of 10,000 classes: nothing of (C, C), which were 400 MB."""
    b, classes = 4, 10_000
    tree = Hierarchy.from_parents(
        ([i % 40 for i in range(1000)], [i % 1000 for i in range(classes)])
    )
    z, x = jnp.zeros((b, classes)), [jnp.zeros((b, tree.size(level))) for level in (1, 2, 3)]

    @jax.jit
    def run(z, x):
        def total(z, x):
            return sum(call(z, x, jnp.arange(b), tree) for call, _ in CASES.values())

        slopes = jax.value_and_grad(total, (0, 1))(z, x)
        return slopes, decoding.crm_risk(z, tree), decoding.answer(z, tree, 0.5)

    memory = run.lower(z, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 100 * z.nbytes

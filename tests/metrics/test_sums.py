"""Sums over pairs: what a profile is split into, fast angles, W ∪ −W, tiles, half precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from oracle import metrics as oracle
from support.helpers import assert_close, every_metric, everyone, rows

import dh2l_jax as dh2l
from dh2l_jax.metrics.sums import groups as groups_module
from dh2l_jax.metrics.sums import plan
from dh2l_jax.metrics.sums.dense import Dense


@pytest.fixture
def small_parts(monkeypatch):
    """Few rows are summed as many are: in several panels, affine parts in closed form."""
    monkeypatch.setattr(plan, "SPLIT_FROM", 0)
    monkeypatch.setattr(Dense.__init__, "__defaults__", (4,))


# --- every metric by every method: W, and W ∪ −W by brute force ---------------------------------

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
WHERE = np.array([True, False, True, True, True, True, False])
DEAD_ZONE = {"kind": "ternary", "threshold": 0.7}


@functools.cache
def energy_of(name, half_space, method, code=None, threshold=None):
    """Jitted (W, where) → mean energy and gradient; "ring" is over the two devices."""
    metric = dh2l.get_metric(name, code=code, threshold=threshold)
    options = {"mesh": MESH} if method == "ring" else {"method": method}

    def fn(W, where):
        return dh2l.mean_energy(W, metric, where=where, half_space=half_space, block=3, **options)

    return jax.jit(jax.value_and_grad(fn))


def with_opposites(W, pairs, name, **options):
    """Mean energy over the pairs of W ∪ −W that make the pairs of W, and those of w with −w.

    Its gradient is that of all but the latter, whose similarities are −1 wherever w goes.
    """
    n, both = len(W), np.concatenate([W, -W]).astype(float)
    keep = sorted({i for pair in pairs for i in pair})
    across = [(p, q) for i, j in pairs for p in (i, i + n) for q in (j, j + n)]
    opposite = [(i, i + n) for i in keep]
    weight = 1 / max(len(across) + len(opposite), 1)
    value, slope = oracle.pair_sum(both, dict.fromkeys(across, weight), name, **options)
    constant, _ = oracle.pair_sum(both, dict.fromkeys(opposite, weight), name, **options)
    return value + constant, slope[:n] - slope[n:]


def test_the_brute_force_knows_all_pairs():
    W = rows(3, n=7, d=6)
    value, _ = with_opposites(W, oracle.unordered_pairs(7), "d_gm")
    expected, _ = oracle.mean_energy(np.concatenate([W, -W]).astype(float), "d_gm")
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def check(found, expected, rtol=2e-5):
    np.testing.assert_allclose(found[0], expected[0], rtol=3e-6, atol=1e-6)
    assert_close(found[1], expected[1], rtol=rtol, atol=3e-7)


@pytest.mark.parametrize("name", ["cosine", "d_h_ter", "angular2", "d_am", "d_cos_hm", "d_gm_cos"])
def test_half_space_is_the_mean_over_w_and_minus_w(name):
    W = rows(3, n=7, d=6)
    expected = with_opposites(W, oracle.unordered_pairs(7, WHERE), name)
    for method in ["dense"] + ["closed"] * (dh2l.METRICS[name].affine is not None):
        found = energy_of(name, True, method)(W, WHERE)
        check(found, expected)
        assert not found[1][~WHERE].any()


@pytest.mark.parametrize("name", ["d_am", "d_hm_cos_prime"])
@pytest.mark.parametrize("half_space", [False, True])
def test_panels_tiles_and_ring(name, half_space, small_parts):
    W = rows(4, n=7, d=6)
    for where in (WHERE, everyone(W)):
        pairs = oracle.unordered_pairs(7, where)
        expected = (
            with_opposites(W, pairs, name)
            if half_space
            else oracle.mean_energy(W.astype(float), name, where)
        )
        for method in ("dense", "tiled", "ring"):
            check(energy_of(name, half_space, method)(W, where), expected)


@pytest.mark.parametrize(
    ("name", "half_space"),
    [("d_h_ter", False), ("d_am_cos_prime", False), ("d_am", True), ("d_gm_cos", False)],
)
def test_a_dead_zone_in_every_method(name, half_space, small_parts):
    W, affine = rows(5, n=7, d=6), dh2l.METRICS[name].affine
    pairs = oracle.unordered_pairs(7, WHERE)
    expected = (
        with_opposites(W, pairs, name, **DEAD_ZONE)
        if half_space
        else oracle.mean_energy(W.astype(float), name, WHERE, **DEAD_ZONE)
    )
    for method in ["dense", "tiled"] + ["closed"] * (affine is not None):
        check(energy_of(name, half_space, method, "ternary", 0.7)(W, WHERE), expected)


@pytest.mark.parametrize("name", ["cosine", "d_am", "d_gm_cos"])
@pytest.mark.parametrize("traced", [False, True], ids=["concrete", "traced"])
def test_groups_of_half_spaces(name, traced):
    W, groups = rows(6, n=7, d=6), np.array([0, 1, 0, 1, 2, 0, 1])

    def fn(W, groups, where):
        return dh2l.group_energy(W, groups, name, where=where, half_space=True)

    both = jax.value_and_grad(fn)
    jitted = jax.jit(both) if traced else jax.jit(lambda W, g, where: both(W, groups, where))
    for where in (everyone(W), WHERE, np.arange(7) == 1):
        value, gradient = jitted(W, groups, where)
        each = []
        for group in range(3):
            inside = np.flatnonzero(where & (groups == group)).tolist()
            if len(inside) > 1:
                pairs = [(i, j) for i in inside for j in inside if i < j]
                each.append(with_opposites(W, pairs, name))
        expected = [sum(part) / max(len(each), 1) for part in zip(*each, strict=True)]
        check((value, gradient), expected or (0.0, np.zeros(W.shape)))


@pytest.fixture
def small_windows(monkeypatch):
    """Few groups are summed as many are: in windows of three widths, and in several chunks."""
    for name, rows_of in {"WINDOW": 4, "CHUNK": 8, "CHEAP_PAIRS": 0}.items():
        monkeypatch.setattr(groups_module, name, rows_of)


# Shared windows and a lone one; windows of one group each, at one width and in one chunk.
SIZES = {
    "mixed": (3, 1, 2, 5, 2, 4, 2, 1, 3, 9, 8),
    "equal": (3,) * 7,
    "pairs in one chunk": (2, 1, 2, 2, 1),
    "one": (13,),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    ("name", "half_space"),
    [("cosine", False), ("d_am", False), ("d_cos_hm", False), ("d_gm_cos", True)],
)
def test_windows_of_groups_equal_masks(name, half_space, sizes, small_windows):
    """Concrete groups in windows against traced ones in a masked n×n; a batch of heads, too."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.random.default_rng(0).permutation(labels).astype(np.int32)
    heads = np.stack([spread(len(groups), 6, seed) for seed in (10, 11)])
    masks = np.stack([everyone(groups), np.random.default_rng(1).random(len(groups)) < 0.7])

    def energy(W, groups, where):
        return dh2l.group_energy(W, groups, name, where=where, half_space=half_space)

    both = jax.value_and_grad(lambda W, groups, where: jnp.sin(3 * energy(W, groups, where)))
    masked = jax.jit(jax.vmap(both, in_axes=(0, None, 0)))(heads, groups, masks)
    windows = jax.jit(jax.vmap(lambda W, where: both(W, groups, where)))(heads, masks)
    check(windows, masked)
    assert np.abs(masked[1]).max() > 0
    assert not windows[1][~masks].any()


def test_half_spaces_of_layers_and_of_levels():
    W, V, name = rows(7, n=7, d=6), rows(8, n=7, d=6), "d_cos_gm"
    params = {"a": {"kernel": W.T}, "b": {"kernel": V.T}, "c": {"kernel": rows(9)}}
    value = jax.jit(lambda p: dh2l.weight_energy(p, name, half_space=True))(params)
    layers = (W, V, rows(9).T)
    expected = [with_opposites(X, oracle.unordered_pairs(len(X)), name)[0] for X in layers]
    np.testing.assert_allclose(value, sum(expected), rtol=3e-6)
    tree = dh2l.Hierarchy.two_level([0, 1, 0, 1, 1, 0, 0])
    levels = (dh2l.Level(jnp.asarray(V[:2])), dh2l.Level(jnp.asarray(W), jnp.asarray(V[2:4])))
    options = {"half_space": True, "weight": {1: 2.0, 2: 3.0}}
    total, terms = jax.jit(lambda x: dh2l.hierarchical(x, tree, name, **options))(levels)
    center, _ = oracle.mean_energy(V[2:4].astype(float), name)
    groups = [(0, 2, 5, 6), (1, 3, 4)]
    leaves = [with_opposites(W, [(i, j) for i in g for j in g if i < j], name)[0] for g in groups]
    np.testing.assert_allclose(terms["R_p/1"], with_opposites(V[:2], [(0, 1)], name)[0], rtol=3e-6)
    np.testing.assert_allclose(terms["R_p/2"], np.mean(leaves), rtol=3e-6)
    np.testing.assert_allclose(terms["R_c/2"], center, rtol=3e-6)
    summed = 2 * terms["R_p/1"] + 3 * (terms["R_p/2"] + terms["R_c/2"])
    np.testing.assert_allclose(total, summed, rtol=1e-6)


# --- tiles and panels are exact -----------------------------------------------------------------


@functools.cache
def by_method(metric, method, block=256):
    fn = functools.partial(dh2l.mean_energy, metric=metric, method=method, block=block)
    return jax.jit(jax.value_and_grad(lambda W, where: fn(W, where=where)))


def spread(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("name", ["angular2", "d_am", "d_cos_hm"])
def test_panels_equal_tiles(name):
    """1,030 rows are three panels and, the last one ragged, five tiles a side."""
    W = spread(1030, 24)
    where = np.random.default_rng(1).random(1030) < 0.8
    dense, tiled = (by_method(name, m)(W, where) for m in ("dense", "tiled"))
    np.testing.assert_allclose(tiled[0], dense[0], rtol=3e-6)
    assert_close(tiled[1], dense[1], rtol=1e-5, atol=0)
    assert np.abs(dense[1]).max() > 0
    assert not tiled[1][~where].any()


@pytest.mark.parametrize(
    ("name", "block"),
    [("d_cos_hm", 1), ("angular2", 5), ("d_gm_cos", 7), ("d_cos_hm", 13), ("d_am", 5)],
)
def test_blocks_of_any_size(name, block):
    W, where = spread(13, 9, seed=2), np.arange(13) % 4 != 1
    for keep in (everyone(W), where):
        check(by_method(name, "tiled", block)(W, keep), by_method(name, "dense")(W, keep))


@pytest.mark.parametrize(
    ("name", "method"),
    [("d_am_cos_prime", "closed"), ("d_am", "dense"), ("d_hm_cos", "tiled")],
)
def test_half_precision_is_summed_in_float32(name, method):
    """Not a bit is lost beyond the rounding of the rows and of the gradient."""
    W = jnp.asarray(spread(300, 17, seed=3), jnp.bfloat16)
    value, gradient = by_method(name, method, 64)(W, everyone(W))
    exact, slope = by_method(name, method, 64)(W.astype(jnp.float32), everyone(W))
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(value, exact)
    np.testing.assert_array_equal(gradient, slope.astype(jnp.bfloat16))


# --- explain ------------------------------------------------------------------------------------


def explained(metric, n, **options):
    """The text, formed while jit traces, and the value's type."""
    texts = []

    def fn(W):
        value, text = dh2l.mean_energy(W, metric, explain=True, **options)
        texts.append(text)
        return value

    assert jax.eval_shape(jax.jit(fn), jax.ShapeDtypeStruct((n, 4), jnp.float32)).shape == ()
    (text,) = texts
    assert type(text) is str
    return text


@every_metric
@pytest.mark.parametrize("n", [0, 1, 2, 1024, 1025, 100_000])
def test_explain_names_the_method(name, n):
    text = explained(name, n)
    method, _, why = text.partition(": ")
    if dh2l.METRICS[name].affine:
        assert method == "closed"
        assert name in why
    else:
        assert method == ("dense" if n <= 1024 else "tiled")
        assert f"{n:,} rows" in why
    linear = {"d_am": "affine in h", "d_am_cos": "affine in c"}.get(name)
    assert why.endswith(linear) if linear and n >= 1024 else "in closed form" not in why
    assert "\n" not in text


def test_explain_names_what_was_asked_for():
    assert explained("d_am", 8, method="tiled").startswith("tiled: as asked for")
    assert explained("cosine", 8, method="dense").startswith("dense: as asked for")
    ring = explained("d_gm", 8, mesh=MESH)
    assert ring.startswith("ring")
    assert "2 devices" in ring
    value, _ = dh2l.mean_energy(rows(1), "d_am", explain=True)
    np.testing.assert_array_equal(value, dh2l.mean_energy(rows(1), "d_am"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "Tiles"}, "Tiles.*'tiled'"),
        ({"method": "ring"}, "ring"),
        ({"mesh": MESH, "axis": "dat"}, "axis 'dat'.*'data'"),
        ({"mesh": MESH, "axis": "x", "metric": "cosine"}, "axis 'x'.*'data'"),
        ({"block": 0}, "block.*0"),
        ({"method": "closed"}, "closed form.*cosine"),
    ],
)
def test_a_wrong_option_names_the_nearest(options, words):
    with pytest.raises(ValueError, match=words) as error:
        dh2l.mean_energy(jnp.ones((4, 3)), **({"metric": "d_gm"} | options))
    assert "\n" not in str(error.value)

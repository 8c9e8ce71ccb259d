"""Every metric, value and gradient, against the loops of `oracle`; codes, options and errors."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import metrics as oracle
from support.helpers import (
    NAMES,
    ROOTS,
    assert_close,
    clipped_rows,
    distances,
    energy_and_gradient,
    every_metric,
    everyone,
    rows,
)

import dh2l_jax as dh2l
from dh2l_jax.numerics import binary_sign, clipped_arccos, ternary_sign

SPREAD = np.array([-1.0, -0.995, -0.8, -0.3, 0.0, 0.2, 0.6, 0.95, 0.995, 1.0])
PAIR_METRICS = ("d_h_ter", "d_am", "d_am_cos", "d_hm_cos_prime", "d_cos_hm", "d_gm_std")


def test_every_metric_has_an_oracle():
    assert set(dh2l.METRICS) == set(oracle.PROFILES)
    assert len(dh2l.METRICS) == 31
    assert all(name == metric.name for name, metric in dh2l.METRICS.items())


def test_the_oracle_differentiates_the_oracle():
    """Cosine has no codes and no clip, so plain differences of the oracle are its gradient."""
    W, step = rows(3, n=4).astype(np.float64), 1e-6
    _, gradient = oracle.mean_energy(W, "n_euclidean2")
    numeric = np.zeros_like(W)
    for i, k in np.ndindex(*W.shape):
        shift = np.zeros_like(W)
        shift[i, k] = step
        up, _ = oracle.mean_energy(W + shift, "n_euclidean2")
        down, _ = oracle.mean_energy(W - shift, "n_euclidean2")
        numeric[i, k] = (up - down) / (2 * step)
    assert_close(gradient, numeric, rtol=1e-7)


@every_metric
@pytest.mark.parametrize("which", ["distance", "energy"])
def test_profile_on_a_grid(name, which):
    """Elementwise on arrays of any shape, ends of both ranges and the 0/0 corners included."""
    c, h = np.meshgrid(SPREAD, SPREAD)
    profile = getattr(dh2l.METRICS[name], which)
    actual = jnp.broadcast_to(profile(jnp.float32(c), jnp.float32(h)), c.shape)
    expected = np.empty_like(c)
    for index in np.ndindex(*c.shape):
        clips = oracle.clip_from(c[index]), oracle.clip_from(h[index])
        expected[index] = oracle.PROFILES[name][which == "energy"](c[index], h[index], *clips)
    np.testing.assert_allclose(actual, expected, rtol=3e-6, atol=1e-6)


@every_metric
def test_mean_energy_and_its_gradient(name):
    for seed in (0, 1):
        W = rows(seed)
        value, gradient = energy_and_gradient(name)(W, everyone(W))
        expected, expected_gradient = oracle.mean_energy(W.astype(np.float64), name)
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
        assert np.abs(expected_gradient).max() > 1e-4
        assert_close(gradient, expected_gradient)


def check_inside_the_clip(name, clamp):
    W = clipped_rows()
    value, gradient = energy_and_gradient(name, clamp)(W, everyone(W))
    expected, expected_gradient = oracle.mean_energy(W.astype(np.float64), name, clamp=clamp)
    np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6)
    assert_close(gradient, expected_gradient, rtol=2e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ROOTS])
def test_mean_energy_inside_the_clip(name):
    check_inside_the_clip(name, "hard")


@pytest.mark.parametrize("name", ROOTS)
def test_roots_have_the_value_and_a_finite_gradient_where_codes_agree(name):
    W = clipped_rows()
    value, gradient = energy_and_gradient(name)(W, everyone(W))
    profile, units = oracle.PROFILES[name][1], [oracle.unit(w) for w in W.astype(np.float64)]
    energies = []
    for i, j in oracle.unordered_pairs(len(W)):
        c, h = units[i] @ units[j], oracle.eq7_code_similarity(units[i], units[j])
        energies.append(profile(c, h, oracle.clip_from(c), oracle.clip_from(h)))
    np.testing.assert_allclose(value, np.mean(energies), rtol=3e-6)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize(
    "name", ["angular2", "n_euclidean2", "d_am", "d_cos_am_prime", "d_gm_prime"]
)
def test_mean_energy_straight_through_the_clip(name):
    check_inside_the_clip(name, "straight_through")


@every_metric
@pytest.mark.parametrize("clamp", ["hard", "straight_through"])
def test_slopes_of_the_profile(name, clamp):
    """∂e/∂c and ∂e/∂h between and beyond the clips."""
    c, h = (x.ravel() for x in np.meshgrid([-0.995, -0.5, 0.4, 0.995], [-0.992, 0.1, 0.992]))
    profile = dh2l.get_metric(name, clamp=clamp).energy
    total = lambda x, y: jnp.sum(jnp.asarray(profile(x, y)))  # noqa: E731
    grad = jax.jit(jax.grad(total, argnums=(0, 1)))
    slopes = grad(jnp.float32(c), jnp.float32(h))
    exact, step = oracle.PROFILES[name][1], oracle.STEP
    for i in range(len(c)):
        clips = oracle.clip_from(c[i], clamp), oracle.clip_from(h[i], clamp)
        by_c = (exact(c[i] + step, h[i], *clips) - exact(c[i] - step, h[i], *clips)) / (2 * step)
        by_h = (exact(c[i], h[i] + step, *clips) - exact(c[i], h[i] - step, *clips)) / (2 * step)
        np.testing.assert_allclose([slopes[0][i], slopes[1][i]], [by_c, by_h], rtol=2e-4, atol=2e-6)


def test_the_clipped_rows_lie_inside_the_clip():
    u = np.array([oracle.unit(w) for w in clipped_rows()])
    c = (u @ u.T)[np.triu_indices(6, 1)]
    assert (c > oracle.LIMIT + 1e-3).sum() >= 3
    assert (c < -oracle.LIMIT - 1e-3).sum() >= 3


@every_metric
def test_distance_of_all_pairs_and_its_gradient(name):
    """dh2l.pairwise of dh2l.distance; the weights pick one pair after the other."""
    W = rows(5)
    for i, j in ((0, 1), (4, 2)):
        weights = np.zeros((6, 6), np.float32)
        weights[i, j] = 1
        gradient, D = distances(name)(W, weights)
        expected, *both = oracle.pair(*W[[i, j]].astype(float), name, "distance")
        np.testing.assert_allclose(D[i, j], expected, rtol=2e-6, atol=1e-6)
        expected_gradient = np.zeros(W.shape)
        expected_gradient[[i, j]] = both
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", PAIR_METRICS)
def test_distance_and_energy_of_two_vectors(name):
    u, v = rows(6, n=2)
    for fn in (dh2l.distance, dh2l.energy):
        expected, *_ = oracle.pair(u.astype(float), v.astype(float), name, fn.__name__)
        np.testing.assert_allclose(fn(u, v, name), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize("name", PAIR_METRICS)
def test_ternary_codes(name, threshold):
    W = rows(7)
    W[0, 1] = W[2, 3] = 0.0
    value, gradient = energy_and_gradient(name, "hard", "ternary", threshold)(W, everyone(W))
    options = {"kind": "ternary", "threshold": threshold}
    expected, expected_gradient = oracle.mean_energy(W.astype(np.float64), name, **options)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
    assert_close(gradient, expected_gradient)
    binary, _ = oracle.mean_energy(W.astype(np.float64), name, kind="binary")
    assert abs(binary - expected) > 1e-4


def test_ternary_equals_binary_unless_a_weight_is_zero():
    W = rows(2)
    binary, ternary = (energy_and_gradient(n)(W, everyone(W)) for n in ("d_h_bin", "d_h_ter"))
    assert_close(ternary[0], binary[0], rtol=0, atol=0)
    assert_close(ternary[1], binary[1], rtol=1e-6)
    W[1, 2] = 0.0
    binary, ternary = (energy_and_gradient(n)(W, everyone(W)) for n in ("d_h_bin", "d_h_ter"))
    assert abs(binary[0] - ternary[0]) > 1e-3


@pytest.mark.parametrize(
    ("code", "threshold"), [("binary", 0.0), ("ternary", 0.0), ("ternary", 0.7)]
)
def test_code_similarity_acts_on_what_it_is_given(code, threshold):
    """Raw vectors, so entries beyond 1 get no gradient."""
    u = np.float32([0.5, -1.0, 1.5, 0.0, -2.0, 0.9])
    v = np.float32([-0.5, -1.1, 0.3, 0.7, 0.2, 1.0])
    fn = jax.value_and_grad(
        lambda a, b: dh2l.code_similarity(a, b, code=code, threshold=threshold), argnums=(0, 1)
    )
    value, (at_u, at_v) = fn(u, v)
    np.testing.assert_allclose(value, oracle.eq7_code_similarity(u, v, code, threshold), rtol=1e-6)
    assert_close(at_u, oracle.code_similarity_gradient(u, v, code, threshold), rtol=1e-6)
    assert_close(at_v, oracle.code_similarity_gradient(v, u, code, threshold), rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_similarities_and_angles(seed):
    u, v = rows(seed, n=2) * np.float32(0.3)
    c, h = oracle.unit(u) @ oracle.unit(v), oracle.eq7_code_similarity(u, v)
    np.testing.assert_allclose(dh2l.cosine_similarity(u, v), c, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dh2l.code_similarity(u, v), h, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dh2l.angle(u, v), np.arccos(c) / np.pi, rtol=1e-6)
    np.testing.assert_allclose(dh2l.code_angle(u, v), (1 - h) / 2, rtol=1e-6)
    np.testing.assert_allclose(dh2l.code_angle(u, v, prime=True), np.arccos(h) / np.pi, rtol=1e-6)


def test_sign_and_its_straight_through_gradient():
    x = jnp.float32([-2, -1.0001, -1, -0.3, -0.0, 0.0, 1e-30, 1, 1.0001, 5])
    codes = [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]
    passes = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(binary_sign(x), codes)
    np.testing.assert_array_equal(jax.grad(lambda y: binary_sign(y).sum())(x), passes)
    np.testing.assert_array_equal(ternary_sign(x), [-1, -1, -1, -1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(jax.grad(lambda y: ternary_sign(y).sum())(x), passes)


def test_ternary_dead_zone_is_closed_and_relative_to_the_mean_of_each_row():
    x = jnp.float32([[1, 2, -3, 2], [10, 20, -30, 20]])  # means 2 and 20
    np.testing.assert_array_equal(ternary_sign(x, 0.5), [[0, 1, -1, 1]] * 2)
    np.testing.assert_array_equal(ternary_sign(x, 1.0), [[0, 0, -1, 0]] * 2)


def test_nan_stays_visible():
    assert np.isnan(binary_sign(jnp.float32([jnp.nan]))).all()
    assert np.isnan(ternary_sign(jnp.float32([jnp.nan, 1.0]))[0])


@pytest.mark.parametrize("clamp", ["hard", "straight_through"])
def test_clipped_arccos(clamp):
    slope = jax.vmap(jax.value_and_grad(lambda x: clipped_arccos(x, clamp=clamp)))
    x = jnp.float32([-1, -0.995, -0.9, 0, 0.9, 0.995, 1, 1.5])
    value, gradient = slope(x)
    inside = np.clip(np.asarray(x, np.float64), -0.99, 0.99)
    expected = -1 / np.sqrt(1 - inside**2)
    np.testing.assert_allclose(value, np.arccos(inside), rtol=1e-6)
    if clamp == "hard":
        expected[np.abs(x) > 0.99] = 0
    np.testing.assert_allclose(gradient, expected, rtol=3e-6)


@every_metric
def test_affine_coefficients_are_those_of_the_energy(name):
    metric = dh2l.METRICS[name]
    closed = ("cosine", "d_h_bin", "d_h_ter", "d_am_cos_prime")
    assert (metric.affine is not None) == (name in closed)
    if metric.affine:
        c, h = jnp.float32([0.3, -0.7, 0.9]), jnp.float32([0.2, 0.4, -1.0])
        a, b, k = metric.affine
        np.testing.assert_allclose(metric.energy(c, h), a * c + b * h + k, rtol=1e-6)


def test_any_profile_serves_as_a_metric():
    W = rows(1)
    profile = lambda c, h: c * c + 0.5 * h  # noqa: E731
    value, _ = energy_and_gradient(profile)(W, everyone(W))
    u = [oracle.unit(w) for w in W]
    pairs = oracle.unordered_pairs(6)
    expected = sum(
        (u[i] @ u[j]) ** 2 + 0.5 * oracle.eq7_code_similarity(u[i], u[j]) for i, j in pairs
    ) / len(pairs)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    metric = dh2l.get_metric(profile)
    assert metric.distance is metric.energy is profile


def test_metrics_are_immutable_values():
    metric = dh2l.get_metric("d_am_cos")
    assert metric is dh2l.get_metric(metric)
    assert metric == dh2l.METRICS["d_am_cos"]
    assert len({hash(m) for m in dh2l.METRICS.values()}) > 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.name = "other"
    with pytest.raises(TypeError):
        dh2l.METRICS["mine"] = metric


@pytest.mark.parametrize(
    ("found", "nearest"), [("d_am_coss", "d_am_cos"), ("cosin", "cosine"), ("D_HM", "d_hm")]
)
def test_an_unknown_metric_names_the_nearest(found, nearest):
    with pytest.raises(ValueError, match=f"{found!r}.*{nearest!r}"):
        dh2l.get_metric(found)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dh2l.get_metric(3), TypeError, "3|int"),
        (lambda: dh2l.get_metric("d_am", clamp="harsh"), ValueError, "harsh.*hard"),
        (lambda: dh2l.get_metric("d_am", code="tenary"), ValueError, "tenary.*ternary"),
        (lambda: dh2l.get_metric("d_am", code="ternary", threshold=-1.0), ValueError, "-1"),
        (lambda: dh2l.get_metric("d_am", code="binary", threshold=0.7), ValueError, "0.7"),
        (lambda: dh2l.energy(jnp.ones(3), jnp.ones(4), "d_am"), ValueError, "3.*4"),
        (lambda: dh2l.cosine_similarity(jnp.ones((2, 3)), jnp.ones(3)), ValueError, "2, 3"),
        (lambda: dh2l.code_similarity(jnp.ones(2), jnp.ones(2), code="x"), ValueError, "x"),
        (lambda: ternary_sign(jnp.ones(2), -0.5), ValueError, "-0.5"),
    ],
)
def test_bad_input_names_what_was_found(call, error, words):
    with pytest.raises(error, match=words):
        call()

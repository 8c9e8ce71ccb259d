"""What a profile depends on, what is affine in it, and the angles that profiles are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import metrics as oracle
from support.helpers import NAMES, every_metric, rows

import dh2l_jax as dh2l
from dh2l_jax.metrics.profile import similarities_used, split_affine
from dh2l_jax.metrics.similarity import ratio
from dh2l_jax.metrics.sums import plan
from dh2l_jax.metrics.sums.dense import Dense
from dh2l_jax.numerics import clip, cos_pi, safe_arccos, sin_pi


@pytest.fixture
def small_parts(monkeypatch):
    """Few rows are summed as many are: in several panels, affine parts in closed form."""
    monkeypatch.setattr(plan, "SPLIT_FROM", 0)
    monkeypatch.setattr(Dense.__init__, "__defaults__", (4,))


# --- what a profile depends on, and which part of it is affine ----------------------------------

ONLY_C = ("cosine", "n_euclidean2", "angular2")
ONLY_H = ("d_h_bin", "d_h_ter")
AFFINE = {
    "cosine": (1, 0, 0),
    "d_h_bin": (0, 0.5, 0.5),
    "d_h_ter": (0, 0.5, 0.5),
    "d_am_cos_prime": (0.25, 0.25, 0.5),
    "d_am": (0, 0.25, 0),
    "d_am_cos": (0.25, 0, 0),
}
GRID = np.float32(
    [[c, h] for c in np.linspace(-0.97, 0.97, 9) for h in np.linspace(-0.95, 0.95, 8)]
).T


def value_and_slopes(*profiles):
    """Elementwise on the grid, (3, size) a profile: f, ∂f/∂c and ∂f/∂h."""

    def each(profile, c, h):
        value, slopes = jax.value_and_grad(lambda *x: jnp.float32(profile(*x)), (0, 1))(c, h)
        return jnp.stack([value, *slopes])

    fn = jax.jit(jax.vmap(lambda c, h: [each(profile, c, h) for profile in profiles]))
    return fn(*GRID)


def together(metric):
    (a, b, k), rest = split_affine(metric)
    return lambda c, h: a * c + b * h + k + (0 if rest is None else rest.energy(c, h))


@every_metric
def test_similarities_used(name):
    assert similarities_used(dh2l.METRICS[name].energy) == (
        name not in ONLY_H,
        name not in ONLY_C,
    )


@every_metric
def test_affine_part_and_rest_are_the_energy(name):
    metric = dh2l.METRICS[name]
    for source in {metric, dataclasses.replace(metric, affine=None)}:
        affine, rest = split_affine(source)
        np.testing.assert_allclose(affine, AFFINE.get(name, (0, 0, 0)), atol=1e-6)
        assert (rest is None) == (metric.affine is not None)
        if rest is not None:
            used = similarities_used(rest.energy)
            assert used == (affine[0] == 0 and name not in ONLY_H, not affine[1] and used.h)
            assert used.h == (name not in (*ONLY_C, "d_am"))
        expected, actual = value_and_slopes(metric.energy, together(source))
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


THREE = jnp.float32(3)
USER = {
    "linear": (lambda c, h: 2 * c - THREE * h + 1, (2, -3, 1), True),
    "constant": (lambda c, h: 0.7, (0, 0, 0.7), True),
    "linear in h": (lambda c, h: c**2 + 0.5 * h, (0, 0.5, 0), False),
    "linear in both": (lambda c, h: 2 * c + h, (2, 1, 0), True),
    "linear in both, jitted": (jax.jit(lambda c, h: 2 * c + h), (0, 0, 0), False),
    "pieces": (lambda c, h: jnp.where(c > 0, 2 * c, c) + 0.5 * h, (0, 0.5, 0), False),
    "pieces that meet": (lambda c, h: jnp.maximum(c, 0.2) - h, (0, -1, 0), False),
    "singular at zero": (lambda c, h: c + 1 / jnp.where(h == 0, jnp.nan, h), (1, 0, 0), False),
}
NO_SLOPE = {
    "step": lambda c, h: jnp.where(c > 0.1, 1.0, 0.0),
    "sign times h": lambda c, h: jnp.sign(c) * h,
    "floor": lambda c, h: jnp.floor(3 * c) + h,
    "stopped": lambda c, h: lax.stop_gradient(c) * h,
    "straight through": lambda c, h: clip(c, 0.3, "straight_through"),
}


def loop_mean(profile, W):
    """The mean over pairs i < j, in a loop over the similarities of the oracle."""
    units = [oracle.unit(w) for w in np.asarray(W, float)]
    values = []
    for i, j in oracle.unordered_pairs(len(W)):
        c, h = units[i] @ units[j], oracle.eq7_code_similarity(units[i], units[j])
        values.append(float(profile(jnp.float32(c), jnp.float32(h))))
    return np.mean(values)


@pytest.mark.parametrize(("profile", "affine", "whole"), USER.values(), ids=USER.keys())
def test_profiles_of_users_are_taken_apart(profile, affine, whole, small_parts):
    """Also inside jit."""
    metric = dh2l.get_metric(profile)
    found, rest = split_affine(metric)
    np.testing.assert_allclose(found, affine, rtol=1e-6)
    assert all(type(number) is float for number in found)
    assert (rest is None) == whole
    expected, actual = value_and_slopes(profile, together(metric))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
    value = jax.jit(lambda W: dh2l.mean_energy(W, profile))(rows(1))
    np.testing.assert_allclose(value, loop_mean(profile, rows(1)), rtol=2e-6, atol=1e-6)


def test_what_is_read_off_a_profile_outlives_no_trace(small_parts):
    """Read inside jit first; the check of leaks traces everything anew, which takes seconds."""
    profile, affine, _ = USER["linear in both, jitted"]
    split_affine.cache_clear()
    similarities_used.cache_clear()
    with jax.checking_leaks():
        value = jax.jit(lambda W: dh2l.mean_energy(W, profile))(rows(1))
    np.testing.assert_allclose(value, loop_mean(profile, rows(1)), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(split_affine(dh2l.get_metric(profile))[0], affine, rtol=1e-6)


@pytest.mark.parametrize("profile", NO_SLOPE.values(), ids=NO_SLOPE.keys())
def test_a_slope_that_does_not_change_is_no_straight_line(profile, small_parts):
    """Steps, and derivatives that are not the profile's own: the value is still the profile's."""
    value = dh2l.mean_energy(rows(1), profile)
    expected = loop_mean(profile, rows(1))
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)


# --- angles by polynomials ----------------------------------------------------------------------

TURNS = np.concatenate([np.linspace(-2.5, 2.5, 20_001), np.arange(-300, 300, 0.125)])
COSINES = np.unique(
    np.concatenate(
        [np.linspace(-1, 1, 20_001), [s * (1 - 2.0**-k) for k in range(25) for s in (1, -1)]]
    )
)
ANGLES = {
    sin_pi: (
        lambda x: np.sin(np.pi * x),
        lambda x: np.pi * np.cos(np.pi * x),
        lambda x: -(np.pi**2) * np.sin(np.pi * x),
    ),
    cos_pi: (
        lambda x: np.cos(np.pi * x),
        lambda x: -np.pi * np.sin(np.pi * x),
        lambda x: -(np.pi**2) * np.cos(np.pi * x),
    ),
}


def derivatives(fn, x):
    """f, f′ and f″ at every x."""
    each = (fn, jax.grad(fn), jax.grad(jax.grad(fn)))
    return [np.asarray(jax.jit(jax.vmap(f))(x), np.float64) for f in each]


@pytest.mark.parametrize("fn", ANGLES, ids=["sin_pi", "cos_pi"])
def test_sine_and_cosine_of_turns(fn):
    x = np.float32(TURNS)
    for order, (found, exact) in enumerate(zip(derivatives(fn, x), ANGLES[fn], strict=True)):
        error = np.abs(found - exact(x.astype(np.float64)))
        assert error.max() <= 5e-7 * np.pi**order
    assert np.isnan(derivatives(fn, np.float32([np.nan, np.inf]))).all()


@pytest.mark.parametrize("fn", ANGLES, ids=["sin_pi", "cos_pi"])
def test_sine_and_cosine_of_turns_in_float64(fn):
    x = np.linspace(-2.5, 2.5, 1001)
    with jax.enable_x64(True):
        for order, (found, exact) in enumerate(
            zip(derivatives(fn, jnp.asarray(x)), ANGLES[fn], strict=True)
        ):
            np.testing.assert_allclose(found, exact(x), rtol=0, atol=1e-14 * np.pi**order)


def test_arccos():
    x = np.float32(COSINES)
    exact = x.astype(np.float64)
    assert np.abs(np.asarray(jax.jit(safe_arccos)(x), np.float64) - np.arccos(exact)).max() <= 5e-7
    _, first, second = derivatives(safe_arccos, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = 1 - exact**2
        by_x, twice = -(square**-0.5), -exact * square**-1.5
    inner = np.abs(exact) < 0.9999
    lost = 2e-7 / square[inner]  # 1 − x² has this relative rounding error
    assert (np.abs(first - by_x)[inner] <= np.abs(by_x[inner]) * (lost + 5e-7)).all()
    assert (np.abs(second - twice)[inner] <= np.abs(twice[inner]) * (3 * lost + 5e-7) + 1e-6).all()
    assert not first[np.abs(exact) == 1].any()
    assert np.isfinite(first).all()
    assert np.isnan(safe_arccos(jnp.float32(np.nan)))


def test_arccos_in_float64():
    x = np.linspace(-1, 1, 1001)
    with jax.enable_x64(True):
        value, first, second = derivatives(safe_arccos, jnp.asarray(x))
    np.testing.assert_allclose(value, np.arccos(x), rtol=0, atol=1e-14)
    inner = x[1:-1]
    np.testing.assert_allclose(first[1:-1], -((1 - inner**2) ** -0.5), rtol=1e-12)
    np.testing.assert_allclose(
        second[1:-1], -inner * (1 - inner**2) ** -1.5, rtol=1e-10, atol=1e-12
    )
    assert not first[[0, -1]].any()


def test_ratio():
    """ab/(a+b) and its slopes against differences in float64; on the axes and at 0/0."""
    a, b = (x.ravel() for x in np.meshgrid(np.geomspace(1e-3, 3, 12), np.geomspace(2e-3, 2, 11)))
    slopes = jax.jit(jax.vmap(jax.grad(ratio, (0, 1))))
    both = lambda *x: np.stack([ratio(*map(jnp.float32, x)), *slopes(*map(jnp.float32, x))])  # noqa: E731
    found = both(a, b)
    exact, step = lambda a, b: a * b / (a + b), 1e-6
    by_a = (exact(a * (1 + step), b) - exact(a * (1 - step), b)) / (2 * step * a)
    by_b = (exact(a, b * (1 + step)) - exact(a, b * (1 - step))) / (2 * step * b)
    np.testing.assert_allclose(found, [exact(a, b), by_a, by_b], rtol=2e-6)
    axes = both([0, 0, 2, -1e-8], [0, 2, 0, 1])
    np.testing.assert_array_equal(axes[:, :3], [[0, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(axes[:, 3], [0, 1, 0])
    curved = jax.jit(jax.hessian(ratio, (0, 1)))(jnp.float32(0.3), jnp.float32(0.7))
    expected = 2 * np.array([[-0.49, 0.21], [0.21, -0.09]])  # (a + b)³ = 1
    np.testing.assert_allclose(curved, expected, rtol=3e-6)
    at_zero = jax.hessian(ratio, (0, 1))(jnp.float32(0), jnp.float32(0))
    assert np.isfinite(at_zero).all()


def test_every_metric_is_in_one_list_or_the_other():
    assert set(AFFINE) | set(ONLY_C) | set(ONLY_H) <= set(NAMES)

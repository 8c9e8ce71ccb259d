"""C1, C2, C3 and the hinge against the oracle, and the geometry behind them."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import tree as oracle_tree

import dh2l_jax as dh2l

radius = st.floats(0, 5, width=32)


def simplex(n, distance=1.0):
    """n points at one distance from the origin, as far apart as they can be."""
    points = np.eye(n) - 1 / n
    return (distance * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_against_the_oracle():
    r = np.random.default_rng(0)
    C, outer, inner = r.normal(size=(5, 3)), r.uniform(1, 3, 5), r.uniform(0, 2, 5)
    offset = np.linalg.norm(C, axis=1)
    C32, outer32, inner32, offset32 = (np.float32(x) for x in (C, outer, inner, offset))
    chex.assert_trees_all_close(
        dh2l.radius_order(outer32, inner32),
        np.float32(oracle_tree.constraint_1(outer, inner)),
        atol=1e-6,
    )
    chex.assert_trees_all_close(
        dh2l.containment(outer32, offset32, inner32),
        np.float32(oracle_tree.constraint_2(outer, C, inner)),
        atol=1e-6,
    )
    for groups in (None, [0, 1, 0, 0, 1], [0, 1, 2, 3, 4]):
        expected = oracle_tree.constraint_3(C, inner, groups)
        actual = dh2l.margin(C32, inner32, groups)
        np.testing.assert_allclose(actual, expected, atol=2e-6)
        np.testing.assert_allclose(dh2l.hinge(actual), oracle_tree.hinge(expected), atol=2e-6)


@hypothesis.given(outer=radius, offset=radius, inner=radius)
def test_containment_implies_order(outer, offset, inner):
    c1, c2 = dh2l.radius_order(outer, inner), dh2l.containment(outer, offset, inner)
    assert c2 <= c1 + 1e-5
    assert c2 == pytest.approx(outer - offset - inner, abs=1e-5)


@pytest.mark.parametrize("degrees", [10, 60, 120, 180])
def test_the_chord_has_a_minus_where_the_paper_prints_a_plus(degrees):
    """chord² = (r sin θ)² + (r − r cos θ)² for two centres at distance r, θ apart."""
    r, angle = 2.0, np.radians(degrees)
    C = jnp.float32([[r, 0], [r * np.cos(angle), r * np.sin(angle)]])
    chord = dh2l.margin(C, jnp.zeros(2))
    right = np.hypot(r * np.sin(angle), r - r * np.cos(angle))
    printed = np.hypot(r * np.sin(angle), r + r * np.cos(angle))
    np.testing.assert_allclose(chord, [right], rtol=1e-5)
    np.testing.assert_allclose(chord, [2 * r * np.sin(angle / 2)], rtol=1e-5)
    assert abs(chord[0] - printed) > 1e-1


@pytest.mark.parametrize(("n", "bound"), [(2, 0.5), (3, 0.4641), (20, 0.4204), (2000, 0.4143)])
def test_both_hold_up_to_the_feasible_ratio(n, bound):
    """n siblings in a unit sphere: r ≤ κ/(1 + κ), κ = √(n/(2(n − 1))), reached by a simplex."""
    kappa = np.sqrt(n / (2 * (n - 1)))
    limit = kappa / (1 + kappa)
    assert limit == pytest.approx(bound, abs=5e-5)
    if n > 20:
        return
    r = np.full(n, limit, np.float32)
    contained = dh2l.containment(1.0, jnp.full(n, 1 - limit, jnp.float32), r)
    apart = dh2l.margin(simplex(n, 1 - limit), r)
    np.testing.assert_allclose(contained, 0, atol=1e-6)
    np.testing.assert_allclose(apart, 0, atol=1e-5)
    for distance in np.linspace(0, 1, 21):  # a larger radius fails wherever the centres are
        larger = r + 0.01
        c2 = dh2l.containment(1.0, jnp.full(n, distance, jnp.float32), larger)
        c3 = dh2l.margin(simplex(n, distance), larger)
        assert min(c2.min(), c3.min()) < 0


def test_hinge():
    C = jnp.float32([-1.0, 3.0, -0.5, 0.0])
    assert dh2l.hinge(C) == 0.375
    assert dh2l.hinge(C, where=jnp.array([True, False, False, True])) == 0.5
    assert dh2l.hinge(jnp.zeros(0)) == 0
    assert dh2l.hinge(C, where=jnp.zeros(4, bool)) == 0
    np.testing.assert_allclose(jax.grad(dh2l.hinge)(C)[:3], [-0.25, 0, -0.25])


def test_a_masked_hinge_looks_away_from_nan():
    C, where = jnp.float32([-1.0, jnp.nan]), jnp.array([True, False])
    value, gradient = jax.value_and_grad(lambda x: dh2l.hinge(x, where=where))(C)
    assert value == 1
    np.testing.assert_array_equal(gradient, [-1, 0])


def test_satisfaction():
    fraction, worst = dh2l.satisfaction(jnp.float32([-1.0, 3.0, -0.5, 0.0]))
    assert (fraction, worst) == (0.5, 1)
    fraction, worst = dh2l.satisfaction(jnp.float32([2.0, 3.0]))
    assert (fraction, worst) == (1, 0)
    fraction, worst = dh2l.satisfaction(jnp.zeros(0))
    assert (fraction, worst) == (1, 0)


def test_coinciding_centres_have_a_finite_gradient():
    C = jnp.ones((3, 2))
    value, gradient = jax.value_and_grad(lambda x: dh2l.hinge(dh2l.margin(x, jnp.ones(3))))(C)
    assert value == 2
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: dh2l.margin(jnp.ones(3), jnp.ones(3)),
        lambda: dh2l.margin(jnp.ones((3, 2)), jnp.ones(2)),
        lambda: dh2l.margin(jnp.ones((3, 2)), jnp.ones(3), [0, 1]),
    ],
)
def test_shapes_that_do_not_fit(call):
    with pytest.raises(ValueError, match=r"2|\(3,\)"):
        call()

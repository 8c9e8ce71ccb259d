"""C1, C2, C3 and the hinge against the oracle, and the geometry behind them."""

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
    siblings = (None, [0, 1, 0, 0, 1], [0, 1, 2, 3, 4])

    @jax.jit
    def found(C, offset, outer, inner):
        pairs = [dh2l.margin(C, inner, groups) for groups in siblings]
        own = [dh2l.radius_order(outer, inner), dh2l.containment(outer, offset, inner)]
        return own + pairs, [dh2l.hinge(values) for values in pairs]

    pairs = [oracle_tree.constraint_3(C, inner, groups) for groups in siblings]
    own = [oracle_tree.constraint_1(outer, inner), oracle_tree.constraint_2(outer, C, inner)]
    arrays = (np.float32(x) for x in (C, np.linalg.norm(C, axis=1), outer, inner))
    expected = own + pairs, [oracle_tree.hinge(values) for values in pairs]
    for actual, exact in zip(found(*arrays), expected, strict=True):
        for values, oracle_values in zip(actual, exact, strict=True):
            np.testing.assert_allclose(values, oracle_values, atol=2e-6)


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
    both = jax.jit(lambda C, d, r: (dh2l.containment(1.0, d, r), dh2l.margin(C, r)))
    contained, apart = both(simplex(n, 1 - limit), np.full(n, 1 - limit, np.float32), r)
    np.testing.assert_allclose(contained, 0, atol=1e-6)
    np.testing.assert_allclose(apart, 0, atol=1e-5)
    for distance in np.linspace(0, 1, 21):  # a larger radius fails wherever the centres are
        c2, c3 = both(simplex(n, distance), np.full(n, distance, np.float32), r + 0.01)
        assert min(c2.min(), c3.min()) < 0


HINGES = [
    ([-1.0, 3.0, -0.5, 0.0], None, 0.375, (0.5, 1)),
    ([-1.0, 3.0, -0.5, 0.0], [True, False, False, True], 0.5, (0.5, 1)),
    ([-1.0, 3.0, -0.5, 0.0], [False] * 4, 0, (1, 0)),
    ([-1.0, np.nan], [True, False], 1, (0, 1)),
    ([2.0, 3.0], None, 0, (1, 0)),
    ([], None, 0, (1, 0)),
]


@pytest.mark.parametrize(("C", "where", "mean", "satisfied"), HINGES)
def test_hinge_and_satisfaction(C, where, mean, satisfied):
    C = np.array(C, np.float32)
    where = None if where is None else np.array(where)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: dh2l.hinge(x, where=where)))(C)
    assert value == mean
    counted = np.ones(len(C), bool) if where is None else where
    negative = counted & (C < 0)
    np.testing.assert_allclose(
        gradient[C != 0], np.where(negative, -1 / max(counted.sum(), 1), 0)[C != 0]
    )
    assert jax.jit(lambda x: dh2l.satisfaction(x, where=where))(C) == satisfied


def test_coinciding_centres_have_a_finite_gradient():
    fn = jax.jit(jax.value_and_grad(lambda x: dh2l.hinge(dh2l.margin(x, np.ones(3)))))
    value, gradient = fn(np.ones((3, 2), np.float32))
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

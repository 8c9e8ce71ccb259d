"""Group, centre and weight energies against the oracle; transformations, properties, errors."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import metrics as oracle
from support.helpers import assert_close, energy_and_gradient, everyone, rows

import dh2l_jax as dh2l

SAMPLE = ("cosine", "d_h_ter", "d_cos_gm_prime", "d_hm_cos")
GROUPS = {
    "two groups": [0, 1, 0, 0, 1, 1],
    "a singleton": [5, 0, 0, 5, 9, 5],
    "one class": [3] * 6,
    "unbalanced": [0, 0, 0, 0, 1, 1],
    "negative labels": [-1, 7, -1, 7, 7, 0],
}
every_sample = pytest.mark.parametrize("name", SAMPLE)


def value_and_grad(fn, W):
    return jax.jit(jax.value_and_grad(fn))(W)


@every_sample
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_group_energy_is_eq_5(name, groups):
    W, where = rows(20), np.array([True, True, True, False, True, True])
    fn = jax.jit(
        jax.value_and_grad(lambda W, where: dh2l.group_energy(W, groups, name, where=where))
    )
    for mask in (everyone(W), where):
        value, gradient = fn(W, mask)
        expected, expected_gradient = oracle.eq5_group_energy(W.astype(float), groups, name, mask)
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", ["cosine", "d_hm_cos"])
def test_traced_groups_give_the_same(name):
    chex.clear_trace_counter()
    W = rows(21)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(W, groups, where):
        fn = jax.value_and_grad(lambda x: dh2l.group_energy(x, groups, name, where=where))
        return fn(W)

    for groups in GROUPS.values():
        for where in (everyone(W), np.array([True, False, True, True, True, False])):
            value, gradient = traced(W, np.array(groups), where)
            expected, expected_gradient = oracle.eq5_group_energy(
                W.astype(float), groups, name, where
            )
            np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
            assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]])
def test_only_singletons_is_zero(groups):
    value, gradient = value_and_grad(lambda W: dh2l.group_energy(W, groups, "d_am"), rows(0))
    assert value == 0
    assert not gradient.any()


def test_one_group_is_the_mean_over_all_pairs():
    W = rows(22)
    one, _ = value_and_grad(lambda x: dh2l.group_energy(x, [4] * 6, "d_am_cos"), W)
    expected, _ = energy_and_gradient("d_am_cos")(W, everyone(W))
    np.testing.assert_allclose(one, expected, rtol=1e-6)


def test_groups_weigh_the_same_whatever_their_size():
    """Cosines 1 in a group of four and −1 in a pair: the mean is 0, that of the pairs 5/7."""
    W = jnp.float32([[1, 0]] * 4 + [[0, 1], [0, -1]])
    groups = np.array([0] * 4 + [1] * 2)
    each = jax.jit(lambda W: dh2l.group_energy(W, groups, "cosine"))(W)
    pooled = jax.jit(lambda W: dh2l.center_energy(W, "cosine", groups=groups))(W)
    np.testing.assert_allclose([each, pooled], [0, 5 / 7], atol=1e-6)


relabel = jax.jit(lambda W, groups: dh2l.group_energy(W, groups, "d_am_cos"))


@hypothesis.given(
    seed=st.integers(0, 99),
    groups=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    labels=st.permutations([-4, 0, 7, 1000]),
    order=st.permutations(range(6)),
)
def test_relabelling_groups_and_permuting_rows(seed, groups, labels, order):
    W, groups, order = rows(seed), np.array(groups), np.array(order)
    value = relabel(W, groups)
    np.testing.assert_allclose(relabel(W, np.array(labels)[groups]), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(relabel(W[order], groups[order]), value, rtol=1e-5, atol=1e-6)


@every_sample
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 1, 2]], ids=["all", "siblings"])
def test_center_energy_is_eq_6(name, groups):
    C = rows(23)
    fn = jax.jit(
        jax.value_and_grad(lambda C, where: dh2l.center_energy(C, name, groups=groups, where=where))
    )
    for where in (everyone(C), np.array([True, False, True, True, False, True])):
        value, gradient = fn(C, where)
        expected, expected_gradient = oracle.eq6_center_energy(C.astype(float), name, groups, where)
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1, 1], [0] * 6], ids=str)
def test_left_out_rows_may_hold_anything(groups):
    W, where = rows(24), np.array([True, True, False, True, True, True])

    @jax.jit
    @jax.value_and_grad
    def both(x):
        part = dh2l.group_energy(x, groups, "d_am", where=where)
        return part + dh2l.center_energy(x, "d_am", groups=groups, where=where)

    for fill in (np.nan, np.inf):
        holed = np.where(where[:, None], W, np.float32(fill))
        chex.assert_trees_all_equal(both(holed), both(W))


# --- transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "tiled", "closed"])
def test_vmap_is_a_loop(method):
    stack = np.stack([rows(s) for s in range(3)])
    where = np.stack([everyone(stack[0]), np.arange(6) > 1, np.arange(6) < 1])
    fn = energy_and_gradient("d_am_cos_prime", method=method, block=4)
    values, gradients = jax.vmap(fn)(stack, where)
    for i in range(3):
        value, gradient = fn(stack[i], where[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-6, atol=1e-7)
        assert_close(gradients[i], gradient)


@pytest.mark.parametrize("method", ["dense", "tiled", "closed"])
def test_the_second_derivative_is_that_of_the_gradient(method):
    """Codes are constant nearby and `cosine` has none: differences of the gradient are exact."""
    W, direction = rows(30), np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    gradient = jax.grad(lambda x: dh2l.mean_energy(x, "cosine", method=method, block=4))
    along = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(jnp.asarray(W))
    step = 1e-4
    up, down = (
        oracle.mean_energy(W.astype(float) + sign * step * direction, "cosine")[1]
        for sign in (1, -1)
    )
    assert_close(along, (up - down) / (2 * step), rtol=1e-4)


# --- errors -------------------------------------------------------------------------------------

W = jnp.ones((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dh2l.mean_energy(W, "d_amm"), ValueError, "d_amm.*d_am"),
        (lambda: dh2l.mean_energy(jnp.ones(3), "d_am"), ValueError, r"\(3,\)"),
        (lambda: dh2l.mean_energy(W, "d_am", where=jnp.ones(3, bool)), ValueError, "3.*4|4.*3"),
        (lambda: dh2l.mean_energy(W, "d_am", where=jnp.ones(4)), TypeError, "bool.*float32"),
        (lambda: dh2l.mean_energy(W, "d_am", method="tild"), ValueError, "tild.*tiled"),
        (lambda: dh2l.mean_energy(W, "d_am", method="closed"), ValueError, "closed.*d_am"),
        (lambda: dh2l.group_energy(W, [0, 1], "d_am"), ValueError, "2.*4|4.*2"),
        (lambda: dh2l.group_energy(W, [0.0] * 4, "d_am"), TypeError, "float"),
        (lambda: dh2l.center_energy(W, "d_am", groups=[0, 1]), ValueError, "2.*4|4.*2"),
        (lambda: dh2l.center_energy(W, "d_am", where=[1, 1, 1, 1]), TypeError, "bool.*int"),
        (lambda: dh2l.pairwise(dh2l.angle, jnp.ones(3)), ValueError, r"\(3,\)"),
        (lambda: dh2l.pairwise(dh2l.angle, W, jnp.ones((2, 5))), ValueError, "3.*5|5.*3"),
    ],
)
def test_bad_input_names_what_was_found(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 4], ValueError, r"label 4 at index 1 does not exist: classes are 0\.\.3"),
        ([-1, 0], ValueError, "label -1 at index 0"),
        ([[0, 1], [1, 0]], ValueError, r"labels must have shape \(4,\)"),
        ([0.0, 1.0], TypeError, "labels must be integers"),
    ],
)
def test_labels_that_do_not_exist_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        dh2l.classes_present(np.array(labels), 4)

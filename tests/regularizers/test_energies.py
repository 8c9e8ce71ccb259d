"""Group, centre and weight energies against the oracle; transformations, properties, errors."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import metrics as oracle
from oracle import tree as oracle_tree
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
    return jax.jit(jax.value_and_grad(fn))(jnp.asarray(W))


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
    np.testing.assert_allclose(dh2l.group_energy(W, [0] * 4 + [1] * 2, "cosine"), 0, atol=1e-6)
    pooled = dh2l.center_energy(W, "cosine", groups=[0] * 4 + [1] * 2)
    np.testing.assert_allclose(pooled, 5 / 7, atol=1e-6)


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


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (5, 2), (1, 3)])
def test_orthogonality(shape):
    C = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    value, gradient = value_and_grad(dh2l.orthogonality, C)
    np.testing.assert_allclose(value, oracle_tree.orthogonality(C.astype(float)), rtol=1e-5)
    gram = C.astype(float) @ C.T - np.eye(len(C))
    assert_close(gradient, 2 * gram @ C / np.linalg.norm(gram))


def test_orthogonality_at_its_minimum_has_a_zero_gradient():
    value, gradient = value_and_grad(dh2l.orthogonality, np.eye(3, 5, dtype=np.float32))
    assert value == 0
    assert not gradient.any()


# --- weights of a network -----------------------------------------------------------------------


def network():
    r = np.random.default_rng(5)
    make = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "stem": {"conv": {"kernel": make(3, 3, 2, 4), "bias": make(4)}},
        "block_1": {"conv_1": {"kernel": make(1, 3, 4, 4)}, "norm_1": {"scale": make(4)}},
        "head": {"kernel": make(4, 5), "bias": make(5)},
    }


def test_kernel_matrices_are_rows_of_fan_in():
    params = network()
    matrices = dh2l.kernel_matrices(params)
    assert set(matrices) == {"stem/conv/kernel", "block_1/conv_1/kernel", "head/kernel"}
    kernel = np.asarray(params["stem"]["conv"]["kernel"])
    for out in range(4):
        vector = [kernel[i, j, k, out] for i in range(3) for j in range(3) for k in range(2)]
        np.testing.assert_array_equal(matrices["stem/conv/kernel"][out], vector)
    np.testing.assert_array_equal(matrices["head/kernel"], params["head"]["kernel"].T)


def test_include_and_exclude_choose_layers():
    params = network()
    assert list(dh2l.kernel_matrices(params, include="conv")) == [
        "block_1/conv_1/kernel",
        "stem/conv/kernel",
    ]
    assert "head/kernel" not in dh2l.kernel_matrices(params, exclude="^head/")


LAYERS = {"a": (9, 4), "b": (9, 4), "c": (12, 5), "d": (12, 1), "e": (6, 300), "f": (5, 2)}


@pytest.mark.parametrize(
    ("name", "method", "half_space"),
    [
        ("d_cos_hm", "auto", False),
        ("d_am_cos", "dense", True),
        ("d_h_bin", "auto", False),
        ("angular2", "tiled", True),
    ],
)
def test_layers_of_all_shapes_are_summed_together(name, method, half_space):
    """Two of one shape, one vector, more rows than go with others; NaN stays in its layer."""
    rng = np.random.default_rng(0)
    params = {key: {"kernel": rng.normal(size=shape)} for key, shape in LAYERS.items()}
    params = jax.tree.map(jnp.float32, params)
    options = {"method": method, "half_space": half_space}

    def each(params):
        layers = [dh2l.mean_energy(p["kernel"].T, name, **options) for p in params.values()]
        return jnp.sum(jnp.stack(layers))

    together = functools.partial(dh2l.weight_energy, metric=name, **options)
    value, gradient = jax.jit(jax.value_and_grad(together))(params)
    expected, slopes = jax.jit(jax.value_and_grad(each))(params)
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    jax.tree.map(functools.partial(assert_close, atol=1e-6), gradient, slopes)
    params["a"]["kernel"] = jnp.full((9, 4), jnp.nan)
    broken = jax.jit(jax.grad(together))(params)
    assert np.isnan(broken.pop("a")["kernel"]).all()
    gradient.pop("a")
    jax.tree.map(functools.partial(assert_close, atol=1e-6), broken, gradient)


def test_a_profile_is_traced_as_often_for_four_layers_as_for_one():
    def traces(keys):
        calls = []

        def profile(c, h):
            calls.append(1)
            return jnp.sin(c) * h

        params = {key: {"kernel": jax.ShapeDtypeStruct(LAYERS[key], "float32")} for key in keys}
        jax.eval_shape(jax.grad(lambda p: dh2l.weight_energy(p, profile)), params)
        return len(calls)

    assert traces("abcf") == traces("a") > 0


@pytest.mark.parametrize("name", ["cosine", "d_am_cos", "d_h_bin"])
def test_weight_energy_is_the_sum_over_layers(name):
    params = network()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: dh2l.weight_energy(p, name)))(params)
    expected, parts = 0.0, {}
    for path, kernel in (
        ("stem/conv", params["stem"]["conv"]["kernel"]),
        ("block_1/conv_1", params["block_1"]["conv_1"]["kernel"]),
        ("head", params["head"]["kernel"]),
    ):
        W = np.asarray(kernel, float).reshape(-1, kernel.shape[-1]).T
        e, g = oracle.mean_energy(W, name)
        expected += e
        parts[path] = g.T.reshape(kernel.shape)
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    assert_close(gradient["stem"]["conv"]["kernel"], parts["stem/conv"])
    assert_close(gradient["block_1"]["conv_1"]["kernel"], parts["block_1/conv_1"])
    assert_close(gradient["head"]["kernel"], parts["head"])
    assert not gradient["stem"]["conv"]["bias"].any()
    assert not gradient["block_1"]["norm_1"]["scale"].any()
    only_head = dh2l.weight_energy(params, name, include="^head/kernel$")
    np.testing.assert_allclose(only_head, oracle.mean_energy(W, name)[0], rtol=3e-6)


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
        (lambda: dh2l.orthogonality(jnp.ones(3)), ValueError, r"\(3,\)"),
        (lambda: dh2l.kernel_matrices(network(), include="kernels"), ValueError, "kernels"),
        (lambda: dh2l.kernel_matrices(network(), exclude="haed"), ValueError, "haed.*head"),
        (lambda: dh2l.weight_energy(network(), "d_amm"), ValueError, "d_amm.*d_am"),
        (lambda: dh2l.pairwise(dh2l.angle, jnp.ones(3)), ValueError, r"\(3,\)"),
        (lambda: dh2l.pairwise(dh2l.angle, W, jnp.ones((2, 5))), ValueError, "3.*5|5.*3"),
    ],
)
def test_bad_input_names_what_was_found(call, error, words):
    with pytest.raises(error, match=words):
        call()

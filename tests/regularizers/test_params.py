"""Kernels of a model's parameters as rows, and the energy of all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import metrics as oracle
from support.helpers import assert_close

import dh2l_jax as dh2l


def network():
    r = np.random.default_rng(5)
    make = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "stem": {"conv": {"kernel": make(3, 3, 2, 4), "bias": make(4)}},
        "block_1": {"conv_1": {"kernel": make(3, 3, 4, 4)}, "norm_1": {"scale": make(4)}},
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
    together = jax.jit(jax.value_and_grad(together))
    value, gradient = together(params)
    expected, slopes = jax.jit(jax.value_and_grad(each))(params)
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    jax.tree.map(functools.partial(assert_close, atol=1e-6), gradient, slopes)
    params["a"]["kernel"] = jnp.full((9, 4), jnp.nan)
    _, broken = together(params)
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
    head = functools.partial(dh2l.weight_energy, metric=name, include="^head/kernel$")
    only_head = jax.jit(head)(params)
    np.testing.assert_allclose(only_head, oracle.mean_energy(W, name)[0], rtol=3e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dh2l.kernel_matrices(network(), include="kernels"), "kernels"),
        (lambda: dh2l.kernel_matrices(network(), exclude="haed"), "haed.*head"),
        (lambda: dh2l.weight_energy(network(), "d_amm"), "d_amm.*d_am"),
    ],
)
def test_bad_input_names_what_was_found(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_tree_without_kernels_is_said():
    with pytest.raises(ValueError, match=r"unknown path pattern .*: there are none here"):
        dh2l.kernel_matrices({"bias": np.ones(3)})

"""The convolution of the networks against XLA's own, NumPy loops, and itself on two devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.models import convolution as convolution_module
from dh2l_jax.models.convolution import convolution


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """The tests have two devices; a process with one goes through the batch in chunks."""
    if "two_devices" not in request.node.name:
        monkeypatch.setattr(convolution_module, "_several_devices", lambda: False)


def plain(x, kernel, stride):
    p, q = ((size - 1) // 2 for size in kernel.shape[:2])
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((p, p), (q, q)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def draw(shape, kernel_shape, stride, dtype=jnp.float32):
    """Images, a kernel, and a gradient of the result."""
    rng = np.random.default_rng(0)
    result = (shape[0], *(-(-size // stride) for size in shape[1:3]), kernel_shape[-1])
    x, kernel, g = (jnp.asarray(rng.normal(size=s), dtype) for s in (shape, kernel_shape, result))
    return x, kernel, g


@functools.partial(jax.jit, static_argnums=(0, 4))
def gradients(function, x, kernel, g, stride):
    y, pull = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
    return y, *pull(g)


def assert_close(actual, expected, tolerance=1e-5):
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(mine, theirs, atol=tolerance * np.abs(theirs).max())


@given(
    batch=st.integers(1, 17),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    window=st.sampled_from([(3, 3), (3, 3), (1, 1), (3, 1), (5, 3), (7, 7)]),
    stride=st.integers(1, 3),
)
def test_value_and_gradients_are_those_of_xla(batch, size, channels, window, stride):
    arrays = draw((batch, *size, channels[0]), (*window, *channels), stride)
    assert_close(gradients(convolution, *arrays, stride), gradients(plain, *arrays, stride))


@pytest.mark.parametrize("batch", [16, 24, 12])
@pytest.mark.parametrize(
    ("side", "cin", "cout", "stride"),
    [(32, 3, 16, 1), (32, 16, 16, 1), (32, 16, 32, 2), (16, 32, 32, 1), (28, 1, 16, 1)],
)
def test_layers_of_the_networks(batch, side, cin, cout, stride):
    arrays = draw((batch, side, side, cin), (3, 3, cin, cout), stride)
    assert_close(gradients(convolution, *arrays, stride), gradients(plain, *arrays, stride))


def test_batch_is_chunked_so_that_few_copies_exist():
    def temporaries(batch):
        arrays = draw((batch, 32, 32, 16), (3, 3, 16, 16), 1)
        step = jax.jit(
            lambda x, g: convolution_module._kernel_gradient(
                x, g, 1, convolution_module._images_at_a_time(x, g)
            )
        )
        memory = step.lower(arrays[0], arrays[2]).compile().memory_analysis()
        assert memory
        return memory.temp_size_in_bytes

    image = 4 * 32 * 32 * 16
    assert temporaries(128) < 128 * image  # all copies at once take more than 6 · 128 images
    assert temporaries(128) - temporaries(64) < 2 * 64 * image
    assert temporaries(125) > 6 * 125 * image  # no even chunks: one pass


@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_gradient_matches_loops(stride):
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=(3, 5, 4, 2)), rng.normal(size=(3, -(-5 // stride), -(-4 // stride), 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((3, 3, 2, 3))
    for n, i, j in np.ndindex(g.shape[:3]):
        for row, column in np.ndindex(3, 3):
            pixel = padded[n, i * stride + row, j * stride + column]
            expected[row, column] += np.outer(pixel, g[n, i, j])
    arrays = jnp.asarray(x, jnp.float32), jnp.zeros((3, 3, 2, 3)), jnp.asarray(g, jnp.float32)
    actual = gradients(convolution, *arrays, stride)[2]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_summed_in_single():
    x, kernel, g = draw((64, 8, 8, 4), (3, 3, 4, 4), 1, jnp.bfloat16)
    actual = gradients(convolution, x, kernel, g, 1)
    wide = jax.tree.map(lambda array: array.astype(jnp.float32), (x, kernel, g))
    expected = [array.astype(jnp.bfloat16) for array in gradients(plain, *wide, 1)]
    assert_close(actual, expected, 0.01)


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_over_networks(stride):
    pairs = [draw((8, 6, 5, 3), (3, 3, 3, 2), stride) for _ in range(2)]
    x, kernel, g = (jnp.stack([a, 2 * b]) for a, b in zip(*pairs, strict=True))
    run = functools.partial(gradients, stride=stride)
    actual = jax.vmap(lambda *a: run(convolution, *a))(x, kernel, g)
    expected = [run(plain, *(array[i] for array in (x, kernel, g))) for i in range(2)]
    assert_close(actual, [jnp.stack(pair) for pair in zip(*expected, strict=True)])


def test_second_derivative():
    x, kernel, _ = draw((16, 32, 32, 3), (3, 3, 3, 4), 1)

    def curvature(function):
        def loss(kernel):
            return jnp.mean(jnp.tanh(function(x, kernel, 1)) ** 2)

        return jax.jit(jax.grad(lambda kernel: jnp.sum(jax.grad(loss)(kernel) ** 2)))(kernel)

    assert_close([curvature(convolution)], [curvature(plain)], 1e-4)


def test_forward_mode_is_refused():
    x, kernel, _ = draw((1, 4, 4, 1), (3, 3, 1, 1), 1)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: convolution(x, kernel, 1), (x,), (x,))


@pytest.mark.parametrize("stride", [1, 2])
def test_two_devices_share_the_batch_and_exchange_sums_only(stride):
    x, kernel, g = draw((32, 32, 32, 16), (3, 3, 16, 16), stride)
    assert len(x) > convolution_module._images_at_a_time(x, g)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, same = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ()))
    arguments = jax.device_put((x, kernel, g), (split, same, split))
    compiled = gradients.lower(convolution, *arguments, stride).compile()
    program = compiled.as_text() or ""
    assert "all-reduce" in program
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program
    actual = compiled(*arguments)
    assert actual[1].sharding.is_equivalent_to(split, 4)
    assert_close(actual, gradients(convolution, x, kernel, g, stride))


def test_other_platforms_keep_the_gradient_of_xla():
    traced = gradients.trace(convolution, *draw((16, 32, 32, 16), (3, 3, 16, 16), 1), 1)
    on_cpu, elsewhere = (
        traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")
    )
    assert on_cpu.count("stablehlo.convolution") == 2
    assert elsewhere.count("stablehlo.convolution") == 3
    assert "stablehlo.while" in on_cpu
    assert "stablehlo.while" not in elsewhere

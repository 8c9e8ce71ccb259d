"""CIFAR ResNets: exact parameter counts, names, shapes, and one block against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dh2l_jax.models import layers as layers_module
from dh2l_jax.models.layers import BasicBlock
from dh2l_jax.models.resnet_cifar import CifarResNet


def make(depth=20, classes=100, **options):
    return CifarResNet(depth, nn.Dense(classes, use_bias=False), **options)


def init(model, image_shape, seed=0):
    """Variables; compiled in one piece and without optimisation, which is the quickest way."""
    fn = jax.jit(
        lambda key: model.init(key, jnp.zeros(image_shape), train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return fn(jax.random.key(seed))


def run(model, variables, images, *, train):
    """Logits and the collection of batch statistics, jitted."""
    fn = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]))
    return fn(variables, images)


def shapes(model, image_shape=(1, 32, 32, 3)):
    """Shapes and dtypes of the variables, without computing them."""
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros(image_shape), train=True), jax.random.key(0)
    )


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def counts_by_hand(depth, shortcut, classes, in_channels=3):
    """Layer by layer: 9·cin·cout a 3×3 kernel, 2·cout a norm, 64·classes the head."""
    total, cin = 9 * in_channels * 16 + 2 * 16, 16
    for cout in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += 9 * cin * cout + 2 * cout + 9 * cout * cout + 2 * cout
            if shortcut == "B" and cin != cout:
                total += cin * cout + 2 * cout
            cin = cout
    return total + 64 * classes


@pytest.mark.parametrize(
    ("depth", "shortcut", "expected"),
    [
        (20, "A", 275_472),
        (110, "A", 1_733_712),
        # B adds 16·32 + 2·32 + 32·64 + 2·64 = 2,752.
        (20, "B", 278_224),
        (110, "B", 1_736_464),
    ],
)
def test_parameter_counts(depth, shortcut, expected):
    params = shapes(make(depth, shortcut=shortcut))["params"]
    assert count(params) == expected == counts_by_hand(depth, shortcut, 100)


def test_parameter_count_follows_channels_and_classes():
    params = shapes(make(20, 10), (1, 28, 28, 1))["params"]
    assert count(params) == counts_by_hand(20, "A", 10, in_channels=1)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_names(shortcut):
    variables = shapes(make(14, shortcut=shortcut))
    blocks = {f"block_{stage}_{i}" for stage in (1, 2, 3) for i in (1, 2)}
    layers = {("stem", "conv"), ("stem", "norm")}
    layers |= {(b, f"{kind}_{i}") for b in blocks for kind in ("conv", "norm") for i in (1, 2)}
    if shortcut == "B":
        changing = ("block_2_1", "block_3_1")
        layers |= {(b, f"{kind}_shortcut") for b in changing for kind in ("conv", "norm")}
    params, stats = {("head", "kernel")}, set()
    for layer in layers:
        norm = layer[1].startswith("norm")
        params |= {(*layer, leaf) for leaf in (("scale", "bias") if norm else ("kernel",))}
        stats |= {(*layer, leaf) for leaf in ("mean", "var")} if norm else set()
    assert set(variables) == {"params", "batch_stats"}
    assert set(flatten_dict(variables["params"])) == params
    assert set(flatten_dict(variables["batch_stats"])) == stats


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (3, 32, 32, 3), (1, 8, 9, 5)])
def test_output_shapes(shape):
    model = make(8, 7)
    variables = init(model, shape)
    images = jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def both(variables, x):
        features = model.apply(variables, x, train=False, method="features")
        return model.apply(variables, x, train=False), features

    logits, features = both(variables, images)
    assert logits.shape == (shape[0], 7)
    assert features.shape == (shape[0], 64)
    np.testing.assert_allclose(
        logits, features @ variables["params"]["head"]["kernel"], rtol=1e-5, atol=1e-5
    )


def test_he_normal_fan_out():
    model = make(8)
    kernel = init(model, (1, 8, 8, 3), seed=3)["params"]["block_3_1"]["conv_1"]["kernel"]
    assert kernel.shape == (3, 3, 32, 64)
    np.testing.assert_allclose(jnp.std(kernel), (2 / (9 * 64)) ** 0.5, rtol=0.03)


def test_batch_stats_change_only_in_training():
    model = make(8, 10)
    images = 3 + 2 * jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = init(model, images.shape)
    before = variables["batch_stats"]
    _, kept = run(model, variables, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, before, kept["batch_stats"])
    _, moved = run(model, variables, images, train=True)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(moved["batch_stats"]), strict=True)
    assert all(np.any(old != new) for old, new in pairs)
    # Momentum 0.9: the new mean is 0.9 times the old one (0) plus 0.1 times the batch's.
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    mean = jnp.mean(layers_module.convolution(images, kernel, 1), axis=(0, 1, 2))
    np.testing.assert_allclose(moved["batch_stats"]["stem"]["norm"]["mean"], 0.1 * mean, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 9])
def test_shortcut_a_is_slicing_and_padding(size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    expected = np.zeros((2, (size + 1) // 2, (size + 1) // 2, 5), np.float32)
    for i in range(0, size, 2):
        for j in range(0, size, 2):
            expected[:, i // 2, j // 2, :3] = x[:, i, j]
    np.testing.assert_array_equal(layers_module.shortcut_a(jnp.asarray(x), 5, 2), expected)


def numpy_convolution(x, kernel, stride):
    """Loops in float64, zero padding (k−1)/2 on each side."""
    k = kernel.shape[0]
    p = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return out


def numpy_norm(x, params):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.parametrize(
    ("shortcut", "stride", "cin"), [("A", 2, 4), ("B", 2, 4), ("A", 1, 6), ("B", 1, 6)]
)
def test_block_matches_numpy(shortcut, stride, cin):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 9, 8, cin))
    block = BasicBlock(6, stride, shortcut)
    x32 = jnp.asarray(x, jnp.float32)
    variables = init(block, x.shape)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape), variables["params"])
    y = numpy_convolution(x, params["conv_1"]["kernel"], stride)
    y = np.maximum(numpy_norm(y, params["norm_1"]), 0)
    y = numpy_norm(numpy_convolution(y, params["conv_2"]["kernel"], 1), params["norm_2"])
    skip = x
    if shortcut == "B" and stride == 2:
        skip = numpy_convolution(x, params["conv_shortcut"]["kernel"], stride)
        skip = numpy_norm(skip, params["norm_shortcut"])
    elif stride == 2:
        skip = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 2)))
    variables["params"] = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    actual, _ = run(block, variables, x32, train=True)
    np.testing.assert_allclose(actual, np.maximum(skip + y, 0), rtol=1e-4, atol=1e-4)


def test_all_convolutions_pass_through_the_seam(monkeypatch):
    calls = []

    def spy(x, kernel, stride):
        calls.append((kernel.shape[0], stride))
        return plain(x, kernel, stride)

    plain = layers_module.convolution
    monkeypatch.setattr(layers_module, "convolution", spy)
    shapes(make(20, shortcut="B"))
    assert len(calls) == 19 + 2
    assert calls.count((3, 2)) == calls.count((1, 2)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda depth=depth: make(depth), rf"6n\+2.*got {depth}; nearest: {nearest}$")
            for depth, nearest in [(21, 20), (18, 20), (0, 8), (-5, 8), (2, 8), (100, 98)]
        ),
        *(
            (
                lambda name=name: make(shortcut=name),
                f"shortcut.*got '{name}'; nearest: '{nearest}'$",
            )
            for name, nearest in [("a", "A"), ("b", "B"), ("option B", "B"), ("C", "[AB]")]
        ),
        (lambda: shapes(make(), (1, 7, 32, 3)), "images must have shape"),
        (lambda: shapes(make(), (32, 32, 3)), "images must have shape"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bfloat16_keeps_float32_where_it_matters():
    model = make(8, 10, dtype=jnp.bfloat16, shortcut="B")
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = init(model, images.shape)
    logits, moved = run(model, variables, images, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, moved))} == {jnp.dtype("float32")}
    full, _ = run(make(8, 10, shortcut="B"), variables, images, train=True)
    np.testing.assert_allclose(logits, full, rtol=0.1, atol=0.1)

    def loss(params):
        out, _ = run(model, {**variables, "params": params}, images, train=True)
        return jnp.mean(jax.nn.logsumexp(out, axis=-1))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for leaf in jax.tree.leaves((logits, moved, gradient)):
        assert bool(jnp.all(jnp.isfinite(leaf)))

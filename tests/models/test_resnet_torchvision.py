"""The heavy networks: exact parameter counts, and outputs equal to torchvision's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import make_torchvision_fixture as reference
from flax import linen as nn
from flax.traverse_util import flatten_dict
from support.helpers import assert_close

import dh2l_jax as dh2l
from dh2l_jax import models
from dh2l_jax.models import CifarResNet, TorchvisionResNet
from dh2l_jax.models import layers as layers_module
from dh2l_jax.models.resnet_torchvision import max_pool
from dh2l_jax.models.weights.torchvision import load_state_dict, torchvision_state_dict

CONVOLUTIONS = {18: 20, 34: 36, 50: 53, 101: 104}


def make(depth, classes=reference.CLASSES, **options):
    return TorchvisionResNet(depth, nn.Dense(classes, use_bias=False), **options)


def shapes(model, image_shape=(1, 64, 64, 3)):
    """Shapes and dtypes of the variables, without computing them."""
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros(image_shape), train=True), jax.random.key(0)
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def zeros(model):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))


def with_weights(model, state):
    """Variables of the model with torchvision's tensors, the classifier's too."""
    variables = load_state_dict(state, zeros(model))
    variables["params"]["head"]["kernel"] = jnp.asarray(state["fc.weight"].T)
    return variables


def outputs(model, variables, images):
    """Logits in both modes, and the statistics after the step of training; images as in torch."""
    x = jnp.asarray(images.transpose(0, 2, 3, 1))

    @jax.jit
    def both(variables, x):
        evaluated = model.apply(variables, x, train=False)
        return evaluated, *model.apply(variables, x, train=True, mutable=["batch_stats"])

    evaluated, trained, moved = both(variables, x)
    state = torchvision_state_dict({**variables, **moved})
    running = {name: value for name, value in state.items() if "running" in name}
    return {"eval": evaluated, "train": trained, "running": running}


@pytest.mark.parametrize(
    ("depth", "classes", "expected"),
    [(18, 196, 11_276_864), (18, 200, 11_278_912), (50, 196, 23_909_440)],
)
def test_parameter_counts(depth, classes, expected):
    assert count(shapes(make(depth, classes))["params"]) == expected


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)],
)
def test_parameter_counts_of_torchvision(depth, expected):
    assert count(shapes(TorchvisionResNet(depth, nn.Dense(1000)))["params"]) == expected


@pytest.mark.parametrize("depth", CONVOLUTIONS)
def test_energy_finds_all_kernels(depth):
    kernels = jax.eval_shape(dh2l.kernel_matrices, shapes(make(depth))["params"])
    assert len(kernels) == CONVOLUTIONS[depth] + 1
    assert kernels["stem/conv/kernel"].shape == (64, 7 * 7 * 3)
    width = 512 if depth < 50 else 2048
    assert kernels["head/kernel"].shape == (reference.CLASSES, width)


def test_names():
    variables = shapes(make(50))
    paths = set(flatten_dict(variables["params"]["block_2_1"], sep="/"))
    layers = [f"{kind}_{n}" for kind in ("conv", "norm") for n in (1, 2, 3, "shortcut")]
    expected = {f"{name}/kernel" for name in layers if name.startswith("conv")}
    norms = [name for name in layers if name.startswith("norm")]
    assert paths == expected | {f"{name}/{leaf}" for name in norms for leaf in ("scale", "bias")}
    assert set(flatten_dict(variables["batch_stats"]["block_2_1"], sep="/")) == {
        f"{name}/{leaf}" for name in norms for leaf in ("mean", "var")
    }
    assert len(variables["params"]) == 1 + 3 + 4 + 6 + 3 + 1


def formula_outputs(model):
    """What the model computes with the weights and images of the fixture."""
    names = {name: value.shape for name, value in torchvision_state_dict(zeros(model)).items()}
    state = {name: reference.formula(name, shape) for name, shape in names.items()}
    images = reference.formula("images", reference.IMAGES)
    return outputs(model, with_weights(model, state), images)


def stored_outputs(depth):
    return json.loads(reference.FIXTURE.read_text(encoding="utf-8"))[f"resnet{depth}"]


@pytest.mark.parametrize("depth", reference.DEPTHS)
def test_outputs_equal_the_stored_ones_of_torchvision(depth):
    actual, expected = formula_outputs(make(depth)), stored_outputs(depth)
    np.testing.assert_allclose(actual["eval"], expected["eval"], atol=1e-5)
    np.testing.assert_allclose(actual["train"], expected["train"], atol=5e-4)
    assert actual["running"].keys() == expected["running"].keys()
    for name, value in actual["running"].items():
        np.testing.assert_allclose(value.mean(), expected["running"][name], atol=1e-5)


def test_bfloat16_keeps_float32_where_it_matters():
    actual, expected = formula_outputs(make(18, dtype=jnp.bfloat16)), stored_outputs(18)
    assert {actual[mode].dtype for mode in ("eval", "train")} == {jnp.dtype("float32")}
    assert {value.dtype for value in actual["running"].values()} == {np.dtype("float32")}
    for mode, close in (("eval", 0.02), ("train", 0.2)):
        difference = np.abs(actual[mode] - np.array(expected[mode]))
        assert 1e-4 < difference.max() < close


def random_model(depth):
    """torchvision's own initial weights, and norms that are not the identity."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=reference.CLASSES)
    with torch.no_grad():
        model.fc.bias.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("depth", reference.DEPTHS)
def test_outputs_equal_those_of_torchvision(depth):
    theirs, ours = random_model(depth), make(depth)
    state = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    images = np.random.default_rng(depth).normal(size=(4, 3, 64, 64)).astype(np.float32)
    actual = outputs(ours, with_weights(ours, state), images)
    expected = reference.torchvision_outputs(theirs, images)
    assert_close(actual["eval"], expected["eval"], rtol=1e-5)
    assert_close(actual["train"], expected["train"], rtol=2e-4)
    for name, value in expected["running"].items():
        assert_close(actual["running"][name], value, rtol=1e-4)


@pytest.mark.parametrize("size", [7, 8])
def test_max_pool_pads_with_minus_infinity(size):
    x = -1 - np.random.default_rng(0).random((2, size, size, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    half = (size + 1) // 2
    expected = np.empty((2, half, half, 3), np.float32)
    for i in range(half):
        for j in range(half):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, i, j] = window.max((1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)


@pytest.mark.parametrize(("depth", "width"), [(18, 512), (50, 2048)])
def test_features(depth, width):
    model = make(depth)
    images = jax.ShapeDtypeStruct((3, 40, 33, 3), jnp.bfloat16)
    features = jax.eval_shape(
        lambda v, x: model.apply(v, x, False, method="features"), shapes(model), images
    )
    assert features.shape == (3, width)
    assert features.dtype == jnp.float32


def test_all_convolutions_pass_through_the_seam(monkeypatch):
    calls = []

    def spy(x, kernel, stride):
        calls.append((kernel.shape[0], stride))
        return plain(x, kernel, stride)

    plain = layers_module.convolution
    monkeypatch.setattr(layers_module, "convolution", spy)
    shapes(make(50))
    assert len(calls) == CONVOLUTIONS[50]
    assert calls.count((7, 2)) == 1
    # The stride of a stage is on the 3×3 convolution of its first block and on the shortcut.
    assert calls.count((3, 2)) == calls.count((1, 2)) == 3


def test_create():
    tree = dh2l.Hierarchy.two_level([0, 0, 1])
    model = models.create("resnet50", hierarchy=tree, dtype=jnp.bfloat16, center="mean")
    assert isinstance(model, TorchvisionResNet)
    assert (model.depth, model.dtype, model.head.center) == (50, jnp.bfloat16, "mean")
    assert isinstance(models.create("resnet56", num_classes=3), CifarResNet)
    params = shapes(models.create("resnet18", hierarchy=tree))["params"]
    assert {name: leaf.shape for name, leaf in params["head"].items()} == {
        "surface_2": (3, 512),
        "center_2": (2, 512),
    }


def test_the_shortcut_is_no_option_here():
    with pytest.raises(ValueError, match=r"resnet18 takes no shortcut, got 'B'.*resnet20"):
        models.create("resnet18", num_classes=3, shortcut="B")


def test_bad_depth_and_images():
    with pytest.raises(ValueError, match="unknown depth 20: did you mean '50'"):
        make(20)
    for shape in ((1, 31, 64, 3), (64, 64, 3)):
        with pytest.raises(ValueError, match=r"images must have shape .* ≥ 32"):
            shapes(make(18), shape)

"""torchvision's weights in: names, layouts, statistics, and what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import pth_files
from support.pth_files import MAKERS

from dh2l_jax import models
from dh2l_jax.models.weights.formats import write_safetensors
from dh2l_jax.models.weights.torchvision import (
    load_pretrained,
    load_state_dict,
    torchvision_state_dict,
)
from dh2l_jax.training import experiment
from dh2l_jax.training.config import Config, DataConfig, ModelConfig

PARAMETERS = {18: 11_689_512, 50: 25_557_032}


@functools.cache
def abstract(depth, classes=10):
    """A network with a plain head, and the shapes of its variables."""
    model = models.create(f"resnet{depth}", num_classes=classes)
    images = jnp.zeros((1, 32, 32, 3))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def filled(depth, value, classes=10):
    """Variables of a network, all of one value."""
    shapes = abstract(depth, classes)[1]
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)


@functools.cache
def imagenet(depth):
    """A state dict as torchvision's file of ImageNet weights holds it, with random numbers."""
    state, generator = {}, np.random.default_rng(depth)
    for name, value in torchvision_state_dict(filled(depth, 0, 1000)).items():
        if not name.endswith("num_batches_tracked"):
            state[name] = generator.random(value.shape, np.float32)
    return state


def layers(variables):
    """Variables without the head."""
    return {**variables, "params": {k: v for k, v in variables["params"].items() if k != "head"}}


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# In.


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameter_counts_of_torchvision(depth):
    state = torchvision_state_dict(filled(depth, 0, 1000))
    names = [name for name in state if "running" not in name and "batches" not in name]
    assert sum(state[name].size for name in names) == PARAMETERS[depth]
    assert state["fc.weight"].shape == (1000, 512 if depth < 50 else 2048)


@pytest.mark.parametrize(("depth", "kind"), [(18, "zip"), (18, "stream"), (50, "tar")])
def test_every_weight_and_statistic_comes_from_the_file(tmp_path, depth, kind):
    (tmp_path / "resnet.pth").write_bytes(MAKERS[kind](imagenet(depth)))
    before = filled(depth, -7)
    after = load_pretrained(tmp_path / "resnet.pth", before)
    # 10 classes of our own in place of ImageNet's 1000: the head is the only thing that stays.
    assert_same_bits(after["params"]["head"], before["params"]["head"])
    assert min(leaf.min() for leaf in jax.tree.leaves(layers(after))) >= 0
    state = torchvision_state_dict(after)
    for name, value in imagenet(depth).items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(state[name], value)


def test_layouts():
    """By hand, one number of each kind of tensor."""
    state = {name: np.zeros_like(value) for name, value in imagenet(18).items()}
    state["layer2.0.conv1.weight"][5, 4, 2, 1] = 1  # out, in, row, column
    state["layer2.0.downsample.0.weight"][6, 7, 0, 0] = 2
    state["layer4.1.bn2.running_var"][8] = 3
    state["bn1.running_mean"][9] = 4
    state["bn1.weight"][10] = 5
    variables = load_state_dict(state, filled(18, 0))
    params, statistics = variables["params"], variables["batch_stats"]
    assert params["block_2_1"]["conv_1"]["kernel"][2, 1, 4, 5] == 1
    assert params["block_2_1"]["conv_shortcut"]["kernel"][0, 0, 7, 6] == 2
    assert statistics["block_4_2"]["norm_2"]["var"][8] == 3
    assert statistics["stem"]["norm"]["mean"][9] == 4
    assert params["stem"]["norm"]["scale"][10] == 5
    assert sum(leaf.sum() for leaf in jax.tree.leaves(variables)) == 15


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_weights_of_another_precision(dtype):
    state = {name: value.astype(jnp.dtype(dtype)) for name, value in imagenet(18).items()}
    variables = load_state_dict(state, filled(18, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        kernel, state["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


def test_devices_stay():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    before = jax.device_put(filled(18, 0), everywhere)
    after = load_state_dict(imagenet(18), before)
    assert {leaf.sharding for leaf in jax.tree.leaves(after)} == {everywhere}


def test_the_file_s_head_is_not_needed():
    state = {name: value for name, value in imagenet(18).items() if not name.startswith("fc.")}
    assert_same_bits(
        load_state_dict(state, filled(18, 0)), load_state_dict(imagenet(18), filled(18, 0))
    )


def test_weights_of_data_parallel():
    state = {f"module.{name}": value for name, value in imagenet(18).items()}
    expected = load_state_dict(imagenet(18), filled(18, 0))
    assert_same_bits(load_state_dict(state, filled(18, 0)), expected)


def test_a_hierarchical_head_stays():
    before = filled(18, -7)
    before["params"]["head"] = {"surface_2": np.ones((5, 512)), "center_2": np.ones((2, 512))}
    after = load_state_dict(imagenet(18), before)
    assert_same_bits(after["params"]["head"], before["params"]["head"])
    assert_same_bits(layers(after), layers(load_state_dict(imagenet(18), filled(18, 0))))


@pytest.mark.parametrize("name", ["resnet.pth", "resnet.safetensors"])
def test_a_run_reads_the_file_once(tmp_path, name):
    """What is built has the weights in it: the file may be gone when they are needed."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32)).save(tmp_path / "images" / label / f"{i}.png")
    file, folders = tmp_path / name, {"data_dir": "images", "cache_dir": "cache"}
    if name == "resnet.pth":
        file.write_bytes(MAKERS["zip"](imagenet(18)))
    else:
        write_safetensors(file, imagenet(18), {})
    folders = {name: str(tmp_path / folder) for name, folder in folders.items()}
    run = Config(
        batch_size=2,
        data=DataConfig(name="folder", **folders),
        model=ModelConfig(name="resnet18", pretrained=str(file)),
    )
    built = experiment.build(run)
    file.unlink()
    kernel = built.init(abstract=True).params["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, imagenet(18)["conv1.weight"].transpose(2, 3, 1, 0))
    assert experiment.build(run, training=False).pretrained is None
    with pytest.raises(OSError, match=name):
        experiment.build(run)


# What does not fit.


def changed(depth=18, **values):
    """A state dict with tensors replaced; None takes one away."""
    state = imagenet(depth) | {name.replace("__", "."): value for name, value in values.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: imagenet(50), "expected the weights of resnet18, found resnet50: "),
        (dict, "found another network: 100 missing (bn1.bias, bn1.running_mean, "),
        (lambda: {"a" * 999: np.zeros(1)}, f"1 unexpected ('{'a' * 77}...')"),
        (lambda: {"a\n": np.zeros(1)}, r"expected printable names, found 'a\n'"),
        (
            lambda: changed(layer1__0__conv1__weight=None),
            "found a variant of it: 1 missing (layer1.0.conv1.weight)",
        ),
        (
            lambda: changed(layer5__0__conv1__weight=np.zeros(3)),
            "found a variant of it: 1 unexpected ('layer5.0.conv1.weight')",
        ),
        (
            lambda: changed(conv1__weight=np.zeros((64, 4, 7, 7), np.float32)),
            "1 of another shape (conv1.weight (64, 4, 7, 7) for (64, 3, 7, 7))",
        ),
        (
            lambda: changed(conv1__weight=np.zeros((7, 7, 3, 64), np.float32)),
            "1 of another shape (conv1.weight (7, 7, 3, 64) for (64, 3, 7, 7))",
        ),
        (
            lambda: changed(conv1__weight=np.zeros((64, 3, 7, 7), np.uint8)),
            "expected floats in conv1.weight, found uint8",
        ),
        (
            lambda: changed(bn1__running_var=-np.ones(64)),
            "expected finite numbers, and variances ≥ 0, in bn1.running_var",
        ),
        (
            lambda: changed(bn1__bias=np.full(64, np.nan)),
            "expected finite numbers, and variances ≥ 0, in bn1.bias",
        ),
        (
            lambda: changed(bn1__bias=np.full(64, 1e300)),
            "expected finite numbers, and variances ≥ 0, in bn1.bias",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, state, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(pth_files.zip_file(state()))
    before = filled(18, 0)
    with pytest.raises(ValueError) as info:
        load_pretrained(path, before)
    assert str(info.value).startswith(f"{path}: ")
    assert str(info.value).isprintable()
    assert len(str(info.value)) < len(str(path)) + 1000
    assert message in str(info.value)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(before))


def test_variables_of_another_network():
    model = models.create("resnet8", num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    cifar = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    other = {"params": {"dense": {"kernel": np.zeros((2, 2))}}}
    for variables, found in ((cifar, "another network's"), (other, "'params/dense/kernel'")):
        message = f"expected the variables of a TorchvisionResNet, found {found}"
        with pytest.raises(ValueError, match=message):
            load_state_dict({}, variables)
    head = {"surface_2": np.zeros((5, 512)), "center_2": np.zeros((2, 512))}
    variables = filled(18, 0)
    variables["params"]["head"] = head
    with pytest.raises(ValueError, match="expected a plain head, found surface_2, center_2"):
        torchvision_state_dict(variables)


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "resnet18-5c106cde.pth"
    path.write_bytes(pth_files.tar_file({}))
    with pytest.raises(ValueError, match=r"resnet18-5c106cde\.pth: expected a sha256 that begins"):
        load_pretrained(path, filled(18, 0))
    with pytest.raises(OSError, match=r"none\.pth"):
        load_pretrained(tmp_path / "none.pth", filled(18, 0))


# torchvision itself, where it is installed.


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_names_and_shapes_are_torchvision_s(depth):
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    ours = torchvision_state_dict(filled(depth, 0, 1000))
    assert {name: (value.shape, str(value.dtype)) for name, value in ours.items()} == {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in theirs.items()
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_weights_that_torch_saved(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    state = torchvision_state_dict(load_pretrained(path, filled(18, 0)))
    for name, value in network.state_dict().items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(state[name], value.numpy())

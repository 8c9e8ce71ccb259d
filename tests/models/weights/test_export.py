"""Our networks in a safetensors file: names, heads, metadata, and the logits that come back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import make_torchvision_fixture as reference
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file
from support.helpers import assert_close

import dh2l_jax as dh2l
from dh2l_jax import models
from dh2l_jax.models.weights.export import export_safetensors
from dh2l_jax.models.weights.torchvision import load_state_dict

TREE = dh2l.Hierarchy.two_level([0, 0, 1, 1, 1])
IMAGES = reference.formula("images", (2, 3, 32, 32))
PIXELS = jnp.asarray(IMAGES.transpose(0, 2, 3, 1))
HEADS = {
    "plain": {},
    "free": {"hierarchy": TREE},
    "mean": {"hierarchy": TREE, "center": "mean"},
    "epsilon": {"hierarchy": TREE, "center": "epsilon", "epsilon": 0.3},
    "absolute": {"hierarchy": TREE, "logits": "absolute"},
    "inner surfaces": {"hierarchy": TREE, "inner_surfaces": True},
}


@functools.cache
def network(name, **options):
    """A network on five classes, and variables whose statistics are not those of the beginning."""
    model = models.create(name, **(options or {"num_classes": 5}))
    variables = model.init(jax.random.key(0), PIXELS, train=False)
    shift = functools.partial(jax.tree.map, lambda leaf: leaf + 0.1)
    return model, {**variables, "batch_stats": shift(variables["batch_stats"])}


def logits(model, variables):
    return model.apply(variables, PIXELS, train=False)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet8", head) for head in HEADS] + [("resnet18", "plain")]
)
def test_what_comes_back_has_the_same_logits(tmp_path, name, head):
    """In the same network with a plain head."""
    model, variables = network(name, **HEADS[head])
    path = export_safetensors(tmp_path / "weights.safetensors", model, variables, {"of": "a run"})
    state, (plain, like) = load_file(path), network(name)
    if name == "resnet8":
        back, bits = unflatten_dict(state, sep="/"), state["params/stem/conv/kernel"]
        facts = {"format": "flax", "names": "dh2l_jax"}
    else:
        back, bits = load_state_dict(state, like), state["conv1.weight"].transpose(2, 3, 1, 0)
        back["params"]["head"]["kernel"] = state["fc.weight"].T
        facts = {"format": "pt", "names": "torchvision"}
    facts["head"] = "plain" if head == "plain" else "the kernel of a hierarchical head"
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, like)
    np.testing.assert_array_equal(bits, variables["params"]["stem"]["conv"]["kernel"])
    assert_close(logits(plain, back), logits(model, variables), rtol=1e-5)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"of": "a run", **facts}


def test_torchvision_s_names(tmp_path):
    """Bit for bit, with zeros for what we have not."""
    model, variables = network("resnet18", hierarchy=TREE)
    state = load_file(export_safetensors(tmp_path / "file", model, variables))
    assert len(state) == 122
    assert not state["fc.bias"].any()
    assert state["bn1.num_batches_tracked"].shape == ()
    back = load_state_dict(state, variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    kernel = models.dense_kernel(variables, TREE)
    np.testing.assert_array_equal(state["fc.weight"], np.asarray(kernel).T)


def test_a_head_with_a_bias(tmp_path):
    model, variables = network("resnet18")
    bias = np.arange(5, dtype=np.float32)
    head = {**variables["params"]["head"], "bias": bias}
    variables = {**variables, "params": {**variables["params"], "head": head}}
    state = load_file(export_safetensors(tmp_path / "file", model, variables))
    np.testing.assert_array_equal(state["fc.bias"], bias)


def test_nothing_is_written_for_variables_of_another_network(tmp_path):
    (_, variables), (model, _) = network("resnet8"), network("resnet18")
    with pytest.raises(ValueError, match="expected the variables of a TorchvisionResNet"):
        export_safetensors(tmp_path / "file", model, variables)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_takes_the_export(tmp_path):
    """Where it is installed; the hierarchical head too: strictly, and with the same logits."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    from safetensors.torch import load_file as load

    model, variables = network("resnet18", hierarchy=TREE)
    path = export_safetensors(tmp_path / "weights.safetensors", model, variables)
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(load(path), strict=True)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IMAGES)).numpy()
    assert_close(logits(model, variables), expected, rtol=1e-5)

"""Fixed frames, sphere heads and heads of nodes: values, parameters, one kernel, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file

import dh2l_jax as dh2l
from dh2l_jax import Hierarchy, models
from dh2l_jax.models import FrameHead, Network, NodeHead, SphereHead, dense_kernel
from dh2l_jax.models.factory import _other_head
from dh2l_jax.models.weights.export import export_safetensors

FIELD = Hierarchy.from_parents(([0, 0, 1], [0, 0, 1, 2, 2]))
UNEVEN = Hierarchy.from_paths({"a": "", "b": "x/y", "c": "x/y", "d": "x", "e": "z"})
X = jax.random.normal(jax.random.key(1), (4, 6))


class Features(Network):
    """A network of one layer, without images."""

    def body(self, images, train):
        return images


def network(head, tree):
    top, neck = _other_head(head, tree, None, 2.0)
    model = Features(1, top, neck=neck)
    init = jax.jit(lambda: model.init(jax.random.key(0), X, train=False))
    return model, {"params": {}, **init()}


def logits_of(model, variables):
    return jax.jit(lambda v: model.apply(v, X, train=False))(variables)


def test_vectors_of_the_sphere_head():
    """The example of the published values: R₀ = 2, γ = ½."""
    rows = {
        1: [(3, 4, 0), (0, 0, 5)],
        2: [(1, 2, 2), (2, -2, 1), (0, 3, 4)],
        3: [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 3, 4), (4, 0, 3)],
    }
    direction = np.zeros((10, 3), np.float32)
    for level, vectors in rows.items():
        direction[FIELD.level_nodes(level)] = vectors
    vectors = SphereHead(FIELD, radius=2.0, gamma=0.5).kernel({"direction": direction}).T
    expected = {
        0: (1.0166666667, 1.1333333333, 0.3333333333),
        3: (0, 0.45, 1.6),
        4: (0.2, 0.3, 1.55),
    }
    for leaf, vector in expected.items():
        np.testing.assert_allclose(vectors[leaf], vector, rtol=1e-6, atol=1e-7)


def test_steps_of_the_sphere_head_on_an_uneven_tree():
    """Each class's vector by a loop up its ancestors."""
    head = SphereHead(UNEVEN, radius=1.5, gamma=0.7)
    direction = np.random.default_rng(0).normal(size=(UNEVEN.num_nodes - 1, 6))
    parents, expected = UNEVEN.node_parents(), np.zeros((5, 6))
    for leaf in range(5):
        node = leaf
        while node != UNEVEN.num_nodes - 1:
            step = direction[node] / np.linalg.norm(direction[node])
            expected[leaf] += 1.5 * 0.7 ** UNEVEN.depth(node) * step
            node = parents[node]
    found = dense_kernel({"direction": direction.astype(np.float32)}, head)
    np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tree", [FIELD, UNEVEN], ids=["even", "uneven"])
def test_log_probabilities_of_the_node_heads(tree):
    """By loops over paths; conditional ones sum to 1, and siblings share what their parent has."""
    for kind in ("conditional", "hrn"):
        model, variables = network(kind, tree)
        z = np.asarray(X, np.float64) @ np.asarray(variables["params"]["head"]["kernel"])
        parents, root = tree.node_parents(), tree.num_nodes - 1
        expected = np.zeros((len(X), tree.num_classes))
        for leaf in range(tree.num_classes):
            node = leaf
            while node != root:
                group = [v for v in range(root) if parents[v] == parents[node]]
                norm = np.log(np.exp(z[:, group]).sum(1)) if kind == "conditional" else 0
                expected[:, leaf] += z[:, node] - norm
                node = parents[node]
        logits = logits_of(model, variables)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        if kind == "conditional":
            np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)


PARAMETERS = {  # of a head on the tree FIELD and features of width 6, without the neck's
    "haframe": {},
    "etf": {},
    "sphere": {"direction": (10, 6)},
    "conditional": {"kernel": (6, 10)},
    "hrn": {"kernel": (6, 10)},
}


@pytest.mark.parametrize("head", PARAMETERS)
def test_export_gives_the_same_logits(tmp_path, head):
    """As one kernel where the logits are linear in the features, as it is where they are not."""
    model, variables = network(head, FIELD)
    params = variables["params"]
    assert jax.tree.map(jnp.shape, params.get("head", {})) == PARAMETERS[head]
    logits = logits_of(model, variables)
    assert (logits.shape, logits.dtype) == ((4, 5), jnp.float32)
    path = export_safetensors(tmp_path / "file", model, variables)
    state = unflatten_dict(load_file(path), sep="/")
    if head == "conditional":
        back = logits_of(model, state)
        with pytest.raises(ValueError, match="conditional soft-max are not linear"):
            dense_kernel(params, model.head)
    else:
        features = jax.jit(lambda v: model.apply(v, X, False, method=model.features))(variables)
        kernel = state["params"]["head"]["kernel"]
        np.testing.assert_array_equal(kernel, dense_kernel(variables, model.head))
        back = features @ kernel
    np.testing.assert_allclose(back, logits, rtol=1e-5, atol=1e-5)
    kept = {name for name in flatten_dict(state, sep="/") if "/head/" not in name}
    assert kept == {name for name in flatten_dict(variables, sep="/") if "/head/" not in name}
    with safe_open(path, "numpy") as file:
        assert file.metadata()["head"] != "plain"


def test_networks_of_torchvision_take_every_head():
    """The file has torchvision's names where the head is one kernel and nothing comes before it."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for head, named in {
        "sphere": True,
        "hrn": True,
        "conditional": False,
        "haframe": False,
        "etf": False,
    }.items():
        model = models.create("resnet18", hierarchy=FIELD, head=head)
        init = functools.partial(model.init_with_output, train=False)
        logits, variables = jax.eval_shape(init, jax.random.key(0), images)
        assert logits.shape == (1, 5)
        assert models.weights.has_torch_names(model) == named
        assert ("neck" in variables["batch_stats"]) == (head in ("haframe", "etf"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NodeHead(FIELD, "hrm"), "unknown kind 'hrm': did you mean 'hrn'"),
        (lambda: FrameHead(FIELD, "hafram", 5), "unknown kind 'hafram': did you mean 'haframe'"),
        (
            lambda: FrameHead(Hierarchy.flat(66), "etf", 64),
            "etf head of 66 classes needs features of width 65 or more, found 64",
        ),
        (
            lambda: models.create("resnet8", hierarchy=FIELD, head="spheres"),
            "unknown head 'spheres': did you mean 'sphere'",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_heads_are_names_of_the_package():
    assert {name for name in dir(dh2l.models) if name.endswith("Head")} == {
        "FrameHead", "HierarchicalHead", "NodeHead", "SphereHead",
    }  # fmt: skip

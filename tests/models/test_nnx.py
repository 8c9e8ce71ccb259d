"""The NNX shells: the same parameters and logits as Linen's, in every way that NNX is used."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dh2l_jax as dh2l
from dh2l_jax.models import HierarchicalHead, dense_kernel

TREE = dh2l.Hierarchy.from_parents(([0, 0, 1], [0, 1, 1, 2, 2]))
X = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
OPTIONS = [
    {"center": center, "logits": logits, "inner_surfaces": inner}
    for center in ("free", "mean", "epsilon")
    for logits in ("relative", "absolute")
    for inner in (False, True)
]


def nnx_head(**options):
    return dh2l.models.nnx.HierarchicalHead(TREE, 8, epsilon=0.3, rngs=nnx.Rngs(0), **options)


def params_of(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_parameters_go_both_ways_with_equal_logits(options):
    linen, head = HierarchicalHead(TREE, epsilon=0.3, **options), nnx_head(**options)
    params = linen.init(jax.random.key(1), X)["params"]
    own = params_of(head)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, params)
    logits = linen.apply({"params": params}, X)
    assert not np.allclose(head(X), logits)
    chex.assert_trees_all_equal(linen.apply({"params": own}, X), head(X))  # NNX to Linen
    nnx.update(head, params)  # Linen to NNX
    chex.assert_trees_all_equal(head(X), logits)
    center = {name: options[name] for name in ("center", "logits")}
    kernel = dense_kernel(nnx.state(head, nnx.Param), TREE, epsilon=0.3, **center)
    chex.assert_trees_all_close(X @ kernel, logits, atol=1e-5)


def test_logits_are_those_of_loops():
    head = nnx_head()
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params_of(head))
    expected = [
        X @ (w - params["center_3"][parent])
        for w, parent in zip(params["surface_3"], TREE.parents(3), strict=True)
    ]
    np.testing.assert_allclose(head(X), np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)


def test_regularisers_take_the_state_of_a_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 8, rngs=rngs)
            self.head = dh2l.models.nnx.HierarchicalHead(TREE, 8, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.layer(x)))

    model = Model(nnx.Rngs(0))

    @nnx.jit
    @nnx.value_and_grad
    def regularizer(model):
        levels = dh2l.sphere_levels(nnx.state(model.head, nnx.Param), TREE)
        return dh2l.hierarchical(levels, TREE, "d_am_cos")[0]

    value, gradients = regularizer(model)
    params = params_of(model.head)
    expected, _ = dh2l.hierarchical(dh2l.sphere_levels(params, TREE), TREE, "d_am_cos")
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    found = nnx.to_pure_dict(gradients)
    assert np.any(found["head"]["surface_3"])
    assert not np.any(found["layer"]["kernel"])
    chex.assert_trees_all_equal(
        dense_kernel(nnx.state(model, nnx.Param), TREE), dense_kernel(params, TREE)
    )


def test_a_head_is_split_copied_and_mapped_over():
    heads = nnx.vmap(lambda key: dh2l.models.nnx.HierarchicalHead(TREE, 8, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert heads.surface_3.shape == (3, TREE.num_classes, 8)
    head = nnx_head()
    graph, state = nnx.split(head)
    chex.assert_trees_all_equal(nnx.merge(graph, state)(X), head(X))
    chex.assert_trees_all_equal(nnx.jit(lambda head, x: head(x))(nnx.clone(head), X), head(X))


def test_plain_head_has_the_variance_of_linens():
    kernel = dh2l.models.nnx.plain_head(4096, 8, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (4096, 8)
    np.testing.assert_allclose(np.var(kernel), 1 / 4096, rtol=0.05)


def test_a_whole_network_comes_over_the_bridge():
    linen = dh2l.models.create("resnet8", hierarchy=TREE)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    model = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(images, train=False)
    variables = {"params": params_of(model), "batch_stats": nnx.state(model, nnx.BatchStat)}
    variables["batch_stats"] = nnx.to_pure_dict(variables["batch_stats"])
    expected = linen.apply(variables, images, train=False)
    chex.assert_trees_all_close(model(images, train=False), expected, atol=1e-6)
    assert dense_kernel(nnx.state(model, nnx.Param), TREE).shape == (64, TREE.num_classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": "fre"}, "unknown center 'fre': did you mean 'free'"),
        ({"logits": "relativ"}, "unknown logits 'relativ': did you mean 'relative'"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nnx_head(**options)


def test_parameters_of_another_tree_are_refused():
    head = nnx_head()
    nnx.update(head, {"surface_3": jnp.ones((4, 8))})
    with pytest.raises(ValueError, match=r"'surface_3' must have shape \(5, 8\), found \(4, 8\)"):
        head(X)
    with pytest.raises(AttributeError, match="has no attribute 'nnxx'"):
        dh2l.models.nnxx  # noqa: B018 (looked up for its error)

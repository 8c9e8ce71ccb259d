"""Vectors of Flax NNX modules against loops over their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.layers import assert_reads, columns, default, energy, grouped, rows

import dh2l_jax as dh2l


class Frozen(nnx.Variable):
    pass


class Model(nnx.Module):
    """A layer of each kind, one shared, one stacked, one frozen."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.conv = nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.einsum = nnx.Einsum("btd,dhk->bthk", (5, 2, 3), rngs=rngs)
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.frozen = Frozen(jnp.ones((4, 4)))
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.lora = nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs)
        self.lora.lora.lora_b[...] = jax.random.normal(jax.random.key(0), (2, 4))  # else zeros
        stack = nnx.vmap(lambda rngs: nnx.Linear(5, 6, rngs=rngs))
        self.stack = nnx.split_rngs(splits=3)(stack)(rngs)
        self.tied = self.layers[0]
        self.up = nnx.ConvTranspose(4, 6, (3, 3), transpose_kernel=True, rngs=rngs)


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(0))


def by_hand(model):
    attention, lora = model.attention, model.lora
    heads = {f"attention/{n}/kernel": getattr(attention, n) for n in ("key", "query", "value")}
    return {path: columns(layer.kernel[...], 2) for path, layer in heads.items()} | {
        "attention/out/kernel": columns(attention.out.kernel[...]),
        "conv/kernel": grouped(columns(model.conv.kernel[...]), 2),
        "einsum/kernel": columns(model.einsum.kernel[...], 2),
        "embed/embedding": rows(model.embed.embedding[...]),
        "layers/0/kernel": columns(model.layers[0].kernel[...]),
        "lora/kernel": columns(lora.kernel[...]),
        "lora/lora/lora_a": columns(lora.lora.lora_a[...]),
        "lora/lora/lora_b": np.asarray(lora.lora.lora_b[...]).T,
        "stack/kernel": [columns(k) for k in np.asarray(model.stack.kernel[...])],
        "up/kernel": columns(np.swapaxes(model.up.kernel[...], 2, 3)),
    }


def test_a_module_tells_its_layouts(model):
    plan = dh2l.plan(model, default(".*"))
    expected = by_hand(model)
    for params in (model, nnx.state(model), nnx.state(model, nnx.Param)):  # S7
        assert_reads(plan, params, expected)
    assert dh2l.plan(nnx.state(model, nnx.Param), default(".*"), module=model).layers == plan.layers
    left_out = plan.left_out
    assert left_out["tied"] == "the same as 'layers/0'"
    assert left_out["frozen"] == "an nnx.Frozen, no nnx.Param"
    assert left_out["attention/key/bias"] == left_out["stack/bias"] == "a bias"  # S12
    assert {"layers/1/scale", "layers/1/bias", "layers/1/mean", "layers/1/var"} < left_out.keys()


def test_a_bare_state_asks(model):
    with pytest.raises(ValueError, match=r"'attention/key/kernel' of shape .*rule"):
        dh2l.plan(nnx.state(model))
    assert set(dh2l.kernel_matrices(nnx.state(model), include="^(layers|lora)/.*kernel$")) == {
        "layers/0/kernel",
        "lora/kernel",
    }


def test_a_shared_variable_counts_once():
    class Tied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(4, 7, rngs=nnx.Rngs(0))
            self.head.kernel = self.embed.embedding

    model = Tied()
    plan = dh2l.plan(model, default("embedding|kernel"))
    assert_reads(plan, model, {"embed/embedding": rows(model.embed.embedding[...])})
    assert plan.left_out["head/kernel"] == "the same as 'embed/embedding'"


def test_in_a_step_of_nnx(model):
    """The loss form under nnx.jit and nnx.grad, and the link in an nnx.Optimizer: equal for SGD."""
    plan = dh2l.plan(model, default("kernel"))
    graph, state = nnx.split(model)
    by_link = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    by_loss = nnx.merge(graph, jax.tree.map(jnp.copy, state))

    @nnx.jit
    def step(model, optimizer, weight):
        value, gradient = nnx.value_and_grad(lambda m: weight * plan.value(m))(model)
        optimizer.update(model, gradient)
        return value

    link = dh2l.add_regularization(plan, 0.3)
    optimizer = nnx.Optimizer(by_link, optax.chain(link, optax.sgd(0.1)), wrt=nnx.Param)
    step(by_link, optimizer, 0.0)
    value = step(by_loss, nnx.Optimizer(by_loss, optax.sgd(0.1), wrt=nnx.Param), 0.3)
    pairs = zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (by_link, by_loss)), strict=True
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    matrices = [by_hand(model)[layer.path] for layer in plan.layers]
    flat = [W for m in matrices for W in (m if isinstance(m, list) else [m])]
    np.testing.assert_allclose(value, 0.3 * energy(flat), rtol=2e-6, atol=1e-6)
    with pytest.raises(ValueError, match="optimiser state Optimizer"):  # S6
        dh2l.plan(optimizer)

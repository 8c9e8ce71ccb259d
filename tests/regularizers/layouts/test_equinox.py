"""Vectors of Equinox modules against loops over their weights."""

import jax
import numpy as np
import pytest
from support.layers import assert_reads, default, grouped, rows

import dh2l_jax as dh2l

eqx = pytest.importorskip("equinox")
KEY = jax.random.key(0)


class Own(eqx.Module):
    """A layer of each kind, one stacked; an activation, which is a leaf as well."""

    attention: eqx.nn.MultiheadAttention
    conv: eqx.nn.Conv2d
    gru: eqx.nn.GRUCell
    mlp: eqx.nn.MLP
    norm: eqx.nn.LayerNorm
    stack: eqx.nn.Linear
    table: eqx.nn.Embedding
    up: eqx.nn.ConvTranspose1d

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=KEY)
        self.conv = eqx.nn.Conv2d(4, 8, 3, groups=2, key=KEY)
        self.gru = eqx.nn.GRUCell(3, 4, key=KEY)
        self.mlp = eqx.nn.MLP(2, 3, 4, 1, key=KEY)
        self.norm = eqx.nn.LayerNorm((4, 3))
        make = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 6, key=key))
        self.stack = make(jax.random.split(KEY, 3))
        self.table = eqx.nn.Embedding(7, 4, key=KEY)
        self.up = eqx.nn.ConvTranspose1d(4, 6, 3, key=KEY)


def by_hand(model):
    """S3: outputs come first."""
    attention = {
        f"attention/{name}_proj/weight": rows(getattr(model.attention, f"{name}_proj").weight)
        for name in ("query", "key", "value", "output")
    }
    return attention | {
        "conv/weight": grouped(rows(model.conv.weight), 2),
        "gru/weight_ih": rows(model.gru.weight_ih),
        "gru/weight_hh": rows(model.gru.weight_hh),
        "mlp/layers/0/weight": rows(model.mlp.layers[0].weight),
        "mlp/layers/1/weight": rows(model.mlp.layers[1].weight),
        "stack/weight": [rows(W) for W in model.stack.weight],
        "table/weight": rows(model.table.weight),
        "up/weight": rows(model.up.weight),
    }


def test_a_module_tells_its_layouts():
    model = Own()
    plan = dh2l.plan(model, default("weight"))
    assert_reads(plan, model, by_hand(model))
    assert_reads(plan, eqx.filter(model, eqx.is_array), by_hand(model))
    nested = {"encoder": [model]}
    found = dh2l.plan(nested, default("weight")).matrices(nested)
    assert found.keys() == {f"encoder/0/{path}" for path in by_hand(model)}


def test_biases_and_norms_are_left_out_by_what_they_are():
    """S12: a convolution's bias is (8, 1, 1), a stacked one (3, 6), a norm's weight (4, 3)."""
    model = Own()
    plan = dh2l.plan(model, default(".*"))
    assert plan.matrices(model).keys() == by_hand(model).keys()
    assert plan.left_out["conv/bias"] == plan.left_out["stack/bias"] == "a bias"
    assert plan.left_out["norm/weight"] == "of an eqx.nn.LayerNorm"


def test_in_a_step_of_equinox():
    model = Own()
    plan = dh2l.plan(model, default("weight"))
    params, static = eqx.partition(model, eqx.is_array)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(params):
        return 0.3 * plan.value(eqx.combine(params, static))

    link = dh2l.add_regularization(plan, 0.3)
    zero = jax.tree.map(np.zeros_like, params)
    updates, state = jax.jit(link.update)(zero, link.init(params), params)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(gradient(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.value, plan.value(params), rtol=1e-6, atol=1e-6)
    frozen = eqx.tree_at(lambda m: m.conv.weight, params, None)  # as `eqx.partition` freezes
    zero = jax.tree.map(np.zeros_like, frozen)
    _, state = jax.jit(link.update)(zero, link.init(frozen), frozen)
    rest = [v for path, v in plan.report(model).items() if path != "conv/weight"]
    np.testing.assert_allclose(state.value, sum(rest), rtol=1e-6, atol=1e-6)


def test_the_default_rule_has_other_names():
    with pytest.raises(ValueError, match=r"kernel\|w.*did you mean '.*weight'"):
        dh2l.plan(Own())

"""Bare trees: what names tell (Flax, Haiku), and what is asked for (torch, stacks, heads)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.layers import assert_reads, columns, default, grouped, rows

import dh2l_jax as dh2l

KEY = jax.random.key(0)


def normal(*shape):
    return jax.random.normal(KEY, shape)


def test_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), True)
        table = hk.Embed(7, 4)(jnp.zeros((1,), int))
        return hk.nets.MLP([5, 3])(hk.Flatten()(x)), table

    params, _ = hk.transform_with_state(forward).init(KEY, jnp.ones((1, 4, 4, 2)))
    plan = dh2l.plan(params, default("w$"))
    expected = {
        "conv2_d/w": columns(params["conv2_d"]["w"]),
        "mlp/~/linear_0/w": columns(params["mlp/~/linear_0"]["w"]),
        "mlp/~/linear_1/w": columns(params["mlp/~/linear_1"]["w"]),
    }
    assert_reads(plan, params, expected)
    everything = dh2l.plan(params, default(".*"))
    assert everything.matrices(params).keys() == expected.keys() | {"embed/embeddings"}
    table = params["embed"]["embeddings"]
    np.testing.assert_array_equal(everything.matrices(params)["embed/embeddings"], table)
    assert everything.left_out["batch_norm/offset"] == "a bias"  # (1, 1, 1, 4)


def test_torch():
    """S3: by rule; the names of a state dict are as they are."""
    params = {
        "conv1.weight": normal(8, 4, 3, 3),
        "up.weight": normal(4, 6, 3, 3),
        "dw.weight": normal(8, 2, 3),
        "fc.weight": normal(5, 6),
        "fc.bias": normal(5),
        "bn.weight": normal(8),
        "bn.running_mean": normal(8),
        "bn.num_batches_tracked": jnp.zeros((), jnp.int32),
    }
    with pytest.raises(ValueError, match=r"'conv1.weight'.*'o i kh kw -> o \(i kh kw\)'"):
        dh2l.plan(params, default("weight$"))
    rules = {
        r"^up\.weight$": ("cosine", 1.0, "i o kh kw -> o (i kh kw)"),
        r"^dw\.weight$": ("cosine", 1.0, "(g o) i k -> g o (i k), g=4"),
        r"^fc\.weight$": ("cosine", 1.0, "o i -> o i"),
        r"^conv1\.weight$": ("cosine", 1.0, "o i kh kw -> o (i kh kw)"),
    }
    expected = {
        "conv1.weight": rows(params["conv1.weight"]),
        "dw.weight": grouped(rows(params["dw.weight"]), 4),
        "fc.weight": rows(params["fc.weight"]),
        "up.weight": rows(np.swapaxes(params["up.weight"], 0, 1)),
    }
    assert_reads(dh2l.plan(params, rules), params, expected)
    many = {"(conv1|up)": ("cosine", 1.0, "... kh kw -> (...) (kh kw)")}
    with pytest.raises(ValueError, match=r"'\.\.\.' is no name"):
        dh2l.plan(params, many)


@pytest.mark.parametrize(
    ("path", "shape", "known"),
    [
        ("dense/kernel", (4, 5), True),
        ("linear/w", (4, 5), True),
        ("embed/embedding", (7, 4), True),
        ("conv/kernel", (3, 3, 2, 4), True),
        ("stem/kernel", (11, 11, 3, 4), True),
        ("conv/kernel", (13, 13, 3, 4), False),
        ("conv/kernel", (3, 1, 2, 4), False),
        ("layers/kernel", (3, 5, 4, 3), False),  # S1 and S2 at once: rank 4
        ("ConvTranspose_0/kernel", (3, 3, 6, 4), False),  # S5
        ("conv2_d_transpose/w", (3, 3, 6, 4), False),
        ("ScanBlock_0/kernel", (3, 3, 2, 4), False),
        ("__layer_stack_no_per_layer/w", (3, 3, 2, 4), False),
        ("attn/query/kernel", (5, 4, 3), False),  # S1
        ("layers/kernel", (3, 5, 5), False),  # S2
        ("conv/kernel", (3, 3, 3, 2, 4), False),
        ("fc/weight", (4, 5), False),  # S3
        ("fc.weight", (4, 5), False),
        ("conv/weight", (8, 4, 3, 3), False),
        ("conv/weight", (8, 4, 3, 3, 3), False),
        ("gru/w_i", (4, 5), False),
        ("lora_a", (4, 5), False),
    ],
)
def test_what_a_name_tells_and_what_is_asked_for(path, shape, known):
    """The error prints a rule, which is then enough; `kernel_matrices` says the same."""
    params = {path: normal(*shape)}
    ask = functools.partial(dh2l.plan, params, default(".*"))
    if known:
        assert len(ask().layers) == len(dh2l.kernel_matrices(params, include=".*")) == 1
        return
    with pytest.raises(ValueError, match="can be read as") as caught:
        ask()
    with pytest.raises(ValueError, match="can be read as"):
        dh2l.weight_energy(params, "d_am_cos", include=".*")
    line = str(caught.value)
    assert path in line
    assert "\n" not in line
    rule = eval(f"{{{line.rpartition('such as ')[2]}}}")
    matrix = dh2l.plan(params, rule).matrices(params)[path]
    assert matrix.size == np.prod(shape)


@pytest.mark.parametrize(
    ("path", "leaf", "reason"),
    [
        ("attn/bias", normal(4, 3), "a bias"),
        ("conv/b", normal(8, 1, 1), "a bias"),
        ("rnn.bias_ih_l0", normal(3, 4), "a bias"),
        ("norm/scale", normal(3, 4), "of a normalisation"),
        ("q/kernel", jnp.ones((3, 4), jnp.int8), "int8, not floats: frozen"),
        ("p/kernel", normal(4), "one axis: no vectors"),
    ],
)
def test_what_is_left_out(path, leaf, reason):
    """S12, frozen leaves; a rule for these alone is a mistake."""
    params = {path: leaf, "dense": {"kernel": normal(4, 5)}}
    assert dh2l.plan(params, default(".*")).left_out == {path: reason}
    assert list(dh2l.kernel_matrices(params, include=".*")) == ["dense/kernel"]
    with pytest.raises(ValueError, match=f"has no leaf: '{path}' is left out: {reason}"):
        dh2l.plan(params, default(f"^{path}$"))

"""Rules, plans and axes: values against the oracle, under every transformation, and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from oracle import metrics as oracle
from support.helpers import assert_close, every_metric
from support.layers import columns, energy, grouped

import dh2l_jax as dh2l
from dh2l_jax.regularizers.params.axes import parse
from dh2l_jax.training.step.state import TrainState


def network(dtype=np.float32):
    r = np.random.default_rng(0)
    shapes = {
        "attn/query/kernel": (5, 4, 3),
        "attn/query/bias": (4, 3),
        "conv/kernel": (3, 3, 2, 4),
        "group/kernel": (3, 2, 8),
        "one/kernel": (6, 5),
        "two/kernel": (6, 5),
    }
    return {path: r.normal(size=shape).astype(dtype) for path, shape in shapes.items()}


def rules(first="d_am_cos", second="cosine"):
    return {
        r"attn/.*(query|key)": (first, 0.5, "i h d -> h d i"),
        "group": (second, 0.25, "k i (g o) -> g o (k i), g=2"),
        "two": (first, 2.0),
        "kernel$": (first, 1.0),
    }


def by_hand(params):
    """Path → the matrices of the layer, by loops."""
    heads = np.asarray(params["attn/query/kernel"])
    return {
        "attn/query/kernel": [columns(heads[:, h]) for h in range(4)],
        "conv/kernel": [columns(params["conv/kernel"])],
        "group/kernel": grouped(columns(params["group/kernel"]), 2),
        "one/kernel": [columns(params["one/kernel"])],
        "two/kernel": [columns(params["two/kernel"])],
    }


WEIGHTS = (0.5, 1.0, 0.25, 1.0, 2.0)


@every_metric
def test_value_is_the_sum_over_hand_made_matrices(name):
    """In float64, where 1e-6 is no matter of rounding, as the gradient of a layer is."""
    with jax.enable_x64(True):
        params = network(float)
        plan = dh2l.plan(params, rules(name, name))
        value, report = jax.jit(lambda p: (plan.value(p), plan.report(p)))(params)
    matrices = by_hand(params)
    parts = [w * energy(matrices[p], name) for p, w in zip(matrices, WEIGHTS, strict=True)]
    np.testing.assert_allclose(value, sum(parts), rtol=1e-6)
    np.testing.assert_allclose([report[path] for path in matrices], parts, rtol=1e-6)


PLAN = dh2l.plan(network(), rules())
TOTAL = sum(
    w * energy(W, "cosine" if path.startswith("group") else "d_am_cos")
    for (path, W), w in zip(by_hand(network()).items(), WEIGHTS, strict=True)
)


def on_a_mesh(plan, params):
    """Each of two devices has all the parameters, as in data parallelism."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    fn = jax.shard_map(
        lambda p: jax.lax.pmean(plan.value(p), "data"), mesh=mesh, in_specs=P(), out_specs=P()
    )
    return fn(params)


TRANSFORMATIONS = {
    "alone": lambda plan, p: plan.value(p),
    "report": lambda plan, p: sum(plan.report(p).values()),
    "vmap": lambda plan, p: jax.vmap(plan.value)(jax.tree.map(lambda x: jnp.stack([x, 3 * x]), p)),
    "shard_map": on_a_mesh,
    "remat": lambda plan, p: jax.value_and_grad(jax.checkpoint(plan.value))(p)[0],
    "scan": lambda plan, p: jax.lax.scan(lambda c, _: (c, plan.value(p)), 0, None, length=2)[1],
    "a static argument": lambda plan, p: jax.jit(lambda f, q: f.value(q), static_argnums=0)(
        plan, p
    ),
}


@pytest.mark.parametrize("transformed", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS.keys())
def test_under_a_transformation(transformed):
    np.testing.assert_allclose(
        jax.jit(functools.partial(transformed, PLAN))(network()), TOTAL, rtol=2e-6
    )


def test_a_plan_is_static():
    """Equal and of one hash when made again, of shapes alone too; nothing is traced twice."""
    again = dh2l.plan(jax.eval_shape(network), dh2l.rules(rules()))
    assert again == PLAN
    assert hash(again) == hash(PLAN)
    assert PLAN.left_out == {"attn/query/bias": "a bias"}
    assert PLAN.matrices(network())["attn/query/kernel"].shape == (4, 3, 5)
    assert list(PLAN.report(network())) == [layer.path for layer in PLAN.layers]


def test_gradients_reach_the_layers_alone():
    params = network()
    gradient = jax.jit(jax.grad(PLAN.value))(params)
    assert not gradient["attn/query/bias"].any()
    for head in range(4):
        by_hand = oracle.mean_energy(columns(params["attn/query/kernel"][:, head]), "d_am_cos")[1]
        assert_close(gradient["attn/query/kernel"][:, head], 0.5 * by_hand.T)


def test_any_function_of_a_matrix_and_first_match_wins():
    def largest(W):
        return jnp.max(W)

    params = network()
    plan = dh2l.plan(
        params, {"two": (largest, 3), "group": None, "attn": None, "kernel": ("d_am", 1)}
    )
    assert plan.left_out["group/kernel"] == plan.left_out["attn/query/kernel"] == "by a rule"
    report = plan.report(params)
    np.testing.assert_allclose(report["two/kernel"], 3 * params["two/kernel"].max())
    assert list(report) == ["conv/kernel", "one/kernel", "two/kernel"]
    np.testing.assert_allclose(plan.value(params), sum(report.values()), rtol=1e-6)


def test_dtypes_follow_the_weights():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), network())
    value, gradient = jax.eval_shape(jax.value_and_grad(PLAN.value), params)
    assert (value.dtype, gradient["one/kernel"].dtype) == (jnp.float32, jnp.bfloat16)


def test_one_array_in_two_places_counts_twice_and_is_said():
    kernel = jnp.asarray(network()["one/kernel"])
    plan = dh2l.plan({"a": {"kernel": kernel}, "b": {"kernel": kernel}})
    assert [layer.source for layer in plan.layers] == [
        "its name",
        "its name, the same array as a/kernel",
    ]


def test_it_prints_as_a_table():
    text, page = repr(PLAN), PLAN._repr_html_()
    row = next(line for line in text.splitlines() if line.startswith("attn/query/kernel"))
    assert row.split("  ")[1:] != []
    for cell in ("(5, 4, 3)", "i h d -> h d i", "a rule", "4 × 3 of 5", "d_am_cos", "0.5", "dense"):
        assert cell in row
        assert cell.replace(">", "&gt;") in page
    assert "left out: attn/query/bias: a bias" in text
    assert "<td>attn/query/bias</td><td>a bias</td>" in page
    rule = dh2l.rules(rules())
    assert eval(f"{{{', '.join(repr(rule).splitlines())}}}") == rules()


AXES = [
    ("i o -> o i", (4, 5), (5, 4)),
    ("i h d -> (h d) i", (5, 4, 3), (12, 5)),
    ("h d o -> o (h d)", (4, 3, 5), (5, 12)),
    ("... i o -> ... o i", (2, 3, 4, 5), (2, 3, 5, 4)),
    ("... i o -> ... o i", (4, 5), (5, 4)),
    ("k i (g o) -> g o (k i), g=4", (3, 2, 8), (4, 2, 6)),
    ("(a b c) i -> a (c b) i, a=2, c=3", (12, 5), (2, 6, 5)),
]


@pytest.mark.parametrize(("text", "shape", "expected"), AXES)
def test_axes_are_those_of_einops(text, shape, expected):
    einops = pytest.importorskip("einops")
    x = np.random.default_rng(0).normal(size=shape)
    pattern, *sizes = text.split(",")
    by_einops = einops.rearrange(
        x, pattern, **{k.strip(): int(v) for k, v in (s.split("=") for s in sizes)}
    )
    np.testing.assert_array_equal(
        parse(text).vectors(jnp.asarray(x, jnp.float32)), np.float32(by_einops)
    )
    assert parse(text).shape(shape) == by_einops.shape == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("i o", "expected one '->'"),
        ("i o -> o", "'i' must stand once on each side"),
        ("i o -> o i d", "'d' must stand once on each side"),
        ("i i o -> o i", "'i' must stand once"),
        ("i o -> (o i)", "must end in the vectors' number and length"),
        ("... i -> i ...", "must end in"),
        ("i o -> (...) i", "'...' is no name of an axis"),
        ("1 i -> i 1", "'1' is no name"),
        ("(g o) i -> g o i", "sizes in .g o. are missing"),
        ("i o -> o i, g=2", "'g' is no axis"),
        ("i o -> o i, g", "expected sizes as g=4"),
    ],
)
def test_axes_that_cannot_be(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


STATE = TrainState(0, network(), {}, optax.sgd(0.1).init(network()), jax.random.key(0), rate=1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: dh2l.plan(p, {"kernl": ("d_am", 1)}), "unknown path pattern 'kernl'.*kernel"),
        (lambda p: dh2l.plan(p, {"kernel$": ("d_amm", 1)}), "unknown regulariser 'd_amm'.*d_am"),
        (lambda p: dh2l.plan(p, {"kernel$": "d_am"}), "expected .regulariser, weight.*'d_am'"),
        (lambda p: dh2l.plan(p, {"kernel$": ("d_am", "1")}), "a number as its weight, found '1'"),
        (lambda p: dh2l.plan(p, {"kernel$": ("d_am", np.nan)}), "a number as its weight"),
        (lambda p: dh2l.plan(p, {"(": ("d_am", 1)}), "no regular expression"),
        (lambda p: dh2l.plan(p, "all"), "'default', found 'all'"),
        (lambda p: dh2l.plan(p), "'attn/query/kernel' of shape .5, 4, 3. can be read as"),
        (
            lambda p: dh2l.plan(p, {"one": ("d_am", 1, "i h d -> (h d) i")}),
            r"names 3 axes, 'i h d -> \(h d\) i', 'one/kernel' of shape \(6, 5\) has 2",
        ),
        (
            lambda p: dh2l.plan(p, {"one": ("d_am", 1, "i (g o) -> g o i, g=2")}),
            "5 is no multiple of g=2",
        ),
        (
            lambda p: dh2l.plan(p, {"(one|two)": ("d_am", 1), "one": ("d_am", 2)}),
            r"rule r'one' has no leaf: an earlier one, r'\(one\|two\)', takes 'one/kernel'",
        ),
        (lambda p: dh2l.plan({}), "no array in dict"),
        (
            lambda p: PLAN.value({**p, "one/kernel": np.ones((6, 4))}),
            r"had shape \(6, 5\) in the plan",
        ),
        (lambda p: PLAN.value({"one/kernel": p["one/kernel"]}), "unknown leaf of the plan 'attn"),
        # S6
        (lambda p: dh2l.plan(STATE), "optimiser state TrainState given: .*state.params"),
        (lambda p: dh2l.kernel_matrices(STATE), "optimiser state TrainState"),
        (lambda p: dh2l.plan([p, optax.adam(0.1).init(p)]), "state ScaleByAdamState at '1/0'"),
        (lambda p: dh2l.plan({"run": {"params": p, "opt_state": p}}), "state dict at 'run'"),
        (lambda p: dh2l.plan({"0": {"count": 0, "mu": p, "nu": p}}), "state dict at '0'"),
    ],
)
def test_bad_rules_end_with_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(network())
    assert "\n" not in str(caught.value)

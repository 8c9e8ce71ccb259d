"""Vectors of Flax Linen layers against loops over their kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.layers import assert_reads, columns, default, grouped, rows

import dh2l_jax as dh2l

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 7, 5))
IMAGES = jax.random.normal(KEY, (2, 6, 6, 4))


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = nn.LayerNorm()(x)
        return x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(x, x), None


class Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        return nn.scan(nn.remat(Cell), length=3, **options)(name="layers")(x, None)[0]


class Boxed(nn.Module):
    """One kernel in a box, the other not."""

    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return nn.Dense(3, name="b")(nn.Dense(4, kernel_init=boxed, name="a")(x))


class Tied(nn.Module):
    """Layers made in `setup`, one used in another way than by a call, a kernel of its own."""

    def setup(self):
        self.embed, self.down = nn.Embed(7, 5), nn.DenseGeneral((2, 2), axis=(-2, -1))
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (5, 3))

    def __call__(self, x, train):
        assert train in (True, False)  # no tracer
        return self.embed.attend(x) @ jnp.ones((7, 1)), self.down(x), x @ self.kernel


def vmapped(axis):
    options = {"variable_axes": {"params": axis}, "split_rngs": {"params": True}}
    return nn.vmap(nn.Conv, in_axes=None, axis_size=4, **options)(6, (3,))


def of(*axes):
    """The matrices of a kernel along its axis of layers, each with so many axes of outputs."""
    return lambda kernel: [columns(k, *axes) for k in np.asarray(kernel)]


ATTENTION = {f"{name}/kernel": lambda k: columns(k, 2) for name in ("query", "key", "value")}
SCANNED = {f"layers/MultiHeadDotProductAttention_0/{n}/kernel": of(2) for n in ("query", "key")}
SCANNED |= {"layers/MultiHeadDotProductAttention_0/value/kernel": of(2)}
SCANNED |= {"layers/MultiHeadDotProductAttention_0/out/kernel": of(1)}
MODULES = {
    "dense": (nn.Dense(4), X, {"kernel": columns}),
    "heads (S1)": (
        nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=12),
        X,
        ATTENTION | {"out/kernel": columns},
    ),
    "general (S1)": (nn.DenseGeneral((2, 3)), X, {"kernel": lambda k: columns(k, 2)}),
    "general of two axes": (nn.DenseGeneral(3, axis=(-2, -1)), X, {"kernel": columns}),
    "general with a batch": (nn.DenseGeneral(3, batch_dims=0), X, {"kernel": of(1)}),
    "einsum (S1)": (
        nn.Einsum((5, 4, 3), "bld,dhk->blhk"),
        X,
        {"kernel": lambda k: columns(k, 2)},
    ),
    "convolution": (nn.Conv(6, (3, 2)), IMAGES, {"kernel": columns}),
    "grouped": (
        nn.Conv(8, (3, 3), feature_group_count=2),
        IMAGES,
        {"kernel": lambda k: grouped(columns(k), 2)},
    ),
    "transposed": (nn.ConvTranspose(6, (3, 3)), IMAGES, {"kernel": columns}),
    "transposed kernel (S5)": (
        nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
        IMAGES,
        {"kernel": lambda k: columns(np.swapaxes(k, 2, 3))},
    ),
    "local": (nn.ConvLocal(3, (2,), padding="VALID"), X, {"kernel": of(1)}),
    "stacked convolutions (S2)": (vmapped(0), X, {"kernel": of(1)}),
    "stacked behind": (vmapped(1), X, {"kernel": lambda k: of(1)(np.moveaxis(k, 1, 0))}),
    "scanned (S2)": (Scanned(), X, SCANNED),
    "scanned behind": (
        Scanned(axis=1),
        X,
        {path: lambda k, by=by: by(np.moveaxis(k, 1, 0)) for path, by in SCANNED.items()},
    ),
    "boxed (S7)": (Boxed(), X, {"a/kernel": columns, "b/kernel": columns}),
    "lstm": (
        nn.RNN(nn.OptimizedLSTMCell(4)),
        X,
        {f"cell/{a}{b}/kernel": columns for a in "hi" for b in "fgio"},
    ),
}


def leaf(params, path):
    for key in path.split("/"):
        params = params[key]
    return jax.tree.leaves(params)[0]


@pytest.mark.parametrize(("module", "x", "expected"), MODULES.values(), ids=MODULES.keys())
def test_a_module_tells_its_layouts(module, x, expected):
    inputs = (x, x) if isinstance(module, nn.MultiHeadDotProductAttention) else (x,)
    params = jax.jit(module.init)(KEY, *inputs)["params"]
    rules = default("kernel$")
    plan = dh2l.plan(params, rules, module=module, inputs=inputs)
    assert_reads(plan, params, {path: by(leaf(params, path)) for path, by in expected.items()})
    shapes = jax.eval_shape(lambda: inputs)
    abstract = jax.eval_shape(lambda: params)
    assert dh2l.plan(abstract, rules, module=module, inputs=shapes) == plan


def test_embeddings_are_a_vector_a_row_and_flags_stay_flags():
    """S4; and a kernel that a module makes itself is what its name says."""
    variables = Tied().init(KEY, X, True)
    plan = dh2l.plan(
        variables,
        default("embedding|kernel"),
        module=Tied(),
        inputs={"x": X, "train": False},
    )
    params = variables["params"]
    expected = {
        "params/down/kernel": columns(params["down"]["kernel"], 2),
        "params/embed/embedding": rows(params["embed"]["embedding"]),
        "params/kernel": columns(params["kernel"]),
    }
    assert_reads(plan, variables, expected)


def test_biases_and_norms_are_left_out_by_what_they_are():
    """S12: scanned ones have two axes, a head's too."""
    params = Scanned().init(KEY, X)["params"]
    plan = dh2l.plan(params, default(".*"), module=Scanned(), inputs=(X,))
    left_out = {path for path in plan.left_out if leaf(params, path).ndim > 1}
    attention = "layers/MultiHeadDotProductAttention_0"
    norm = {"layers/LayerNorm_0/bias", "layers/LayerNorm_0/scale"}
    names = ("key", "out", "query", "value")
    assert left_out == norm | {f"{attention}/{name}/bias" for name in names}
    assert [layer.path for layer in plan.layers] == [f"{attention}/{n}/kernel" for n in names]


def test_weight_norm_takes_no_boxes():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(4))(x)

    params = Normed().init(KEY, X)["params"]
    plan = dh2l.plan(params, default("kernel$"), module=Normed(), inputs=(X,))
    assert_reads(plan, params, {"Dense_0/kernel": columns(params["Dense_0"]["kernel"])})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: dh2l.plan(nn.Dense(4)), "no parameters: plan.params, module=Dense"),
        (lambda p: dh2l.plan(p, module=nn.Dense(4)), "inputs=.x, .... of Dense are missing"),
        (
            lambda p: dh2l.plan(p, module=nn.Dense(3), inputs=(X,)),
            r"'bias' has shape \(4,\).*\(3,\)",
        ),
        (lambda p: dh2l.plan(p, module=Boxed(), inputs=(X,)), "'params/a/bias'.*bias"),
    ],
)
def test_a_module_that_does_not_fit(call, words):
    params = nn.Dense(4).init(KEY, X)["params"]
    with pytest.raises(ValueError, match=words) as caught:
        call(params)
    assert "\n" not in str(caught.value)

"""What is chosen by the device that is compiled for, read off programs lowered for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dh2l_jax as dh2l
from dh2l_jax.metrics import blocks
from dh2l_jax.metrics.pairs import Grouped, grouped_energies
from dh2l_jax.metrics.profile import PRECISIONS, is_steep

KEY = jax.random.key(0)
GROUPS = np.arange(2100) // 6
# A sum, and the squares of pairs that it has on CPU and TPU, and on GPU.
SUMS = {
    "mean": (lambda W: dh2l.mean_energy(W, "gaussian"), "525x525", "1050x1050"),
    "asked for": (lambda W: dh2l.mean_energy(W, "gaussian", block=300), "300x300", "300x300"),
    "row max": (
        lambda W: dh2l.mean_energy(W, "gaussian", reduction="row_max"),
        "525x525",
        "1050x1050",
    ),
    "sampled": (
        lambda W: dh2l.mean_energy(W, "gaussian", sample=dh2l.Sampled(8, 16), key=KEY),
        "16x16",
        "8x16x16",
    ),
    "grouped": (
        lambda W: grouped_energies({"": Grouped(W, GROUPS, jnp.ones(2100))}, "gaussian")[""],
        "117x6x6",
        "351x6x6",
    ),
}


def lowered(fn, platform, *size):
    W = jax.ShapeDtypeStruct(size, jnp.float32)
    return jax.jit(jax.value_and_grad(fn)).trace(W).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(blocks, "gpu_plugin", lambda: True)


@pytest.mark.parametrize("name", SUMS)
def test_tiles_follow_the_device_that_is_compiled_for(name, with_gpu):
    fn, elsewhere, on_gpu = SUMS[name]
    for platform, pairs in [("cpu", elsewhere), ("tpu", elsewhere), ("cuda", on_gpu)]:
        text = lowered(fn, platform, 2100, 8)
        other = on_gpu if pairs == elsewhere else elsewhere
        assert text.count(f"<{pairs}xf32>") > 10
        assert other == pairs or text.count(f"<{other}xf32>") < 10  # weights, which all tiles share


def test_without_a_plugin_for_gpus_nothing_is_traced_for_them(monkeypatch):
    monkeypatch.setattr(blocks, "gpu_plugin", lambda: False)
    for fn, *_ in SUMS.values():
        text = str(jax.make_jaxpr(fn)(jnp.ones((2100, 8))))
        assert "rocm" not in text


@pytest.mark.parametrize("name", ["mean", "row max", "sampled", "grouped"])
def test_larger_tiles_have_the_same_sum(name, with_gpu, monkeypatch):
    """The branch for GPUs, run on CPU: value and gradient of the other one."""
    W = np.random.default_rng(0).normal(size=(2100, 8)).astype(np.float32)
    fn = jax.value_and_grad(SUMS[name][0])
    expected = jax.jit(fn)(W)
    monkeypatch.setattr(blocks, "by_platform", lambda fn, elsewhere, on_gpu, *a: fn(on_gpu, *a))
    for module in ("groups", "sampled"):
        monkeypatch.setattr(f"dh2l_jax.metrics.sums.{module}.by_platform", blocks.by_platform)
    found = jax.jit(lambda W: fn(W))(W)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    largest = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5 * largest, rtol=0)
    assert largest > 0


def test_explain_names_both_sizes():
    def text(**options):
        W = jnp.ones((2100, 8))
        return dh2l.mean_energy(W, "cosine", reduction="max", explain=True, **options)[1]

    assert text() == "max: tiles of at most 640 rows, on GPU 2,048, then 2,100 pairs"
    assert text(block=99) == "max: tiles of at most 99 rows, then 2,100 pairs"


# metric → products in three passes of bfloat16: of the similarities and of the gradient, and where
# slopes are steep of the gradient alone.
X3 = {
    "gaussian": 0,
    "gaussian(precision='x3')": 2,
    "angular2(precision='x3')": 2,
    "mhe_s2(precision='x3')": 1,
    "d_cos_hm(precision='x3')": 2,
    "d_am_cos(precision='x3')": 0,  # affine in c
}


@pytest.mark.parametrize("text", X3)
def test_three_passes_where_they_are_asked_for(text):
    """On accelerators; CPUs compute the same bits as without."""
    for platform in ("cuda", "tpu"):
        program = lowered(lambda W: dh2l.mean_energy(W, text), platform, 300, 8)
        assert program.count("num_primitive_operations = 3") == X3[text]
    W = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    name = text.split("(")[0]
    both = jax.jit(
        lambda W: [jax.value_and_grad(dh2l.mean_energy)(W, metric=t) for t in (name, text)]
    )
    for found, expected in zip(*both(W), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_precision_goes_wherever_a_metric_goes():
    text = "mhe_s2(precision='x3')"
    W = jnp.array([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.5]])
    assert dh2l.get_metric(text).precision == "x3"
    assert dh2l.regularizer(text)(W) == dh2l.mean_energy(W, text)
    with pytest.raises(ValueError, match=r"precision 'x4'.*x3"):
        dh2l.get_metric("gaussian(precision='x4')")
    with pytest.raises(ValueError, match="x4"):
        dh2l.regularizer("gaussian(precision='x4')")


@pytest.mark.parametrize(
    ("name", "steep"),
    [("angular2", False), ("n_euclidean2", False), ("d_cos_hm", False), ("gaussian", False)]
    + [(f"mhe_{kind}{s}", True) for kind in "sa" for s in range(3)],
)
def test_poles_are_steep(name, steep):
    assert is_steep(dh2l.get_metric(name).energy) == steep


def test_float64_is_never_rounded():
    W = jax.ShapeDtypeStruct((300, 8), jnp.float32)
    for precision in PRECISIONS:
        fn = lambda W, p=precision: dh2l.mean_energy(  # noqa: E731
            W, f"gaussian(precision={p!r})"
        )
        with jax.enable_x64(True):
            wide = jax.ShapeDtypeStruct(W.shape, jnp.float64)
            text = jax.jit(fn).trace(wide).lower(lowering_platforms=("tpu",)).as_text()
        assert "num_primitive_operations" not in text

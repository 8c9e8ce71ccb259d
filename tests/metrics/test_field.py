"""Reductions of metrics against brute force, and at every edge; the values are in the table's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import rows

import dh2l_jax as dh2l
from dh2l_jax.metrics import explain
from dh2l_jax.metrics.sums import closed

A = np.array([[1, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]], np.float64)


# Of its code: full and half space.
OFFICIAL = {
    "mhe_s0": (-0.1760226886, -0.5937951989),
    "mhe_s1": (1.1880089778, 0.8791717401),
    "mhe_s2": (2.6158935082, 1.3695092624),
    "mhe_a0": (0.9610386801, 0.6805405267),
    "mhe_a1": (0.3531490660, 0.2483171612),
    "mhe_a2": (2.4841753471, 1.2462733439),
}


def official(W, name, *, half_space):
    """MHE as its code has it: 1e−4 under the root of norms, 2n rows for the half-space."""
    W = jnp.concatenate([W, -W]) if half_space else W
    U = W / jnp.sqrt(jnp.sum(W * W, axis=1, keepdims=True) + 1e-4)
    c = (U @ U.T)[np.triu_indices(len(W), 1)]
    s, angle = int(name[-1]), name[-2] == "a"
    z = jnp.arccos(c) / jnp.pi + 1e-4 if angle else 2 - 2 * c
    power = s if angle else s / 2
    return jnp.mean(z**-power if s else -jnp.log(z)) * (0.1 if angle and s else 1)


@pytest.mark.parametrize("x64", [False, True])
def test_official_values(x64):
    @jax.jit
    def values(W):
        return [
            dh2l.mean_energy(W, f"{name}(convention='official')", half_space=half_space)
            for name in OFFICIAL
            for half_space in (False, True)
        ]

    with jax.enable_x64(x64):
        found = values(jnp.asarray(A))
    expected = np.ravel(list(OFFICIAL.values()))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10 if x64 else 0)


def test_official_convention_everywhere():
    """Of short rows, which 1e−4 under the root moves, and of edges; of pairs, groups, layers."""
    name = "mhe_s1(convention='official')"
    edges = np.concatenate([A, 0 * A[:1], 1e30 * A[:1], 1e-30 * A[:1]]).astype(np.float32)

    @jax.jit
    def everything(W, edges):
        mean = functools.partial(dh2l.mean_energy, metric=name)
        return {
            "mean": jax.value_and_grad(mean)(W, half_space=True),
            "expected": jax.value_and_grad(official)(W, "mhe_s1", half_space=True),
            "group": dh2l.group_energy(W, [0] * 5, name, half_space=True),
            "layers": dh2l.weight_energy({"a": {"kernel": W.T}}, name, half_space=True),
            "pair": dh2l.energy(W[0], W[1], name),
            "expected pair": official(W[:2], "mhe_s1", half_space=False),
            "edges": jax.value_and_grad(mean)(edges),
        }

    found = everything(0.03 * rows(3, 5, 4), edges)
    value, slope = found["expected"]
    np.testing.assert_allclose(found["mean"][1], slope, atol=3e-6 * np.abs(slope).max())
    means = [found["mean"][0], found["group"], found["layers"]]
    np.testing.assert_allclose(means, value, rtol=1e-6)
    np.testing.assert_allclose(found["pair"], found["expected pair"], rtol=1e-6)
    assert all(np.isfinite(x).all() for x in found["edges"])
    with pytest.raises(ValueError, match="closed form takes epsilon = 0"):
        dataclasses.replace(dh2l.get_metric("cosine"), epsilon=1e-4)


def profile(c, h):
    """Neither monotone nor of c alone, so that every pair has to be looked at."""
    return jnp.sin(3 * c) + h * c


def uniformity(c, h):
    return -4 * (1 - c)


# By c alone and not, with a pole and a kink, with codes.
METRICS = ("cosine", "mhe_a1", "abs_cosine", "d_cos_hm", profile, uniformity)
WITH_POLES = ("mhe_a1",)
WHERE = np.array([True, True, False, True, True, True, True])


def energies(W, metric, where, *, half_space):
    """(n, n) of the pairs i ≠ j of rows that take part, −∞ elsewhere; half-space: of W ∪ −W."""
    if half_space:
        W, where = jnp.concatenate([W, -W]), np.concatenate([where, where])
    e = dh2l.pairwise(functools.partial(dh2l.energy, metric=metric), W)
    if half_space:  # a vector and its own opposite are where they are, whatever the vector
        own = np.roll(np.eye(len(W), dtype=bool), len(W) // 2, axis=1)
        e = jnp.where(own, jax.lax.stop_gradient(e), e)
    return jnp.where(np.outer(where, where) & ~np.eye(len(W), dtype=bool), e, -jnp.inf)


REDUCTIONS = {
    "log_mean_exp": lambda e: jnp.log(jnp.sum(jnp.exp(e)) / jnp.sum(e > -jnp.inf)),
    "max": lambda e: jnp.max(e),
    "row_max": lambda e: jnp.mean(jnp.max(e, axis=1), where=jnp.any(e > -jnp.inf, axis=1)),
}


CASES = [
    pytest.param(
        metric,
        reduction,
        half_space,
        id=f"{getattr(metric, '__name__', metric)}-{reduction}-{half_space}",
    )
    for metric in METRICS
    for reduction in REDUCTIONS
    for half_space in (False, True)
    if not (reduction == "log_mean_exp" and metric in WITH_POLES)  # refused, see below
]


@pytest.mark.parametrize(("metric", "reduction", "half_space"), CASES)
def test_reductions_equal_brute_force(metric, reduction, half_space):
    """Value, gradient and product with the Hessian, in tiles, with a row left out."""
    W = rows(3, 7, 5)
    W[2] = np.nan  # takes no part
    V = np.random.default_rng(1).normal(size=W.shape)

    def found(W):
        options = {"where": WHERE, "reduction": reduction, "half_space": half_space, "block": 3}
        return dh2l.mean_energy(W, metric, **options)

    def expected(W):
        W = jnp.where(WHERE[:, None], W, 1.0)
        return REDUCTIONS[reduction](energies(W, metric, WHERE, half_space=half_space))

    def parts(fn, W):
        value, gradient = jax.value_and_grad(fn)(W)
        return value, gradient, jax.jvp(jax.grad(fn), (W,), (V,))[1]

    with jax.enable_x64(True):
        W = jnp.asarray(W, jnp.float64)
        pairs = zip(
            *(jax.jit(functools.partial(parts, f))(W) for f in (found, expected)), strict=True
        )
        for mine, theirs in pairs:
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9 * scale)


EDGES = {
    "duplicates": [[1, 2, 2], [2, 4, 4], [1, 0, 0]],
    "antipodes": [[1, 2, 2], [-1, -2, -2]],
    "a zero row": [[1, 2, 2], [0, 0, 0], [0, 1, 0]],
    "one row": [[1, 2, 2]],
    "none": [],
}


def test_values_and_gradients_are_finite():
    """Of every edge at once: one program, whose masks leave out the rows that an edge lacks."""
    W = np.stack(
        [np.float32([*edge, *[[np.nan] * 3] * (3 - len(edge))]) for edge in EDGES.values()]
    )
    where = np.stack([np.arange(3) < len(edge) for edge in EDGES.values()])

    @jax.jit
    @jax.vmap
    def everything(W, where):
        return {
            (str(metric), reduction, half_space): jax.value_and_grad(dh2l.mean_energy)(
                W, metric, where=where, reduction=reduction, half_space=half_space
            )
            for metric in ("mhe_a1", "abs_cosine")
            for reduction in ("mean", *REDUCTIONS)
            for half_space in (False, True)
            if not (reduction == "log_mean_exp" and metric in WITH_POLES)
        }

    found = everything(W, where)
    for key, (values, gradients) in {str(k): v for k, v in found.items()}.items():
        assert np.isfinite(values).all(), key
        assert np.isfinite(gradients).all(), key


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_row_that_is_no_number_is_seen(reduction):
    W = np.array([[1.0, 0, 0], [0, 1, 0], [np.nan, 0, 0]])
    assert np.isnan(dh2l.mean_energy(W, "cosine", reduction=reduction))


def test_one_row_has_no_neighbour():
    for reduction in ("mean", *REDUCTIONS):
        assert dh2l.mean_energy(np.ones((1, 3)), "gaussian", reduction=reduction) == 0


def test_duplicates_are_seen_once_each():
    """The largest energy at all, and no sum of the ties."""
    W = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert dh2l.mean_energy(W, uniformity, reduction="max") == 0
    np.testing.assert_allclose(dh2l.mean_energy(W, "cosine", reduction="row_max"), 0.75, rtol=1e-6)
    edges = {"mhe_s0": 5.4099, "mhe_s1": 223.6068, "mhe_s2": 5e4, "mhe_a2": 5e4}
    for name, value in edges.items():
        found = dh2l.mean_energy(W, name, reduction="max")
        np.testing.assert_allclose(found, value, rtol=2e-5)


def test_the_gap_lets_gradients_pass_where_asked():
    W = np.array([[1.0, 2, 2], [1.0001, 2, 2]])
    for clamp, moved in (("hard", False), ("straight_through", True)):
        metric = dh2l.get_metric("mhe_s2", clamp=clamp)
        assert np.any(jax.grad(dh2l.mean_energy)(W, metric)) == moved


def test_many_rows_take_the_memory_of_a_tile():
    """Of value and gradient of 10,000 × 512, beside W and its gradient."""
    fn = functools.partial(dh2l.mean_energy, metric="mhe_a1", reduction="row_max")
    W = jax.ShapeDtypeStruct((10_000, 512), jnp.float32)
    memory = jax.jit(jax.value_and_grad(fn)).lower(W).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 16e6


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("mhe_s3", {}, "did you mean 'mhe_s"),
        ("gaussian(tau=2)", {}, "gaussian: unknown option 'tau': did you mean 't'"),
        ("gaussian(2)", {}, r"expected NAME or NAME\(option=value\), found 'gaussian\(2\)'"),
        (
            "mhe_s2(convention='offical')",
            {},
            "unknown convention 'offical': did you mean 'official'",
        ),
        ("d_am(t=1)", {}, "d_am: unknown option 't'"),
        ("mhe_s2", {"reduction": "log_mean_exp"}, "0.25 to 5e\\+04 of 'mhe_s2'"),
        ("cosine", {"reduction": "max", "block": 0}, "block must be ≥ 1, found 0"),
        ("cosine", {"reduction": "rowmax"}, "unknown reduction 'rowmax': did you mean 'row_max'"),
        (
            "cosine",
            {"reduction": "max", "mesh": jax.make_mesh((2,), ("data",))},
            "rows on a mesh have no max",
        ),
    ],
)
def test_what_is_wrong_is_named(text, options, words):
    with pytest.raises(ValueError, match=words):
        dh2l.mean_energy(A, text, **options)


@pytest.mark.parametrize("half_space", [False, True])
def test_squares_of_c_by_the_columns(half_space, monkeypatch):
    """d×d against n×n, in three blocks, some rows left out; a lone row and none make no pair."""
    monkeypatch.setattr(closed, "SQUARES_BLOCK", 4)
    W = np.random.default_rng(4).normal(size=(9, 4)).astype(np.float32)
    W[3] = 0
    masks = np.stack(
        [np.arange(9) < 9, np.arange(9) % 4 != 1, np.arange(9) == 2, np.zeros(9, bool)]
    )

    def both(method):
        def fn(W, where):
            options = {"half_space": half_space, "where": where, "method": method}
            return dh2l.mean_energy(W, "cosine2", **options)

        return jax.jit(jax.vmap(jax.value_and_grad(fn), (None, 0)))(W, masks)

    assert explain(W, "cosine2", half_space=half_space) == "closed: cosine2 is a square of c"
    assert explain(W.T, "cosine2") == "dense: 4 rows are at most 1,024"
    for found, expected in zip(both("auto"), both("dense"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_squares_of_c_are_exact_where_they_are_least():
    """A simplex, c = −1/d, in float32 to its last digits."""
    d = 64
    W = np.linalg.svd(np.eye(d + 1) - 1 / (d + 1))[0][:, :d]
    found = dh2l.mean_energy(W.astype(np.float32), "cosine2", method="closed")
    np.testing.assert_allclose(found, 1 / d**2, rtol=2e-6)

"""The battery of `REGULARIZERS`: a row is tested by being there, its value by a line here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dh2l_jax as dh2l

# The matrix of which the values were computed in float64 with loops, to ten digits.
A = np.array([[1, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]], np.float64)
X = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]], np.float64)  # features


def compressed(dtype):
    """CoMHE of A in the projections that its key draws in a dtype, by the formula."""
    values = []
    for P in np.float64(jax.random.normal(jax.random.key(0), (20, 40, 3), dtype)):
        u = A @ P.T / np.linalg.norm(A @ P.T, axis=1, keepdims=True)
        c = (u @ u.T)[np.triu_indices(4, 1)]
        e = np.sum(0.5 / np.maximum(1 - c, 1e-5) + 0.5 / np.maximum(1 + c, 1e-5))
        values.append((2 * e + 4 / 4) / (4 * 7))
    return np.mean(values)


VALUES = {
    "mhe_s0": -0.0879638276,
    "mhe_s1": 1.1881810412,
    "mhe_s2": 2.6171438980,
    "mhe_a0": -0.1832901506,
    "mhe_a1": 1.1250725418,
    "mhe_a2": 2.5233670121,
    "mhe_s0(half_space=True)": -0.2968781452,
    "mhe_s1(half_space=True)": 0.8792450832,
    "mhe_s2(half_space=True)": 1.3700448457,
    "mhe_s2(convention='official')": 2.6158935082,
    "mhe_a0(half_space=True)": -0.4641731068,
    "mhe_a1(half_space=True)": 0.7908086388,
    "mhe_a2(half_space=True)": 1.2654920465,
    "abs_cosine": 0.2895968138,
    "cosine2": 0.1826172840,
    "gaussian": np.exp(-1.8345011170),
    "angular_hinge": 0.2895968138,
    "angular_hinge(tau=0.2)": 0.1481295826,
    "uniformface": 0.2253052036,
    "uniformface(unit=True)": 0.4725590536,
    "uniformity": -1.8345011170,
    "uniformity(t=0.5)": -0.7844916240,
    "mma": -0.8868622618,
    "regularface": 0.5168074333,
    "koleo": 0.4962966103,
    "mhs": -0.0754991027,
    "mhs(half_space=True)": -0.0754991027,
    "coherence": 0.9622504486,
    "so": 740.0,
    "dso": 1479.0,
    "brock": 80.0,
    "mc": 24.0,
    "mc(norm='row_sum')": 30.0,
    "srip": 24.8124701485,
    "spectral": 5.0805974204**2 / 2,
    "ocnn": sum(
        np.sum((A[:, max(0, x) : 3 + x] @ A[:, max(0, -x) : 3 - x].T - (x == 0) * np.eye(4)) ** 2)
        for x in (-2, -1, 0, 1, 2)
    ),
    "mar": -1.0359889865,
    "mar(gamma=0)": -1.2245583506,
    "r_mhp": 2.3252173206,
    "mhp": -1.1628257543,
    "mhp(s=1)": -1.0222129309,
    "mhp(s=0)": 0.0253657060,
    "mhc": 0.5220390765,
    "mhc(gamma=1)": 1.0708894692,
    "comhe": compressed,
    "decov": 2.3125,
    "vicreg_covariance": 2.7407407407,
    "barlow": 2.0,
    "ole": 0.5606589657,
    "mgd": 2.0763997428,
    "mgd(half_space=True)": 4.3742209247,
    "dpp": 13.1980425923,
    "uer": 0.1992310178,
    "von_neumann": 81.2081105915,
    "log_det(ridge=1e-3)": 37.6646197580,
    "log_det": np.sum(A**2) - 4 - np.log(1e-9) - np.linalg.slogdet(A.T @ A + 1e-9 * np.eye(3))[1],
}
# Further arguments of a call, of the rows that need some.
POLE = {"pole": np.array([1.0, 1.0, -1.0])}
NEEDS = {
    "comhe": lambda W: {"key": jax.random.key(0)},
    "mhp": lambda W: POLE,
    "mhc": lambda W: POLE,
    "ole": lambda W: {"labels": np.array([0, 0, 1, 1, 1])[: len(W)]},
}
# The rows of a case are those of the matrix that a row of the table looks at, if it is another.
VIEWS = {"ocnn": lambda W: W.T.reshape(1, 3, 1, -1)}

EDGES = {
    "A": A.tolist(),
    "n < d": A[:2].tolist(),
    "duplicates": [[1, 2, 2], [2, 4, 4], [1, 0, 0], [1, 2, 2]],
    "antipodes": [[1, 2, 2], [-1, -2, -2], [0, 1, 0]],
    "a zero row": [[1, 2, 2], [0, 0, 0], [0, 1, 0]],
    "one row": [[1, 2, 2]],
    "none": [],
}
NAN = [np.nan] * 3
WHERE = np.array([np.arange(5) < len(edge) for edge in EDGES.values()])
STEP = 1e-5


def called(text):
    """(W, where) → value."""
    name = text.partition("(")[0]
    fn, needs = dh2l.regularizer(text), NEEDS.get(name, lambda W: {})
    view = VIEWS.get(name, lambda W: W)
    return lambda W, where=None: fn(view(W), where=where, **needs(W))


def matrix(name):
    """Of which the row's value is known."""
    return X if dh2l.REGULARIZERS[name].looks_at == "features" else A


def value_of(text, dtype):
    value = VALUES[text]
    return value(dtype) if callable(value) else value


def variants(name):
    """Text → value on A, of the row with options."""
    return {text: called(text) for text in VALUES if text.startswith(f"{name}(")}


def generic(n):
    return np.random.default_rng(n).normal(size=(n, 3))


@pytest.mark.parametrize("name", dh2l.REGULARIZERS)
def test_float32(name):
    """Values of A, with a row left out that is no number; every edge is finite."""

    @jax.jit
    def everything(stack, where):
        edges = jax.vmap(jax.value_and_grad(called(name)))(stack, where)
        return edges, {text: fn(stack[0], where[0]) for text, fn in variants(name).items()}

    edges = {**EDGES, "A": matrix(name).tolist()}
    stack = np.float32([[*edge, *[NAN] * (5 - len(edge))] for edge in edges.values()])
    found = everything(stack, WHERE)
    (values, gradients), of_A = jax.tree.map(np.asarray, found)
    assert {x.dtype for x in (values, gradients, *of_A.values())} == {np.dtype("float32")}
    for text, value in {name: values[0], **of_A}.items():
        expected = value_of(text, "float32")
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=text)
    assert np.isfinite(values).all(), dict(zip(EDGES, values, strict=True))
    assert np.isfinite(gradients).all(), dict(zip(EDGES, gradients, strict=True))
    assert not gradients[~WHERE].any()
    half = jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)
    value, gradient = jax.eval_shape(jax.value_and_grad(called(name)), half)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("name", dh2l.REGULARIZERS)
def test_float64(name):
    """Values of A, without a mask; first and second derivatives of n > d and n < d."""
    fn = called(name)

    @jax.jit
    def everything(*stacks):
        of_each = [jax.vmap(jax.value_and_grad(fn))(stack) for stack in stacks]
        of_A = {text: fn(stacks[0][0]) for text, fn in variants(name).items()}
        return of_each, of_A, jax.hessian(fn)(stacks[0][1])

    moves = [np.random.default_rng(7).normal(size=(n, 3)) for n in (4, 2)]
    stacks = [
        np.stack([matrix(name)[: len(D)], V, V + STEP * D, V - STEP * D])
        for V, D in zip((generic(4), generic(2)), moves, strict=True)
    ]
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, everything(*map(jnp.asarray, stacks)))
        exact = {text: value_of(text, "float64") for text in [name, *variants(name)]}
    of_each, of_A, hessian = found
    for text, value in {name: of_each[0][0][0], **of_A}.items():
        np.testing.assert_allclose(value, exact[text], rtol=1e-10, atol=1e-10, err_msg=text)
    for (values, gradients), D in zip(of_each, moves, strict=True):
        slope = (values[2] - values[3]) / (2 * STEP)
        np.testing.assert_allclose(np.sum(gradients[1] * D), slope, rtol=1e-6, atol=1e-8)
    (_, gradients), D = of_each[0], moves[0]
    bend = (gradients[2] - gradients[3]) / (2 * STEP)
    product = np.tensordot(hessian, D, 2)
    np.testing.assert_allclose(product, bend, rtol=0, atol=1e-6 * max(np.abs(bend).max(), 1))


# Wherever the name of a metric is taken for E.

SHAPES = {"conv": (3, 3, 2, 4), "wide": (2, 3, 3, 2, 4), "grouped": (4, 3, 3, 8)}
DENSE = {
    "one": "mma",
    "two": "mma",
    "three": "mhe_s2(half_space=True)",
    "four": "uniformface",
    "five": "mgd",
}
PARAMS = {
    f"{name}/kernel": np.random.default_rng(k).normal(size=shape).astype(np.float32)
    for k, (name, shape) in enumerate({**SHAPES, **dict.fromkeys(DENSE, (6, 5))}.items())
}
RULES = {
    "conv": ("ocnn(stride=2)", 0.5),
    "wide": ("ocnn", 1, "l o i kh kw -> l o (i kh kw)"),
    "grouped": ("ocnn", 1, "i kh kw (g o) -> g o (i kh kw), g=2"),
    **{name: (text, 2) for name, text in DENSE.items()},
}


def test_plans_and_weights_take_any():
    plan = dh2l.plan(PARAMS, RULES)
    conv, wide, grouped = (PARAMS[f"{name}/kernel"] for name in SHAPES)
    ocnn = dh2l.regularizer("ocnn")

    def everything(params):
        value, parts = plan.value(params), plan.report(params)
        return value, parts, dh2l.weight_energy(params, "mma", include="(one|two)/")

    found, parts, alone = jax.jit(everything)(PARAMS)
    expected = {
        "conv": 0.5 * dh2l.regularizer("ocnn(stride=2)")(conv),
        "wide": sum(ocnn(K.transpose(2, 3, 1, 0)) for K in wide),
        "grouped": sum(ocnn(K.transpose(1, 2, 0, 3)) for K in np.split(grouped, 2, -1)),
        **{k: 2 * dh2l.regularizer(text)(PARAMS[f"{k}/kernel"].T) for k, text in DENSE.items()},
    }
    for name, part in expected.items():
        np.testing.assert_allclose(parts[f"{name}/kernel"], part, rtol=2e-6, err_msg=name)
        assert RULES[name][0] in repr(plan)
    np.testing.assert_allclose(found, sum(expected.values()), rtol=2e-6)
    np.testing.assert_allclose(alone, (expected["one"] + expected["two"]) / 2, rtol=2e-6)
    again = RULES | {"five": (dh2l.regularizer("mgd"), 2)}
    assert plan == dh2l.plan(PARAMS, again)
    assert hash(plan) == hash(dh2l.plan(PARAMS, again))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dh2l.regularizer("mgd(eps=1)"), "mgd: unknown option 'eps': did you mean 'eps"),
        (lambda: dh2l.regularizer("mgd(epsilon='a')"), "must be like its default, 1.0, found 'a'"),
        (lambda: dh2l.regularizer("mhe_s2(half_space=1)"), "its default, False, found 1"),
        (lambda: dh2l.regularizer("mc(norm='row')"), "'row': did you mean 'row_sum'"),
        (lambda: dh2l.regularizer("mhe_s3"), "unknown regulariser 'mhe_s3': did you mean 'mhe_s"),
        (lambda: dh2l.regularizer("mma", clamp="harsh"), "unknown clamp 'harsh'"),
        (
            lambda: dh2l.mean_energy(A, "mma"),
            r"'mma' is no mean over pairs: call dh2l.regularizer\('mma'\)\(W\) or "
            r"mean_energy\(W, 'arccos', reduction='row_max'\)",
        ),
        (lambda: dh2l.mean_energy(A, "so"), r"no mean over pairs is dh2l.regularizer\('so'\)\(W\)"),
        (
            lambda: dh2l.plan(PARAMS, {"one": ("ocnn", 1)}),
            r"ocnn looks at kernels of convolutions, such as 'kh kw i o -> o \(kh kw i\)', and "
            r"'one/kernel' of shape \(6, 5\) is read as 'i o -> o i': leave it out by a rule "
            r'before the others, r"\^one/kernel\$": None',
        ),
        (lambda: dh2l.weight_energy(PARAMS, "ocnn", include="one"), "'one/kernel' of shape"),
        (
            lambda: dh2l.weight_energy(PARAMS, "so", include="one", half_space=True),
            "so is no mean over pairs: it takes no method and no half_space",
        ),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)

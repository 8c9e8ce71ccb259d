"""The battery of `REGULARIZERS`: a row is tested by being there, its value by a line here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dh2l_jax as dh2l

# The matrix of which the values were computed in float64 with loops, to ten digits.
A = np.array([[1, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]], np.float64)
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
    "mgd": 2.0763997428,
    "mgd(half_space=True)": 4.3742209247,
    "dpp": 13.1980425923,
    "uer": 0.1992310178,
    "von_neumann": 81.2081105915,
    "log_det(ridge=1e-3)": 37.6646197580,
    "log_det": np.sum(A**2) - 4 - np.log(1e-9) - np.linalg.slogdet(A.T @ A + 1e-9 * np.eye(3))[1],
}
# Further arguments of a call, of the rows that need some.
NEEDS = {}
# The rows of a case are those of the matrix that a row of the table looks at, if it is another.
VIEWS = {}

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
STACK = np.array([[*edge, *[NAN] * (5 - len(edge))] for edge in EDGES.values()])
WHERE = np.array([np.arange(5) < len(edge) for edge in EDGES.values()])
STEP = 1e-5


def called(text):
    """(W, where) → value."""
    name = text.partition("(")[0]
    fn, needs = dh2l.regularizer(text), NEEDS.get(name, {})
    view = VIEWS.get(name, lambda W: W)
    return lambda W, where=None: fn(view(W), where=where, **needs)


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

    found = everything(np.float32(STACK), WHERE)
    (values, gradients), of_A = jax.tree.map(np.asarray, found)
    assert {x.dtype for x in (values, gradients, *of_A.values())} == {np.dtype("float32")}
    for text, value in {name: values[0], **of_A}.items():
        np.testing.assert_allclose(value, VALUES[text], rtol=1e-6, err_msg=text)
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
        np.stack([A[: len(D)], X, X + STEP * D, X - STEP * D])
        for X, D in zip((generic(4), generic(2)), moves, strict=True)
    ]
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, everything(*map(jnp.asarray, stacks)))
    of_each, of_A, hessian = found
    for text, value in {name: of_each[0][0][0], **of_A}.items():
        np.testing.assert_allclose(value, VALUES[text], rtol=1e-10, atol=1e-10, err_msg=text)
    for (values, gradients), D in zip(of_each, moves, strict=True):
        slope = (values[2] - values[3]) / (2 * STEP)
        np.testing.assert_allclose(np.sum(gradients[1] * D), slope, rtol=1e-6, atol=1e-8)
    (_, gradients), D = of_each[0], moves[0]
    bend = (gradients[2] - gradients[3]) / (2 * STEP)
    product = np.tensordot(hessian, D, 2)
    np.testing.assert_allclose(product, bend, rtol=0, atol=1e-6 * max(np.abs(bend).max(), 1))

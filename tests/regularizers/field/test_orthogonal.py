"""Penalties of the raw Gram matrix and of singular values, against loops and at every edge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import tree as oracle_tree
from support.helpers import assert_close

import dh2l_jax as dh2l
from dh2l_jax.regularizers import brock, dso, mc, so, spectral, srip, srip_step

value_and_grad = jax.jit(jax.value_and_grad(dh2l.orthogonality))

A = np.array([[1, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]], np.float64)
# Of the matrix A, computed in float64 with loops.
VALUES = {
    "so": 740,
    "dso": 1479,
    "brock": 80,
    "mc": 24,
    "mc of rows": 30,
    "srip": 24.8124701485,
    "srip, iterated": 24.8124701485,
    "spectral": 5.0805974204**2 / 2,
    "spectral, iterated": 5.0805974204**2 / 2,
}
CALLS = {
    "so": so,
    "dso": dso,
    "brock": brock,
    "mc": mc,
    "mc of rows": functools.partial(mc, norm="row_sum"),
    "srip": srip,
    "srip, iterated": functools.partial(srip, iterations=40),
    "srip at a vector": lambda W, where=None: srip_step(W, np.ones(min(W.shape)), where)[0],
    "spectral": spectral,
    "spectral, iterated": functools.partial(spectral, iterations=40),
}
SMOOTH = set(CALLS) - {"srip, iterated", "spectral, iterated"}  # those have their vector fixed


def products(U):
    """The Gram matrix by loops."""
    return np.array([[sum(x * y for x, y in zip(u, v, strict=True)) for v in U] for u in U])


def expected(W, n=None):
    """All penalties of the rows of W, in float64; of n rows, which tell the side of a vector."""
    if not len(W):
        return dict.fromkeys(CALLS, 0.0) | {"dso": W.shape[1], "srip at a vector": 1}
    G, other = products(W), products(W.T)
    gaps = np.abs(G - np.eye(len(G)))
    columns = np.abs(other - np.eye(len(other)))
    small = G if len(G) <= len(other) else other
    side = other if (n or len(G)) > len(other) else G
    values = {
        "so": np.sum(gaps**2),
        "dso": np.sum(gaps**2) + np.sum(columns**2),
        "brock": np.sum(G**2) - np.sum(np.diag(G) ** 2),
        "mc": gaps.max(),
        "mc of rows": gaps.sum(1).max(),
        "srip": np.abs(np.linalg.eigvalsh(small - np.eye(len(small)))).max(),
        "srip at a vector": np.linalg.norm(side.sum(1) - 1) / np.sqrt(len(side)),
        "spectral": np.linalg.norm(W, 2) ** 2 / 2,
    }
    return values | {f"{name}, iterated": values[name] for name in ("srip", "spectral")}


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def everything(W, where, V):
    """Value, gradient, and the gradient's change in a direction, of all penalties of a stack."""
    result = {}
    for name, call in CALLS.items():
        fn = jax.value_and_grad(functools.partial(call, where=where))
        (value, gradient), (_, change) = jax.jvp(fn, (W,), (V,))
        result[name] = value, gradient, change
    return result


everything_at = jax.jit(lambda W: {name: call(W) for name, call in CALLS.items()})


@pytest.mark.parametrize("x64", [False, True])
def test_published_values(x64):
    with jax.enable_x64(x64):
        W = jnp.asarray(A)
        found = everything_at(W)
        assert {value.dtype for value in found.values()} == {W.dtype}
        rtol = 1e-10 if x64 else 1e-6
        for name, value in VALUES.items():
            np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)
        np.testing.assert_allclose(dh2l.orthogonality(W) ** 2, 740, rtol=rtol)


def test_a_vector_that_is_kept():
    """The published start; then in a training step, which W changes under."""
    with jax.enable_x64(True):
        step, x = jax.jit(srip_step), jnp.ones(3)
        values = []
        for _ in range(3):
            value, x = step(A, x)
            values.append(float(value))
        np.testing.assert_allclose(values[1:], [15.3888096143, 21.0112259343], rtol=1e-10)

        def train(carry, _):
            W, x = carry
            (value, x), gradient = jax.value_and_grad(srip_step, has_aux=True)(W, x)
            return (W - 1e-3 * gradient, x), (value, srip(W))

        _, (found, exact) = jax.lax.scan(train, (jnp.asarray(A), jnp.ones(3)), length=20)
        np.testing.assert_allclose(found[10:], exact[10:], rtol=1e-3)
        assert np.all(np.diff(exact) < 0)


EDGES = {  # of rows (n, 3) and of their transposes
    "generic": [[1.2, 2, 2], [2, -1.5, 0.2], [0, 3, -3.4], [1, 0.7, 1]],
    "three": [[1.2, 2, 2], [2, -1.5, 0.2], [0, 3, -3.4]],
    "two": [[1.2, 2, 2], [2, -1.5, 0.2]],
    "two short ones": [[0.5, 0.1, 0.1], [0.2, -0.4, 0.2]],
    "duplicates": [[1, 2, 2], [1, 2, 2], [1, 2, 2], [0, 1, 0]],
    "antipodes": [[1, 2, 2], [-1, -2, -2]],
    "a zero row": [[1, 2, 2], [0, 0, 0], [0, 1, 0.5]],
    "zeros": [[0, 0, 0], [0, 0, 0]],
    "orthonormal": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    "one": [[1, 2, 2]],
    "none": np.zeros((0, 3)),
}


def stack(transposed):
    """The edges as matrices with masks, rows that take no part being no numbers."""
    W, where = np.full((len(EDGES), 4, 3), np.nan), np.zeros((len(EDGES), 4), bool)
    for k, edge in enumerate(EDGES.values()):
        W[k, : len(edge)], where[k, : len(edge)] = edge, True
    if transposed:  # the vectors are columns with the missing ones as zeros, and all rows are there
        W = np.nan_to_num(W).transpose(0, 2, 1)
        where = np.ones(W.shape[:2], bool)
        where[0, 1] = False
        W[0, 1] = np.nan
    return W, where


@pytest.mark.parametrize("transposed", [False, True], ids=["n > d", "n < d"])
def test_edges_and_masks_equal_fewer_rows(transposed):
    """Value, gradient and second derivative; as loops have it after dropping rows."""
    W, where = stack(transposed)
    V = np.random.default_rng(3).normal(size=W.shape[1:])
    step = 1e-6
    with jax.enable_x64(True):
        found, up, down = (
            jax.tree.map(np.asarray, everything(W + s * V, where, V)) for s in (0, step, -step)
        )
    for k, edge in enumerate(EDGES):
        exact = expected(W[k][where[k]], len(where[k]))
        for name, parts in found.items():
            value, gradient, change = (part[k] for part in parts)
            case = f"{name} of {edge}"
            assert np.isfinite(value), case
            assert np.isfinite(gradient).all(), case
            assert not gradient[~where[k]].any(), case
            if edge == "none":
                assert not gradient.any(), case
            # Iterations see the −1 of directions without rows, and two equal values at once.
            if "iterated" not in name or edge == "generic":
                np.testing.assert_allclose(value, exact[name], rtol=1e-9, atol=1e-9, err_msg=case)
            if edge in ("generic", "two", "two short ones") and name in SMOOTH:
                slope, slopes = ((up[name][i][k] - down[name][i][k]) / (2 * step) for i in (0, 1))
                assert_close(np.sum(gradient * V), slope, rtol=1e-6)
                assert_close(change, slopes, rtol=1e-5, atol=1e-6)


def test_narrow_types():
    W, where = stack(transposed=False)
    found = everything(np.float32(W), where, np.ones(W.shape[1:], np.float32))
    for name, (value, gradient, _) in found.items():
        assert np.isfinite(value).all(), name
        assert np.isfinite(gradient).all(), name
    for name, call in CALLS.items():
        types = jax.eval_shape(jax.value_and_grad(call), jnp.asarray(A, jnp.bfloat16))
        assert [x.dtype for x in types] == [jnp.float32, jnp.bfloat16], name


def test_near_orthonormal_rows_keep_their_digits():
    generator = np.random.default_rng(0)
    Q = np.linalg.qr(generator.normal(size=(64, 32)))[0].T
    W = np.float32(Q + 1e-4 * generator.normal(size=Q.shape))
    exact = expected(W.astype(float))
    for name, value in everything_at(W).items():
        rtol = 0.1 if "iterated" in name else 5e-3  # many singular values are about the largest
        np.testing.assert_allclose(value, exact[name], rtol=rtol, err_msg=name)


def test_many_rows_or_columns_make_no_square():
    """No array is larger than the smaller side's Gram matrix, W itself, or a tile of G."""
    for shape in ((2000, 3), (3, 2000)):
        W = jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, call in CALLS.items():
            jaxpr = jax.make_jaxpr(jax.value_and_grad(call))(W).jaxpr
            largest = max(np.prod(v.aval.shape) for e in equations(jaxpr) for v in e.outvars)
            assert largest <= (6000 if "mc" not in name or shape[0] == 3 else 500**2), (name, shape)


def equations(jaxpr):
    """Those of loops and calls too."""
    for eqn in jaxpr.eqns:
        yield eqn
        is_jaxpr = lambda x: hasattr(x, "eqns")  # noqa: E731
        for value in jax.tree.leaves(dict(eqn.params), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("norm", ["entry", "row_sum"])
def test_tiles_equal_the_whole(norm):
    W = np.random.default_rng(5).normal(size=(1500, 2))
    where = np.arange(1500) % 7 > 0
    G = np.abs(W[where] @ W[where].T - np.eye(where.sum()))
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(mc, norm=norm))(W, where=where)
    np.testing.assert_allclose(found, G.max() if norm == "entry" else G.sum(1).max(), rtol=1e-12)


def test_of_equals_one_wins():
    W = jnp.array([[2.0, 0], [2, 0], [2, 0]])
    for norm, gradient in (("entry", [2, 2, 0]), ("row_sum", [8, 2, 2])):
        found = jax.jit(jax.grad(functools.partial(mc, norm=norm)))(W)
        np.testing.assert_allclose(found[:, 0], gradient)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (5, 2), (1, 3)])
def test_orthogonality(shape):
    C = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    value, gradient = value_and_grad(C)
    np.testing.assert_allclose(value, oracle_tree.orthogonality(C.astype(float)), rtol=1e-5)
    gram = C.astype(float) @ C.T - np.eye(len(C))
    assert_close(gradient, 2 * gram @ C / np.linalg.norm(gram))


def test_orthogonality_at_its_minimum_has_a_zero_gradient():
    value, gradient = value_and_grad(np.eye(3, 5, dtype=np.float32))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dh2l.orthogonality(jnp.ones(3)), r"\(3,\)"),
        (lambda: so(jnp.ones((2, 2, 2))), r"expected a matrix .* found shape \(2, 2, 2\)"),
        (lambda: brock(A, np.ones(3, bool)), r"where must have shape \(4,\)"),
        (lambda: mc(A, norm="rows"), "unknown norm 'rows': did you mean 'row_sum'"),
        (lambda: srip(A, iterations=-1), "iterations must be ≥ 0, found -1"),
        (
            lambda: srip_step(A, np.ones(4)),
            r"x must have shape \(3,\) for W \(4, 3\), found \(4,\)",
        ),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Determinants, spectra, projections, poles and features, against published values and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.helpers import assert_close

from dh2l_jax import regularizers as field
from dh2l_jax.regularizers.field.hyperspherical import projected_energy
from dh2l_jax.regularizers.field.spectra import spectral_sum
from dh2l_jax.regularizers.transform import ascend

A = np.array([[1, 2, 2], [2, -1, 0], [0, 3, -4], [1, 1, 1]], float)
X = np.array([[1, 2, 0], [3, 0, 1], [2, 2, 2], [0, 4, 1]], float)
P = np.array([[2, -1, 0], [0, 1, 1]], float)
POLE, LABELS = np.array([1.0, 1, -1]), np.array([0, 0, 1, 1])

VALUES = {  # name: the function, the rows, the published value
    "mgd": (field.mgd, A, 2.0763997428),
    "mgd of the half-space": (functools.partial(field.mgd, half_space=True), A, 4.3742209247),
    "dpp": (field.dpp, A[:3], 0.0940633118),
    "dpp of more rows than columns": (field.dpp, A, 13.1980425923),
    "log_det": (field.log_det, A[:3], 29.0685281944),
    "log_det with a ridge": (functools.partial(field.log_det, ridge=1e-3), A, 37.6646197580),
    "uer": (field.uer, A, 0.1992310178),
    "uer of columns": (field.uer, A.T, 0.1992310178),
    "von_neumann": (field.von_neumann, A, 81.2081105915),
    "mhp 0": (lambda W, where=None: field.mhp(W, POLE, where, s=0), A, 0.0253657060),
    "mhp 1": (lambda W, where=None: field.mhp(W, POLE, where, s=1), A, -1.0222129309),
    "mhp 2": (lambda W, where=None: field.mhp(W, POLE, where), A, -1.1628257543),
    "mhc 10": (lambda W, where=None: field.mhc(W, POLE, where), A, 0.5220390765),
    "mhc 1": (lambda W, where=None: field.mhc(W, POLE, where, gamma=1.0), A, 1.0708894692),
    "r_mhp": (field.r_mhp, A, 2.3252173206),
    "mar": (field.mar, A, -1.0359889865),
    "mar without variance": (functools.partial(field.mar, gamma=0), A, -1.2245583506),
    "comhe": (lambda W, where=None: projected_energy(W, P, where), A, 1.0562850912),
    "decov": (field.decov, X, 2.3125),
    "decov of weights": (field.decov, A, 4.06640625),
    "vicreg_covariance": (field.vicreg_covariance, X, 2.7407407407),
    "vicreg_variance": (field.vicreg_variance, X, 0.0611473947),
    "barlow": (field.barlow, X, 2.0),
    "ole": (lambda W, where=None: field.ole(W, LABELS, where), X, 0.5606589657),
}


def looped_energy(V, half_space):
    """mhe_s2 by loops; V may be any rows."""
    U = V / np.linalg.norm(V, axis=1, keepdims=True)
    U = np.concatenate([U, -U]) if half_space else U
    pairs = [(i, j) for i in range(len(U)) for j in range(i)]
    return np.mean([1 / np.sum((U[i] - U[j]) ** 2) for i, j in pairs])


def looped_gap(P):
    C, D = (V @ V.T / np.outer(*[np.linalg.norm(V, axis=1)] * 2) for V in (A @ P.T, A))
    return np.linalg.norm(C - D)


def slope(f, P, step=1e-6):
    """∇f by differences."""
    D = step * np.eye(P.size).reshape(-1, *P.shape)
    return np.array([(f(P + d) - f(P - d)) / (2 * step) for d in D]).reshape(P.shape)


STEPS = {
    "angle": lambda: P - 0.1 * slope(looped_gap, P),
    "adversarial": lambda: P + 0.1 * slope(lambda P: looped_energy(A @ P.T, False), P),
}
VALUES |= {
    f"comhe {kind}": (
        lambda W, where=None, kind=kind: projected_energy(W, P, where, kind=kind),
        A,
        looped_energy(A @ step().T, True),
    )
    for kind, step in STEPS.items()
}


@jax.jit
def derivatives(rows):
    """Value, gradient, and the gradient's change along ones, of every function."""
    return {
        name: jax.jvp(jax.value_and_grad(VALUES[name][0]), (W,), (jnp.ones_like(W),))
        for name, W in rows.items()
    }


def of_every_function(change=lambda W: W):
    return {name: jnp.asarray(change(W)) for name, (_, W, _) in VALUES.items()}


def test_published_values_and_derivatives():
    step, rng = 1e-5, np.random.default_rng(0)
    noise = rng.normal(size=(4, 4)) / 10  # away from kinks, such as that of arccos |c| at c = 0

    def near(shift):
        return of_every_function(lambda W: W + noise[: W.shape[0], : W.shape[1]] + shift)

    with jax.enable_x64(True):
        published, exact, up, down = (
            jax.tree.map(np.asarray, derivatives(rows))
            for rows in (of_every_function(), near(0), near(step), near(-step))
        )
    found, rounded = derivatives(of_every_function()), derivatives(near(0))
    for name, (_, _, expected) in VALUES.items():
        rtol = 1e-8 if "comhe " in name else 1e-10  # differences gave the step on P
        value, value32 = published[name][0][0], found[name][0][0]
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=5.1e-11, err_msg=name)
        np.testing.assert_allclose(value32, expected, rtol=1e-6, err_msg=name)
        assert value32.dtype == jnp.float32
        (_, gradient), (along, change) = exact[name]
        first, second = (
            (a - b) / (2 * step) for a, b in zip(up[name][0], down[name][0], strict=True)
        )
        np.testing.assert_allclose(along, gradient.sum(), rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(along, first, rtol=1e-6, atol=1e-8, err_msg=name)
        scale = np.abs(second).max() + 1e-3
        np.testing.assert_allclose(change / scale, second / scale, atol=1e-5, err_msg=name)
        (_, gradient32), (_, change32) = rounded[name]
        assert_close(gradient32, gradient, rtol=2e-5)
        np.testing.assert_allclose(change32 / scale, change / scale, atol=1e-4, err_msg=name)


def test_rows_that_take_no_part_and_rows_in_the_worst_places():
    """A masked row changes nothing; duplicates, opposites, zeros and one row alone: finite."""

    def rows(W):
        more = np.insert(W, 1, np.nan, axis=0)
        worst = np.stack([more, *[np.insert(W, 1, W[0], axis=0)] * 4, 0 * np.nan_to_num(more)])
        worst[2, 2], worst[2, 3] = -worst[2, 0], 0
        masks = np.ones(worst.shape[:2], bool)
        masks[0, 1] = masks[3, 1:] = masks[4] = False
        return worst.astype(np.float32), masks

    @jax.jit
    def all_of(rows):
        return {name: jax.vmap(jax.value_and_grad(VALUES[name][0]))(*X) for name, X in rows.items()}

    functions = {name: W for name, (_, W, _) in VALUES.items() if name != "ole"}
    for name, (value, gradient) in all_of({name: rows(W) for name, W in functions.items()}).items():
        np.testing.assert_allclose(value[0], VALUES[name][2], rtol=1e-6, err_msg=name)
        assert np.isfinite(value).all(), name
        assert np.isfinite(gradient).all(), name
        assert not gradient[0, 1].any(), name
        assert not gradient[4].any(), name  # nothing takes part


RIDGED = {
    "mgd": field.mgd,
    "half": functools.partial(field.mgd, half_space=True),
    "dpp": field.dpp,
    "log_det": functools.partial(field.log_det, ridge=1e-6),
}


@pytest.mark.parametrize("shape", [(140, 150), (150, 140)])
def test_determinants_at_their_ridge_are_those_of_float64(shape):
    """Generic rows in float32; duplicates, near ones and a lost dimension in float64 inside."""
    generic = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    close = generic.copy()
    close[1], close[2] = 3 * close[0], close[0] + np.float32(1e-4) * close[5]
    close[:, 3] = close[:, 4]
    all_of = jax.jit(lambda W: {name: jax.value_and_grad(f)(W) for name, f in RIDGED.items()})
    for W in (generic, close):
        found = all_of(W)
        with jax.enable_x64(True):
            exact = jax.tree.map(np.asarray, all_of(W.astype(float)))
        for name, (value, gradient) in exact.items():
            np.testing.assert_allclose(found[name][0], value, rtol=3e-6, err_msg=name)
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(
                found[name][1] / scale, gradient / scale, atol=1e-4, err_msg=name
            )


def test_determinants_by_numpy():
    W = np.random.default_rng(2).normal(size=(6, 4))
    U = W / np.linalg.norm(W, axis=1, keepdims=True)
    both = np.concatenate([U, -U])
    K, ridge = np.exp(-0.5 * (2 - 2 * both @ both.T)), 1e-3
    expected = [
        -np.linalg.slogdet(K[:6, :6] + ridge * np.eye(6))[1],
        -np.linalg.slogdet(K + ridge * np.eye(12))[1],
        -np.linalg.slogdet(
            np.block([[U @ U.T, np.zeros((6, 1))], [np.eye(7)[6:]]]) + 1e-3 * np.eye(7)
        )[1],
    ]
    found = [
        field.mgd(W, epsilon=0.5, ridge=ridge),
        field.mgd(W, epsilon=0.5, ridge=ridge, half_space=True),
        field.dpp(np.concatenate([W, np.zeros((1, 4))]), ridge=ridge),  # a zero row has K_ii = 1
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_derivatives_where_eigenvalues_are_equal():
    """F′(G) of G = tI and around: F‴ and eigenvectors play no part."""
    F = lambda x: x * jnp.log(x)  # noqa: E731
    D = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    D += D.T
    value, change = jax.jvp(functools.partial(spectral_sum, F), (2 * jnp.eye(4),), (D,))
    assert_close(value[1], (np.log(2) + 1) * np.eye(4), rtol=1e-6)
    assert_close(change[0], (np.log(2) + 1) * np.trace(D), rtol=1e-5)
    assert_close(change[1], D / 2, rtol=1e-5)


def test_many_draws_and_their_mean():
    W = np.random.default_rng(4).normal(size=(7, 9)).astype(np.float32)
    key = jax.random.key(0)
    found = jax.jit(functools.partial(field.comhe, k=5, draws=3))(W, key=key)
    draws = np.asarray(jax.random.normal(key, (3, 5, 9)), float)
    expected = np.mean([looped_energy(W @ P.T, True) for P in draws])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ole_by_singular_values():
    rng = np.random.default_rng(5)
    norm = functools.partial(np.linalg.norm, ord="nuc")
    for shape in ((9, 5), (5, 9)):
        X, labels = rng.normal(size=shape), np.arange(shape[0]) % 3
        X[labels == 1] *= 0.1  # its nuclear norm is below 1, and pulls at nothing
        parts = [max(1, norm(X[labels == c])) for c in range(3)]
        expected = (sum(parts) - norm(X)) / shape[0]
        value, gradient = jax.value_and_grad(field.ole)(X.astype(np.float32), labels)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        U, _, V = np.linalg.svd(X, full_matrices=False)
        np.testing.assert_allclose(gradient[1], -(U @ V)[1] / shape[0], atol=1e-5)


def test_a_pole_ascends_while_vectors_descend():
    """Three vectors on a circle, two of them close: the largest hole becomes smaller."""
    params = {"W": jnp.array([[1, 0.2], [1, -0.2], [0.2, 1]]), "pole": jnp.array([0.3, 1.0])}
    tx = optax.chain(ascend("(^|/)pole$"), optax.sgd(0.3))
    loss = lambda p: field.mhc(p["W"], p["pole"])  # noqa: E731

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def hole(W):
        places = np.linspace(0, 2 * np.pi, 60)
        return jax.vmap(functools.partial(field.mhc, W))(
            np.stack([np.cos(places), np.sin(places)], 1)
        ).max()

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=160))(params)
    assert hole(end["W"]) < 2.2 < 3.3 < hole(params["W"])
    gradients = jax.grad(loss)(params)
    updates, _ = ascend("pole").update(gradients, optax.EmptyState())
    assert_close(updates["pole"], -gradients["pole"])
    assert_close(updates["W"], gradients["W"])
    with pytest.raises(ValueError, match="unknown leaf 'poles'"):
        ascend("poles").update(params, optax.EmptyState())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: field.dpp(A, ridge=0), "ridge must be > 0, found 0"),
        (lambda: field.mhp(A, POLE, s=3), "unknown s 3"),
        (lambda: field.mhc(A, POLE[:2]), r"a pole \(3,\) like a row of W, found \(2,\)"),
        (lambda: field.comhe(A, key=jax.random.key(0), kind="angel"), "did you mean 'angle'"),
        (lambda: field.ole(X, LABELS[:2]), r"labels must have shape \(4,\) like the rows"),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

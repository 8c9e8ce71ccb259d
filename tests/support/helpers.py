"""Data, jitted functions kept by metric, and the comparison that the test files share."""

import functools

import jax
import numpy as np
import pytest

import dh2l_jax as dh2l

NAMES = tuple(sorted(dh2l.METRICS))
# With `--dist loadgroup` a metric's tests share a worker, and with it what is compiled.
every_metric = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES]
)
# The square root of √(aθ) has no derivative where codes agree (a = 0): finite there, no more.
ROOTS = ("d_gm_std", "d_cos_gm_std")


def rng(seed):
    return np.random.default_rng(seed)


def rows(seed, n=6, d=5):
    """Random rows away from every kink: no pair within the clip, no codes equal or opposite."""
    generator = rng(seed)
    while True:
        W = generator.normal(size=(n, d)).astype(np.float32)
        u = W / np.linalg.norm(W, axis=1, keepdims=True)
        s = np.where(W >= 0, 1, -1)
        i, j = np.triu_indices(n, 1)
        apart = np.abs((u @ u.T)[i, j]).max() < 0.93 and np.abs((s @ s.T)[i, j]).max() < d
        if apart and np.abs(u).min() > 1e-3:
            return W


def clipped_rows(seed=0):
    """(6, 5): pairs nearer than 8.11° and nearly opposite, with codes equal and different."""
    a = np.array([0.05, -0.05, 1.0, 0.8, -0.9])
    b = np.array([1.0, 0.9, -0.04, 0.8, 0.7])
    flip, nudge = np.array([-1, -1, 1, 1, 1]), np.array([1.0, 1.05, 0.98, 1.02, 0.97])
    return (np.stack([a, 2 * a * flip, a * nudge, -a * nudge * flip, b, -3 * b * nudge])).astype(
        np.float32
    )


@functools.cache
def energy_and_gradient(name, clamp="hard", code=None, threshold=None, method="auto", block=1024):
    """Jitted (W, where) → mean energy and its gradient with respect to W."""
    metric = dh2l.get_metric(name, clamp=clamp, code=code, threshold=threshold)

    def fn(W, where):
        return dh2l.mean_energy(W, metric, where=where, method=method, block=block)

    return jax.jit(jax.value_and_grad(fn))


@functools.cache
def distances(name):
    """Jitted (W, weights) → gradient of Σ weights·D with respect to W, and D, all (n, n) pairs."""

    def fn(W, weights):
        D = dh2l.pairwise(functools.partial(dh2l.distance, metric=name), W)
        return (weights * D).sum(), D

    return jax.jit(jax.grad(fn, has_aux=True))


def everyone(W):
    return np.ones(len(W), bool)


def assert_close(actual, expected, rtol=1e-5, atol=1e-7):
    """Within rtol of the largest magnitude of the expected array, not entry by entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale + atol)

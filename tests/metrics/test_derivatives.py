"""Every derivative that JAX offers, of every sum, equals that of the dense definition.

The definition is a mean of `energy` over pairs, one pair at a time; its signs have the slope of the
straight-through estimator, 1 where |x| ≤ 1, and a second derivative of 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import every_metric, rows

import dh2l_jax as dh2l
from dh2l_jax.metrics import Dense, Ring, Sampled, Tiled
from dh2l_jax.metrics.sums import plan

N, D = 7, 5
WHERE = np.array([True, True, False, True, True, True, True])


def definition(W, metric, where=None):
    """The mean over pairs of the energy of two vectors."""
    e = dh2l.pairwise(functools.partial(dh2l.energy, metric=metric), W)
    where = np.ones(len(W), bool) if where is None else where
    pairs = np.triu(np.outer(where, where), 1)
    return jnp.sum(jnp.where(pairs, e, 0)) / max(pairs.sum(), 1)


def derivatives(fn, W, V):
    """Name → what JAX computes of fn at W, along V."""
    grad = jax.grad(fn)
    return {
        "grad": grad(W),
        "jvp": jax.jvp(fn, (W,), (V,))[1],
        "jacfwd": jax.jacfwd(fn)(W),
        "linearize": jax.linearize(fn, W)[1](V),
        "jvp of grad": jax.jvp(grad, (W,), (V,))[1],
        "grad of jvp": jax.grad(lambda W: jax.jvp(fn, (W,), (V,))[1])(W),
        "hessian": jax.hessian(fn)(W),
        "remat": jax.grad(jax.checkpoint(fn))(W),
    }


def check(fn, expected, W, rtol=1e-9):
    """In float64: what is left are other orders of the same sums."""
    V = np.random.default_rng(5).normal(size=W.shape)
    with jax.enable_x64(True):
        W, V = jnp.asarray(W, jnp.float64), jnp.asarray(V)
        found, wanted = (jax.jit(functools.partial(derivatives, f))(W, V) for f in (fn, expected))
    for name, array in wanted.items():
        scale = np.abs(array).max() + 1e-12
        np.testing.assert_allclose(found[name], array, rtol=0, atol=rtol * scale, err_msg=name)


@every_metric
def test_every_metric(name):
    check(
        functools.partial(dh2l.mean_energy, metric=name, where=WHERE),
        functools.partial(definition, metric=name, where=WHERE),
        rows(3, N, D),
    )


MESH = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
WAYS = {
    "closed": ("d_am_cos_prime", "closed"),
    "squares": ("cosine2", "closed"),
    "dense in panels": ("d_cos_hm", Dense(panel=3)),
    "tiled": ("d_cos_hm", Tiled(block=3)),
    "tiled, affine in c": ("d_am_cos", Tiled(block=3)),
    "ring": ("d_hm_cos", Ring(MESH, "data", block=2)),
    "ring, affine in c": ("d_am_cos", Ring(MESH, "data", block=2)),
}


@pytest.mark.parametrize(("name", "method"), WAYS.values(), ids=WAYS)
def test_every_way(name, method, monkeypatch):
    monkeypatch.setattr(plan, "SPLIT_FROM", 0)
    check(
        functools.partial(dh2l.mean_energy, metric=name, method=method),
        functools.partial(definition, metric=name),
        rows(4, N, D),
    )


def test_a_sample():
    sample, key = Sampled(tiles=2, rows=3), jax.random.key(1)
    tiles = sample.draw(key, jnp.asarray(WHERE))
    options = {"metric": "n_euclidean2", "where": WHERE, "sample": sample, "key": key}
    check(
        functools.partial(dh2l.mean_energy, **options),
        lambda W: sum(definition(W[tile], "n_euclidean2") for tile in tiles) / len(tiles),
        rows(4, N, D),
    )


@pytest.mark.parametrize("name", ["d_h_bin", "d_h_ter", "d_am_cos_prime", "d_am_cos"])
def test_entries_that_are_exactly_zero(name):
    W = rows(7, N, D) * (np.arange(N)[:, None] != np.arange(D))
    check(
        functools.partial(dh2l.mean_energy, metric=name),
        functools.partial(definition, metric=name),
        W,
    )


@pytest.mark.parametrize("name", ["d_h_ter", "d_cos_hm"])
def test_a_dead_zone(name):
    metric = dh2l.get_metric(name, code="ternary", threshold=0.7)
    check(
        functools.partial(dh2l.mean_energy, metric=metric),
        functools.partial(definition, metric=metric),
        rows(5, N, D),
    )


GROUPS = np.array([0, 1, 1, 0, 2, 1, 0])


def of_groups(W, metric):
    means = [definition(W[g == GROUPS], metric) for g in range(2)]
    return sum(means) / 2


TREE = dh2l.Hierarchy.two_level([0, 0, 1, 1, 1])


def head(W):
    return {"surface_2": W[:5], "center_2": W[5:]}


def of_tree(W, metric):
    U = W[:5] - W[5:][jnp.asarray(TREE.parents(2))]
    energies = [definition(U[:2], metric), definition(U[2:], metric)]
    return sum(energies) / 2 + definition(W[5:], metric)


def of_layers(W, metric):
    return definition(W[:3], metric) + definition(W[3:6], metric) + definition(W[:, :3].T, metric)


SUMS = {
    "group_energy": (lambda W, name: dh2l.group_energy(W, GROUPS, name), of_groups),
    "traced groups": (lambda W, name: traced_groups(W, jnp.asarray(GROUPS), name), of_groups),
    "hierarchical": (lambda W, name: dh2l.hierarchical(head(W), TREE, name)[0], of_tree),
    "weight_energy": (
        lambda W, name: dh2l.weight_energy(
            {"a": {"kernel": W[:3].T}, "b": {"kernel": W[3:6].T}, "c": {"kernel": W[:, :3]}}, name
        ),
        of_layers,
    ),
}
traced_groups = jax.jit(dh2l.group_energy, static_argnums=2)


@pytest.mark.parametrize("name", ["d_am_cos", "d_cos_hm"])
@pytest.mark.parametrize("sum_of", SUMS)
def test_every_sum(sum_of, name):
    fn, expected = SUMS[sum_of]
    check(functools.partial(fn, name=name), functools.partial(expected, metric=name), rows(6, N, D))


@pytest.mark.parametrize("method", ["dense", Tiled(block=3)], ids=str)
def test_under_transformations(method):
    """vmap and scan of value, gradient and product with the Hessian."""

    def products(W, V):
        fn = functools.partial(dh2l.mean_energy, metric="d_cos_hm", method=method)
        value, gradient = jax.value_and_grad(fn)(W)
        return value, gradient, jax.jvp(jax.grad(fn), (W,), (V,))[1]

    heads, V = np.stack([rows(seed, N, D) for seed in (1, 2, 3)]), rows(9, N, D)
    each = [products(W, V) for W in heads]
    batched = jax.vmap(products, in_axes=(0, None))(heads, V)
    scanned = jax.lax.scan(lambda _, W: (None, products(W, V)), None, heads)[1]
    for found in (batched, scanned):
        for part, wanted in zip(found, zip(*each, strict=True), strict=True):
            np.testing.assert_allclose(part, np.stack(wanted), rtol=2e-4, atol=2e-6)

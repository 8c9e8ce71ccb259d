"""Many small matrices in padded stacks: which go together, and that padding changes nothing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import metrics as oracle
from support.helpers import assert_close, rows

import dh2l_jax as dh2l
from dh2l_jax.metrics.sums import stacks
from dh2l_jax.metrics.sums.stacks import ACCELERATOR, CPU, Part, Stack

RESNET20 = [(1, 16, 27), *[(1, 16, 144)] * 6, (1, 32, 144), *[(1, 32, 288)] * 5, (1, 64, 288)]
RESNET20 += [(1, 64, 576)] * 5
RESNET110 = [(1, 16, 27), *[(1, 16, 144)] * 36, (1, 32, 144), *[(1, 32, 288)] * 35, (1, 64, 288)]
RESNET110 += [(1, 64, 576)] * 35
NOTHING_IN_VAIN = CPU._replace(waste=0.0)
TEN_ARRAYS = ACCELERATOR._replace(arrays=10)

# Parts, packing → the stacks' numbers of parts, rows and columns.
PLANS = {
    "one": ([(3, 5, 7)], CPU, [(1, 5, 7)]),
    "of one shape": ([(1, 5, 7), (2, 5, 7)], NOTHING_IN_VAIN, [(2, 5, 7)]),
    "nothing in vain": ([(1, 5, 7), (1, 5, 8)], NOTHING_IN_VAIN, [(1, 5, 7), (1, 5, 8)]),
    "a first layer": ([(1, 16, 27), (6, 16, 144), (5, 64, 576)], CPU, [(2, 16, 144), (1, 64, 576)]),
    "the wider side of both": ([(1, 9, 20), (1, 8, 30)], ACCELERATOR, [(2, 9, 30)]),
    "ResNet-20, CPU": (RESNET20, CPU, [(7, 16, 144), (6, 32, 288), (6, 64, 576)]),
    "ResNet-20, GPU": (RESNET20, ACCELERATOR, [(19, 64, 576)]),
    "ResNet-110, CPU": (RESNET110, CPU, [(37, 16, 144), (36, 32, 288), (36, 64, 576)]),
    "ResNet-110, GPU": (RESNET110, ACCELERATOR, [(73, 32, 288), (36, 64, 576)]),
    "kernels read ten arrays": (RESNET20, TEN_ARRAYS, [(7, 16, 144), (6, 32, 288), (6, 64, 576)]),
}


@pytest.mark.parametrize(("shapes", "packing", "expected"), PLANS.values(), ids=PLANS.keys())
def test_plan(shapes, packing, expected):
    found = stacks.plan(shapes, packing)
    assert [(len(s.parts), s.n, s.d) for s in found] == expected
    assert sorted(k for s in found for k in s.parts) == list(range(len(shapes)))
    assert [s.count for s in found] == [sum(shapes[k][0] for k in s.parts) for s in found]


def test_the_cheapest_merger_comes_first():
    """Of three that could be merged, the budget is enough for one merger."""
    shapes = [(1, 64, 500), (1, 60, 500), (1, 64, 510)]
    assert stacks.plan(shapes, CPU._replace(waste=0.01)) == [
        Stack((0, 2), 2, 64, 510),
        Stack((1,), 1, 60, 500),
    ]


TREE = (2, 4, 2), (3, 10, 4)  # seed, nodes and groups of levels 2 and 3


# --- values and gradients -----------------------------------------------------------------------

KIND = {"code": "kind"}  # as the oracle calls it
METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "both": ("d_am_cos", {}),
    "h binary": ("d_am", {}),
    "c alone": ("angular2", {}),
    "ternary": ("d_cos_hm", {"code": "ternary"}),
    "dead zone": ("d_gm_cos", {"code": "ternary", "threshold": 0.7}),
}


SCALES = 0.5, 2.0, 3.0, 0.25, 1.0


def matrices():
    """Shapes that differ in rows, in columns and in both."""
    sizes = [(3, 5), (4, 5), (4, 9), (7, 6), (2, 11)]
    return [rows(seed, n, d) for seed, (n, d) in enumerate(sizes)]


@functools.cache
def packed(name):
    """Jitted values and gradients of two terms: by both packings, by the door, and apart."""
    metric = dh2l.get_metric(METRICS[name][0], **METRICS[name][1])
    wide = CPU._replace(waste=9.0), ACCELERATOR
    # No columns are added to codes with a dead zone.
    packings = () if metric.threshold else wide

    def alone(W, scale):
        pairs = len(W) * (len(W) - 1) / 2
        return scale * pairs * dh2l.mean_energy(W, metric, method="dense")

    @jax.jit
    def fn(layers):
        parts = [
            Part(W[None], jnp.full((1, len(W)), scale))
            for W, scale in zip(layers, SCALES, strict=True)
        ]
        terms = [parts[:2], parts[2:]]
        found = [stacks._packed_sum(metric, packing, terms) for packing in packings]
        found.append(stacks.stacked_sum(metric, terms))
        found = [
            (values, [G[0] for term in gradients for G in term]) for values, gradients in found
        ]
        each = [jax.value_and_grad(alone)(*pair) for pair in zip(layers, SCALES, strict=True)]
        return found, each

    return fn


def check(found, expected, rtol):
    for values, gradients in found:
        for value, own in zip(values, (expected[:2], expected[2:]), strict=True):
            np.testing.assert_allclose(value, sum(v for v, _ in own), rtol=3e-6)
        for G, (_, slope) in zip(gradients, expected, strict=True):
            assert_close(G, slope, rtol=rtol, atol=3e-7)


@pytest.mark.parametrize("name", METRICS)
def test_padded_stacks_equal_loops(name):
    layers = matrices()
    options = {KIND.get(key, key): value for key, value in METRICS[name][1].items()}
    weights = [
        dict.fromkeys(oracle.unordered_pairs(len(W)), scale)
        for W, scale in zip(layers, SCALES, strict=True)
    ]
    expected = [
        oracle.pair_sum(W.astype(float), own, METRICS[name][0], **options)
        for W, own in zip(layers, weights, strict=True)
    ]
    check(packed(name)(layers)[0], expected, rtol=2e-5)


@pytest.mark.parametrize("name", METRICS)
def test_zero_and_parallel_rows_are_as_without_padding(name):
    layers = matrices()
    layers[1][2] = 0
    layers[2][1], layers[2][3] = 2 * layers[2][0], -layers[2][0]
    found, apart = packed(name)(layers)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    check(found, apart, rtol=3e-6)


def test_a_row_that_is_not_finite_stays_in_its_matrix():
    layers = matrices()
    layers[0][0, 0] = np.nan
    for values, gradients in packed("both")(layers)[0]:
        assert np.isnan(values[0])
        assert np.isfinite(values[1])
        assert all(np.isfinite(G).all() for G in gradients[1:])


def test_levels_of_a_tree_in_one_stack(monkeypatch):
    """As an accelerator has it: R of all levels, its groups in windows, c and h in one product."""
    tree = dh2l.Hierarchy.from_parents(([0, 0, 0, 1], [0, 3, 1, 0, 2, 3, 0, 1, 1, 3]))
    levels = [dh2l.Level(jnp.asarray(rows(1, 2, 9)))]
    for seed, n, m in TREE:
        levels.append(dh2l.Level(*map(jnp.asarray, (rows(seed, n, 9), rows(9 + seed, m, 9)))))
    where = np.arange(10) != 4

    def terms(levels, half_space):
        return dh2l.hierarchical(levels, tree, "d_am_cos", where=where, half_space=half_space)

    def both(levels):
        each = jax.value_and_grad(terms, has_aux=True)
        return [each(levels, half_space) for half_space in (False, True)]

    cpu = jax.jit(both)(levels)
    monkeypatch.setattr(stacks, "CPU", ACCELERATOR)
    jax.tree.map(
        functools.partial(assert_close, rtol=3e-6), jax.jit(lambda x: both(x))(levels), cpu
    )

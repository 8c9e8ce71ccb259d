"""Figures of diversity: values from float64 loops, and the laws of random vectors from draws."""

import math
import tracemalloc

import numpy as np
import pytest

from dh2l_jax.regularizers.params import diversity as module
from dh2l_jax.regularizers.params.diversity import figures, random_density

ROWS = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
PLANTED = ROWS.copy()  # a copy, one of thrice the length, an opposite, and one that is dead
PLANTED[3], PLANTED[5], PLANTED[6], PLANTED[8] = ROWS[0], 4 * ROWS[0], -ROWS[1], 1e-7 * ROWS[8]


def loops(W):
    """(mean, smallest, nearest, signs, rank, duplicates, dead, histogram), pair by pair."""
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in w)) for w in W]
    live = [w.astype(float) / r for w, r in zip(W, lengths, strict=True) if r > 1e-4 * max(lengths)]
    angles, signs, nearest = [], [], [math.inf] * len(live)
    repeats, histogram = set(), [0] * 180
    for j, v in enumerate(live):
        for i, u in enumerate(live[:j]):
            apart = math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(u, v, strict=True)))
            together = math.sqrt(math.fsum((x + y) ** 2 for x, y in zip(u, v, strict=True)))
            theta = math.degrees(2 * math.atan2(apart, together))
            angles.append(theta)
            nearest[i], nearest[j] = min(nearest[i], theta), min(nearest[j], theta)
            signs.append(np.mean([(x >= 0) == (y >= 0) for x, y in zip(u, v, strict=True)]))
            histogram[min(int(theta), 179)] += 1
            if theta < 0.01:
                repeats.add(j)
    sigma = np.linalg.svd(W.astype(float), compute_uv=False)
    rank = math.exp(-sum(s / sigma.sum() * math.log(s / sigma.sum()) for s in sigma if s > 1e-12))
    counts = len(repeats), len(W) - len(live), tuple(histogram)
    return np.mean(angles), min(angles), np.mean(nearest), np.mean(signs), rank, *counts


NAMES = ("mean", "smallest", "nearest", "signs", "rank", "duplicates", "dead", "histogram")


@pytest.mark.parametrize("tile", [2, 4, 1024])
@pytest.mark.parametrize("W", [ROWS, PLANTED, ROWS.T], ids=["rows", "planted", "narrow"])
def test_figures_are_those_of_loops(W, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    found = figures(W)
    for name, expected in zip(NAMES, loops(W), strict=True):
        rtol = 1e-6 if name == "rank" else 1e-9  # σ = 0 comes out as 1e-8
        np.testing.assert_allclose(getattr(found, name), expected, rtol=rtol, err_msg=name)
    assert (found.n, found.d, found.matrices) == (*W.shape, 1)


def test_duplicates_are_at_0_and_small_angles_keep_their_digits():
    found = figures(PLANTED)
    assert (found.smallest, found.duplicates, found.dead) == (0.0, 2, 1)
    assert found.histogram[179] == 1  # the opposite
    for degrees in (1e-7, 1e-3, 0.5, 179.9999):
        angle = np.radians(degrees)
        rows = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
        np.testing.assert_allclose(figures(rows).smallest, degrees, rtol=1e-8)


def test_pairs_lie_within_one_matrix_of_a_stack():
    stack = np.stack([ROWS, PLANTED, ROWS[::-1] * 2])
    alone, found = [figures(W) for W in stack], figures(stack)
    pairs = np.array([sum(one.histogram) for one in alone])
    for name in ("mean", "signs"):
        expected = pairs @ [getattr(one, name) for one in alone] / pairs.sum()
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12)
    assert found.matrices == 3
    assert found.smallest == min(one.smallest for one in alone)
    assert (found.duplicates, found.dead) == (2, 1)
    assert found.histogram == tuple(np.sum([one.histogram for one in alone], axis=0))
    assert found.rank == pytest.approx(np.mean([one.rank for one in alone]))


@pytest.mark.parametrize("shape", [(2, 5), (20, 3), (32, 9), (24, 64), (4, 10, 8)])
def test_random_vectors_are_as_chance_says(shape):
    generator = np.random.default_rng(1)  # its own: the draws depend on no other test
    draws = [figures(generator.normal(size=shape)) for _ in range(150)]
    for name in ("mean", "smallest", "nearest", "signs", "rank"):
        z = [draw.z[name] for draw in draws]
        assert abs(np.mean(z)) < 0.6, name  # 0.25 from 150 draws, the rest of the rank's chance
        assert 0.6 < np.std(z) < 1.6, name
    assert not any(draw.less_diverse for draw in draws)


@pytest.mark.parametrize("d", [2, 3, 10, 500])
def test_density_of_random_angles_is_a_density_with_the_variance_of_chance(d):
    degrees = (np.arange(18_000) + 0.5) / 100
    density = random_density(d, degrees) / 100
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-5)
    deviation = math.sqrt(density @ (degrees - 90) ** 2)
    np.testing.assert_allclose(module._chance(2, d, (2,))["mean"], (90, deviation), rtol=1e-4)


def test_layers_far_less_diverse_than_chance_are_marked():
    random = np.random.default_rng(2).normal(size=(64, 27))
    assert not figures(random).less_diverse
    cone = random + 2  # all around one direction
    twins = np.concatenate([random[:32], random[:32]])
    flat = random @ np.diag([1.0] * 5 + [1e-3] * 22)  # in five dimensions
    for W, name in ((cone, "mean"), (twins, "nearest"), (flat, "rank")):
        found = figures(W)
        assert found.less_diverse, name
        assert found.z[name] < -6, name


def test_what_has_no_pairs_has_no_angles():
    for W in (np.ones((1, 4)), np.zeros((3, 4)), np.zeros((0, 4))):
        found = figures(W)
        assert (found.mean, found.smallest, found.nearest, found.signs) == (None,) * 4
        assert "mean" not in found.z
    assert figures(np.zeros((3, 4))).rank == 0
    assert figures(np.zeros((8, 8))).less_diverse  # in the rank
    line = figures(np.array([[1.0], [2.0], [-1.0]]))
    assert (line.mean, line.smallest, line.duplicates) == (pytest.approx(120), 0.0, 1)


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (np.ones(3), r"expected a matrix \(n, d\) with a vector a row, found shape \(3,\)"),
        (np.array([[1.0, np.nan], [1.0, 2.0]]), "1 of 2 vectors are not finite"),
        (np.array([[1.0, np.inf], [-np.inf, 2.0]]), "2 of 2 vectors are not finite"),
    ],
)
def test_what_has_no_angles_is_refused(W, message):
    with pytest.raises(ValueError, match=message):
        figures(W)


def test_memory_grows_with_the_matrix_and_not_with_its_pairs():
    W = np.random.default_rng(3).normal(size=(4000, 16)).astype(np.float32)
    tracemalloc.start()
    figures(W)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000**2 * 8 / 2  # half of one (n, n); (n, n, d) would be 32 times that

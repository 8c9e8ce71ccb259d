"""What holds for every metric and any rows: hypothesis draws them, chex compares trees."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import metrics as oracle
from support.helpers import (
    ROOTS,
    assert_close,
    clipped_rows,
    distances,
    energy_and_gradient,
    every_metric,
    everyone,
    rows,
)

import dh2l_jax as dh2l

N, WIDTH = 6, 5
BOUNDS = {"cosine": (-1, 1), "n_euclidean2": (1 / 3.98, 50.01), "angular2": (0.11, 49.92)}
few = functools.partial(hypothesis.settings, max_examples=8)

# Small integers give zeros, duplicates, antipodes and collinear rows; floats give the rest.
lattice = hnp.arrays(np.int8, (N, WIDTH), elements=st.integers(-2, 2)).map(np.float32)
floats = hnp.arrays(
    np.float32, (N, WIDTH), elements=st.floats(-3, 3, width=32, allow_subnormal=False)
)
generic = st.integers(0, 10_000).map(lambda seed: rows(seed))
any_rows = st.one_of(lattice, floats, generic)
masks = hnp.arrays(bool, N)


def bounds(name):
    """Of the energy. The printed D_HM is the only distance of Eq. (8) beyond 1."""
    if name in ("d_hm", "d_hm_prime"):
        return -1, 1
    return BOUNDS.get(name, (0, 1))


def finite(tree):
    chex.assert_tree_all_finite(tree)
    return tree


@every_metric
@few()
@hypothesis.given(W=any_rows, where=masks)
def test_values_and_gradients_are_finite_and_bounded(name, W, where):
    value, gradient = finite(energy_and_gradient(name)(W, where))
    chex.assert_type([value, gradient], jnp.float32)
    low, high = bounds(name)
    if where.sum() < 2:
        assert value == 0
    else:
        assert low - 1e-5 <= value <= high + 1e-5
    assert not gradient[~where].any()


@every_metric
@few(max_examples=5)
@hypothesis.given(W=any_rows)
def test_distances_are_symmetric_and_bounded(name, W):
    _, D = distances(name)(W, np.zeros((N, N), np.float32))
    chex.assert_shape(D, (N, N))
    chex.assert_trees_all_close(D, D.T, atol=1e-6)
    high = {"cosine": 2, "n_euclidean2": 2, "angular2": np.pi, "d_hm": 2, "d_hm_prime": 2}
    assert D.min() >= -1e-6
    assert D.max() <= high.get(name, 1) + 1e-5
    if name in ("d_am", "d_am_prime"):
        via = np.asarray(D[:, :, None] + D[None, :, :])  # D(i, j) + D(j, k)
        # A zero row is at a right angle to itself; its place in the plane of angles is undefined.
        inside = np.abs(W).max(axis=1) > 0
        excess = np.asarray(D)[:, None, :] - via
        assert excess[np.ix_(inside, inside, inside)].max(initial=0) <= 1e-5


@every_metric
@few()
@hypothesis.given(W=generic, seed=st.integers(0, 100))
def test_scale_invariance(name, W, seed):
    """Each row by its own factor: the same value, and the gradient divided by the factor."""
    scale = np.exp(np.random.default_rng(seed).uniform(-6, 6, (N, 1))).astype(np.float32)
    value, gradient = energy_and_gradient(name)(W, everyone(W))
    scaled, scaled_gradient = energy_and_gradient(name)(W * scale, everyone(W))
    np.testing.assert_allclose(scaled, value, rtol=1e-5, atol=1e-6)
    assert_close(scaled_gradient * scale, gradient, rtol=3e-5)
    radial = np.sum(np.asarray(gradient) * W, axis=1)
    assert np.abs(radial).max() < 1e-5 * (1 + np.abs(gradient).max())


@every_metric
@few()
@hypothesis.given(W=any_rows, where=masks, order=st.permutations(range(N)))
def test_permutation_equivariance(name, W, where, order):
    order = np.array(order)
    value, gradient = energy_and_gradient(name)(W, where)
    permuted, permuted_gradient = energy_and_gradient(name)(W[order], where[order])
    np.testing.assert_allclose(permuted, value, rtol=1e-5, atol=1e-6)
    smooth = np.abs(W).max() > 0 and name not in ROOTS
    if smooth:
        assert_close(permuted_gradient, gradient[order], rtol=1e-4, atol=1e-5)


@every_metric
@pytest.mark.parametrize("keep", [[0, 1, 2, 5], [3, 4], [2]], ids=str)
def test_what_is_left_out_is_never_looked_at(name, keep):
    """NaN and infinity in the other rows change neither value nor gradient by a bit."""
    where = np.isin(np.arange(N), keep)
    reference = energy_and_gradient(name)(rows(11), where)
    for fill in (0.0, np.nan, np.inf, -1e30):
        holed = np.where(where[:, None], rows(11), np.float32(fill))
        value, gradient = finite(energy_and_gradient(name)(holed, where))
        assert not gradient[~where].any()
        chex.assert_trees_all_equal((value, gradient), reference)


@pytest.mark.parametrize("name", ["cosine", "d_h_ter", "d_am", "d_hm_cos", "angular2"])
@pytest.mark.parametrize("method", ["auto", "tiled"])
def test_where_equals_dropping_rows(name, method):
    where = np.array([True, False, True, True, False, True])
    value, gradient = energy_and_gradient(name, method=method, block=4)(rows(13), where)
    kept = rows(13)[where]
    expected, expected_gradient = energy_and_gradient(name)(kept, everyone(kept))
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
    assert_close(gradient[where], expected_gradient)


@every_metric
def test_mean_over_kept_pairs(name):
    """Masked means put together from the masks of single pairs."""
    W = rows(12)
    where = np.array([True, False, True, True, True, False])
    value, gradient = energy_and_gradient(name)(W, where)
    keep = np.flatnonzero(where)
    pairs = [(i, j) for i in keep for j in keep if i < j]
    singles = [energy_and_gradient(name)(W, np.isin(np.arange(N), p)) for p in pairs]
    np.testing.assert_allclose(value, np.mean([v for v, _ in singles]), rtol=1e-5, atol=1e-6)
    assert_close(gradient, np.mean([g for _, g in singles], axis=0), rtol=2e-5)


DEGENERATE = {
    "zeros": np.zeros((N, WIDTH)),
    "one zero row": np.where(np.arange(N)[:, None] == 2, 0, rows(0)),
    "two zero rows": np.where(np.arange(N)[:, None] % 3 == 2, 0, rows(0)),
    "duplicates": np.tile(rows(1)[:2], (3, 1)),
    "all equal": np.tile(rows(1)[:1], (N, 1)),
    "antipodes": np.concatenate([rows(2)[:3], -rows(2)[:3]]),
    "scaled antipodes": np.concatenate([rows(2)[:3], -1e-3 * rows(2)[:3]]),
    "axes": np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)[:1]]),
    "huge": rows(3) * 1e18,
    "tiny": rows(3) * 1e-18,
    "huge and tiny": rows(3) * np.array([1e18, 1e-18, 1, 1e18, 1e-18, 1])[:, None],
    "larger than its square root": rows(3) * 1e37,
    "beyond subnormal squares": rows(3) * 1e-30,
    "near the clip": clipped_rows(),
    "one big entry": np.where(np.arange(WIDTH) == 1, 1e18, rows(4)),
}


@every_metric
def test_degenerate_rows_have_finite_values_and_gradients(name):
    fn = energy_and_gradient(name)
    low, high = bounds(name)
    for what, W in DEGENERATE.items():
        W = W.astype(np.float32)
        for where in (everyone(W), np.arange(N) < 1, np.zeros(N, bool)):
            value, gradient = fn(W, where)
            assert np.isfinite(value), what
            assert np.isfinite(gradient).all(), what
            if where.sum() > 1:
                assert low - 1e-5 <= value <= high + 1e-5, what
            else:
                assert value == 0, what
                assert not gradient.any(), what


@pytest.mark.parametrize("length", [6e37, 1e38])
@pytest.mark.parametrize(
    ("name", "method"), [("cosine", "closed"), ("d_cos_hm", "dense"), ("d_cos_hm", "tiled")]
)
def test_a_row_beyond_inverse_norms_is_no_zero_row(name, method, length):
    """Where its 1/‖w‖ is subnormal and the device takes that for 0, the sum is no number."""
    W = np.where(np.arange(N)[:, None] == 1, np.sign(rows(3)), rows(3)).astype(np.float32)
    expected, _ = energy_and_gradient(name, method=method)(W, everyone(W))
    W[1] *= np.float32(length)
    value, _ = energy_and_gradient(name, method=method)(W, everyone(W))
    assert not np.isfinite(value) or np.isclose(value, expected, rtol=1e-3)


@every_metric
def test_one_row_is_exactly_zero(name):
    """No pair, no energy: not even the rounding of a sum from which itself is taken away."""
    for seed, row in np.ndindex(5, N):
        value, gradient = energy_and_gradient(name)(rows(seed), np.arange(N) == row)
        assert value == 0
        assert not gradient.any()


@every_metric
def test_huge_and_tiny_rows_have_the_value_of_their_directions(name):
    W = rows(3)
    value, gradient = energy_and_gradient(name)(W, everyone(W))
    for scale in (1e18, 1e-18, 2.0**100, 2.0**-100):
        scaled, scaled_gradient = energy_and_gradient(name)(W * np.float32(scale), everyone(W))
        np.testing.assert_allclose(scaled, value, rtol=1e-5, atol=1e-6)
        assert_close(scaled_gradient * np.float32(scale), gradient, rtol=3e-5)


@every_metric
def test_a_zero_row_gets_no_gradient(name):
    W = rows(5)
    W[3] = 0
    _, gradient = energy_and_gradient(name)(W, everyone(W))
    assert not gradient[3].any()
    assert gradient[0].any()


@every_metric
def test_methods_agree(name):
    """Closed or dense = tiled with blocks that do not divide n, value and gradient."""
    options = [{"method": "tiled", "block": 4}]
    if dh2l.METRICS[name].affine:
        options += [{"method": "dense"}, {"method": "closed"}]
    where = np.array([True, True, False, True, True, True])
    for W, keep in ((rows(6), where), (rows(7), everyone(where)), (rows(8), ~where)):
        value, gradient = energy_and_gradient(name)(W, keep)
        for option in options:
            other, other_gradient = energy_and_gradient(name, **option)(W, keep)
            np.testing.assert_allclose(other, value, rtol=2e-6, atol=1e-6)
            assert_close(other_gradient, gradient, rtol=5e-6)


@pytest.mark.parametrize("name", ["d_h_bin", "d_am"])
@pytest.mark.parametrize(("n", "block"), [(1, 3), (7, 1), (7, 7), (13, 5), (9, 64)])
def test_tiles_of_any_size(name, n, block):
    W = np.random.default_rng(n).normal(size=(n, WIDTH)).astype(np.float32)
    tiled = energy_and_gradient(name, method="tiled", block=block)(W, everyone(W))
    dense = energy_and_gradient(name, method="dense")(W, everyone(W))
    np.testing.assert_allclose(tiled[0], dense[0], rtol=2e-6, atol=1e-6)
    assert_close(tiled[1], dense[1], rtol=5e-6)
    if n == 1:
        assert tiled[0] == dense[0] == 0


@pytest.mark.parametrize("name", ["cosine", "d_h_ter", "d_gm", "d_cos_hm", "d_am_cos", "angular2"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_widened(name, dtype):
    """Computed in float32; the gradient has the type of the input."""
    W = jnp.asarray(rows(8)).astype(dtype)
    expected, gradient = energy_and_gradient(name)(W.astype(jnp.float32), everyone(W))
    value, low = energy_and_gradient(name)(W, everyone(W))
    chex.assert_type([value, low], [jnp.float32, dtype])
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    assert_close(low, gradient, rtol=1e-2, atol=1e-6)


@every_metric
def test_integers_are_widened(name):
    u, v = np.array([3, -1, 2, 0]), np.array([1, 2, 2, -5])
    value = dh2l.energy(u, v, name)
    chex.assert_type(value, jnp.float32)
    np.testing.assert_array_equal(
        value, dh2l.energy(u.astype(np.float32), v.astype(np.float32), name)
    )


@every_metric
def test_float64_stays_float64(name):
    """The profiles under x64 agree with the oracle to nearly all digits."""
    with jax.enable_x64(True):
        c, h = np.array([-0.7, 0.1, 0.995]), np.array([0.3, -0.6, 0.2])
        metric = dh2l.METRICS[name]
        energy = metric.energy(jnp.asarray(c), jnp.asarray(h))
        chex.assert_type(energy, jnp.float64)
        for i in range(3):
            clips = oracle.clip_from(c[i]), oracle.clip_from(h[i])
            expected = oracle.PROFILES[name][1](c[i], h[i], *clips)
            np.testing.assert_allclose(energy[i], expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_a_profile_may_be_singular_where_no_pair_is(method):
    """1/(1 − c) is infinite on the diagonal and fine between c = 0, 0 and −1."""
    W = np.float32([[1, 0], [0, 1], [-1, 0]])
    profile = functools.partial(lambda c, h: 1 / (1 - c))
    fn = jax.value_and_grad(lambda x: dh2l.mean_energy(x, profile, method=method, block=2))
    value, gradient = finite(fn(jnp.asarray(W)))
    np.testing.assert_allclose(value, 2.5 / 3, rtol=1e-6)
    assert_close(gradient, np.array([[0, 1], [0, 0], [0, 1]]) / 3)


@pytest.mark.parametrize("degrees", [0, 1e-5, 0.1, 8, 90, 179.999, 180])
def test_the_exact_angle_has_no_clip(degrees):
    angle = np.radians(degrees)
    u, v = np.array([1.0, 0.0]), 3 * np.array([np.cos(angle), np.sin(angle)])
    found = 180 * jax.jit(dh2l.exact_angle)(u.astype(np.float32), v.astype(np.float32))
    np.testing.assert_allclose(found, degrees, rtol=1e-5, atol=1e-6)


def test_duplicates_are_at_no_angle():
    W = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(jax.vmap(dh2l.exact_angle)(W, 4 * W), 0)
    table = jax.jit(functools.partial(dh2l.pairwise, dh2l.exact_angle))(W)
    expected = np.arccos(np.clip(_cosines(W), -1, 1)) / np.pi
    np.testing.assert_allclose(table, expected, atol=1e-5)


def _cosines(W):
    U = W.astype(np.float64) / np.linalg.norm(W.astype(np.float64), axis=1, keepdims=True)
    return U @ U.T

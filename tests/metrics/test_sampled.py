"""Tiles of random rows: unbiased over draws, exact where one holds all, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dh2l_jax as dh2l
from dh2l_jax import Sampled

N, D, DRAWS = 300, 5, 3000
SAMPLE = Sampled(tiles=3, rows=4)
KEYS = jax.random.split(jax.random.key(0), DRAWS)
# All rows, many of them, fewer than the tiles take, the least number of rows that make a pair.
PRESENT = [np.ones(N, bool)] + [np.arange(N) % step == 1 for step in (3, 33, 150)]


def clustered():
    """Rows whose order tells their direction, so that rows which are drawn too often show."""
    generator = np.random.default_rng(0)
    W = np.repeat(generator.normal(size=(10, D)), N // 10, axis=0)
    return W + 0.5 * generator.normal(size=(N, D))


@functools.cache
def drawn():
    """(masks, draws, tiles, rows) of every mask."""
    draw = jax.vmap(jax.vmap(SAMPLE.draw, (0, None)), (None, 0))
    return np.asarray(jax.jit(draw)(KEYS, np.stack(PRESENT)))


def test_tiles_hold_distinct_rows_that_take_part_and_are_filled_in_order():
    for where, index in zip(PRESENT, drawn(), strict=True):
        flat = index.reshape(DRAWS, -1)
        present = np.append(where, True)  # n stands for no row
        count = min(where.sum(), flat.shape[1])
        assert present[flat].all()
        assert (flat[:, :count] < N).all()
        assert (flat[:, count:] == N).all()
        assert all(len(set(row)) == count for row in flat[:, :count])


def test_every_row_is_drawn_as_often_at_every_place():
    """Against counts of multinomial draws, six standard deviations; of all rows at once, χ²."""
    for where, index in zip(PRESENT[:2], drawn(), strict=False):
        flat, number = index.reshape(DRAWS, -1), where.sum()
        for place in (0, 5, 11):
            counts = np.bincount(flat[:, place], minlength=N)[where]
            expected = DRAWS / number
            assert abs(counts - expected).max() < 6 * np.sqrt(expected)
            chi2 = ((counts - expected) ** 2 / expected).sum()
            assert abs(chi2 - (number - 1)) < 5 * np.sqrt(2 * number)


@pytest.mark.parametrize(("metric", "half_space"), [("d_cos_hm", False), ("mhe_s1", True)])
def test_value_and_gradient_are_unbiased(metric, half_space):
    """z of the mean over draws: of the value, and of the gradient along 7 directions."""
    W = clustered()
    directions = np.random.default_rng(1).normal(size=(7, N, D))
    directions[0] = np.arange(N)[:, None] < 40

    def energy(W, where, **options):
        return dh2l.mean_energy(W, metric, where=where, half_space=half_space, **options)

    def along(W, where, **options):
        value, slope = jax.value_and_grad(energy)(W, where, **options)
        return jnp.append(jnp.einsum("knd,nd->k", directions, slope), value)

    def sampled(W, where, key):
        return along(jnp.where(where[:, None], W, jnp.nan), where, sample=SAMPLE, key=key)

    of_draws = jax.vmap(jax.vmap(sampled, (None, None, 0)), (None, 0, None))
    with jax.enable_x64(True):
        W, masks = jnp.asarray(W), np.stack(PRESENT)
        exact = np.asarray(jax.jit(jax.vmap(along, (None, 0)))(W, masks))
        found = np.asarray(jax.jit(of_draws)(W, masks, KEYS))
    error = found.mean(axis=1) - exact
    scatter = found.std(axis=1) / np.sqrt(DRAWS)
    exactly = masks.sum(axis=1) <= SAMPLE.rows  # one tile holds all
    assert exactly.tolist() == [False, False, False, True]
    np.testing.assert_allclose(error[exactly], 0, atol=1e-12)
    assert (scatter[~exactly] > 0).all()
    assert np.abs(error[~exactly] / scatter[~exactly]).max() < 4
    assert np.abs(error[:, -1] / exact[:, -1]).max() < 0.01


def test_log_mean_exp_is_too_small_by_the_variance():
    """E log μ̂ ≈ log μ − Var(μ̂)/(2μ²), as the docstring says."""
    W, where = jnp.asarray(clustered(), jnp.float32), PRESENT[0]
    fn = functools.partial(dh2l.mean_energy, W, "d_cos_hm", reduction="log_mean_exp", where=where)
    found = jax.jit(jax.vmap(lambda key: fn(sample=SAMPLE, key=key)))(KEYS).astype(float)
    relative = np.exp(found - fn())
    bias = np.mean(found) - float(fn())
    np.testing.assert_allclose(relative.mean(), 1, atol=4 * relative.std() / np.sqrt(DRAWS))
    expected = -relative.var() / 2
    assert expected < 0
    np.testing.assert_allclose(
        bias, expected, atol=4 * found.std() / np.sqrt(DRAWS) + 0.2 * abs(expected)
    )


REFUSED = {
    "key=jax.random.key": {"sample": SAMPLE},
    "add sample=": {"key": KEYS[0]},
    "row_max is too small": {"sample": SAMPLE, "key": KEYS[0], "reduction": "row_max"},
    "max is too small": {"sample": SAMPLE, "key": KEYS[0], "reduction": "max"},
    "leave out mesh": {"sample": SAMPLE, "key": KEYS[0], "mesh": jax.make_mesh((1,), ("data",))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused(message):
    with pytest.raises(ValueError, match=message):
        dh2l.mean_energy(np.eye(3), "cosine", **REFUSED[message])


@pytest.mark.parametrize("sizes", [(0, 4), (3, 1)])
def test_a_sample_without_a_pair_is_refused(sizes):
    with pytest.raises(ValueError, match="tiles ≥ 1 and rows ≥ 2"):
        Sampled(*sizes)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows(n):
    W = np.eye(3, dtype=np.float32)[:n]
    value, why = dh2l.mean_energy(W, "mhe_s2", sample=SAMPLE, key=KEYS[0], explain=True)
    np.testing.assert_allclose(value, 0.5 if n == 2 else 0, rtol=1e-6)
    assert n < 2 or why == "sampled: 3 tiles of 2 of 2 rows, each dense: 2 rows are at most 1,024"

"""What the compiled sums allocate: never n×n×d, and for tiles not even n×n."""

import functools

import jax
import jax.numpy as jnp
import pytest

import dh2l_jax as dh2l

FLOAT = 4


def temporary_bytes(fn, *shape):
    compiled = jax.jit(fn).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def value_and_gradient(metric, **options):
    return jax.value_and_grad(functools.partial(dh2l.mean_energy, metric=metric, **options))


@pytest.mark.parametrize("metric", ["d_am", "d_am_cos", "d_cos_hm_std_prime"])
def test_dense_holds_gram_matrices_not_differences(metric):
    n, d = 256, 512
    used = temporary_bytes(value_and_gradient(metric, method="dense"), n, d)
    assert used <= 20 * FLOAT * (n * n + n * d)
    assert used < FLOAT * n * n * d / 8


def test_pairwise_of_energies_is_a_product_of_matrices():
    n, d = 256, 512
    energy = functools.partial(dh2l.energy, metric="d_am_cos")
    assert temporary_bytes(lambda W: dh2l.pairwise(energy, W), n, d) < FLOAT * n * n * d / 8


@pytest.mark.parametrize("metric", ["d_am", "d_am_cos"])
def test_tiles_need_block_by_n(metric):
    n, d, block = 8192, 64, 256
    used = temporary_bytes(value_and_gradient(metric, method="tiled", block=block), n, d)
    assert used <= FLOAT * block * n  # the n×n matrix alone has 32 times as much
    twice = temporary_bytes(value_and_gradient(metric, method="tiled", block=block), 2 * n, d)
    assert twice - used <= 2 * FLOAT * n * d + 2**16  # grows with the gradient only


def test_closed_form_needs_the_rows_alone():
    n, d = 4096, 64
    used = temporary_bytes(value_and_gradient("d_am_cos_prime"), n, d)
    assert used <= 8 * FLOAT * n * d


def test_groups_cost_their_own_pairs():
    n, d = 4096, 32
    groups = [i // 8 for i in range(n)]
    fn = jax.value_and_grad(lambda W: dh2l.group_energy(W, groups, "d_am_cos"))
    assert temporary_bytes(fn, n, d) < FLOAT * n * n / 4

"""A regulariser as a link of an optax chain."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import dh2l_jax as dh2l
from dh2l_jax.regularizers import transform


def test_regularizer_as_a_link_of_an_optax_chain():
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}}

    def penalty(params):
        return 0.1 * dh2l.weight_energy(params, "d_am_cos")

    gradients = jax.tree.map(jnp.ones_like, params)
    chain = optax.chain(transform.add_gradient_of(penalty), optax.sgd(0.1))
    found, _ = jax.jit(chain.update)(gradients, chain.init(params), params)
    total = jax.tree.map(jnp.add, gradients, jax.jit(jax.grad(penalty))(params))
    chex.assert_trees_all_close(found, jax.tree.map(lambda g: -0.1 * g, total), rtol=1e-6)
    with pytest.raises(ValueError, match="parameters are needed"):
        chain.update(gradients, chain.init(params))

"""‖C Cᵀ − I‖ of centres against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import tree as oracle_tree
from support.helpers import assert_close

import dh2l_jax as dh2l

value_and_grad = jax.jit(jax.value_and_grad(dh2l.orthogonality))


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


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        dh2l.orthogonality(jnp.ones(3))

"""A small state of training."""

import jax
import jax.numpy as jnp

from dh2l_jax.training.step.state import TrainState


def state_of(step=0):
    params, key = jnp.arange(2.0), jax.random.key_data(jax.random.key(0)).copy()
    return TrainState(jnp.asarray(step), params + step, {}, (), key, jnp.ones(()))

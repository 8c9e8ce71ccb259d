"""A regulariser as one link of an optax chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

__all__ = ["add_gradient_of"]


def add_gradient_of(regularizer: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """Adds the gradient of regularizer(params) to the updates: one link of any optax chain.

    Put it where a loss term's gradient would enter, before momentum or Adam.

    >>> import jax.numpy as jnp
    >>> import dh2l_jax as dh2l
    >>> link = add_gradient_of(lambda params: 0.1 * dh2l.weight_energy(params, "d_am_cos"))
    >>> tx = optax.chain(link, optax.adam(1e-3))
    >>> params = {"kernel": jnp.eye(4)}
    >>> updates, _ = tx.update(params, tx.init(params), params)
    """

    def update(updates: Any, state: Any, params: Any = None):
        if params is None:
            raise ValueError("the parameters are needed: call update(gradients, state, params)")
        gradient = jax.grad(regularizer)(params)
        return jax.tree.map(lambda u, g: u + g, updates, gradient), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

"""SGD with coupled weight decay, learning-rate schedules, and a regulariser as an optax link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from dh2l_jax.training.config import OptimConfig

__all__ = ["add_gradient_of", "decay_mask", "learning_rate", "optimizer"]


def learning_rate(optim: OptimConfig, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate of each step: step or cosine, after an optional linear warm-up.

    Milestones are fractions of the whole run, as the paper's 50 % and 85 %.
    """
    total = steps_per_epoch * epochs
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total)
    if optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.lr, max(total - warmup, 1))
    else:
        boundaries = {max(round(m * total) - warmup, 0): optim.decay for m in optim.milestones}
        main = optax.piecewise_constant_schedule(optim.lr, boundaries)
    if not warmup:
        return main
    ramp = optax.linear_schedule(optim.lr / warmup, optim.lr, max(warmup - 1, 1))
    return optax.join_schedules([ramp, main], [warmup])


def decay_mask(params: Any) -> Any:
    """True for kernels and head vectors; biases and BatchNorm have one axis and never decay."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def optimizer(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum; the decay λ_f is added to the gradient before momentum, as torch does.

    Reference: DH²L, §5.
    """
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay, decay_mask),
        optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov),
    )


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

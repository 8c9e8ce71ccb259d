"""SGD with coupled weight decay and learning-rate schedules."""

from __future__ import annotations

from typing import Any

import jax
import optax

from dh2l_jax.regularizers.params.layouts.names import no_vectors
from dh2l_jax.regularizers.params.leaves import path_text
from dh2l_jax.regularizers.transform import riemannian
from dh2l_jax.training.config import OptimConfig

__all__ = ["decay_mask", "learning_rate", "optimizer"]


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
    """True for kernels and head vectors; biases and normalisations never decay."""
    return jax.tree_util.tree_map_with_path(lambda k, p: not no_vectors(path_text(k), p), params)


def optimizer(
    optim: OptimConfig, schedule: optax.Schedule, *, on_spheres: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum; the decay λ_f is added to the gradient before momentum, as torch does.

    With `on_spheres` the directions of a sphere head keep their length 1 (`riemannian`); the factor
    of a roll-back cuts a step short on its chord, from where the next one returns to the sphere.

    Reference: DH²L, §5.
    """
    sgd = optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)
    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay, decay_mask),
        riemannian(sgd, sphere_mask) if on_spheres else sgd,
    )


def sphere_mask(params: Any) -> Any:
    """True for the directions of a sphere head."""
    return jax.tree_util.tree_map_with_path(lambda k, _: path_text(k) == "head/direction", params)

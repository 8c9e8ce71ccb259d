"""Optimisers, what decays and what is frozen, and learning-rate schedules."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from dh2l_jax.checks import unknown_name
from dh2l_jax.regularizers.params.layouts.names import no_vectors
from dh2l_jax.regularizers.params.leaves import named, path_text
from dh2l_jax.regularizers.transform import riemannian
from dh2l_jax.training.config import OptimConfig

__all__ = ["averaged", "decay_mask", "frozen", "learning_rate", "optimizer"]


def learning_rate(optim: OptimConfig, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate of each step: `optim.schedule`, after an optional linear warm-up.

    Milestones are fractions of the whole run, as the paper's 50 % and 85 %.
    """
    total = steps_per_epoch * epochs
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total)
    rest = max(total - warmup, 1)
    if optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.lr, rest)
    elif optim.schedule == "linear":
        main = optax.linear_schedule(optim.lr, 0.0, rest)
    elif optim.schedule == "constant":
        main = optax.constant_schedule(optim.lr)
    else:
        boundaries = {max(round(m * total) - warmup, 0): optim.decay for m in optim.milestones}
        main = optax.piecewise_constant_schedule(optim.lr, boundaries)
    if not warmup:
        return jax.jit(main)  # one program on the host, where each operation would be one
    ramp = optax.linear_schedule(optim.lr / warmup, optim.lr, max(warmup - 1, 1))
    return jax.jit(optax.join_schedules([ramp, main], [warmup]))


def decay_mask(params: Any) -> Any:
    """True for kernels and head vectors; biases and normalisations never decay."""
    return jax.tree_util.tree_map_with_path(lambda k, p: not no_vectors(path_text(k), p), params)


def optimizer(
    optim: OptimConfig, schedule: optax.Schedule, *, on_spheres: bool = False
) -> optax.GradientTransformation:
    """The optimiser of a run, from gradient to step: clip, l2, direction, learning rate.

    SGD adds λ_f to the gradient before momentum, as torch does; the others decay apart from their
    moments. What is frozen takes no part in the norm that is clipped. Of `accumulate` batches the
    last one makes the step, at its own learning rate, from the mean gradient.

    With `on_spheres` the directions of a sphere head keep their length 1 (`riemannian`); the factor
    of a roll-back cuts a step short on its chord, from where the next one returns to the sphere.

    Reference: DH²L, §5.
    """
    k = optim.accumulate
    step = _direction(optim, schedule if k == 1 else lambda count: schedule(k * count + k - 1))
    if optim.head_rate != 1:
        step = optax.chain(step, optax.masked(optax.scale(optim.head_rate), head_mask))
    links = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
    if optim.name == "sgd":
        links.append(optax.add_decayed_weights(optim.weight_decay, decay_mask))
    tx = optax.chain(*links, riemannian(step, sphere_mask) if on_spheres else step)
    if k > 1:
        tx = optax.MultiSteps(tx, k).gradient_transformation()
    if optim.freeze:
        still = optax.set_to_zero()
        labels = functools.partial(frozen, patterns=optim.freeze)
        tx = optax.partition({False: tx, True: still}, labels)
    return tx


def _direction(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Gradients to steps, with the learning rate and all but SGD's decay."""
    decay = {"weight_decay": optim.weight_decay, "mask": decay_mask}
    if optim.name == "sgd":
        return optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)
    if optim.name == "muon":
        # Both of its parts decay here: its Adam has no mask that spares biases.
        return optax.chain(
            optax.contrib.muon(1.0, muon_weight_dimension_numbers=_muon_axes),
            optax.add_decayed_weights(-optim.weight_decay, decay_mask),
            optax.scale_by_schedule(schedule),
        )
    return {"adamw": optax.adamw, "lamb": optax.lamb, "lion": optax.lion}[optim.name](
        schedule, **decay
    )


def _muon_axes(params: Any) -> Any:
    """The axes by which Muon sees a kernel as a matrix; None for what is Adam's."""

    def of(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        name = path_text(path)
        if leaf.ndim not in (2, 4) or name.startswith("head/") or no_vectors(name, leaf):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(of, params)


def frozen(params: Any, patterns: tuple[str, ...]) -> Any:
    """True for weights in whose path one of the patterns is found.

    Raises:
      ValueError: a pattern is found in no path, or nothing would be trained.

    >>> frozen({"stem": {"kernel": 1.0}, "head": {"kernel": 1.0}}, ("^stem",))
    {'head': {'kernel': False}, 'stem': {'kernel': True}}
    """
    paths = [path for path, _ in named(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(unknown_name("path pattern of optim.freeze", pattern, paths))
    any_of = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    if all(any_of.search(path) for path in paths):
        raise ValueError(f"optim.freeze={'; '.join(patterns)} leaves no weight to train")
    return jax.tree_util.tree_map_with_path(lambda k, _: bool(any_of.search(path_text(k))), params)


def averaged(optim: OptimConfig, mean: Any, values: Any, step: jax.Array) -> Any:
    """The running mean of a tree after so many batches; the values before the first step are out.

        mean ← mean + (1 − β)/(1 − βᵗ) (values − mean),   t the steps of the optimiser

    >>> optim, mean = OptimConfig(ema=0.5), 7.0
    >>> for step, value in enumerate((1.0, 4.0), 1):
    ...     mean = averaged(optim, mean, value, jnp.asarray(step))
    >>> float(mean)  # (½ · 1 + 4)/(½ + 1)
    3.0
    """
    beta, t = jnp.float32(optim.ema), step // optim.accumulate
    share = jnp.where(step % optim.accumulate == 0, (1 - beta) / (1 - beta**t), 0)
    return jax.tree.map(lambda m, value: m + share * (value - m), mean, values)


def head_mask(params: Any) -> Any:
    """True for what the head has learnt."""
    return jax.tree_util.tree_map_with_path(lambda k, _: path_text(k).startswith("head/"), params)


def sphere_mask(params: Any) -> Any:
    """True for the directions of a sphere head."""
    return jax.tree_util.tree_map_with_path(lambda k, _: path_text(k) == "head/direction", params)

"""The jitted steps: one of training, one of evaluation.

Under a mesh the batch is split over the "data" axis and everything else is replicated, so losses
and batch statistics are those of the global batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.data.batches.feed import Feed
from dh2l_jax.data.batches.placement import place
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.hierarchy.learn.decoding import crm_risk
from dh2l_jax.hierarchy.scores import Counts, count
from dh2l_jax.models import Network
from dh2l_jax.training.step.finite import all_finite
from dh2l_jax.training.step.objective import Terms
from dh2l_jax.training.step.state import TrainState

__all__ = [
    "StepResult",
    "make_eval_step",
    "make_logits_step",
    "make_train_step",
]


Scale = tuple[jax.Array, jax.Array]  # mean and standard deviation of the pixels, each (c,)

# Folded into the key of a step, beyond the numbers that `draw_crops` splits it by.
AUGMENT, MIX = 1_000, 1_001

# Classes up to which evaluation counts the confusion matrix, 16 MB.
MAX_CONFUSION = 2_000


class StepResult(NamedTuple):
    """What the host learns of a training step.

    Attributes:
      terms: of the objective, () each.
      finite: name → whether that part of the new state is finite, () bool each.
      stop: () bool, whether any process was asked to stop; None where there is one process.
    """

    terms: Terms
    finite: dict[str, jax.Array]
    stop: jax.Array | None


def make_train_step(
    objective: Callable[..., tuple[jax.Array, tuple[Any, Terms]]],
    tx: optax.GradientTransformation,
    dataset: Dataset,
    feed: Feed,
    average: Callable[..., Any] | None = None,
    *,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    mix: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
) -> Callable[..., tuple[TrainState, StepResult]]:
    """The jitted step: (state, *batch of the feed, stop=None) → (state, StepResult).

    The state is donated: the caller's copy is used up. `stop` is (devices,) bool, whether the
    process of each device was asked to stop. `average` makes of (running means, variables, step)
    the next means; `augment` changes (key, pixels), `mix` makes of (key, images) mixed ones and the
    share s of their own labels, see `dh2l_jax.data.batches.mixing`.
    """

    def train_step(
        state: TrainState, *batch: Any, scale: Scale, stop: jax.Array | None = None
    ) -> tuple[TrainState, StepResult]:
        with jax.named_scope("augment"):
            key = jax.random.wrap_key_data(state.key)
            pixels, labels = feed.training_crops(key, state.step, *batch)
            if augment is not None:
                pixels = augment(draw_key(key, state.step, AUGMENT), pixels)
            images, mixed = normalize(pixels, *scale), None
            if mix is not None:
                images, share = mix(draw_key(key, state.step, MIX), images)
                mixed = labels[::-1], share
        (_, (batch_stats, terms)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.batch_stats, images, labels, state.step, mixed=mixed, key=key
        )
        with jax.named_scope("optimiser"):
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            updates = jax.tree.map(lambda update: state.rate * update, updates)
            params = optax.apply_updates(state.params, updates)
        finite = {"weights": all_finite(params), "batch statistics": all_finite(batch_stats)}
        result = StepResult(terms, finite, None if stop is None else jnp.any(stop))
        step = state.step + 1
        ema = state.ema
        if average is not None:
            with jax.named_scope("average"):
                ema = average(ema, {"params": params, "batch_stats": batch_stats}, step)
        state = TrainState(step, params, batch_stats, opt_state, state.key, state.rate, ema)
        return state, result

    jitted = jax.jit(train_step, donate_argnums=0)
    return functools.partial(jitted, scale=_scale(dataset, feed))


def draw_key(key: jax.Array, step: jax.Array | int, purpose: int) -> jax.Array:
    """The key of what a step draws besides its crops."""
    return jax.random.fold_in(jax.random.fold_in(key, step), purpose)


def make_eval_step(
    model: Network, dataset: Dataset, feed: Feed
) -> Callable[..., tuple[Counts, jax.Array]]:
    """The jitted step of evaluation: (state, counts so far, where, *batch) → counts, logits.

    With `temperature`, classes rank by their expected height at it (CRM), else by their logits.
    """
    tree = dataset.hierarchy
    confusion = tree.num_classes <= MAX_CONFUSION
    logits_of = _logits_of(model, feed)

    def eval_step(
        state: TrainState,
        total: Counts,
        where: jax.Array,
        *batch: Any,
        scale: Scale,
        temperature: jax.Array | None = None,
    ) -> tuple[Counts, jax.Array]:
        logits, labels = logits_of(state, *batch, scale=scale)
        risk = None if temperature is None else crm_risk(logits / temperature, tree)
        counts = count(logits, labels, tree, where=where, risk=risk, confusion=confusion)
        return total + counts, logits

    # The counts so far are not donated: the host waits for them when they have been added to.
    jitted = jax.jit(eval_step, out_shardings=feed.replicated)
    return functools.partial(jitted, scale=_scale(dataset, feed))


def make_logits_step(
    model: Network, dataset: Dataset, feed: Feed
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted step of a temperature: (state, *batch of the feed) → (logits, labels)."""
    jitted = jax.jit(_logits_of(model, feed), out_shardings=feed.replicated)
    return functools.partial(jitted, scale=_scale(dataset, feed))


def _logits_of(model: Network, feed: Feed) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def logits_of(state: TrainState, *batch: Any, scale: Scale) -> tuple[jax.Array, jax.Array]:
        pixels, labels = feed.evaluation_crops(*batch)
        images = normalize(pixels, *scale)
        logits = cast(jax.Array, model.apply(state.variables, images, train=False))
        return logits.astype(jnp.float32), labels

    return logits_of


def _scale(dataset: Dataset, feed: Feed) -> Scale:
    """Mean and standard deviation of the pixels, on the device.

    Arguments of the jitted steps, so that runs which differ by them alone, such as seeds with other
    held-out images, share one program.
    """
    return place((dataset.mean, dataset.std), feed.replicated)

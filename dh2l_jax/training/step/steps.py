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
from dh2l_jax.hierarchy.scores import Tally, tally
from dh2l_jax.models import Network
from dh2l_jax.training.step.finite import all_finite
from dh2l_jax.training.step.objective import Terms
from dh2l_jax.training.step.state import TrainState

__all__ = [
    "Stepped",
    "make_eval_step",
    "make_train_step",
]


Scale = tuple[jax.Array, jax.Array]  # mean and standard deviation of the pixels, each (c,)

# Classes up to which evaluation counts the confusion matrix, 16 MB.
MAX_CONFUSION = 2_000


class Stepped(NamedTuple):
    """What a training step tells.

    Attributes:
      terms: of the objective, () each.
      finite: of the parts of the new state whether they are finite, () bool each.
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
) -> Callable[..., tuple[TrainState, Stepped]]:
    """A function (state, *batch of the feed, stop=None) → (state, Stepped): a jitted one.

    The state is donated: the caller's copy is used up. `stop` is (devices,) bool, whether the
    process of each device was asked to stop.
    """

    def train_step(
        state: TrainState, *batch: Any, scale: Scale, stop: jax.Array | None = None
    ) -> tuple[TrainState, Stepped]:
        with jax.named_scope("augment"):
            key = jax.random.wrap_key_data(state.key)
            pixels, labels = feed.training_crops(key, state.step, *batch)
            images = normalize(pixels, *scale)
        (_, (batch_stats, terms)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        with jax.named_scope("optimiser"):
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            updates = jax.tree.map(lambda update: state.rate * update, updates)
            params = optax.apply_updates(state.params, updates)
        finite = {"weights": all_finite(params), "batch statistics": all_finite(batch_stats)}
        stepped = Stepped(terms, finite, None if stop is None else jnp.any(stop))
        step = state.step + 1
        return TrainState(step, params, batch_stats, opt_state, state.key, state.rate), stepped

    jitted = jax.jit(train_step, donate_argnums=0)
    return functools.partial(jitted, scale=_scale(dataset, feed))


def make_eval_step(model: Network, dataset: Dataset, feed: Feed) -> Callable[..., Tally]:
    """A function (state, tally so far, where, *batch of the feed) → tally, as the train step."""
    tree = dataset.hierarchy
    confusion = tree.num_classes <= MAX_CONFUSION

    def eval_step(
        state: TrainState, total: Tally, where: jax.Array, *batch: Any, scale: Scale
    ) -> Tally:
        pixels, labels = feed.evaluation_crops(*batch)
        images = normalize(pixels, *scale)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = cast(jax.Array, model.apply(variables, images, train=False))
        return total + tally(logits, labels, tree, where=where, confusion=confusion)

    # The tally is not donated: `one_late` waits for it after it has been added to.
    jitted = jax.jit(eval_step, out_shardings=feed.replicated)
    return functools.partial(jitted, scale=_scale(dataset, feed))


def _scale(dataset: Dataset, feed: Feed) -> Scale:
    """Mean and standard deviation of the pixels, on the device.

    They are arguments of the jitted steps: runs that differ by them alone, such as seeds with
    other held-out images, share one program.
    """
    return place((dataset.mean, dataset.std), feed.replicated)

"""The state of a run and its jitted steps: one of training, one of evaluation.

Under a mesh the batch is split over the "data" axis and everything else is replicated, so losses
and batch statistics are those of the global batch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.data.batches.feed import Feed
from dh2l_jax.data.batches.placement import place
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.scores import Tally, tally
from dh2l_jax.models import Network
from dh2l_jax.training.finite import all_finite
from dh2l_jax.training.objective import Terms

__all__ = [
    "Stepped",
    "TrainState",
    "ahead",
    "init_state",
    "last",
    "make_eval_step",
    "make_train_step",
    "one_late",
    "tallies",
]

T = TypeVar("T")

Scale = tuple[jax.Array, jax.Array]  # mean and standard deviation of the pixels, each (c,)

# Classes up to which evaluation counts the confusion matrix, 16 MB.
MAX_CONFUSION = 2_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; model and optimiser come by closure.

    Attributes:
      step: () int32, the number of steps done.
      params: the model's parameters.
      batch_stats: the running statistics of BatchNorm.
      opt_state: the optimiser's state.
      key: the key of the run, from which each step's augmentation key is folded.
      rate: () float32, factor of the schedule's learning rate; a roll-back lowers it.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array
    rate: jax.Array


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


def init_state(
    model: Network,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    mesh: jax.sharding.Mesh,
    *,
    abstract: bool = False,
) -> TrainState:
    """The state before the first step, replicated over the mesh: a function of the seed.

    With `abstract`, shapes, dtypes and placement alone, which takes no compilation.
    """

    def init(key: jax.Array) -> TrainState:
        params_key, run_key = jax.random.split(key)
        variables = model.init(params_key, jnp.zeros((1, *image_shape)), train=False)
        params = variables["params"]
        # Keys are stored as raw words, which every checkpoint format can hold.
        key = jax.random.key_data(run_key)
        step, rate = jnp.zeros((), jnp.int32), jnp.ones(())
        return TrainState(step, params, variables["batch_stats"], tx.init(params), key, rate)

    replicated = NamedSharding(mesh, PartitionSpec())
    # It runs once: on CPU, optimising it would take longer than the compilation of the train step.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    jitted = jax.jit(init, out_shardings=replicated, compiler_options=options)
    # The key is an argument, as the constants of the steps are: all seeds share one program.
    key = jax.random.key(seed)
    return jitted.eval_shape(key) if abstract else jitted(key)


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


def tallies(
    eval_step: Callable, state: TrainState, feed: Feed, hierarchy: Hierarchy, batch_size: int
) -> Iterator[Tally]:
    """The tally so far after each batch; every image counts once. Taking one sends a step."""
    zero = Tally.zero(hierarchy, confusion=hierarchy.num_classes <= MAX_CONFUSION)
    # Placed as every later total is: another placement would compile the step twice.
    total = place(zero, feed.replicated)
    for batch, where in feed.evaluation(batch_size):
        total = eval_step(state, total, where, *batch)
        yield total


def one_late(sent: Iterable[T]) -> Iterator[T]:
    """Each item once its arrays are ready, and not before the next one has been taken.

    Where taking an item sends a step, the device always has a step to do while the host looks at
    the results of the one before, and the host is never further ahead than that.

    >>> sent = (print(f"sent {step}") or step for step in range(3))
    >>> for step in one_late(sent):
    ...     print(f"looked at {step}")
    sent 0
    sent 1
    looked at 0
    sent 2
    looked at 1
    looked at 2
    """
    return map(jax.block_until_ready, ahead(sent))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Each item, but not before the next one has been taken."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def last(items: Iterable[T]) -> T:
    """The last of at least one item; the others are let go."""
    return collections.deque(items, maxlen=1).pop()

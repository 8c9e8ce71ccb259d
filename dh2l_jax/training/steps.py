"""The state of a run and its jitted steps: one of training, one of evaluation.

Under a mesh the batch is split over the "data" axis and everything else is replicated, so losses
and batch statistics are those of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.pipeline import normalize
from dh2l_jax.evaluation import Tally, summarize, tally
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import Network
from dh2l_jax.training.feeding import Feed
from dh2l_jax.training.objective import Terms

__all__ = [
    "TrainState",
    "evaluate",
    "init_state",
    "make_eval_step",
    "make_train_step",
]

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
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array


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

    def init() -> TrainState:
        params_key, run_key = jax.random.split(jax.random.key(seed))
        variables = model.init(params_key, jnp.zeros((1, *image_shape)), train=False)
        params = variables["params"]
        # Keys are stored as raw words, which every checkpoint format can hold.
        key = jax.random.key_data(run_key)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, variables["batch_stats"], tx.init(params), key)

    replicated = NamedSharding(mesh, PartitionSpec())
    # It runs once: on CPU, optimising it would take longer than the compilation of the train step.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    jitted = jax.jit(init, out_shardings=replicated, compiler_options=options)
    return jitted.eval_shape() if abstract else jitted()


def make_train_step(
    objective: Callable[..., tuple[jax.Array, tuple[Any, Terms]]],
    tx: optax.GradientTransformation,
    dataset: Dataset,
    feed: Feed,
) -> Callable[..., tuple[TrainState, Terms]]:
    """A jitted function (state, *batch of the feed) → (state, terms).

    The state is donated: the caller's copy is used up.
    """

    def train_step(state: TrainState, *batch: Any):
        key = jax.random.wrap_key_data(state.key)
        pixels, labels = feed.training_crops(key, state.step, *batch)
        images = normalize(pixels, dataset.mean, dataset.std)
        (_, (batch_stats, terms)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), terms

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(model: Network, dataset: Dataset, feed: Feed) -> Callable[..., Tally]:
    """A jitted function (state, tally so far, where, *batch of the feed) → tally."""
    tree = dataset.hierarchy
    confusion = tree.num_classes <= MAX_CONFUSION

    def eval_step(state: TrainState, total: Tally, where: jax.Array, *batch: Any) -> Tally:
        pixels, labels = feed.evaluation_crops(*batch)
        images = normalize(pixels, dataset.mean, dataset.std)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = cast(jax.Array, model.apply(variables, images, train=False))
        return total + tally(logits, labels, tree, where=where, confusion=confusion)

    return jax.jit(eval_step, donate_argnums=1, out_shardings=feed.replicated)


def evaluate(
    eval_step: Callable, state: TrainState, feed: Feed, hierarchy: Hierarchy, batch_size: int
) -> dict[str, Any]:
    """The scores of `evaluation.summarize`; every image counts once, the host waits once."""
    zero = Tally.zero(hierarchy, confusion=hierarchy.num_classes <= MAX_CONFUSION)
    # Placed as every later total is: another placement would compile the step twice.
    total = jax.device_put(zero, feed.replicated)
    for batch, where in feed.evaluation(batch_size):
        total = eval_step(state, total, where, *batch)
    return summarize(total, hierarchy)

"""The state of a run and its jitted steps: one of training, one of evaluation.

Images stay on the device; a step takes the epoch's order and finds its own batch in it. Under a
mesh the batch is split over the "data" axis and everything else is replicated, so losses and batch
statistics are those of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.pipeline import normalize, padded_batches, random_crop_flip, take_batch
from dh2l_jax.evaluation import level_hits
from dh2l_jax.models import CifarResNet
from dh2l_jax.training.config import DataConfig
from dh2l_jax.training.objective import Terms

__all__ = [
    "Split",
    "TrainState",
    "evaluate",
    "init_state",
    "make_eval_step",
    "make_train_step",
    "on_device",
]


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


class Split(NamedTuple):
    """Images (n, h, w, c) uint8 and labels (n,) int32 on the device."""

    images: jax.Array
    labels: jax.Array


def on_device(images: np.ndarray, labels: np.ndarray, mesh: jax.sharding.Mesh) -> Split:
    """A split replicated over the mesh."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return Split(*jax.device_put((images, labels), replicated))


def init_state(
    model: CifarResNet,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """The state before the first step, replicated over the mesh: a function of the seed."""

    def init() -> TrainState:
        params_key, run_key = jax.random.split(jax.random.key(seed))
        variables = model.init(params_key, jnp.zeros((1, *image_shape)), train=False)
        params = variables["params"]
        # Keys are stored as raw words, which every checkpoint format can hold.
        key = jax.random.key_data(run_key)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, variables["batch_stats"], tx.init(params), key)

    # It runs once: on CPU, optimising it would take longer than the compilation of the train step.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(init, out_shardings=replicated, compiler_options=options)()


def make_train_step(
    objective: Callable[..., tuple[jax.Array, tuple[Any, Terms]]],
    tx: optax.GradientTransformation,
    dataset: Dataset,
    data: DataConfig,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState, Split, jax.Array], tuple[TrainState, Terms]]:
    """A jitted function (state, train split, order of the epoch) → (state, terms).

    The state is donated: the caller's copy is used up.
    """
    steps_per_epoch = len(dataset.train_labels) // batch_size
    split_over_devices = NamedSharding(mesh, PartitionSpec("data"))

    def train_step(state: TrainState, train: Split, order: jax.Array):
        index = take_batch(order, state.step % steps_per_epoch, batch_size)
        index = jax.lax.with_sharding_constraint(index, split_over_devices)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        pixels = random_crop_flip(key, train.images[index], pad=data.pad, flip=data.flip)
        images = normalize(pixels, dataset.mean, dataset.std)
        (_, (batch_stats, terms)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.batch_stats, images, train.labels[index]
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), terms

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(
    model: CifarResNet, dataset: Dataset, mesh: jax.sharding.Mesh
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A jitted function (state, split, index, where) → (hits of each level, summed loss)."""
    split_over_devices = NamedSharding(mesh, PartitionSpec("data"))

    def eval_step(state: TrainState, split: Split, index: jax.Array, where: jax.Array):
        index = jax.lax.with_sharding_constraint(index, split_over_devices)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        images = normalize(split.images[index], dataset.mean, dataset.std)
        logits = cast(jax.Array, model.apply(variables, images, train=False))
        labels = split.labels[index]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = level_hits(jnp.argmax(logits, axis=-1), labels, dataset.hierarchy, where=where)
        return hits, jnp.sum(jnp.where(where, losses, 0))

    return jax.jit(eval_step)


def evaluate(
    eval_step: Callable, state: TrainState, split: Split, batch_size: int
) -> dict[str, Any]:
    """Accuracy at every level, as fractions, and the mean loss; every image counts once.

    Returns:
      {"accuracy": [level 1, ..., level L], "loss": mean cross-entropy, "images": n}.
    """
    size = len(split.labels)
    results = [
        eval_step(state, split, index, where)
        for index, where in zip(*padded_batches(size, batch_size), strict=True)
    ]
    hits, losses = zip(*jax.device_get(results), strict=True)
    total = np.sum(hits, axis=0, dtype=np.int64)
    loss = float(np.sum(losses, dtype=np.float64)) / size
    return {"accuracy": (total / size).tolist(), "loss": loss, "images": size}

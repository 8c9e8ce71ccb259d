"""The state of training: parameters, statistics, optimiser, key and step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.models import Network

__all__ = ["TrainState", "make_init"]


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
      ema: running means of `params` and `batch_stats`, by these names; None without `optim.ema`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array
    rate: jax.Array
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What is evaluated: the running means if there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def make_init(
    model: Network,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
    *,
    ema: bool = False,
) -> jax.stages.Wrapped:
    """The jitted function from the key of a seed to the state before the first step, replicated.

    `jax.eval_shape` of it gives shapes, dtypes and placement alone, which takes no compilation.
    """

    def init(key: jax.Array) -> TrainState:
        params_key, run_key = jax.random.split(key)
        variables = model.init(params_key, jnp.zeros((1, *image_shape)), train=False)
        params = variables["params"]
        # Keys are stored as raw words, which every checkpoint format can hold.
        key = jax.random.key_data(run_key)
        step, rate = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
        stats = variables.get("batch_stats", {})
        mean = {"params": params, "batch_stats": stats} if ema else None
        return TrainState(step, params, stats, tx.init(params), key, rate, mean)

    replicated = NamedSharding(mesh, PartitionSpec())
    # `init` runs once: on CPU, optimising it would take longer than to compile the train step.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    # The key is an argument and no constant, so that all seeds share one program.
    return jax.jit(init, out_shardings=replicated, compiler_options=options)

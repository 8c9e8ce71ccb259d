"""What is compiled: the train step with and without its regularisers, and sums over pairs.

Nothing is computed and no image is read: states, batches and weights are shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dh2l_jax import Hierarchy, models
from dh2l_jax.data.batches.feed import CropOptions, DeviceSplit, Resident
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.metrics import Sampled, mean_energy
from dh2l_jax.regularizers import group_energy
from dh2l_jax.training.config import OptimConfig, RegConfig
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import make_objective
from dh2l_jax.training.step.state import make_init
from dh2l_jax.training.step.steps import make_train_step

__all__ = ["CASES", "Case"]

Case = Callable[[Mesh], Any]  # → the lowered program

CLASSES, GROUPS = 100, 20
# Network → images of the training set, their side, and the side of a crop: CIFAR-100, CUB-200.
NETWORKS = {
    "resnet20": (50_000, 32, 32),
    "resnet110": (50_000, 32, 32),
    "resnet50": (6_000, 256, 224),
}
BATCHES = (128, 512)
OFF = {"lambda_e": 0.0, "lambda_l": 0.0, "lambda_o": 0.0}
PARTS = {
    "none": RegConfig(**OFF),
    "E": RegConfig(**{**OFF, "lambda_e": 0.1}),
    "R": RegConfig(lambda_e=0.0),
    "E+R": RegConfig(),
}
SIZES = ((512, 4_608), (2_048, 4_608), (10_000, 512), (21_841, 2_048), (100_000, 512))
DEVICES = (1, 4, 16)


class Described(Resident):
    """A feed of images that are on devices which are not there."""

    def __init__(self, options: CropOptions, mesh: Mesh):
        self.replicated = SingleDeviceSharding(jax.devices("cpu")[0])
        self._over_devices = NamedSharding(mesh, PartitionSpec("data"))
        self._options = options


def shape(mesh: Mesh, *sizes: int, dtype: Any = jnp.float32, over: str | None = None) -> Any:
    """An array that is not there: whole on each device, or its rows over an axis of them."""
    sharding = NamedSharding(mesh, PartitionSpec(over))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


def train_step(name: str, batch: int, reg: RegConfig, *, mesh: Mesh) -> Any:
    """The step of a run as the trainer makes it, lowered."""
    images, side, crop = NETWORKS[name]
    tree = Hierarchy.two_level(np.arange(CLASSES) * GROUPS // CLASSES)
    model = models.create(name, hierarchy=tree)
    tx = optim.optimizer(OptimConfig(), optax.constant_schedule(0.1))
    few = np.zeros((1, crop, crop, 3), np.uint8), np.zeros(1, np.int32)
    grey = np.full(3, 0.5, np.float32)
    dataset = Dataset("none", *few, *few, tree, (grey, grey))
    pad = 4 if side == crop else 0
    feed = Described(CropOptions((crop, crop), pad, True, batch), mesh)
    step: Any = make_train_step(make_objective(model, tree, reg), tx, dataset, feed)
    state = make_init(model, tx, (crop, crop, 3), mesh).eval_shape(jax.random.key(0))
    split = DeviceSplit(
        shape(mesh, images * side**2, 3, dtype=jnp.uint8),
        shape(mesh, images, dtype=jnp.int32),
        shape(mesh, images, 2, dtype=jnp.int32),
        shape(mesh, images, dtype=jnp.int32),
    )
    order = shape(mesh, images, dtype=jnp.int32)
    return step.func.lower(state, split, order, scale=(shape(mesh, 3), shape(mesh, 3)))


def energy(mesh: Mesh, W: Any, metric: str, **options: Any) -> Any:
    """A mean over all pairs: a function of W and nothing else."""
    return lambda W: mean_energy(W, metric, **options), ()


def ring(mesh: Mesh, W: Any, metric: str) -> Any:
    """The same by blocks that go round."""
    return lambda W: mean_energy(W, metric, mesh=mesh), ()


def sampled(mesh: Mesh, W: Any, metric: str) -> Any:
    """The mean estimated from 64 tiles of 128 rows: a function of W and the words of a key."""
    sample = Sampled(tiles=64, rows=128)

    def fn(W: jax.Array, key: jax.Array) -> jax.Array:
        return mean_energy(W, metric, sample=sample, key=jax.random.wrap_key_data(key))

    return fn, (shape(mesh, 2, dtype=jnp.uint32),)


def grouped(mesh: Mesh, W: Any, metric: str) -> Any:
    """The mean over groups of ten rows."""
    groups = np.arange(len(W)) // 10
    return lambda W: group_energy(W, groups, metric), ()


def lowered_sum(
    way: Callable[..., Any], n: int, d: int, metric: str, *, mesh: Mesh, **options: Any
) -> Any:
    """Value and gradient; on several devices each has a share of the rows and of the gradient."""
    over = "data" if mesh.size > 1 else None
    W = shape(mesh, n - n % mesh.size, d, over=over)
    fn, others = way(mesh, W, metric, **options)
    placed = NamedSharding(mesh, PartitionSpec()), W.sharding
    return jax.jit(jax.value_and_grad(fn), out_shardings=placed).lower(W, *others)


# Way → what lowers it, its metrics, and the sizes it is meant for.
WAYS: dict[str, tuple[Callable[..., Any], tuple[str, ...], Callable[[int, int], bool]]] = {
    "closed": (energy, ("cosine", "d_h_bin"), lambda n, d: True),
    "squares": (energy, ("cosine2",), lambda n, d: n > d),
    "dense": (energy, ("d_cos_hm", "d_am_cos", "angular2"), lambda n, d: n <= 1_024),
    "tiled": (energy, ("d_cos_hm", "d_am_cos", "angular2"), lambda n, d: n > 1_024),
    "row_max": (energy, ("d_cos_hm",), lambda n, d: True),
    "grouped": (grouped, ("d_cos_hm",), lambda n, d: True),
    "sampled": (sampled, ("d_cos_hm",), lambda n, d: n > 8_192),
    "ring": (ring, ("d_cos_hm", "d_am_cos"), lambda n, d: n > 1_024),
}


def _cases() -> Iterator[tuple[str, int, Case]]:
    for name, batch, (part, reg), devices in itertools.product(
        NETWORKS, BATCHES, PARTS.items(), DEVICES
    ):
        case = _bound(train_step, name, batch, reg)
        yield f"step/{name}/{batch}/{part}/{devices}", devices, case
    for (n, d), way in itertools.product(SIZES, WAYS):
        lower, metrics, fits = WAYS[way]
        options = {"reduction": "row_max"} if way == "row_max" else {}
        for metric in metrics if fits(n, d) else ():
            for devices in DEVICES[way == "ring" :]:
                name = f"sum/{way}/{metric}/{n}x{d}/{devices}"
                yield name, devices, _bound(lowered_sum, lower, n, d, metric, **options)


def _bound(lower: Callable[..., Any], *arguments: Any, **options: Any) -> Case:
    return lambda mesh: lower(*arguments, mesh=mesh, **options)


# Name → number of devices and what lowers the program.
CASES: dict[str, tuple[int, Case]] = {name: rest for name, *rest in _cases()}  # pyright: ignore

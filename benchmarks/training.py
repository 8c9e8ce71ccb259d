"""The parts of a training step: regulariser, input pipeline, whole step, compilation."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from rows import Ceilings, Row, compared
from timing import Times, interleaved

from dh2l_jax import Hierarchy, models
from dh2l_jax.data.batches.feed import CropOptions, Feed, make_feed
from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.models import Network
from dh2l_jax.regularizers import classes_present
from dh2l_jax.training.config import OptimConfig, RegConfig
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import make_objective, make_regularizer
from dh2l_jax.training.step.state import TrainState, make_init
from dh2l_jax.training.step.steps import make_train_step

__all__ = ["compilation", "pipeline", "regularizer", "steps"]

SIDE, IMAGES, CLASSES, GROUPS = 32, 10_000, 100, 20
BATCHES = (128, 512)
# Multiplications and additions of ResNet-20 on one 32×32 image, forward; backward costs twice that.
RESNET20_FLOPS = 2 * 40.8e6
PLAIN = RegConfig(lambda_e=0.0, lambda_l=0.0, lambda_o=0.0)

try:
    import torch_resnet
except ImportError:
    torch_resnet = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A network on made-up CIFAR-100, ready to train."""

    model: Network
    state: TrainState
    step: Callable[..., tuple[TrainState, Any]]
    feed: Feed
    batch: tuple[Any, ...]
    labels: np.ndarray


def regularizer(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """All convolutions and the head: alone against the ResNet-20 step, and as compilation."""
    job = _job(20, 128, RegConfig())
    where = jax.jit(functools.partial(classes_present, num_classes=CLASSES))(job.labels[:128])
    params = jax.tree.map(lambda p: p.copy(), job.state.params)
    arms = {"step": _stepping(job)}
    for metric in ("d_am_cos", "d_cos_hm"):
        for depth in (20, 110):
            other = job if depth == 20 else _job(depth, 128, RegConfig())
            reg = RegConfig(conv_metric=metric, fc_metric=metric)
            R = make_regularizer(other.model.head, _tree(), reg)
            fn = jax.jit(jax.value_and_grad(lambda p, m, R=R: R(p, m, max_present=128)[0]))
            values = params if depth == 20 else other.state.params
            arms[f"{metric}, ResNet-{depth}"] = functools.partial(fn, values, where)
    times = interleaved(arms, rounds)
    for name in arms:
        if name != "step":
            yield compared(
                times,
                name,
                "step",
                what="regulariser alone",
                case=name,
                figure="time / ResNet-20 step, batch 128",
                target=0.01 if name.endswith("-20") else None,
            )
    for depth, target in ((20, 3.0), (110, 6.0)):
        extra = [
            _compile_seconds(depth, RegConfig()) - _compile_seconds(depth, PLAIN) for _ in range(2)
        ]
        yield Row(
            what="regulariser",
            case=f"ResNet-{depth}",
            figure="extra tracing and compilation, s",
            **_least(extra),
            target=target,
        )


def pipeline(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Random crop and flip of a batch on the device."""
    size = 512
    job = _job(20, size, PLAIN)
    crops = jax.jit(job.feed.training_crops)
    key = jax.random.wrap_key_data(job.state.key)
    times = interleaved(
        {"crops": functools.partial(crops, key, job.state.step, *job.batch)}, rounds
    )
    yield Row(
        what="input pipeline",
        case=f"crop + flip, batch {size}",
        figure="images / s",
        value=size / times.median("crops"),
        low=size / max(times.seconds["crops"]),
        high=size / min(times.seconds["crops"]),
        target=100_000,
        at_least=True,
        ms=1e3 * times.median("crops"),
        floor_ms=ceilings.floor_ms(0, 2 * size * SIDE * SIDE * 3),
    )


def steps(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """The ResNet-20 step, without regulariser, against eager PyTorch in channels-last layout."""
    for size in BATCHES:
        arms = {"step": _stepping(_job(20, size, PLAIN))}
        if torch_resnet:
            arms["torch"] = torch_resnet.train_step(20, (size, SIDE, SIDE, 3), CLASSES)
        times = interleaved(arms, rounds)
        floor = ceilings.floor_ms(3 * RESNET20_FLOPS * size)
        case = f"ResNet-20, batch {size}"
        if torch_resnet:
            yield compared(
                times,
                "step",
                "torch",
                what="train step",
                case=case,
                figure="time / PyTorch",
                target=1.5,
                floor_ms=floor,
            )
        yield _speed(times, size, case)


def compilation(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Tracing and compiling the whole step."""
    for depth in (20, 110):
        seconds = [_compile_seconds(depth, RegConfig()) for _ in range(2)]
        yield Row(
            what="train step",
            case=f"ResNet-{depth}, batch 128, unrolled",
            figure="tracing and compilation, s",
            **_least(seconds),
        )


def _least(seconds: list[float]) -> dict[str, float]:
    """The figures of a row of compilations, the least of which was disturbed least."""
    return {"value": min(seconds), "low": min(seconds), "high": max(seconds)}


def _speed(times: Times, size: int, case: str) -> Row:
    return Row(
        what="train step",
        case=case,
        figure="images / s",
        value=size / times.median("step"),
        low=size / max(times.seconds["step"]),
        high=size / min(times.seconds["step"]),
    )


def _tree() -> Hierarchy:
    return Hierarchy.two_level(np.arange(CLASSES) * GROUPS // CLASSES)


def _job(depth: int, batch_size: int, reg: RegConfig) -> Job:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(CLASSES, size=IMAGES, dtype=np.int32)
    grey = np.full(3, 0.5, np.float32)
    dataset = Dataset("noise", images, labels, images[:10], labels[:10], _tree(), (grey, grey))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = CropOptions((SIDE, SIDE), 4, True, batch_size)
    feed = make_feed(images, labels, cut, mesh, device_gb=1.0)
    model = models.create(f"resnet{depth}", hierarchy=_tree())
    tx = optim.optimizer(OptimConfig(), optax.constant_schedule(0.1))
    state = make_init(model, tx, (SIDE, SIDE, 3), mesh)(jax.random.key(0))
    step = make_train_step(make_objective(model, _tree(), reg), tx, dataset, feed)
    order = epoch_order(0, 0, IMAGES)
    (batch,) = feed.training(jax.random.wrap_key_data(state.key), order, 0, 1)
    return Job(model, state, step, feed, batch, labels)


def _stepping(job: Job) -> Callable[[], Any]:
    """One step after the other: each takes the memory of the state before."""
    state = job.state

    def arm() -> Any:
        nonlocal state
        state, stepped = job.step(state, *job.batch)
        return state, stepped

    return arm


def _compile_seconds(depth: int, reg: RegConfig) -> float:
    job = _job(depth, 128, reg)
    start = time.perf_counter()
    jitted: Any = job.step
    jitted.func.lower(job.state, *job.batch, **jitted.keywords).compile()
    return time.perf_counter() - start

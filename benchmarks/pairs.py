"""Sums over all pairs: dense, in closed form, tiled, group by group, and of a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import Ceilings, Row, compared
from timing import interleaved, seconds

import dh2l_jax as dh2l

__all__ = ["closed", "dense", "grouped", "huge", "sampled", "tiled"]

DENSE_SIZES = ((64, 576), (200, 2048), (512, 4608), (1000, 2048), (2048, 4608))
DENSE_METRICS = ("d_cos_hm", "d_am_cos", "angular2")
CLOSED_SIZES = ((512, 4608), (1000, 2048), (2048, 4608))
CLOSED_METRICS = ("cosine", "d_h_bin", "d_am_cos_prime")
HUGE = (
    ("d_cos_hm", 21_841, 2_048),
    ("d_am_cos", 21_841, 2_048),
    ("angular2", 100_000, 512),
)
SAMPLED_METRICS = ("mhe_s2", "mhe_a2", "gaussian(t=2)")
# Tiles and their rows: some of 131,000 pairs, then some of 2.1 million.
SAMPLES = ((1, 512), (16, 128), (64, 64), (1_428, 14), (1, 2_048), (16, 512), (64, 256), (94, 211))
DRAWS = 50
MB = 1e6

try:
    import torch
    import torch_pairs
except ImportError:
    torch = None


def dense(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Value and gradient of dense sums against PyTorch and against two Gram products."""
    for n, d in DENSE_SIZES:
        W = _vectors(n, d)
        gram = jax.jit(lambda W: jnp.dot(W, W.T))
        for metric in DENSE_METRICS:
            fn = _compiled(functools.partial(dh2l.mean_energy, metric=metric, method="dense"), W)
            arms = {"dense": functools.partial(fn, W), "gram": functools.partial(gram, W)}
            arms |= _torch_arm(W, metric)
            times = interleaved(arms, rounds)
            floor = ceilings.floor_ms(_dense_products(metric) * n * n * d)
            case = f"{metric} {n:,}×{d:,}"
            row = functools.partial(compared, times, what="dense", case=case, floor_ms=floor)
            if torch:
                yield row("dense", "torch", figure="time / PyTorch", target=0.5)
            if (n, d) == DENSE_SIZES[-1]:
                figure = "time / two Gram products"
                yield row("dense", "gram", figure=figure, times_other=2, target=2.0)


def closed(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Affine metrics in closed form against PyTorch on the n×n matrices."""
    for n, d in CLOSED_SIZES:
        W = _vectors(n, d)
        for metric in CLOSED_METRICS:
            fn = _compiled(functools.partial(dh2l.mean_energy, metric=metric, method="closed"), W)
            times = interleaved(
                {"closed": functools.partial(fn, W), **_torch_arm(W, metric)}, rounds
            )
            case, floor = f"{metric} {n:,}×{d:,}", ceilings.floor_ms(0, 3 * W.nbytes)
            if torch:
                yield compared(
                    times,
                    "closed",
                    "torch",
                    what="closed form",
                    case=case,
                    figure="time / PyTorch",
                    target=0.03,
                    floor_ms=floor,
                )
            yield _memory("closed form", case, fn, None)


def tiled(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """10,000 vectors in tiles against the dense sum."""
    n, d = 10_000, 512
    W = _vectors(n, d)
    for metric in DENSE_METRICS:
        arms: dict[str, Callable[[], Any]] = {}
        compiled = {}
        for method in ("tiled", "dense"):
            fn = functools.partial(dh2l.mean_energy, metric=metric, method=method)
            compiled[method] = _compiled(fn, W)
            arms[method] = functools.partial(compiled[method], W)
        case = f"{metric} {n:,}×{d:,}"
        yield compared(
            interleaved(arms, rounds),
            "tiled",
            "dense",
            what="tiled",
            case=case,
            figure="time / dense",
            target=1.1,
            floor_ms=ceilings.floor_ms(_tiled_products(metric) * n * n * d),
        )
        yield _memory("tiled", case, compiled["tiled"], 16)
        yield _memory("dense", case, compiled["dense"], None)


def huge(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Heads of 21,841 and of 100,000 classes, minutes a pass."""
    for metric, n, d in HUGE:
        W = _vectors(n, d)
        fn = _compiled(functools.partial(dh2l.mean_energy, metric=metric), W)
        floor = ceilings.floor_ms(_tiled_products(metric) * n * n * d)
        # One pass: there is nothing to warm up in it.
        ms = 1e3 * seconds(functools.partial(fn, W))
        yield Row(
            what="tiled",
            case=f"{metric} {n:,}×{d:,}",
            figure="time / floor",
            value=ms / floor,
            target=1.3,
            ms=ms,
            floor_ms=floor,
        )
        yield _memory("tiled", f"{metric} {n:,}×{d:,}", fn, 64)


def grouped(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Eq. (5) of 10,000 classes in 1,000 groups: the groups in a batch against a masked n×n."""
    n, groups, d, batch = 10_000, 1_000, 512, 512
    rng = np.random.default_rng(0)
    labels = rng.integers(groups, size=n)
    where = np.zeros(n, bool)
    where[rng.choice(n, batch, replace=False)] = True
    W = _vectors(n, d)
    for metric in ("d_cos_hm", "cosine"):
        energy = functools.partial(dh2l.group_energy, metric=metric)
        masked = _compiled(lambda W, g, m, energy=energy: energy(W, g, where=m), W, labels, where)
        fns = {
            "batch of 512": (
                lambda W, m, energy=energy: energy(W, labels, where=m, max_present=batch)
            ),
            "all classes": lambda W, m, energy=energy: energy(W, labels, where=m | True),
        }
        arms: dict[str, Callable[[], Any]] = {"masked": functools.partial(masked, W, labels, where)}
        compiled = {case: _compiled(fn, W, where) for case, fn in fns.items()}
        arms |= {case: functools.partial(fn, W, where) for case, fn in compiled.items()}
        times = interleaved(arms, rounds)
        for case, fn in compiled.items():
            name = f"{metric}, {case}"
            target = 0.01 if case == "batch of 512" else None
            yield compared(
                times,
                case,
                "masked",
                what="grouped",
                case=name,
                figure="time / masked",
                target=target,
            )
            yield _memory("grouped", name, fn, 64)


def sampled(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """What a sample of 20,000 × 64 misses the mean by, over 50 draws, beside what it costs."""
    del ceilings, rounds
    n, d = 20_000, 64
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 201)
    centres = rng.standard_normal((200, d))[rng.choice(200, n, p=shares / shares.sum())]
    noise = rng.standard_normal((n, d))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    for rows, W in {"iid": noise, "clustered": centres + 0.7 * noise}.items():
        W = jnp.asarray(W, jnp.float32)
        for metric in SAMPLED_METRICS:
            exact = float(dh2l.mean_energy(W, metric))
            for tiles, size in SAMPLES:
                sample = dh2l.Sampled(tiles=tiles, rows=size)
                options = {"metric": metric, "sample": sample}
                fn = jax.jit(functools.partial(dh2l.mean_energy, **options))
                found = np.array([fn(W, key=key) for key in keys], float)
                both = jax.jit(jax.value_and_grad(functools.partial(dh2l.mean_energy, **options)))
                jax.block_until_ready(both(W, key=keys[0]))
                yield Row(
                    what="sampled",
                    case=f"{metric} {rows}, {tiles:,} tiles of {size:,}",
                    figure="rms error / mean",
                    value=float(np.sqrt(np.mean((found / exact - 1) ** 2))),
                    ms=1e3 * seconds(functools.partial(both, W, key=keys[1]), 5),
                )


def _vectors(n: int, d: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, d), np.float32))


def _compiled(fn: Callable[..., jax.Array], *args: Any) -> Any:
    return jax.jit(jax.value_and_grad(fn)).lower(*args).compile()


def _torch_arm(W: jax.Array, metric: str) -> dict[str, Callable[[], Any]]:
    if torch is None:
        return {}
    return {
        "torch": functools.partial(
            torch_pairs.value_and_gradient, torch.tensor(np.array(W)), metric
        )
    }


def _grams(metric: str) -> int:
    """Gram products that no closed form replaces."""
    return {"d_cos_hm": 2, "d_am_cos": 1, "angular2": 1}[metric]


def _dense_products(metric: str) -> float:
    """FLOPs over n²d: half a Gram product and one full product of the gradient."""
    return _grams(metric) * (1 + 2)


_tiled_products = _dense_products  # the same, split into tiles


def _memory(what: str, case: str, fn: Any, target: float | None) -> Row:
    megabytes = fn.memory_analysis().temp_size_in_bytes / MB
    return Row(what=what, case=case, figure="temporaries, MB", value=megabytes, target=target)

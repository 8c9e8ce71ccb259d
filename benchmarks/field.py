"""The field's regularisers, each beside the formula of its paper in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import Ceilings, Row, compared
from timing import interleaved, seconds

import dh2l_jax as dh2l

try:
    import torch
    import torch_field
except ImportError:
    torch = None

__all__ = ["field"]

# (n, d), and the kernel (kh, kw, cin, cout) with as many entries.
SIZES = {(512, 4608): (3, 3, 512, 512), (2048, 512): (1, 1, 512, 2048)}
WITH_OPTIONS = ("srip(iterations=2)",)
CLASSES = 16


def field(ceilings: Ceilings, rounds: int) -> Iterator[Row]:
    """Value and gradient of all names of `dh2l.REGULARIZERS` that are no metric of the paper."""
    del ceilings
    names = [*(name for name in dh2l.REGULARIZERS if name not in dh2l.METRICS), *WITH_OPTIONS]
    for size, kernel in SIZES.items():
        for name in names:
            yield _row(name, size, kernel, rounds)


def _row(name: str, size: tuple[int, int], kernel: tuple[int, ...], rounds: int) -> Row:
    regularizer = dh2l.regularizer(name)
    row = dh2l.REGULARIZERS[name.partition("(")[0]]
    rng = np.random.default_rng(0)
    shape = kernel if row.looks_at == "kernel" else size
    # As long as a layer's are: singular values near 1.
    W = (rng.standard_normal(shape) / np.sqrt(size[1])).astype(np.float32)
    given = {
        "pole": rng.standard_normal(size[1]).astype(np.float32),
        "labels": np.arange(size[0]) % CLASSES,
        "key": jax.random.key(0),
    }
    given = {need: given[need] for need in row.needs}
    args = jnp.asarray(W), *map(jnp.asarray, given.values())
    fn = jax.jit(jax.value_and_grad(regularizer)).lower(*args).compile()
    arms: dict[str, Any] = {"mine": functools.partial(fn, *args)}
    case = f"{name} {size[0]:,}×{size[1]:,}"
    if torch is None or name not in torch_field.FORMULAS:
        ms = 1e3 * min(seconds(arms["mine"]) for _ in range(rounds))
        return Row(what="field", case=case, figure="ms", value=ms, ms=ms)
    tensors = {key: torch.tensor(x) for key, x in given.items() if key != "key"}
    arms["torch"] = functools.partial(
        torch_field.value_and_gradient, name, torch.tensor(W), **tensors
    )
    return compared(
        interleaved(arms, rounds),
        "mine",
        "torch",
        what="field",
        case=case,
        figure="time / PyTorch",
        target=0.5,
    )

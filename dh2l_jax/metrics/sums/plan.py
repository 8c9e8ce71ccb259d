"""How a sum over pairs is done, and why: chosen by metric and size."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dh2l_jax.checks import rows, unknown_name
from dh2l_jax.metrics.blocks import all_pairs, even_block
from dh2l_jax.metrics.profile import Affine, Metric, MetricLike, opposite, separate, with_opposites
from dh2l_jax.metrics.sums.closed import closed_sum
from dh2l_jax.metrics.sums.dense import dense_sum
from dh2l_jax.metrics.sums.ring import ring_sum
from dh2l_jax.metrics.sums.tiled import tiled_sum
from dh2l_jax.metrics.table import METRICS, get_metric

__all__ = ["pair_sum"]


METHODS = ("auto", "closed", "dense", "tiled")


BLOCK = 640  # rows of a tile, at most: its n×n intermediates then take 1.6 MB each


DENSE_LIMIT = 1024  # above it the tiles' bookkeeping costs less than the lower triangle


SEPARATE_FROM = 256  # below, a Gram product costs less than compiling what makes up for it


def pair_sum(
    W: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    method: str = "auto",
    block: int = BLOCK,
    half_space: bool = False,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> jax.Array:
    """Σ_{i<j} e(w_i, w_j) over the rows that take part. Arguments as in `mean_energy`."""
    W, where = rows(W, where)
    return _sum(W, where, get_metric(metric), method, block, half_space, mesh, axis)[0]


def _sum(
    W: jax.Array,
    where: jax.Array,
    metric: Metric,
    method: str,
    block: int,
    half_space: bool,
    mesh: Mesh | None,
    axis: str,
) -> tuple[jax.Array, str]:
    """The sum over cleaned rows, and how it was done."""
    if block < 1:
        raise ValueError(f"block must be ≥ 1, found {block}")
    total = jnp.zeros((), W.dtype)
    if half_space:
        total += opposite(metric) * jnp.sum(where, dtype=W.dtype)
        metric = with_opposites(metric)
    plan = _plan(method, metric, W.shape[0], mesh, axis)
    if W.shape[0] < 2:
        return total, plan.why
    if plan.method == "tiled":
        even = even_block(W.shape[0], block)
        total = jnp.add(total, tiled_sum(plan.rest, plan.affine, even, W, where))
        return total, plan.why
    if any(plan.affine):
        total += closed_sum(metric, plan.affine, W, where)
    if plan.method == "dense":
        total = jnp.add(total, dense_sum(plan.rest, W, all_pairs(where)))
    elif plan.method == "ring":
        assert mesh is not None
        total = jnp.add(total, ring_sum(plan.rest, block, mesh, axis, W, where))
    return total, plan.why


class _Plan(NamedTuple):
    """How a sum is done: an affine part in closed form, the rest by a method."""

    method: str
    affine: Affine
    rest: Metric
    why: str


def _plan(method: str, metric: Metric, n: int, mesh: Mesh | None, axis: str) -> _Plan:
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if mesh is not None and axis not in mesh.axis_names:
        raise ValueError(unknown_name("axis", axis, mesh.axis_names))
    affine, rest = separate(metric)
    if rest is None and method in ("auto", "closed"):
        return _Plan("closed", affine, metric, f"closed: {metric.name} is affine in c and h")
    if method == "closed":
        names = ", ".join(name for name, m in METRICS.items() if m.affine)
        raise ValueError(f"metric {metric.name!r} has no closed form; the affine ones are {names}")
    if rest is None or metric.threshold or n < SEPARATE_FROM:
        affine, rest = (0.0, 0.0, 0.0), metric
    if method != "auto":
        why = f"{method}: as asked for"
    elif mesh is not None:
        method, why = "ring", f"ring: {n:,} rows go round {mesh.shape[axis]} devices"
    elif n <= DENSE_LIMIT:
        method, why = "dense", f"dense: {n:,} rows are at most {DENSE_LIMIT:,}"
    else:
        method, why = "tiled", f"tiled: {n:,} rows are more than {DENSE_LIMIT:,}"
    linear = [name for name, slope in zip("ch", affine, strict=False) if slope]
    if linear:
        why += f"; in closed form what is affine in {' and '.join(linear)}"
    return _Plan(method, affine, rest, why)

"""Which way a sum is done, and why.

| metric, rows | way | memory beside W and its gradient | arithmetic |
|---|---|---|---|
| affine in c and h | `Closed()` | O(d) | O(nd) |
| c² with d < n | `Closed()` | a d×d | 4 nd² |
| rows spread over devices | `Ring(mesh, axis)` | a few blocks | 3 or 6 n²d, shared |
| at most 1,024 rows | `Dense()` | a few n×n | 4 or 8 n²d |
| more | `Tiled()` | a few tiles, 16 MB, on GPU 100 | 3 or 6 n²d |

A metric that is affine in one similarity alone loses it to the closed form, and with it half of the
arithmetic (3 for 6, 4 for 8), from 256 rows on: below, a Gram product costs less than compiling
what makes up for it. Above 1,024 rows the tiles' bookkeeping costs less than the lower triangle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from dh2l_jax.checks import unknown_name
from dh2l_jax.metrics.blocks import Cotangent, Rows
from dh2l_jax.metrics.profile import Affine, Metric, split_affine
from dh2l_jax.metrics.sums.closed import Closed, Squares
from dh2l_jax.metrics.sums.dense import Dense
from dh2l_jax.metrics.sums.ring import Ring
from dh2l_jax.metrics.sums.tiled import Tiled

__all__ = ["Method", "Plan", "choose"]

DENSE_LIMIT = 1024  # rows
SPLIT_FROM = 256  # rows

Way = Callable[[Metric, Rows, Affine], Cotangent]
Method = str | Closed | Dense | Tiled | Ring
CLOSED = ("closed", Closed())
METHODS = ("auto", "closed", "dense", "tiled")


class Plan(NamedTuple):
    """How a sum is done: the rest of a metric by a way that takes its affine part along."""

    way: Way
    rest: Metric
    affine: Affine
    why: str

    def __call__(self, rows: Rows) -> Cotangent:
        """The sum over pairs i < j, and the gradient of W."""
        return self.way(self.rest, rows, self.affine)


def choose(
    metric: Metric,
    n: int,
    method: Method = "auto",
    *,
    width: int | None = None,
    block: int | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Plan:
    """How the sum over the pairs of n rows is done.

    Args:
      metric: of the pairs.
      n: number of rows.
      method: a way, which has its own options, or the name of one, or "auto".
      width: d, where squares of c may be summed in closed form.
      block: of `Tiled` and `Ring`, where they are chosen here.
      mesh: of `Ring`, likewise.
      axis: of `Ring`, likewise.

    Raises:
      ValueError: unknown method or axis, block < 1.

    >>> import dh2l_jax as dh2l
    >>> choose(dh2l.get_metric("d_cos_hm"), 2_000).why
    'tiled: 2,000 rows are more than 1,024'
    """
    tiled, ring = Tiled(block), None if mesh is None else Ring(mesh, axis, block)
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    affine, rest = split_affine(metric)
    if rest is None and method in ("auto", *CLOSED):
        return Plan(Closed(), metric, affine, f"closed: {metric.name} is affine in c and h")
    small = method == "auto" and mesh is None and (width or n) < n
    if metric.square and (small or method in CLOSED):
        return Plan(Squares(), metric, affine, f"closed: {metric.name} is a square of c")
    if rest is None or metric.threshold or n < SPLIT_FROM:
        affine, rest = (0.0, 0.0, 0.0), metric
    way, why = _way(method, n, tiled, ring)
    linear = [name for name, slope in zip("ch", affine, strict=False) if slope]
    if linear:
        why += f"; in closed form what is affine in {' and '.join(linear)}"
    return Plan(way, rest, affine, why)


def _way(method: Method, n: int, tiled: Tiled, ring: Ring | None) -> tuple[Way, str]:
    if not isinstance(method, str):
        return method, f"{type(method).__name__.lower()}: as asked for"
    if method != "auto":
        return (Dense() if method == "dense" else tiled), f"{method}: as asked for"
    if ring is not None:
        return ring, f"ring: {n:,} rows go round {ring.mesh.shape[ring.axis]} devices"
    if n <= DENSE_LIMIT:
        return Dense(), f"dense: {n:,} rows are at most {DENSE_LIMIT:,}"
    return tiled, f"tiled: {n:,} rows are more than {DENSE_LIMIT:,}"

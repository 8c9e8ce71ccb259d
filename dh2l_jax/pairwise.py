"""All pairs: pairwise matrices, and means and sums over the pairs i < j of rows.

How a sum is done — in closed form, dense, tiled or over a ring of devices (the modules `*_sums`) —
is chosen here from the metric and the size, and nobody else knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dh2l_jax.checks import rows, unknown_name
from dh2l_jax.closed_sums import closed_sum
from dh2l_jax.dense_sums import dense_sum, stacked_sum
from dh2l_jax.metrics import METRICS, Metric, MetricLike, get_metric
from dh2l_jax.pair_blocks import all_pairs, even_block, pair_count
from dh2l_jax.profiles import Affine, opposite, separate, with_opposites
from dh2l_jax.ring_sums import ring_sum
from dh2l_jax.tiled_sums import tiled_sum

__all__ = ["mean_energy", "pair_sum", "pairwise", "stacked_energy"]

METHODS = ("auto", "closed", "dense", "tiled")
BLOCK = 640  # rows of a tile, at most: its n×n intermediates then take 1.6 MB each
DENSE_LIMIT = 1024  # above it the tiles' bookkeeping costs less than the lower triangle
SEPARATE_FROM = 256  # below, a Gram product costs less than compiling what makes up for it

PairFn = Callable[[jax.Array, jax.Array], jax.Array]


def pairwise(fn: PairFn, U: ArrayLike, V: ArrayLike | None = None) -> jax.Array:
    """All values fn(U[i], V[j]): vmap of vmap of any pair function.

    Args:
      fn: (d,), (d,) → array; options can be bound with `functools.partial`.
      U: (n, d).
      V: (m, d), or None for U itself.

    Returns:
      (n, m, ...).

    Raises:
      ValueError: U or V is not a matrix, or their widths differ.

    >>> import dh2l_jax as dh2l
    >>> pairwise(dh2l.code_similarity, jnp.array([[1.0, -1.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    U = jnp.asarray(U)
    V = U if V is None else jnp.asarray(V)
    if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[1]:
        raise ValueError(f"expected U (n, d) and V (m, d), found {U.shape} and {V.shape}")
    return jax.vmap(jax.vmap(fn, in_axes=(None, 0)), in_axes=(0, None))(U, V)


class _Options(TypedDict, total=False):
    where: ArrayLike | None
    method: str
    block: int
    half_space: bool
    mesh: Mesh | None
    axis: str


@overload
def mean_energy(
    W: ArrayLike, metric: MetricLike, *, explain: Literal[True], **options: Unpack[_Options]
) -> tuple[jax.Array, str]: ...


@overload
def mean_energy(
    W: ArrayLike,
    metric: MetricLike,
    *,
    explain: Literal[False] = False,
    **options: Unpack[_Options],
) -> jax.Array: ...


def mean_energy(
    W: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    method: str = "auto",
    block: int = BLOCK,
    half_space: bool = False,
    mesh: Mesh | None = None,
    axis: str = "data",
    explain: bool = False,
) -> jax.Array | tuple[jax.Array, str]:
    """Mean over pairs i < j of e(w_i, w_j); 0 where there is no pair.

        2 / (n(n−1)) Σ_{i<j} e(w_i, w_j)

    Args:
      W: (n, d), a vector a row.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      method: "closed" (affine metrics, O(nd)), "dense" (n×n), "tiled" (memory for a few tiles),
        or "auto", which chooses by metric and size; see `explain`.
      block: rows of a tile, at most.
      half_space: the mean over all pairs of W ∪ −W, so that opposite vectors repel too.
      mesh: rows are spread over an axis of these devices, none of which ever holds all of them.
      axis: name of that axis.
      explain: say also how it was computed, and why.

    Returns:
      Scalar, at least float32; with `explain` (scalar, text).

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown metric, method or axis,
        "closed" for a metric that is not affine.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(mean_energy(W, "cosine")), 4)
    -0.3333
    >>> mean_energy(W, "d_am_cos", explain=True)[1]
    'dense: 3 rows are at most 1,024'

    Reference: DH²L, §3.1 (E of a layer), Eqs. (7)-(10).
    """
    W, where = rows(W, where)
    total, why = _sum(W, where, get_metric(metric), method, block, half_space, mesh, axis)
    mean = total / jnp.maximum(pair_count(where, half_space=half_space), 1)
    return (mean, why) if explain else mean


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


def stacked_energy(
    stacks: Sequence[jax.Array], metric: MetricLike, *, method: str, half_space: bool
) -> jax.Array:
    """Σ of the mean energies of all matrices of stacks (matrices, n, d); options as there.

    The matrices of few rows are summed together, so that they share a program.

    >>> stacks = [jnp.ones((2, 3, 4)), jnp.ones((1, 2, 5))]
    >>> round(float(stacked_energy(stacks, "cosine", method="auto", half_space=False)), 4)
    3.0
    """
    metric, total, small = get_metric(metric), jnp.zeros(()), []
    of_each = functools.partial(mean_energy, metric=metric, method=method, half_space=half_space)
    pairs = with_opposites(metric) if half_space else metric
    for W in stacks:
        count, n = W.shape[:2]
        if 1 < n < SEPARATE_FROM and _plan(method, pairs, n, None, "").method == "dense":
            small.append(W)
            total += count * opposite(metric) / (2 * n - 1) if half_space else 0
        else:
            total += jnp.sum(jax.vmap(of_each)(W))
    if not small:
        return total
    vectors = [W.shape[1] * (2 if half_space else 1) for W in small]
    scales = tuple(2 / (n * (n - 1)) for n in vectors)
    return jnp.add(total, stacked_sum(pairs, scales, small))


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

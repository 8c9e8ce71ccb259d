"""All pairs: pairwise matrices, and means and sums over the pairs i < j of rows.

How a sum is done — in closed form, dense or tiled (`dh2l_jax.pair_sums`), or group by group —
is chosen here from the metric and the size, and nobody else knows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dh2l_jax.messages import unknown_name
from dh2l_jax.metrics import METRICS, Metric, MetricLike, get_metric
from dh2l_jax.numerics import as_float
from dh2l_jax.pair_sums import (
    all_pairs,
    closed_sum,
    dense_sum,
    pair_count,
    scale_gradient,
    tiled_sum,
)
from dh2l_jax.profiles import Affine, separate
from dh2l_jax.ring_sums import ring_sum

__all__ = [
    "group_pair_sum",
    "mean_energy",
    "pair_sum",
    "pairwise",
    "rows",
]

METHODS = ("auto", "closed", "dense", "tiled")
BLOCK = 512  # rows of a tile, whose n×n intermediates then take a megabyte each
DENSE_LIMIT = 1024  # above it the tiles' bookkeeping costs less than the lower triangle
SEPARATE_FROM = 256  # below, a Gram product costs less than compiling what makes up for it
CHEAP_PAIRS = 2**16  # fewer pairs cost less to compute than a second program to compile
WINDOW = 32  # rows: smaller matrix products are no faster, so groups up to this size share one
CHUNK = 1024  # rows of windows that are summed at once, whose intermediates take megabytes each

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
      block: rows of a tile.
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
        total += _opposite(metric) * jnp.sum(where, dtype=W.dtype)
        metric = _with_opposites(metric)
    plan = _plan(method, metric, W.shape[0], mesh, axis)
    if W.shape[0] < 2:
        return total, plan.why
    block = min(block, W.shape[0])
    if plan.method == "tiled":
        total = jnp.add(total, tiled_sum(plan.rest, plan.affine, block, W, where))
        return total, plan.why
    if any(plan.affine):
        total += closed_sum(metric, plan.affine, W, where)
    if plan.method == "dense":
        total = jnp.add(total, dense_sum(plan.rest, W, all_pairs(where)))
    elif plan.method == "ring":
        assert mesh is not None
        total = jnp.add(total, ring_sum(plan.rest, block, mesh, axis, W, where))
    return total, plan.why


def _opposite(metric: Metric) -> jax.Array:
    """e(w, −w): both similarities are −1, whatever the vector."""
    return metric.energy(jnp.float32(-1), jnp.float32(-1))


@functools.lru_cache(maxsize=256)
def _with_opposites(metric: Metric) -> Metric:
    """e(u, v) + e(−u, −v) + e(u, −v) + e(−u, v): for W ∪ −W no more similarities are needed."""
    affine = metric.affine and (0.0, 0.0, 4 * metric.affine[2])

    def energy(c: jax.Array, h: jax.Array) -> jax.Array:
        return 2 * (metric.energy(c, h) + metric.energy(-c, -h))

    return dataclasses.replace(metric, energy=energy, affine=affine)


def rows(W: ArrayLike, where: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """Checked (n, d) floats and (n,) mask; rows that take no part become 0, whatever they hold."""
    W = as_float(W)
    if W.ndim != 2:
        raise ValueError(f"expected a matrix (n, d) with a vector a row, found shape {W.shape}")
    if where is None:
        return W, jnp.ones(W.shape[0], bool)
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"where must be boolean, found dtype {where.dtype}")
    if where.shape != W.shape[:1]:
        raise ValueError(f"where must have shape {W.shape[:1]} like the rows, found {where.shape}")
    return jnp.where(where[:, None], W, 0), where


def group_pair_sum(
    W: jax.Array,
    groups: np.ndarray | jax.Array,
    weights: jax.Array,
    metric: MetricLike,
    *,
    half_space: bool = False,
) -> jax.Array:
    """Σ_g v_g Σ_{i<j in g} e(w_i, w_j): the pairs inside each group, by a weight of the group.

    Concrete groups are gathered into windows of rows, so the cost is that of few pairs besides
    their own and the memory that of some windows; groups that jit traces cost n×n.

    Args:
      W: (n, d), cleaned by `rows`.
      groups: (n,) integers, the group of each row; concrete ones are numbered from 0.
      weights: (n,) v_g of each row's group, 0 for rows that take no part; a constant to autodiff.
      metric: a name, a `Metric` or a profile f(c, h).
      half_space: of the groups' W ∪ −W.
    """
    metric = get_metric(metric)
    if isinstance(groups, jax.Array):
        return _mixed_sum(metric, half_space, W, groups, weights)
    parts = jnp.asarray(groups), weights, _windows(groups)
    return _windows_sum(metric, half_space, W, parts)


def _mixed_sum(
    metric: Metric, half_space: bool, W: jax.Array, groups: jax.Array, weights: jax.Array
) -> jax.Array:
    """Of rows of any groups, dense."""
    pairs = all_pairs(weights > 0) & (groups[:, None] == groups[None, :])
    total = jnp.zeros((), W.dtype)
    if half_space:
        total += _opposite(metric) * jnp.sum(weights)
        metric = _with_opposites(metric)
    return jnp.add(total, dense_sum(metric, W, jnp.where(pairs, weights[:, None], 0)))


def _one_group_sum(
    metric: Metric, half_space: bool, W: jax.Array, groups: jax.Array, weights: jax.Array
) -> jax.Array:
    """Of rows of one group, by the method for so many."""
    del groups
    total = pair_sum(W, metric, where=weights > 0, half_space=half_space)
    return jnp.max(weights) * total


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["index"], meta_fields=["one_group"]
)
@dataclasses.dataclass(frozen=True)
class _Windows:
    """Rows of windows of one width, (chunks, windows, width) padded with n."""

    index: jax.Array
    one_group: bool  # in each window


_Parts = tuple[jax.Array, jax.Array, list[_Windows]]  # groups, weights and windows of the rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _windows_sum(metric: Metric, half_space: bool, W: jax.Array, parts: _Parts) -> jax.Array:
    return _windows_fwd(metric, half_space, W, parts)[0]


def _windows_fwd(metric: Metric, half_space: bool, W: jax.Array, parts: _Parts):
    # With the gradient chunk by chunk: autodiff would keep what all of them need for theirs.
    groups, weights, windows = parts
    carry = jnp.zeros((), W.dtype), jnp.zeros_like(W)
    for kind in windows:
        fn = functools.partial(_one_group_sum if kind.one_group else _mixed_sum, metric, half_space)
        values_and_slopes = jax.vmap(jax.value_and_grad(fn))

        def step(carry, index, values_and_slopes=values_and_slopes):
            total, gradient = carry
            members = (X.at[index].get(mode="fill", fill_value=0) for X in (W, groups, weights))
            values, slopes = values_and_slopes(*members)
            return (total + jnp.sum(values), gradient.at[index].set(slopes, mode="drop")), None

        if kind.index.shape[0] == 1:
            carry, _ = step(carry, kind.index[0])
        else:
            carry, _ = lax.scan(step, carry, kind.index)
    return carry


_windows_sum.defvjp(_windows_fwd, scale_gradient)


def _windows(groups: np.ndarray) -> list[_Windows]:
    """The groups with two or more members: small ones share windows, larger ones have their own.

    All are small if that is cheap; the larger ones' windows have one width a power of two.
    """
    sizes = np.bincount(groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    cheap = len(groups) * np.max(sizes, initial=0) <= CHEAP_PAIRS
    kinds = np.where(cheap | (sizes <= WINDOW), 0, np.ceil(np.log2(np.maximum(sizes, 1))))
    return [
        _chunks([members[g] for g in np.flatnonzero((kinds == kind) & (sizes > 1))], len(groups))
        for kind in np.unique(kinds[sizes > 1])
    ]


def _chunks(groups: list[np.ndarray], n: int) -> _Windows:
    width = max(map(len, groups))
    windows = _packed(groups, width)
    chunks = -(-len(windows) // max(1, CHUNK // width))
    index = np.full((chunks, -(-len(windows) // chunks), width), n)
    for row, window in zip(index.reshape(-1, width), windows, strict=False):
        row[: len(window)] = window
    return _Windows(jnp.asarray(index), one_group=len(windows) == len(groups))


def _packed(groups: list[np.ndarray], width: int) -> list[np.ndarray]:
    """The members of groups in windows, each filled with the largest groups that still fit."""
    by_size: list[list[np.ndarray]] = [[] for _ in range(width + 1)]
    for group in groups:
        by_size[len(group)].append(group)
    windows = []
    while any(by_size):
        window, room = [], width
        for size in range(width, 0, -1):
            while size <= room and by_size[size]:
                window.append(by_size[size].pop())
                room -= size
        windows.append(np.concatenate(window))
    return windows


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

"""All pairs: pairwise matrices, and means and sums over the pairs i < j of rows.

How a sum is done — in closed form, dense or tiled (`dh2l_jax.pair_sums`), or group by group —
is chosen here from the metric and the size, and nobody else knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dh2l_jax.messages import unknown_name
from dh2l_jax.metrics import METRICS, Metric, MetricLike, get_metric
from dh2l_jax.numerics import as_float
from dh2l_jax.pair_sums import all_pairs, closed_sum, dense_sum, pair_count, tiled_sum

__all__ = ["group_pair_sums", "mean_energy", "pair_sum", "pairwise", "rows", "weighted_pair_sum"]

METHODS = ("auto", "closed", "dense", "tiled")
DENSE_LIMIT = 2048  # above it the n×n intermediates cost more than the tiles' bookkeeping
CHEAP_PAIRS = 2**16  # stacks of fewer pairs cost less to compute than to compile
MAP_WIDTH = 256  # groups wider than this are summed one after the other to bound memory

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


def mean_energy(
    W: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    method: str = "auto",
    block: int = 1024,
) -> jax.Array:
    """Mean over pairs i < j of e(w_i, w_j); 0 where there is no pair.

        2 / (n(n−1)) Σ_{i<j} e(w_i, w_j)

    Args:
      W: (n, d), a vector a row.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, True for the rows that take part; equal to dropping the others.
      method: "closed" (affine metrics, O(nd)), "dense" (n×n), "tiled" (O(block·n) memory), or
        "auto": closed if the metric allows it, else dense up to 2048 rows, else tiled.
      block: rows of a tile.

    Returns:
      Scalar, at least float32.

    Raises:
      ValueError: W is not a matrix, `where` has another length, unknown metric or method,
        "closed" for a metric that is not affine.
      TypeError: `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(mean_energy(W, "cosine")), 4)
    -0.3333

    Reference: DH²L, §3.1 (E of a layer), Eqs. (7)-(10).
    """
    W, where = rows(W, where)
    total = pair_sum(W, metric, where=where, method=method, block=block)
    return total / jnp.maximum(pair_count(where), 1)


def pair_sum(
    W: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    method: str = "auto",
    block: int = 1024,
) -> jax.Array:
    """Σ_{i<j} e(w_i, w_j) over the rows that take part. Arguments as in `mean_energy`."""
    metric = get_metric(metric)
    W, where = rows(W, where)
    method = _choose(method, metric, W.shape[0])
    if W.shape[0] < 2:
        return jnp.zeros((), W.dtype)
    if method == "closed":
        return closed_sum(metric, W, where)
    if method == "dense":
        return dense_sum(metric, W, all_pairs(where))
    if block < 1:
        raise ValueError(f"block must be ≥ 1, found {block}")
    return tiled_sum(metric, min(block, W.shape[0]), W, where)


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


def group_pair_sums(
    W: jax.Array, groups: np.ndarray, metric: MetricLike, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums and counts over the pairs inside each group of two or more members.

    Groups are gathered into padded stacks, one for each power of two of their size, so the cost
    is that of the groups' own pairs and never n×n; few small groups share one stack.

    Args:
      W: (n, d), cleaned by `rows`.
      groups: (n,) concrete integers, the group of each row.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool.

    Returns:
      Sums (k,) and pair counts (k,) of the k groups with two or more rows, in no special order.
    """

    def group_sum(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        members, present = group
        return pair_sum(members, metric, where=present)

    sums, counts = [jnp.zeros(0, W.dtype)], [jnp.zeros(0, jnp.float32)]
    for index in _stacks(groups):
        members = W.at[index].get(mode="fill", fill_value=0)
        present = where.at[index].get(mode="fill", fill_value=False)
        map_groups = jax.vmap if index.shape[1] <= MAP_WIDTH else _one_by_one
        sums.append(map_groups(group_sum)((members, present)))
        counts.append(pair_count(present))
    return jnp.concatenate(sums), jnp.concatenate(counts)


def weighted_pair_sum(W: jax.Array, weights: jax.Array, metric: MetricLike) -> jax.Array:
    """Σ_{i<j} weights[i, j] e(w_i, w_j) for symmetric (n, n) weights, dense."""
    return dense_sum(get_metric(metric), W, weights)


def _one_by_one(fn: Callable) -> Callable:
    return functools.partial(lax.map, fn)


def _choose(method: str, metric: Metric, n: int) -> str:
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if method == "closed" and metric.affine is None:
        affine = ", ".join(name for name, m in METRICS.items() if m.affine)
        raise ValueError(f"metric {metric.name!r} has no closed form; the affine ones are {affine}")
    if method != "auto":
        return method
    if metric.affine is not None:
        return "closed"
    return "dense" if n <= DENSE_LIMIT else "tiled"


def _stacks(groups: np.ndarray) -> Sequence[np.ndarray]:
    """Row indices of the groups with two or more members, (groups, width) a stack, padded with n.

    One stack if padding all groups to the widest is cheap, else one a power of two of the size.
    """
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    one_is_cheap = len(sizes) * np.max(sizes, initial=0) ** 2 <= CHEAP_PAIRS
    kinds = np.zeros_like(sizes) if one_is_cheap else np.ceil(np.log2(sizes)).astype(int)
    stacks = []
    for kind in np.unique(kinds):
        start, size = starts[kinds == kind, None], sizes[kinds == kind, None]
        column = np.arange(size.max())[None, :]
        position = np.minimum(start + column, len(groups) - 1)
        stacks.append(np.where(column < size, order[position], len(groups)))
    return stacks

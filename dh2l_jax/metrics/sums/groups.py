"""Sums over the pairs inside each of many groups, gathered into windows of rows."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dh2l_jax.metrics.blocks import all_pairs, scale_gradient
from dh2l_jax.metrics.profile import Metric, MetricLike, opposite, with_opposites
from dh2l_jax.metrics.sums.dense import dense_sum
from dh2l_jax.metrics.sums.plan import pair_sum
from dh2l_jax.metrics.table import get_metric

__all__ = ["group_pair_sum"]

CHEAP_PAIRS = 2**16  # fewer pairs cost less to compute than a second program to compile
WINDOW = 32  # rows: smaller matrix products are no faster, so groups up to this size share one
CHUNK = 1024  # rows of windows that are summed at once, whose intermediates take megabytes each


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
        total += opposite(metric) * jnp.sum(weights)
        metric = with_opposites(metric)
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

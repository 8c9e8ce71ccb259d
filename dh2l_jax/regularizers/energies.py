"""The regularisers of Eqs. (5) and (6): energies to minimise, each a mean over unordered pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dh2l_jax.checks import checked_rows, integers, labels_exist, rows
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.metrics import MetricLike, mean_energy
from dh2l_jax.metrics.pairs import Grouped, grouped_energies

__all__ = [
    "any_in_groups",
    "center_energy",
    "classes_present",
    "group_energy",
    "grouped",
    "siblings",
]

FEW = 4  # present rows are gathered if there are at most n/4 of them
FEW_PAIRS = 2**16  # up to which a comparison of all is faster than a scatter


def group_energy(
    W: ArrayLike,
    groups: ArrayLike,
    metric: MetricLike,
    *,
    where: ArrayLike | None = None,
    max_present: int | None = None,
    half_space: bool = False,
) -> jax.Array:
    """R_p: mean over groups with two or more members of the mean energy of the group's pairs.

        1/|G| Σ_{g ∈ G} 2/(n_g (n_g − 1)) Σ_{i<j in g} e(w_i, w_j),   G = {g : n_g ≥ 2}

    Args:
      W: (n, d), a vector a row.
      groups: (n,) int, any labels. Concrete groups cost the groups' own pairs only; groups that
        are traced by jit cost n×n.
      metric: a name, a `Metric` or a profile f(c, h).
      where: (n,) bool, the rows that take part (the classes of a mini-batch).
      max_present: an upper bound of the number of rows that take part, such as the size of the
        mini-batch: of many rows only so many are then looked at.
      half_space: as in `mean_energy`, in each group.

    Returns:
      Scalar; 0 if no group has two members.

    Raises:
      ValueError: shapes do not fit, unknown metric.
      TypeError: groups are not integers, `where` is not boolean.

    >>> W = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> group_energy(W, [0, 0, 7], "cosine").item()
    0.0

    Reference: DH²L, Eq. (5).
    """
    sums = {"R_p": grouped(W, groups, where, max_present, half_space=half_space)}
    return grouped_energies(sums, metric, half_space=half_space)["R_p"]


def center_energy(
    C: ArrayLike,
    metric: MetricLike,
    *,
    groups: ArrayLike | None = None,
    where: ArrayLike | None = None,
    max_present: int | None = None,
) -> jax.Array:
    """R_c: mean energy over the pairs of centres of a level, or over the pairs of siblings.

    Args:
      C: (n, d) relative centres, one a group of the level.
      metric: a name, a `Metric` or a profile f(c, h).
      groups: (n,) int, the parent of each centre: only pairs with one parent count, all with the
        same weight. None: every pair counts.
      where: (n,) bool, the centres that take part.
      max_present: as in `group_energy`.

    Returns:
      Scalar; 0 if there is no pair.

    Raises:
      ValueError: shapes do not fit, unknown metric.
      TypeError: groups are not integers, `where` is not boolean.

    >>> round(float(center_energy(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), "cosine")), 4)
    -1.0

    Reference: DH²L, Eq. (6).
    """
    if groups is None:
        C, where, _ = _rows_present(C, where, np.zeros(jnp.shape(C)[:1], np.int32), max_present)
        return mean_energy(C, metric, where=where)
    return grouped_energies({"R_c": siblings(C, groups, where, max_present)}, metric)["R_c"]


def grouped(
    W: ArrayLike,
    groups: ArrayLike,
    where: ArrayLike | None,
    max_present: int | None,
    *,
    half_space: bool,
) -> Grouped:
    """The rows of R_p: every group with a pair weighs the same. Arguments as `group_energy`."""
    W, where, groups = _rows_present(W, where, groups, max_present)
    groups = _groups(groups, W.shape[0])
    sizes = _group_sizes(groups, where, W.dtype)
    shared = sizes > 0
    num_groups = jnp.sum(shared / jnp.maximum(sizes, 1))
    counts = sizes * (2 * sizes - 1) if half_space else sizes * (sizes - 1) / 2
    weights = shared / (jnp.maximum(counts, 1) * jnp.maximum(num_groups, 1))
    return Grouped(W, groups, weights)


def siblings(
    C: ArrayLike, parents: ArrayLike, where: ArrayLike | None, max_present: int | None
) -> Grouped:
    """The rows of R_c: every pair weighs the same. Arguments as `center_energy`."""
    C, where, parents = _rows_present(C, where, parents, max_present)
    parents = _groups(parents, C.shape[0])
    sizes = _group_sizes(parents, where, C.dtype)
    count = jnp.sum(jnp.maximum(sizes - 1, 0)) / 2
    return Grouped(C, parents, (sizes > 0) / jnp.maximum(count, 1))


def classes_present(labels: ArrayLike, num_classes: int | Hierarchy) -> jax.Array:
    """(C,) bool: which classes occur in a batch of labels; the `where` of `hierarchical`.

    Of a tree (num_nodes,) bool: labels may be any of its nodes, and the nodes above a label are
    present too, so that a label at an inner node brings along no class.

    Args:
      labels: (b,) int in 0..C−1, or in 0..num_nodes−1.
      num_classes: C, or the tree.

    Raises:
      ValueError: labels are not (b,), or, where that can be seen, out of range.
      TypeError: labels are not integers.

    >>> classes_present(jnp.array([2, 0, 2]), 4).tolist()
    [True, False, True, False]
    >>> tree = Hierarchy.from_paths({"sun": "", "gull": "birds", "tern": "birds"})
    >>> classes_present(jnp.array([tree.node_id("birds")]), tree).tolist()
    [False, False, False, True, True]
    """
    labels = jnp.asarray(labels)
    integers("labels", labels, (labels.size,), "of a batch")
    tree = num_classes if isinstance(num_classes, Hierarchy) else None
    size = num_classes.num_nodes if isinstance(num_classes, Hierarchy) else num_classes
    if not isinstance(labels, Tracer):
        labels_exist(labels, size, what="nodes" if tree else "classes")
    present = jnp.any(jax.nn.one_hot(labels, size, dtype=bool), axis=0)
    return present if tree is None else _with_ancestors(present, tree)


def _with_ancestors(present: jax.Array, tree: Hierarchy) -> jax.Array:
    parents = tree.node_parents()
    for level in range(tree.num_levels, 0, -1):
        nodes = tree.members(level)
        present = present.at[parents[nodes]].max(present[nodes])
    return present


def any_in_groups(present: jax.Array, groups: np.ndarray, size: int) -> jax.Array:
    """(size,) bool: which groups have a member that is present; (n,) concrete groups."""
    if size * len(groups) > FEW_PAIRS:
        return jax.ops.segment_max(present, groups, num_segments=size)
    return jnp.any(present[None, :] & (groups == np.arange(size)[:, None]), axis=1)


def _rows_present(
    W: ArrayLike, where: ArrayLike | None, groups: ArrayLike, max_present: int | None
) -> tuple[jax.Array, jax.Array, ArrayLike]:
    """As `rows`; the present ones alone, at most `max_present`, if that saves looking at many."""
    W, used = checked_rows(W, where)
    n = W.shape[0]
    if max_present is None or FEW * max_present > n:
        return *rows(W, where), groups
    index = jnp.nonzero(used, size=max_present, fill_value=n)[0]
    W = W.at[index].get(mode="fill", fill_value=0)
    groups = jnp.asarray(groups).at[index].get(mode="fill", fill_value=0)
    return W, index < n, groups


def _groups(groups: ArrayLike, n: int) -> np.ndarray | jax.Array:
    """Checked labels: concrete ones numbered from 0, or as jit traces them."""
    try:
        labels = np.asarray(groups)
    except jax.errors.TracerArrayConversionError:
        labels = jnp.asarray(groups)
    integers("groups", labels, (n,), "like the rows")
    return labels if isinstance(labels, jax.Array) else np.unique(labels, return_inverse=True)[1]


def _group_sizes(groups: np.ndarray | jax.Array, where: jax.Array, dtype: DTypeLike) -> jax.Array:
    """n_g of the rows that take part, (n,), and 0 for the others and where n_g is 1."""
    if isinstance(groups, jax.Array) or len(groups) ** 2 <= FEW_PAIRS:
        together = where[None, :] & (groups[:, None] == groups[None, :])
        sizes = jnp.sum(together, axis=1, dtype=dtype)
    else:
        sizes = jnp.zeros(groups.shape, dtype).at[groups].add(where)[groups]
    return jnp.where(where & (sizes > 1), sizes, 0)

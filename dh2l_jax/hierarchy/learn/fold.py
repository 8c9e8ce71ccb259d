"""Values of the classes and nodes, carried up the tree."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["carried_up", "fold_up"]


def fold_up(
    leaves: jax.Array,
    hierarchy: Hierarchy,
    combine: Callable[..., jax.Array] = jax.ops.segment_sum,
) -> list[jax.Array]:
    """The values of the nodes of levels 0..L, each combined from those of its children.

    Args:
      leaves: (C, ...).
      hierarchy: the tree.
      combine: `jax.ops.segment_sum` or one of its kind.

    Returns:
      One array (size(l), ...) a level, the root's first and `leaves` last.

    >>> import jax.numpy as jnp
    >>> [x.tolist() for x in fold_up(jnp.array([1, 2, 4]), Hierarchy.two_level([0, 0, 1]))]
    [[7], [3, 4], [1, 2, 4]]
    """
    levels = [leaves]
    for level in range(hierarchy.num_levels, 0, -1):
        parents, size = hierarchy.parents(level), hierarchy.size(level - 1)
        levels.append(combine(levels[-1], parents, num_segments=size))
    return levels[::-1]


def carried_up(counts: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """(num_nodes,) int64: the sum of the (num_nodes,) counts at and below each node.

    >>> carried_up(np.array([1, 2, 4, 8, 0, 0]), Hierarchy.two_level([0, 0, 1])).tolist()
    [1, 2, 4, 11, 4, 15]
    """
    total, parents = counts.astype(np.int64), hierarchy.node_parents()
    for level in range(hierarchy.num_levels, 0, -1):
        nodes = hierarchy.members(level)
        np.add.at(total, parents[nodes], total[nodes])
    return total

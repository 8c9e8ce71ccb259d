"""Values at all nodes of a tree, carried up to the root and down to the classes.

Arrays here are (nodes, b): the images are the last axis, so that a node is one row. Work and memory
are O(b · nodes): levels are taken one after the other, and nothing is (C, C).

A logarithm of a sum of exponentials is kept as two numbers, its largest term and the logarithm of
the rest, for a difference of two of them keeps its digits then, however large both are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ops import segment_max, segment_sum
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = [
    "class_logits",
    "down",
    "expected_height",
    "log_softmax_of_siblings",
    "log_sums",
    "nodes_above",
    "paths",
    "rows_of_nodes",
]


def class_logits(logits: ArrayLike, tree: Hierarchy | None) -> jax.Array:
    """(b, C) floats.

    Raises:
      ValueError: it is no matrix, or has another width than the tree, if there is one.
    """
    logits = as_float(logits)
    if logits.ndim != 2 or (tree and logits.shape[1] != tree.num_classes):
        width = tree.num_classes if tree else "C"
        raise ValueError(f"expected logits (b, {width}), found shape {logits.shape}")
    return logits


def rows_of_nodes(node_logits: Sequence[ArrayLike], tree: Hierarchy) -> jax.Array:
    """(nodes, b) from arrays (b, size(l)) of the levels 1..L; the root is a row of zeros.

    Raises:
      ValueError: the shapes do not fit the tree.
    """
    arrays = [as_float(array) for array in node_logits]
    found = [array.shape for array in arrays]
    b = arrays[0].shape[0] if arrays and arrays[0].ndim else 0  # may be symbolic
    expected = [(b, tree.size(level)) for level in range(1, tree.num_levels + 1)]
    if found != expected:
        raise ValueError(f"node_logits must have the shapes {expected}, one a level, found {found}")
    depths, nodes, parts = tree.node_depths(), [], []
    for level, array in enumerate(arrays, 1):
        ids = tree.level_nodes(level)
        own = depths[ids] == level  # the others are classes of a level above, shown again
        nodes.append(ids[own])
        parts.append(array.T[np.flatnonzero(own)])
    order = np.argsort(np.concatenate(nodes))
    root = jnp.zeros((1, b), jnp.result_type(*parts))
    return jnp.concatenate([jnp.concatenate(parts)[order], root])


def _ascent(tree: Hierarchy) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """From the bottom up: inner nodes of a depth, the classes among their children, whose child.

    The children of a depth's nodes are these classes and then all inner nodes of the depth below;
    the last array holds each child's parent by its place among the nodes.
    """
    parents, depths, C = tree.node_parents(), tree.node_depths(), tree.num_classes
    for depth in range(tree.num_levels - 1, -1, -1):
        nodes = C + np.flatnonzero(depths[C:] == depth)
        children = np.flatnonzero(depths == depth + 1)
        yield nodes, children[children < C], np.searchsorted(nodes, parents[children])


def _take(rows: jax.Array, index: np.ndarray) -> jax.Array:
    return rows if np.array_equal(index, np.arange(len(rows))) else rows[index]


def log_sums(values: jax.Array, tree: Hierarchy) -> tuple[jax.Array, jax.Array]:
    """log Σ exp of the values at and below each node, as two summands (nodes, b).

    Args:
      values: (C, b) of the classes, or (nodes, b) where inner nodes add a term of their own.
      tree: the tree.

    Returns:
      The largest value, and log Σ exp(value − largest), which alone carries the gradient of inner
      nodes.
    """
    leaves, own = values[: tree.num_classes], len(values) == tree.num_nodes
    tops, masses = [leaves], [jnp.ones_like(leaves)]
    for nodes, classes, parent in _ascent(tree):
        below = [_take(leaves, classes), *tops[1:][-1:]]
        mass = [jnp.ones_like(below[0]), *masses[1:][-1:]]
        below, mass = jnp.concatenate(below), jnp.concatenate(mass)
        top = segment_max(below, parent, num_segments=len(nodes))
        top = jnp.maximum(top, values[nodes]) if own else top
        # −inf − (−inf) is NaN: what is below a node may all be excluded.
        top = lax.stop_gradient(jnp.maximum(top, jnp.finfo(top.dtype).min))
        mass = segment_sum(mass * jnp.exp(below - top[parent]), parent, num_segments=len(nodes))
        tops.append(top)
        masses.append(mass + jnp.exp(values[nodes] - top) if own else mass)
    mass = jnp.concatenate(masses)
    some = mass > 0  # log 0 has no slope, not even where nobody asks for it
    return jnp.concatenate(tops), jnp.where(some, jnp.log(jnp.where(some, mass, 1)), -jnp.inf)


def down(values: jax.Array, tree: Hierarchy) -> jax.Array:
    """(nodes, b): the sum of the values of each node and its ancestors."""
    parents, depths = tree.node_parents(), tree.node_depths()
    nodes = [np.flatnonzero(depths == depth) for depth in range(tree.num_levels + 1)]
    sums = [values[nodes[0]]]
    for above, here in itertools.pairwise(nodes):
        sums.append(values[here] + sums[-1][np.searchsorted(above, parents[here])])
    return _take(jnp.concatenate(sums[::-1]), np.argsort(np.concatenate(nodes[::-1])))


def log_softmax_of_siblings(values: jax.Array, tree: Hierarchy) -> jax.Array:
    """(nodes, b): log q(node | parent); 0 at the root."""
    parents, count = tree.node_parents()[:-1], tree.num_nodes
    below = values[:-1]
    top = lax.stop_gradient(segment_max(below, parents, num_segments=count))[parents]
    mass = segment_sum(jnp.exp(below - top), parents, num_segments=count)
    own = (below - top) - jnp.log(mass[parents])
    return jnp.concatenate([own, jnp.zeros_like(values[-1:])])


def nodes_above(tree: Hierarchy) -> np.ndarray:
    """(L, num_nodes): the node above each node at each level; below it a class itself, else −1.

    >>> nodes_above(Hierarchy.from_paths({"sun": "", "gull": "birds"})).tolist()
    [[0, 2, 2, -1], [0, 1, -1, -1]]
    """
    above = np.full((tree.num_levels, tree.num_nodes), -1, np.int32)
    parents = tree.node_parents()
    for level in range(1, tree.num_levels + 1):
        nodes = tree.members(level)
        above[:, nodes] = above[:, parents[nodes]]
        above[level - 1, nodes] = nodes
    above[:, : tree.num_classes] = tree.ancestor_nodes()
    return above


def paths(labels: jax.Array, tree: Hierarchy) -> jax.Array:
    """(L + 1, b): each node, its parent, and so on; the root is its own parent."""
    parents, rows = jnp.asarray(tree.node_parents()), [labels]
    for _ in range(tree.num_levels):
        rows.append(parents[rows[-1]])
    return jnp.stack(rows)


def expected_height(probabilities: jax.Array, tree: Hierarchy) -> jax.Array:
    """(C, b): Σ_j height(lca(k, j)) p_j for each class k, from (nodes, b) probabilities of nodes.

    The height of a lowest common ancestor is that of the root, less the drop from parent to node
    at each shared node, so that the sum over j leaves probabilities of nodes alone.
    """
    heights = tree.node_heights()
    drops = heights[tree.node_parents()] - heights
    shared = down(probabilities * drops[:, None].astype(probabilities.dtype), tree)
    return (heights[-1] - shared)[: tree.num_classes]

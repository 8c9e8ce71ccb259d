"""Losses of classes that stand in a tree.

All of them take labels at any node: 0..C−1 are the classes, then come the inner nodes, and the root
is last (`Hierarchy.node_id`). A label at an inner node says that the class is one of those below;
at the root it says nothing, and costs nothing. The mean is over all images that count.

References:
  Bertinetto et al., "Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks",
    CVPR 2020: `hxe`, `soft_labels`.
  Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017: `conditional`.
  Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual Network for Hierarchical
    Multi-Granularity Classification", CVPR 2022: `hrn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dh2l_jax.checks import integers, labels_exist, mask, unknown_name
from dh2l_jax.hierarchy.learn.nodes import (
    class_logits,
    down,
    expected_height,
    log_softmax_of_siblings,
    log_sums,
    paths,
    rows_of_nodes,
)
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["conditional", "hrn", "hxe", "marginal", "soft_labels"]


def hxe(
    logits: ArrayLike,
    labels: ArrayLike,
    tree: Hierarchy,
    *,
    alpha: ArrayLike,
    by: str = "depth",
    normalise: str | None = None,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Hierarchical cross-entropy: each step down to the label weighs by its depth.

        mean_b Σ_a exp(−α depth(a)) · −log p(a | parent of a),   a = label and its ancestors

    p(a) is the sum of the soft-max probabilities of the classes below a. α = 0 is cross-entropy;
    the larger α, the more the nodes near the root count.

    Args:
      logits: (b, C).
      labels: (b,) int, nodes.
      tree: the tree; static under jit.
      alpha: α ≥ 0.
      by: "depth", 1 below the root, as in the paper's code and text; "height", 0 for classes, as in
        its formula, which weighs the classes most.
      normalise: "tree" divides by the sum of the weights of all nodes, as the paper's code does.
      where: (b,) bool, the images that count. What the others hold, NaN included, is not used.
      reduction: "mean", or "none" for (b,) losses, 0 where an image does not count.

    Returns:
      A scalar, or (b,); NaN under jit where a label does not exist.

    Raises:
      ValueError: shapes do not fit, a label does not exist, or an unknown option.
      TypeError: labels are not integers, `where` is not boolean.

    >>> tree = Hierarchy.from_parents(([0, 0, 1], [0, 0, 1, 2, 2]))
    >>> z = jnp.array([[2.0, 1, 0, 0, -1], [0, 0, 1, 3, 1]])
    >>> loss = jax.jit(hxe, static_argnames="tree")
    >>> [round(float(loss(z, jnp.array([1, 2]), tree, alpha=a)), 4) for a in (0, 0.5)]
    [1.9194, 0.8353]

    Reference: Bertinetto et al. 2020.
    """
    scales = {"depth": tree.node_depths, "height": tree.node_heights}
    if by not in scales:
        raise ValueError(unknown_name("by", by, scales))
    if normalise not in (None, "tree"):
        raise ValueError(unknown_name("normalise", normalise, ("tree", "None")))
    logits, labels, used, exist = _batch(class_logits(logits, tree), labels, where, tree)
    weights = jnp.exp(-jnp.asarray(alpha, logits.dtype) * scales[by]().astype(logits.dtype))
    total = jnp.sum(weights) if normalise else 1
    steps = paths(labels, tree)
    top, mass = (_at(rows, steps) for rows in log_sums(logits.T, tree))
    cost = (top[1:] - top[:-1]) + (mass[1:] - mass[:-1])
    return _reduced(jnp.sum(weights[steps[:-1]] * cost, axis=0) / total, used, exist, reduction)


def soft_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    tree: Hierarchy,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy with targets that fall off with the height of the lowest common ancestor.

        −Σ_k y_k log p_k,   y_k ∝ exp(−β height(lca(label, k)) / height(root))

    The larger β, the closer to cross-entropy. The classes below a label at an inner node count as
    one, whose probability is that of the node.

    Args:
      logits: (b, C).
      labels: (b,) int, nodes.
      tree: the tree; static under jit.
      beta: β ≥ 0; from about 30 on the target is the label alone.
      where: as for `hxe`.
      reduction: as for `hxe`.

    >>> tree = Hierarchy.from_parents(([0, 0, 1], [0, 0, 1, 2, 2]))
    >>> z = jnp.array([[2.0, 1, 0, 0, -1], [0, 0, 1, 3, 1]])
    >>> round(float(soft_labels(z, jnp.array([1, 2]), tree, beta=4)), 4)
    1.9121

    Reference: Bertinetto et al. 2020.
    """
    logits, labels, used, exist = _batch(class_logits(logits, tree), labels, where, tree)
    steps, images = paths(labels, tree), jnp.arange(len(labels))
    on_path = jnp.zeros((tree.num_nodes, len(labels)), logits.dtype).at[steps, images].set(1)
    heights = tree.node_heights()
    distance = expected_height(on_path, tree)  # (C, b), exact: whole numbers
    below = distance <= jnp.asarray(heights)[labels][None].astype(distance.dtype)
    slope = jnp.asarray(beta, logits.dtype) / int(heights[-1])
    target = jnp.where(below, 0, jnp.exp(-slope * distance))  # the label's own is exp(0)
    log_p = jax.nn.log_softmax(logits.T, axis=0)
    cost = _missing(logits.T, labels, tree) - jnp.sum(target * log_p, axis=0)
    return _reduced(cost / (1 + jnp.sum(target, axis=0)), used, exist, reduction)


def marginal(
    logits: ArrayLike,
    labels: ArrayLike,
    tree: Hierarchy,
    *,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy of labels at any node: −log Σ_{classes k below} p_k.

    Args:
      logits: (b, C).
      labels: (b,) int, nodes.
      tree: the tree; static under jit.
      where: as for `hxe`.
      reduction: as for `hxe`.

    The first image shows something under node "1" of level 1, the second may show anything:

    >>> tree = Hierarchy.two_level([0, 0, 1, 1])
    >>> z = jnp.log(jnp.array([[0.5, 0.1, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]]))
    >>> losses = marginal(z, jnp.array([5, 6]), tree, reduction="none")
    >>> np.exp(np.float64(-losses)).round(4).tolist()
    [0.4, 1.0]
    """
    logits, labels, used, exist = _batch(class_logits(logits, tree), labels, where, tree)
    return _reduced(_missing(logits.T, labels, tree), used, exist, reduction)


def conditional(
    node_logits: Sequence[ArrayLike],
    labels: ArrayLike,
    tree: Hierarchy,
    *,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Hierarchical soft-max: a soft-max among the children of every node.

        Σ_a −log q(a | parent of a),   a = label and its ancestors

    Args:
      node_logits: a (b, size(l)) array for each level l = 1..L. On uneven trees the columns of
        classes that stand at a level above are not used.
      labels: (b,) int, nodes.
      tree: the tree; static under jit.
      where: as for `hxe`.
      reduction: as for `hxe`.

    Only children have something to be told from their siblings:

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> z = [jnp.zeros((2, 2)), jnp.zeros((2, 3))]
    >>> jnp.exp(-conditional(z, jnp.array([0, 2]), tree, reduction="none")).tolist()
    [0.25, 0.5]

    Reference: Redmon and Farhadi 2017.
    """
    values, labels, used, exist = _batch(rows_of_nodes(node_logits, tree).T, labels, where, tree)
    log_q = log_softmax_of_siblings(values.T, tree)
    return _reduced(-jnp.sum(_at(log_q, paths(labels, tree)), axis=0), used, exist, reduction)


def hrn(
    node_logits: Sequence[ArrayLike],
    labels: ArrayLike,
    tree: Hierarchy,
    *,
    where: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Marginal loss over the tree's states: the paths from the root to any node, the empty one too.

        −log Σ_{states with the label} p(state),   p(state) ∝ exp(Σ_{its nodes} logit)

    The paper's code takes sigmoids for logits, so that no probability comes near 0 or 1.

    Args:
      node_logits: as for `conditional`.
      labels: (b,) int, nodes.
      tree: the tree; static under jit.
      where: as for `hxe`.
      reduction: as for `hxe`.

    Six states, one with class 0, three with its parent:

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> z = [jnp.zeros((2, 2)), jnp.zeros((2, 3))]
    >>> np.exp(np.float64(-hrn(z, jnp.array([0, 3]), tree, reduction="none"))).round(4).tolist()
    [0.1667, 0.5]

    Reference: Chen et al. 2022.
    """
    values, labels, used, exist = _batch(rows_of_nodes(node_logits, tree).T, labels, where, tree)
    cost = _missing(down(values.T, tree), labels, tree)
    return _reduced(cost, used, exist, reduction)


def _batch(
    rows: jax.Array, labels: ArrayLike, where: ArrayLike | None, tree: Hierarchy
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Rows and labels, 0 where an image does not count; which do, and whose label exists."""
    labels = jnp.asarray(labels)
    integers("labels", labels, rows.shape[:1], "like the images")
    used = mask(where, labels.shape, "like the labels")
    if not any(isinstance(x, Tracer) for x in (labels, used)):
        labels_exist(labels, tree.num_nodes, used, "nodes")
    exist = (labels >= 0) & (labels < tree.num_nodes)
    return jnp.where(used[:, None], rows, 0), jnp.where(used & exist, labels, 0), used, exist


def _missing(values: jax.Array, labels: jax.Array, tree: Hierarchy) -> jax.Array:
    """(b,): −log of the share in Σ exp of all values of those at and below the label."""
    top, mass = (rows[-1] - _at(rows, labels[None])[0] for rows in log_sums(values, tree))
    return top + mass


def _at(rows: jax.Array, nodes: jax.Array) -> jax.Array:
    """The entries of (nodes, b) rows at some nodes (k, b) of each image."""
    return jnp.take_along_axis(rows, nodes, axis=0, mode="clip")


def _reduced(losses: jax.Array, used: jax.Array, exist: jax.Array, reduction: str) -> jax.Array:
    if reduction not in ("mean", "none"):
        raise ValueError(unknown_name("reduction", reduction, ("mean", "none")))
    losses = jnp.where(used, jnp.where(exist, losses, np.nan), 0)
    return losses if reduction == "none" else jnp.sum(losses) / jnp.maximum(jnp.sum(used), 1)

"""Counting what hierarchical evaluation needs: exact sums over images, in one jitted pass.

Two kinds of predictions are counted. The *leaf* prediction is the class of the largest logit, and
its ancestors come with it. The *independent* predictions are one choice a level, made without
regard to the other levels, so they need not form a path of the tree.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dh2l_jax.checks import as_float, integers, mask
from dh2l_jax.hierarchy.learn.fold import fold_up
from dh2l_jax.hierarchy.learn.losses import marginal
from dh2l_jax.hierarchy.learn.nodes import nodes_above
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["RANKS", "Counts", "count", "has_nan", "refuse_nan"]

RANKS = 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """Sums over images; `a + b` are the counts of both, so batches, devices and hosts add up.

    Counts are int32 and exact. The one that grows fastest, `path_nodes`, stays right while
    images · L(L + 1)/2 < 2³¹: 143 million images on five levels.

    An image whose logits hold NaN has no prediction: it is wrong at every level and every rank, by
    the full height L of the tree; its independent predictions are no path, of L wrong nodes; the
    confusion matrix leaves it out, and the loss is NaN.

    A label at an inner node reaches its own level and those above. It counts in `images`, `loss`,
    `hits`, `labelled` and `met`; the others are of images labelled at classes.

    Attributes:
      images: () int32, how many were counted.
      loss: () of the logits' dtype, at least float32: summed cross-entropy, of an inner label −log
        of the probability of the classes below.
      hits: (L,) int32, leaf predictions whose ancestor at levels 1..L is right.
      labelled: (num_nodes,) int32, images labelled at each node.
      met: (num_nodes,) int32, images whose label and leaf prediction part at each node: that is
        their lowest common one.
      rank_hits: (K,) int32, K = min(20, C), labels found at the first, second, ... best class.
      rank_heights: (K,) int32, summed LCA heights of label and first, second, ... best class.
      best_heights: (K,) int32, summed least LCA heights of label and 1, 2, ... best classes.
      ideal_heights: (K,) int32, summed LCA heights of label and the 1st, 2nd, ... nearest class.
      leaf_nodes: (3,) int32, sizes of the sets of the leaf prediction and of the label with their
        ancestors, and how many nodes both sets share.
      independent_hits: (L,) int32, right independent predictions of levels 1..L.
      full_paths: () int32, images whose independent predictions are right at every level.
      inconsistent_paths: () int32, images whose independent predictions are no path of the tree.
      path_nodes: () int32, sizes of the sets of independent predictions with their ancestors.
      path_common: () int32, how many of these nodes are the label or its ancestors.
      confusion: (C, C) int32, true class by leaf prediction, in label order; None if left out.
    """

    images: jax.Array
    loss: jax.Array
    hits: jax.Array
    labelled: jax.Array
    met: jax.Array
    rank_hits: jax.Array
    rank_heights: jax.Array
    best_heights: jax.Array
    ideal_heights: jax.Array
    leaf_nodes: jax.Array
    independent_hits: jax.Array
    full_paths: jax.Array
    inconsistent_paths: jax.Array
    path_nodes: jax.Array
    path_common: jax.Array
    confusion: jax.Array | None

    def __add__(self, other: Counts) -> Counts:
        return jax.tree.map(operator.add, self, other)

    @classmethod
    def zero(cls, hierarchy: Hierarchy, *, confusion: bool = True) -> Counts:
        """The counts of no images, from which a sum starts."""
        counts = functools.partial(count, hierarchy=hierarchy, confusion=confusion)
        shapes = jax.eval_shape(counts, jnp.zeros((1, hierarchy.num_classes)), jnp.zeros(1, int))
        return jax.tree.map(jnp.zeros_like, shapes)


def count(
    logits: ArrayLike,
    labels: ArrayLike,
    hierarchy: Hierarchy,
    *,
    where: ArrayLike | None = None,
    level_logits: Sequence[ArrayLike] | None = None,
    risk: ArrayLike | None = None,
    confusion: bool = True,
) -> Counts:
    """The sums of one batch, from which `summarize` computes every metric.

    Classes rank by their logits, or by their risk, the lower index first among equals. The
    independent prediction of an inner level is its most probable node, the probability of a node
    being the sum over its classes; again the lower index first, but sums that differ by rounding
    alone may go either way. Apart from the confusion matrix nothing larger than (b, C) and
    (L, 20, b) is built.

    Args:
      logits: (b, C); half precision is widened.
      labels: (b,) int, nodes: the classes 0..C−1, or inner nodes where no more is known.
      hierarchy: the tree; static under jit.
      where: (b,) bool, the images that count. What the others hold, NaN included, is not used.
      level_logits: a (b, size(l)) array for each inner level l = 1..L−1, the largest entries of
        which are then the independent predictions. None: from the probabilities.
      risk: (b, C), by which the classes rank, the lowest first, in place of their logits.
      confusion: whether to count the confusion matrix: C² integers, 400 MB for C = 10,000.

    Raises:
      ValueError: the shapes do not fit; NaN in the logits of an image that counts, which jit can't
        see and `Counts` tells how it counts.
      TypeError: labels are not integers, `where` is not boolean, logits are complex.

    Three images in two batches, through one compiled function:

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> step = jax.jit(lambda total, *batch, where: total + count(*batch, tree, where=where))
    >>> logits = jnp.array([[[3.0, 1, 2], [1, 3, 2]], [[2, 1, 3], [jnp.nan, 0, 0]]])
    >>> labels = jnp.array([[0, 0], [2, 0]])
    >>> where = jnp.array([[True, True], [True, False]])
    >>> total = Counts.zero(tree)
    >>> for i in range(2):
    ...     total = step(total, logits[i], labels[i], where=where[i])
    >>> total.images.item(), total.hits.tolist()
    (3, [3, 2])
    """
    logits, labels, where = _batch(logits, labels, where, hierarchy)
    inner = () if level_logits is None else level_logits
    refuse_nan([logits, *inner], where)
    known = ~has_nan(logits)
    ranking = logits if risk is None else -jnp.asarray(risk)
    best = jax.lax.top_k(ranking, min(RANKS, hierarchy.num_classes))[1].T
    chosen = jnp.stack([*_inner_choices(logits, level_logits, hierarchy), best[0]])
    at_class = where & (labels < hierarchy.num_classes)
    leaf = jnp.where(labels < hierarchy.num_classes, labels, 0)
    truth = jnp.asarray(hierarchy.ancestors())[:, leaf]
    above = nodes_above(hierarchy)
    shared = jnp.asarray(above)[:, best] == jnp.asarray(above)[:, None, labels]
    shared &= known[None, None]
    all_known = functools.reduce(jnp.logical_and, [~has_nan(x) for x in inner], known)
    right = (chosen == truth) & all_known[None]
    nodes, common = _path_sets(chosen, truth, hierarchy)
    nodes = jnp.where(all_known, nodes, hierarchy.num_levels)
    heights, ideal = _heights(shared, leaf, hierarchy)
    leaf_nodes = _leaf_sets(shared[:, 0], best[0], labels, known, hierarchy)
    met = _meeting(leaf_nodes[-1], best[0], hierarchy)
    none = jnp.zeros(hierarchy.num_nodes, jnp.int32)
    return Counts(
        images=_total(where, where),
        loss=jnp.sum(_cross_entropy(logits, labels, where, hierarchy), where=where),
        hits=_total(shared[:, 0], where),
        labelled=none.at[labels].add(where.astype(jnp.int32)),
        met=none.at[met].add(where.astype(jnp.int32)),
        rank_hits=_total(shared[-1], at_class),
        rank_heights=_total(heights, at_class),
        best_heights=_total(jax.lax.cummin(heights), at_class),
        ideal_heights=_total(ideal, at_class),
        leaf_nodes=_total(leaf_nodes, at_class),
        independent_hits=_total(right, at_class),
        full_paths=_total(jnp.all(right, axis=0), at_class),
        inconsistent_paths=_total(~(_is_path(chosen, hierarchy) & all_known), at_class),
        path_nodes=_total(nodes, at_class),
        path_common=_total(jnp.where(all_known, common, 0), at_class),
        confusion=_confusion(labels, best[0], at_class & known, hierarchy) if confusion else None,
    )


def has_nan(logits: ArrayLike) -> jax.Array:
    """(b,) bool: which rows of (b, C) logits hold NaN."""
    return jnp.isnan(jnp.max(jnp.asarray(logits), axis=-1))


def refuse_nan(arrays: Sequence[ArrayLike], where: ArrayLike | None) -> None:
    """ValueError if a row that counts holds NaN; under jit nothing is known, and nothing said."""
    if any(isinstance(array, Tracer) for array in (*arrays, where)):
        return
    for array in arrays:
        rows = np.asarray(has_nan(array)) & (True if where is None else np.asarray(where))
        if rows.any():
            raise ValueError(f"the logits of row {np.argmax(rows)} hold NaN")


# In every array but the logits the images of the batch are the last axis.


def _batch(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None, hierarchy: Hierarchy
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked logits, labels and mask; a logit of −0 becomes 0, below which top_k would rank it."""
    logits, labels = as_float(logits), jnp.asarray(labels)
    if logits.shape != (*labels.shape, hierarchy.num_classes) or labels.ndim != 1:
        raise ValueError(
            f"expected logits (b, {hierarchy.num_classes}) and labels (b,), found {logits.shape} "
            f"and {labels.shape}"
        )
    integers("labels", labels)
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    return jnp.where(logits == 0, 0, logits), labels, mask(where, labels.shape, "like the labels")


def _inner_choices(
    logits: jax.Array, level_logits: Sequence[ArrayLike] | None, hierarchy: Hierarchy
) -> list[jax.Array]:
    """The (b,) independent predictions of each inner level 1..L−1."""
    if level_logits is None:
        return [jnp.argmax(mass, axis=0) for mass in _probabilities(logits, hierarchy)]
    arrays = [jnp.asarray(array) for array in level_logits]
    found = [array.shape for array in arrays]
    expected = [(len(logits), hierarchy.size(level)) for level in range(1, hierarchy.num_levels)]
    if found != expected:
        raise ValueError(
            f"level_logits must have the shapes {expected}, one an inner level, found {found}"
        )
    return [jnp.argmax(array, axis=1) for array in arrays]


def _probabilities(logits: jax.Array, hierarchy: Hierarchy) -> list[jax.Array]:
    """For each inner level the (size, b) probabilities of its nodes, up to a factor an image."""
    return fold_up(jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True)).T, hierarchy)[1:-1]


def _own_levels(hierarchy: Hierarchy) -> np.ndarray:
    """(L, num_nodes) bool: the levels of a node and those above, not those below it."""
    return np.arange(1, hierarchy.num_levels + 1)[:, None] <= hierarchy.node_depths()


def _meeting(common: jax.Array, best: jax.Array, hierarchy: Hierarchy) -> jax.Array:
    """(b,) the lowest node above the prediction that is the label's too, of depth `common`."""
    way = jnp.asarray(hierarchy.ancestor_nodes())[:, best]
    node = jnp.take_along_axis(way, jnp.maximum(common - 1, 0)[None], axis=0)[0]
    return jnp.where(common > 0, node, hierarchy.num_nodes - 1)


def _heights(
    shared: jax.Array, labels: jax.Array, hierarchy: Hierarchy
) -> tuple[jax.Array, jax.Array]:
    """(K, b) LCA heights of the label with the best classes, and with those nearest to it.

    Args:
      shared: (L, K, b) bool, which ancestors the best classes have in common with the label.
      labels: (b,).
      hierarchy: the tree.
    """
    nodes, heights = hierarchy.ancestor_nodes(), hierarchy.node_heights()
    fall = np.where(
        _own_levels(hierarchy)[:, : hierarchy.num_classes],
        heights[hierarchy.node_parents()[nodes]] - heights[nodes],
        0,
    )
    below = np.stack([np.bincount(row)[row] for row in nodes])  # classes below each ancestor
    fall, below = (jnp.asarray(x, jnp.int32)[:, None, labels] for x in (fall, below))
    near = jnp.arange(shared.shape[1])[None, :, None] < below
    H = int(heights[-1])
    return H - jnp.sum(fall * shared, axis=0), H - jnp.sum(fall * near, axis=0)


def _leaf_sets(
    shared: jax.Array, best: jax.Array, labels: jax.Array, known: jax.Array, hierarchy: Hierarchy
) -> jax.Array:
    """(3, b): depths of prediction and label, and of the node where they part, 0 at the root."""
    depths = jnp.asarray(hierarchy.node_depths())
    common = jnp.sum(shared & jnp.asarray(_own_levels(hierarchy))[:, labels], axis=0)
    return jnp.stack([jnp.where(known, depths[best], hierarchy.num_levels), depths[labels], common])


def _path_sets(
    chosen: jax.Array, truth: jax.Array, hierarchy: Hierarchy
) -> tuple[jax.Array, jax.Array]:
    """(b,) sizes of the sets of the (L, b) chosen nodes with their ancestors, and of what is right.

    A node that is shown at several levels counts once.
    """
    size = common = jnp.zeros(truth.shape[1:], jnp.int32)
    nodes = chosen[:0]  # at a level: its own choice and the ancestors of the choices below
    for level in range(hierarchy.num_levels, 0, -1):
        own = slice(level - 1, level)
        counts = hierarchy.node_depths()[hierarchy.level_nodes(level)] == level
        counts = jnp.asarray(counts, jnp.int32)
        nodes = jnp.sort(jnp.concatenate([nodes, chosen[own]]), axis=0)
        size += counts[nodes[0]] + jnp.sum((nodes[1:] != nodes[:-1]) * counts[nodes[1:]], axis=0)
        common += jnp.any(nodes == truth[own], axis=0) * counts[truth[level - 1]]
        nodes = jnp.asarray(hierarchy.parents(level))[nodes]
    return size, common


def _is_path(chosen: jax.Array, hierarchy: Hierarchy) -> jax.Array:
    """(b,) bool: whether each of the (L, b) chosen nodes is the parent of the next level's."""
    path = jnp.ones(chosen.shape[1:], bool)
    for level in range(2, hierarchy.num_levels + 1):
        path &= jnp.asarray(hierarchy.parents(level))[chosen[level - 1]] == chosen[level - 2]
    return path


def _cross_entropy(
    logits: jax.Array, labels: jax.Array, where: jax.Array, hierarchy: Hierarchy
) -> jax.Array:
    """(b,): of a class, and the marginal one of an inner node."""
    C, root = hierarchy.num_classes, hierarchy.num_nodes - 1
    leaf, inner = jnp.where(labels < C, labels, 0), jnp.where(labels < C, root, labels)
    own = (
        jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, leaf[:, None], axis=1)[:, 0]
    )
    if root == C:  # a flat tree has no other inner node, and nothing known costs nothing
        return jnp.where(labels < C, own, 0)
    below = marginal(logits, inner, hierarchy, where=where, reduction="none")
    return jnp.where(labels < C, own, below)


def _confusion(
    labels: jax.Array, predictions: jax.Array, where: jax.Array, hierarchy: Hierarchy
) -> jax.Array:
    counts = jnp.zeros((hierarchy.num_classes, hierarchy.num_classes), jnp.int32)
    return counts.at[labels, predictions].add(where.astype(jnp.int32))


def _total(values: jax.Array, where: jax.Array) -> jax.Array:
    """The sum over the images that count."""
    mask = jnp.broadcast_to(where, values.shape)
    return jnp.sum(values, axis=-1, dtype=jnp.int32, where=mask)

"""The numbers of hierarchical evaluation, from exact sums over images.

`count` counts a batch, counts add up, and `summarize` divides; `evaluate` does all of it for
arrays at hand.

References:
  Bertinetto et al., "Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks",
    CVPR 2020: mistake severity, hierarchical distance of the top k.
  Kiritchenko, Matwin and Famili, "Functional Annotation of Genes Using Hierarchical Text
    Categorization", 2005: hierarchical precision, recall and F.
  Silla and Freitas, "A survey of hierarchical classification across different application
    domains", Data Mining and Knowledge Discovery 22, 2011: the same, summed over all examples.
  Park et al., "Visually Consistent Hierarchical Image Classification", ICLR 2025: full-path
    accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from dh2l_jax.checks import integers, labels_exist, mask
from dh2l_jax.hierarchy.counts import RANKS, Counts, count, refuse_nan
from dh2l_jax.hierarchy.readable import Scores
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = ["Counts", "Scores", "count", "evaluate", "score_answers", "summarize", "tree_order"]

Tally, tally = Counts, count  # the names of 0.1

DISTANCE_RANKS = (1, 5, RANKS)  # k of the scores of the k best classes

_jitted_count = jax.jit(count, static_argnames=("hierarchy", "confusion"))


def summarize(
    sums: Counts, hierarchy: Hierarchy, *, ranks: Sequence[int] = DISTANCE_RANKS
) -> Scores:
    """Every metric as plain Python numbers, ready for JSON; a dict that shows as a table.

    The height of a lowest common ancestor is that of `Hierarchy.lca_height`: 0 for a class with
    itself, 1 for siblings of the greatest depth, L where only the root is shared. Where all classes
    lie at one depth, a leaf prediction has as many ancestors as the label, and its hP, hR and hF1
    are all the mean of `accuracy` over levels; those of the independent predictions differ where
    levels disagree.

    Args:
      sums: over all images, at least one.
      hierarchy: the tree.
      ranks: the k of the scores of the k best classes, in 1..20; all C classes where k is larger.

    Returns:
      images: number of images.
      loss: mean cross-entropy.
      accuracy: for each level 1..L, the fraction of right ancestors of the leaf prediction.
      top5: fraction of labels among the min(5, C) best classes.
      mistake_severity: mean LCA height of label and prediction over the wrong ones only, in
        [1, L]; 0 if none is wrong.
      hierarchical_distance: for "1", "5" and "20", the mean over images of the mean LCA height of
        the k best classes, k at most C.
      best_of_k_height: for each k, the mean over images of the least LCA height of the k best.
      hierarchical_precision: for each k, Σ (1 − h/H) over images and their k best classes, over the
        same sum for the k classes nearest to each label; h the LCA height, H the root's.
      hP, hR, hF1: hierarchical precision |P ∩ T|/|P|, recall |P ∩ T|/|T| and their harmonic mean,
        P and T being prediction and label with all ancestors but the root, each size summed over
        all images.
      full_path_accuracy: fraction of images whose independent predictions are all right.
      inconsistent_path_ratio: fraction in which some level's independent prediction is not the
        parent of the next level's.
      independent_accuracy, independent_hP, independent_hR, independent_hF1: as above, of the
        independent predictions.
      confusion: counts, rows true and columns predicted, both sorted by `tree_order`.
      confusion_names: the classes in that order. Both only where the confusion matrix was counted.

    Raises:
      ValueError: no image was counted, or a rank is not in 1..20.
    """
    if not all(1 <= k <= RANKS for k in ranks):
        raise ValueError(f"ranks must be in 1..{RANKS}, found {list(ranks)}")
    sums = jax.device_get(sums)
    n = int(sums.images)
    if n == 0:
        raise ValueError("expected counts of at least one image, found 0")
    hits, heights = sums.hits.tolist(), sums.rank_heights.tolist()
    mistakes = n - hits[-1]
    H = int(hierarchy.node_heights()[-1])
    gained, gainable = (
        np.cumsum(n * H - np.asarray(x, int)).tolist() for x in (heights, sums.ideal_heights)
    )
    last = {str(k): min(k, len(heights)) - 1 for k in ranks}
    predicted, true, common = sums.leaf_nodes.tolist()
    values = {
        "images": n,
        "loss": float(sums.loss) / n,
        "accuracy": [number / n for number in hits],
        "top5": sum(sums.rank_hits[:5].tolist()) / n,
        "mistake_severity": heights[0] / mistakes if mistakes else 0.0,
        "hierarchical_distance": {str(k): sum(heights[:k]) / (len(heights[:k]) * n) for k in ranks},
        "best_of_k_height": {k: int(sums.best_heights[i]) / n for k, i in last.items()},
        "hierarchical_precision": {k: gained[i] / gainable[i] for k, i in last.items()},
        **_precision_recall("h", common, predicted, true),
        "full_path_accuracy": int(sums.full_paths) / n,
        "inconsistent_path_ratio": int(sums.inconsistent_paths) / n,
        "independent_accuracy": [number / n for number in sums.independent_hits.tolist()],
        **_precision_recall("independent_h", int(sums.path_common), int(sums.path_nodes), true),
        **({} if sums.confusion is None else _in_tree_order(sums.confusion, hierarchy)),
    }
    return Scores(values)


def evaluate(
    logits: ArrayLike,
    labels: ArrayLike,
    hierarchy: Hierarchy,
    *,
    where: ArrayLike | None = None,
    level_logits: Sequence[ArrayLike] | None = None,
    confusion: bool = True,
    ranks: Sequence[int] = DISTANCE_RANKS,
) -> Scores:
    """`summarize` of the `count` of arrays at hand; see both for arguments and results.

    Raises:
      ValueError: shapes do not fit, a label is out of range, no image counts, NaN in the logits
        of an image that counts; the first row is named.
      TypeError: labels are not integers, `where` is not boolean.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> scores = evaluate(np.eye(3), np.array([0, 0, 1]), tree)
    >>> scores["accuracy"], scores["mistake_severity"], scores["confusion"]
    ([0.6666666666666666, 0.3333333333333333], 1.5, [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    """
    labels = np.asarray(labels)
    sums = _jitted_count(
        logits, labels, hierarchy, where=where, level_logits=level_logits, confusion=confusion
    )
    labels_exist(labels, hierarchy.num_classes, where)
    refuse_nan([logits, *(() if level_logits is None else level_logits)], where)
    return summarize(sums, hierarchy, ranks=ranks)


def score_answers(
    answers: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy, *, where: ArrayLike | None = None
) -> dict[str, float]:
    """Hierarchical precision, recall and F1 of answers that may stop at inner nodes.

    P and T are the sets of answer and label with all ancestors but the root; P is empty for the
    root, of which nothing can be wrong: its precision is 1.

    Args:
      answers: (n,) int, nodes, such as `decoding.answer` gives.
      labels: (n,) int, nodes.
      hierarchy: the tree.
      where: (n,) bool, the images that count.

    Returns:
      hP, hR, hF1: micro, Σ|P ∩ T|/Σ|P|, Σ|P ∩ T|/Σ|T| and their harmonic mean.
      macro_hP, macro_hR, macro_hF1: means over images of |P ∩ T|/|P|, |P ∩ T|/|T| and the harmonic
        mean of these two, which weighs every image alike.

    Raises:
      ValueError: shapes do not fit, a node does not exist, no image counts.
      TypeError: answers or labels are not integers, `where` is not boolean.

    A cat called an animal, and a dog called a cat:

    >>> tree = Hierarchy.from_paths({"cat": "animal", "dog": "animal", "car": "thing"})
    >>> answers = np.array([tree.node_id("animal"), 0])
    >>> scores = score_answers(answers, np.array([0, 1]), tree)
    >>> scores["hP"], scores["hR"], scores["macro_hP"], scores["macro_hR"]
    (0.6666666666666666, 0.5, 0.75, 0.5)
    """
    answers, labels = np.asarray(answers), np.asarray(labels)
    used = np.asarray(mask(where, labels.shape, "like the labels"))
    for what, nodes in (("answers", answers), ("labels", labels)):
        integers(what, nodes, (len(used),), "like the labels")
        labels_exist(nodes, hierarchy.num_nodes, used, "nodes")
    if not used.any():
        raise ValueError("expected answers to at least one image, found 0")
    depths, parents = hierarchy.node_depths(), hierarchy.node_parents()
    a, b = answers[used], labels[used]
    predicted, true = depths[a].tolist(), depths[b].tolist()
    while (differ := a != b).any():  # the deeper one goes up
        a, b = (
            np.where(differ & (depths[a] >= depths[b]), parents[a], a),
            np.where(differ & (depths[b] >= depths[a]), parents[b], b),
        )
    common = depths[a].tolist()
    images = [
        _precision_recall("macro_h", *sizes) for sizes in zip(common, predicted, true, strict=True)
    ]
    return {
        **_precision_recall("h", sum(common), sum(predicted), sum(true)),
        **{key: math.fsum(image[key] for image in images) / len(images) for key in images[0]},
    }


def tree_order(hierarchy: Hierarchy) -> np.ndarray:
    """(C,) int32: the classes sorted so that those of every inner node stand side by side.

    >>> tree_order(Hierarchy.two_level([1, 0, 1, 0])).tolist()
    [1, 3, 0, 2]
    """
    return np.lexsort(hierarchy.ancestors()[::-1]).astype(np.int32)


def _precision_recall(prefix: str, common: int, predicted: int, true: int) -> dict[str, float]:
    """The harmonic mean of common/predicted and common/true is 2·common/(predicted + true).

    Nothing of nothing is 1.
    """
    return {
        f"{prefix}P": common / predicted if predicted else 1.0,
        f"{prefix}R": common / true if true else 1.0,
        f"{prefix}F1": 2 * common / (predicted + true) if predicted or true else 1.0,
    }


def _in_tree_order(confusion: jax.Array, hierarchy: Hierarchy) -> dict[str, list]:
    order, names = tree_order(hierarchy), hierarchy.names(hierarchy.num_levels)
    return {
        "confusion": np.asarray(confusion)[np.ix_(order, order)].tolist(),
        "confusion_names": [names[i] for i in order],
    }

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
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from dh2l_jax.checks import integers, labels_exist, mask
from dh2l_jax.hierarchy.counts import RANKS, Counts, count, refuse_nan
from dh2l_jax.hierarchy.learn.fold import carried_up
from dh2l_jax.hierarchy.readable import Scores
from dh2l_jax.hierarchy.tree import Hierarchy

__all__ = [
    "Counts",
    "Scores",
    "count",
    "evaluate",
    "judge_answers",
    "score_answers",
    "summarize",
    "tree_order",
]

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
      loss: mean cross-entropy, of a label at an inner node −log of the probability of what lies
        below.
      accuracy: for each level 1..L, the fraction of right ancestors of the leaf prediction, over
        the images that reach it: labelled at a class, at a node of the level, or below one.
      balanced_accuracy: for each level, the mean recall of its nodes that occur.
      level_images: for each level, how many images reach it.
      level_classes: for each level, how many classes truly lie that deep.
      class_images: images labelled at classes; all that follows is of them.
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

    A number is None where no image is of its kind.

    Raises:
      ValueError: no image was counted, or a rank is not in 1..20.
    """
    if not all(1 <= k <= RANKS for k in ranks):
        raise ValueError(f"ranks must be in 1..{RANKS}, found {list(ranks)}")
    sums = jax.device_get(sums)
    n = int(sums.images)
    if n == 0:
        raise ValueError("expected counts of at least one image, found 0")
    heights, classes = sums.rank_heights.tolist(), int(sums.labelled[: hierarchy.num_classes].sum())
    H = int(hierarchy.node_heights()[-1])
    gained, gainable = (
        np.cumsum(classes * H - np.asarray(x, int)).tolist() for x in (heights, sums.ideal_heights)
    )
    last = {str(k): min(k, len(heights)) - 1 for k in ranks}
    predicted, true, common = sums.leaf_nodes.tolist()
    distances = {k: _share(sum(heights[: i + 1]), (i + 1) * classes) for k, i in last.items()}
    values = {
        "images": n,
        "loss": float(sums.loss) / n,
        **_by_level(sums.labelled, sums.met, hierarchy),
        "class_images": classes,
        "top5": _share(sum(sums.rank_hits[:5].tolist()), classes),
        "mistake_severity": _share(heights[0], classes - int(sums.rank_hits[0])) or 0.0,
        "hierarchical_distance": distances,
        "best_of_k_height": {
            k: _share(int(sums.best_heights[i]), classes) for k, i in last.items()
        },
        "hierarchical_precision": {k: _share(gained[i], gainable[i]) for k, i in last.items()},
        **_precision_recall("h", common, predicted, true),
        "full_path_accuracy": _share(int(sums.full_paths), classes),
        "inconsistent_path_ratio": _share(int(sums.inconsistent_paths), classes),
        "independent_accuracy": [_share(x, classes) for x in sums.independent_hits.tolist()],
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
    labels_exist(labels, hierarchy.num_nodes, where, "nodes")
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
    a, b = _checked_answers(answers, labels, hierarchy, where)
    depths = hierarchy.node_depths()
    predicted, true = depths[a].tolist(), depths[b].tolist()
    common = depths[_meeting_points(a, b, hierarchy)].tolist()
    images = [
        _precision_recall("macro_h", *sizes) for sizes in zip(common, predicted, true, strict=True)
    ]
    return {
        **_precision_recall("h", sum(common), sum(predicted), sum(true)),
        **{key: math.fsum(image[key] for image in images) / len(images) for key in images[0]},
    }


def judge_answers(
    answers: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy, *, where: ArrayLike | None = None
) -> dict[str, Any]:
    """How right, how deep and how specific answers are that may stop at inner nodes.

    An answer is *right* if all classes below the label lie below it, *undecided* if it is more
    special than a label at an inner node, else *wrong*.

    Args:
      answers: (n,) int, nodes.
      labels: (n,) int, nodes.
      hierarchy: the tree.
      where: (n,) bool, the images that count.

    Returns:
      images: number of images.
      right, undecided, wrong: fractions of them.
      answered: for each level 1..L, the fraction of answers that lie at it.
      root: the fraction of answers that say nothing.
      specificity: mean of (log C − log classes below the answer) / log C; 1 if there is one class.
      accuracy, balanced_accuracy, level_images, level_classes: as `summarize` has them, an answer
        above a level being no hit at it.
      mistake_severity: mean height of the lowest node above answer and label, over the wrong
        answers to images labelled at classes; 0 if none is wrong.

    Raises:
      ValueError: shapes do not fit, a node does not exist, no image counts.
      TypeError: answers or labels are not integers, `where` is not boolean.

    >>> tree = Hierarchy.from_paths({"cat": "animal", "dog": "animal", "car": "thing"})
    >>> animal = tree.node_id("animal")
    >>> scores = judge_answers(np.array([animal, 0, 1]), np.array([0, 1, animal]), tree)
    >>> [round(scores[name], 2) for name in ("right", "undecided", "wrong", "specificity")]
    [0.33, 0.33, 0.33, 0.79]
    >>> scores["answered"], scores["accuracy"]
    ([0.3333333333333333, 0.6666666666666666], [1.0, 0.0])
    """
    a, b = _checked_answers(answers, labels, hierarchy, where)
    n, C, depths, heights = len(a), hierarchy.num_classes, *_depths_and_heights(hierarchy)
    met, below = (
        _meeting_points(a, b, hierarchy),
        carried_up(np.arange(len(depths)) < C, hierarchy),
    )
    right = (met == a) | ((met == b) & (below[a] == below[b]))
    undecided = (met == b) & ~right
    severe = heights[met[~right & ~undecided & (b < C)]]
    counts = np.bincount(depths[a], minlength=hierarchy.num_levels + 1).tolist()
    labelled, parted = (np.bincount(x, minlength=len(depths)) for x in (b, met))
    return {
        "images": n,
        "right": int(right.sum()) / n,
        "undecided": int(undecided.sum()) / n,
        "wrong": int(n - right.sum() - undecided.sum()) / n,
        "answered": [number / n for number in counts[1:]],
        "root": counts[0] / n,
        "specificity": 1 - math.fsum(np.log(below[a])) / (n * math.log(C)) if C > 1 else 1.0,
        **_by_level(labelled, parted, hierarchy),
        "mistake_severity": int(severe.sum()) / len(severe) if len(severe) else 0.0,
    }


def _depths_and_heights(hierarchy: Hierarchy) -> tuple[np.ndarray, np.ndarray]:
    return hierarchy.node_depths(), hierarchy.node_heights()


def _checked_answers(
    answers: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy, where: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels of the images that count."""
    answers, labels = np.asarray(answers), np.asarray(labels)
    used = np.asarray(mask(where, labels.shape, "like the labels"))
    for what, nodes in (("answers", answers), ("labels", labels)):
        integers(what, nodes, (len(used),), "like the labels")
        labels_exist(nodes, hierarchy.num_nodes, used, "nodes")
    if not used.any():
        raise ValueError("expected answers to at least one image, found 0")
    return answers[used], labels[used]


def _meeting_points(a: np.ndarray, b: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """The lowest node above each two."""
    depths, parents = hierarchy.node_depths(), hierarchy.node_parents()
    while (differ := a != b).any():  # the deeper one goes up
        a, b = (
            np.where(differ & (depths[a] >= depths[b]), parents[a], a),
            np.where(differ & (depths[b] >= depths[a]), parents[b], b),
        )
    return a


def _by_level(labelled: ArrayLike, met: ArrayLike, hierarchy: Hierarchy) -> dict[str, list[Any]]:
    """What the images say of each level, by where they are labelled and where answers part."""
    reached, hits = (carried_up(np.asarray(x), hierarchy) for x in (labelled, met))
    rows: dict[str, list[Any]] = {
        name: [] for name in ("accuracy", "balanced_accuracy", "level_images", "level_classes")
    }
    depths = hierarchy.node_depths()[: hierarchy.num_classes]
    for level in range(1, hierarchy.num_levels + 1):
        nodes = hierarchy.level_nodes(level)
        nodes = nodes[reached[nodes] > 0]
        images, recalls = int(reached[nodes].sum()), hits[nodes] / reached[nodes]
        rows["accuracy"].append(_share(int(hits[nodes].sum()), images))
        rows["balanced_accuracy"].append(_share(math.fsum(recalls.tolist()), len(nodes)))
        rows["level_images"].append(images)
        rows["level_classes"].append(int((depths >= level).sum()))
    return rows


def _share(part: float, whole: int) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


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

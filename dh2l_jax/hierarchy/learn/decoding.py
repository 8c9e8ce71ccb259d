"""From logits to answers: probabilities of nodes, the least risk, and answers no deeper than sure.

References:
  Karthik et al., "No Cost Likelihood Manipulation at Test Time for Making Better Mistakes in Deep
    Networks", ICLR 2021: `crm`.
  Deng et al., "Hedging Your Bets: Optimizing Accuracy-Specificity Trade-offs in Large Scale Visual
    Recognition", CVPR 2012: answers at inner nodes.
  Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control",
    2021: `threshold_for`.
  Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: `temperature`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ops import segment_max, segment_min
from jax.typing import ArrayLike
from scipy import special

from dh2l_jax.checks import integers, labels_exist, mask
from dh2l_jax.hierarchy.counts import refuse_nan
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

__all__ = [
    "answer",
    "conditional_log_probs",
    "crm",
    "crm_risk",
    "hrn_log_probs",
    "log_probs",
    "temperature",
    "threshold_for",
]

COLDEST, HOTTEST = 0.01, 100.0  # ends of the temperatures
HALVINGS = 32  # of log T: 2e−9 of a range of 9.2 is left


def log_probs(logits: ArrayLike, tree: Hierarchy) -> jax.Array:
    """log p of every node, the soft-max probability that the class is the node or below it.

    Args:
      logits: (b, C).
      tree: the tree; static under jit.

    Returns:
      (b, num_nodes): classes, inner nodes, the root (0) last.

    Raises:
      ValueError: the shape does not fit the tree.

    >>> tree = Hierarchy.two_level([0, 0, 1, 1])
    >>> log_p = log_probs(jnp.log(jnp.array([[1.0, 2, 3, 4]])), tree)
    >>> np.exp(np.float64(log_p)).round(3).tolist()
    [[0.1, 0.2, 0.3, 0.4, 0.3, 0.7, 1.0]]
    """
    top, mass = log_sums(class_logits(logits, tree).T, tree)
    return ((top - top[-1:]) + (mass - mass[-1:])).T


def conditional_log_probs(node_logits: Sequence[ArrayLike], tree: Hierarchy) -> jax.Array:
    """log p of every class, the product of the soft-max among siblings along its path.

    Args:
      node_logits: a (b, size(l)) array for each level l = 1..L, as for `losses.conditional`.
      tree: the tree; static under jit.

    Returns:
      (b, C), which serve as logits.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> z = [jnp.zeros((1, 2)), jnp.zeros((1, 3))]
    >>> np.exp(np.float64(conditional_log_probs(z, tree))).round(4).tolist()
    [[0.25, 0.25, 0.5]]
    """
    log_q = log_softmax_of_siblings(rows_of_nodes(node_logits, tree), tree)
    return down(log_q, tree)[: tree.num_classes].T


def hrn_log_probs(node_logits: Sequence[ArrayLike], tree: Hierarchy) -> jax.Array:
    """log p of every class among all states of the tree: what is left to 1 stops at inner nodes.

    Args:
      node_logits: a (b, size(l)) array for each level l = 1..L, as for `losses.hrn`.
      tree: the tree; static under jit.

    Returns:
      (b, C), which serve as logits.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> z = [jnp.zeros((1, 2)), jnp.zeros((1, 3))]
    >>> np.exp(np.float64(hrn_log_probs(z, tree))).round(4).tolist()
    [[0.1667, 0.1667, 0.1667]]
    """
    states = down(rows_of_nodes(node_logits, tree), tree)
    top, mass = log_sums(states, tree)
    return ((states[: tree.num_classes] - top[-1:]) - mass[-1:]).T


def crm_risk(logits: ArrayLike, tree: Hierarchy) -> jax.Array:
    """The expected height of the lowest common ancestor, of each class as the answer.

        risk_k = Σ_j height(lca(k, j)) p_j
               = height(root) − Σ_{a = k and its ancestors} (height(parent of a) − height(a)) p(a)

    Args:
      logits: (b, C), calibrated (`temperature`).
      tree: the tree; static under jit.

    Returns:
      (b, C); `evaluation.evaluate(-risk, ...)` ranks by it.

    Raises:
      ValueError: the shape does not fit the tree.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> np.float64(crm_risk(jnp.log(jnp.array([[0.3, 0.3, 0.4]])), tree)).round(3).tolist()
    [[1.1, 1.1, 1.2]]

    Reference: Karthik et al. 2021.
    """
    return expected_height(jnp.exp(log_probs(logits, tree)).T, tree).T


def crm(logits: ArrayLike, tree: Hierarchy) -> jax.Array:
    """(b,) int32: the class of the least `crm_risk`, the first among equals.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> crm(jnp.log(jnp.array([[0.3, 0.3, 0.4]])), tree).tolist()
    [0]
    """
    return jnp.argmin(crm_risk(logits, tree), axis=1).astype(jnp.int32)


def answer(logits: ArrayLike, tree: Hierarchy, threshold: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The deepest node that is sure enough, on the way from the root to the likeliest child.

    The way goes on while the child's P ≥ threshold. It is one way for all thresholds, so a higher
    one cuts it, and for a threshold > ½ its end is the deepest node with that P.

    Args:
      logits: (b, C), calibrated (`temperature`).
      tree: the tree; static under jit.
      threshold: a scalar; `math.inf` is never reached, so that the root is the answer.

    Returns:
      (b,) int32 nodes, the first among equals, and (b,) P, the probability of each: 1 at the root.

    Raises:
      ValueError: the shape does not fit the tree; NaN in the logits. Under jit such an image gets
        the root and P = NaN.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> for threshold in (0.5, 0.8, 0.95):
    ...     answers, P = answer(jnp.log(jnp.array([[0.6, 0.3, 0.1]])), tree, threshold)
    ...     print(answers.item(), round(P.item(), 3))
    0 0.6
    3 0.9
    5 1.0
    """
    refuse_nan([logits], None)
    way, P = _way(logits, tree)
    steps = jnp.sum(jnp.cumprod(P[1:] >= threshold, axis=0), axis=0)
    images = jnp.arange(len(steps))
    return way[steps, images], P[steps, images]


@functools.partial(jax.jit, static_argnames="tree")
def _way(logits: ArrayLike, tree: Hierarchy) -> tuple[jax.Array, jax.Array]:
    """(L + 1, b): the nodes from the root to the likeliest children, and their P.

    At a class the way stands still.
    """
    log_p, nodes = log_probs(logits, tree).T, np.arange(tree.num_nodes, dtype=np.int32)
    parents, N = tree.node_parents()[:-1], tree.num_nodes
    best = log_p[:-1] == segment_max(log_p[:-1], parents, num_segments=N)[parents]
    first = segment_min(jnp.where(best, nodes[:-1, None], N), parents, num_segments=N)
    first = jnp.where(nodes[:, None] < tree.num_classes, nodes[:, None], first)
    way = [jnp.full(log_p.shape[1:], N - 1, jnp.int32)]
    for _ in range(tree.num_levels):
        way.append(jnp.take_along_axis(first, way[-1][None], axis=0, mode="clip")[0])
    way = jnp.stack(way)
    P = jnp.exp(jnp.take_along_axis(log_p, way, axis=0, mode="clip"))
    return way, P


@functools.partial(jax.jit, static_argnames="tree")
def _judged(logits: jax.Array, labels: ArrayLike, tree: Hierarchy) -> tuple[jax.Array, jax.Array]:
    """(L + 1, b): P of the nodes from the root on, and whether each is the label or above it."""
    way, P = _way(logits, tree)
    return P, jnp.any(way[:, None] == paths(jnp.asarray(labels), tree)[None], axis=1)


@jax.jit
def temperature(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """The T at which the soft-max of logits/T fits the labels best, by bisection.

        argmin_T mean −log softmax(logits/T)[label],   0.01 ≤ T ≤ 100

    The loss is convex in 1/T, so there is one minimum. Where it lies outside of the range, the end
    is returned: 0.01 when every label has the largest logit, for nothing bounds T from below then;
    100 when the logits know less than chance.

    Args:
      logits: (n, C) of validation images.
      labels: (n,) int in 0..C−1.
      where: (n,) bool, the images that count.

    Returns:
      A scalar; NaN where a label does not exist, logits hold NaN, or no image counts.

    >>> z = jnp.array([[8.0, 0], [8, 0], [8, 0], [0, 8]])  # sure, and right three times of four
    >>> round(float(temperature(z, jnp.array([0, 0, 0, 0]))), 3)
    7.282

    Reference: Guo et al. 2017.
    """
    labels = jnp.asarray(labels)
    logits = class_logits(logits, None)
    used = mask(where, labels.shape, "like the labels")
    integers("labels", labels, logits.shape[:1], "like the images")
    logits = jnp.where(used[:, None], logits - jnp.max(logits, axis=1, keepdims=True), 0)
    inside = (labels >= 0) & (labels < logits.shape[1])
    own = jnp.take_along_axis(logits, jnp.where(inside, labels, 0)[:, None], axis=1)[:, 0]

    def slope(log_t):
        """Of the loss, with respect to 1/T."""
        expected = jnp.sum(jax.nn.softmax(logits / jnp.exp(log_t), axis=1) * logits, axis=1)
        return jnp.sum(jnp.where(used, expected - own, 0))

    def halve(_, ends):
        cold, hot = ends
        middle = (cold + hot) / 2
        warmer = slope(middle) > 0  # a larger 1/T makes it worse
        return jnp.where(warmer, middle, cold), jnp.where(warmer, hot, middle)

    ends = jnp.log(jnp.asarray([COLDEST, HOTTEST], logits.dtype))
    cold, hot = lax.fori_loop(0, HALVINGS, halve, (ends[0], ends[1]))
    known = jnp.all(inside | ~used) & ~jnp.any(jnp.isnan(logits)) & jnp.any(used)
    return jnp.where(known, jnp.exp((cold + hot) / 2), jnp.nan)


def threshold_for(
    logits: ArrayLike,
    labels: ArrayLike,
    tree: Hierarchy,
    accuracy: float,
    delta: float = 0.05,
    *,
    where: ArrayLike | None = None,
) -> float:
    """The threshold of `answer` that keeps a wanted accuracy, with probability 1 − δ.

    The thresholds 1, 0.99, ..., 0 are tested in this order, and the last is taken before the lower
    bound of Clopper and Pearson for the accuracy falls below the wanted one for the first time. An
    answer is right if it is the label or one of its ancestors. So on new images of the same kind
    answers are right that often, but for one in 1/δ choices of validation images. These images
    must have chosen nothing else: neither the weights nor the temperature.

    Args:
      logits: (n, C) of validation images, calibrated.
      labels: (n,) int in 0..C−1.
      tree: the tree.
      accuracy: the share of right answers that is wanted, in (0, 1).
      delta: δ in (0, 1).
      where: (n,) bool, the images that count.

    Returns:
      The threshold; `math.inf`, with a warning, if even 1 can't be shown to keep the accuracy: then
      only the root can be answered.

    Raises:
      ValueError: shapes do not fit, a label is no class, NaN in the logits, or a share outside of
        (0, 1).
      TypeError: labels are not integers, `where` is not boolean.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> p = np.tile([[0.55, 0.43, 0.02]], (100, 1))
    >>> labels = np.where(np.arange(100) < 55, 0, np.where(np.arange(100) < 98, 1, 2))
    >>> threshold_for(np.log(p), labels, tree, 0.9), threshold_for(np.log(p), labels, tree, 0.45)
    (0.56, 0.0)

    Reference: Angelopoulos et al. 2021.
    """
    for name, share in (("accuracy", accuracy), ("delta", delta)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must be in (0, 1), found {share}")
    logits, labels = class_logits(logits, tree), np.asarray(labels)
    integers("labels", labels, logits.shape[:1], "like the images")
    used = np.asarray(mask(where, labels.shape, "like the labels"))
    labels_exist(labels, tree.num_classes, used)
    refuse_nan([logits], used)
    P, right = (np.asarray(rows)[:, used] for rows in _judged(logits, labels, tree))
    sure, images = np.minimum.accumulate(P[1:]), np.arange(P.shape[1])
    n, found = len(images), math.inf
    for k in range(101):
        threshold = (100 - k) / 100
        steps = np.sum(sure >= P.dtype.type(threshold), axis=0)
        hits = int(np.sum(right[steps, images]))
        # The bound is ≥ a where a binomial of n and a reaches the count at most δ of the times.
        if not (hits and special.betainc(hits, n - hits + 1, accuracy) <= delta):
            break
        found = threshold
    if found == math.inf:
        needed = math.ceil(math.log(delta) / math.log(accuracy))
        warnings.warn(
            f"no threshold keeps an accuracy of {accuracy} with probability {1 - delta:g} on these "
            f"{n} images, so only the root can be answered; with no wrong answer {needed} images "
            "are enough",
            stacklevel=2,
        )
    return found

"""The loss L of the classes, by the head's own or by `loss.name`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn import frames, losses
from dh2l_jax.hierarchy.learn.fold import carried_up
from dh2l_jax.models import FrameHead, NodeHead
from dh2l_jax.training.config import LossConfig

__all__ = ["Loss", "balanced_weights", "class_prior", "cross_entropy", "make_loss"]

Loss = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def make_loss(
    loss: LossConfig, head: Any, hierarchy: Hierarchy, counts: np.ndarray | None = None
) -> Loss:
    """A function (the head's parameters, features, logits, labels) → (L, the parts of L).

    `counts` are (num_nodes,), the training images of each label: of them are the weights and the
    prior of the classes, and whether there are labels at inner nodes. None: there are none.
    """
    if isinstance(head, FrameHead):
        return _haframe(loss, head) if head.kind == "haframe" else _etf(head)
    tree, weights, shift = hierarchy, None, None
    if loss.class_weights == "balanced":
        weights = jnp.asarray(balanced_weights(_known(counts), tree), jnp.float32)
    if loss.logit_adjustment:
        prior = class_prior(_known(counts), tree)
        shift = jnp.asarray(loss.logit_adjustment * np.log(prior), jnp.float32)
    has_inner = counts is not None and bool(counts[tree.num_classes :].any())
    of_logits: dict[str, Callable[..., jax.Array]] = {
        "ce": functools.partial(losses.marginal, tree=tree) if has_inner else cross_entropy,
        "hxe": functools.partial(losses.hxe, tree=tree, alpha=loss.alpha),
        "soft_labels": functools.partial(losses.soft_labels, tree=tree, beta=loss.beta),
    }
    of_nodes = {"conditional": losses.conditional, "hrn": losses.hrn}

    def of(params: Any, x: jax.Array, logits: jax.Array, labels: jax.Array):
        if isinstance(head, NodeHead):
            each = functools.partial(of_nodes[head.kind], head.nodes(params, x), labels, tree)
        else:
            logits = logits if shift is None else logits + shift[None]
            each = functools.partial(of_logits[loss.name], logits, labels)
            if loss.label_smoothing:
                each = functools.partial(smoothed, each, logits, loss.label_smoothing)
        if weights is None:
            return each(), {}
        return jnp.mean(weights[labels] * each(reduction="none")), {}

    return of


def cross_entropy(logits: jax.Array, labels: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """Mean over the batch of −log p of the label, or (b,) with reduction="none"."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return each if reduction == "none" else jnp.mean(each)


def smoothed(
    each: Callable[..., jax.Array], logits: jax.Array, share: float, *, reduction: str = "mean"
) -> jax.Array:
    """(1 − ε) of a loss and ε of the mean of −log p over all classes."""
    of_all = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    values = (1 - share) * each(reduction="none") + share * of_all
    return values if reduction == "none" else jnp.mean(values)


def balanced_weights(counts: np.ndarray, tree: Hierarchy) -> np.ndarray:
    """(num_nodes,) the weights of labels by which every class counts alike.

    n/(C n_k) of a class k with n_k of the n images that are labelled at one of the C classes; of an
    inner node their mean over the images of the classes below.

    >>> balanced_weights(np.array([6, 2, 5, 0]), Hierarchy.two_level([0, 0])).tolist()
    [0.6666666666666666, 2.0, 1.0, 1.0]
    """
    images = np.where(np.arange(tree.num_nodes) < tree.num_classes, counts, 0)
    classes, below = (carried_up(x, tree) for x in (images > 0, images))
    share = below[-1] / classes[-1]
    return np.where(below > 0, share * classes / np.maximum(below, 1), 1.0)


def class_prior(counts: np.ndarray, tree: Hierarchy) -> np.ndarray:
    """(C,) the share of each class in the images that are labelled at one.

    Raises:
      ValueError: a class has none.
    """
    images = counts[: tree.num_classes]
    if not images.all():
        name = tree.names(tree.num_levels)[images.argmin()]
        raise ValueError(
            f"loss.logit_adjustment needs a training image of every class, {name!r} has none"
        )
    return images / images.sum()


def _known(counts: np.ndarray | None) -> np.ndarray:
    if counts is None:
        raise ValueError("weights and priors of classes need the counts of their images")
    return counts


def _haframe(loss: LossConfig, head: FrameHead) -> Loss:
    beta = 1 - loss.alpha if loss.alpha <= 1 else 1.0

    def of(_: Any, x: jax.Array, logits: jax.Array, labels: jax.Array):
        W, S = head.kernel({}).T, frames.haframe_gram(head.hierarchy, gamma=head.gamma)
        parts = {"L_ce": cross_entropy(logits, labels)}
        parts["L_cos"] = frames.cosine_loss(x, labels, W, S)
        return beta * parts["L_ce"] + loss.alpha * parts["L_cos"], parts

    return of


def _etf(head: FrameHead) -> Loss:
    return lambda _, x, logits, labels: (frames.dot_regression(x, labels, head.kernel({}).T), {})

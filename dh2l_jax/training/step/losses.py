"""The loss L of the classes, by the head's own or by `loss.name`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn import frames, losses
from dh2l_jax.models import FrameHead, NodeHead
from dh2l_jax.training.config import LossConfig

__all__ = ["Loss", "cross_entropy", "make_loss"]

Loss = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def make_loss(loss: LossConfig, head: Any, hierarchy: Hierarchy) -> Loss:
    """A function (the head's parameters, features, logits, labels) → (L, the parts of L)."""
    if isinstance(head, FrameHead):
        return _haframe(loss, head) if head.kind == "haframe" else _etf(head)
    if isinstance(head, NodeHead):
        of_nodes = {"conditional": losses.conditional, "hrn": losses.hrn}[head.kind]
        return lambda params, x, _, labels: (
            of_nodes(head.nodes(params, x), labels, hierarchy),
            {},
        )
    of_logits: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "ce": cross_entropy,
        "hxe": lambda z, labels: losses.hxe(z, labels, hierarchy, alpha=loss.alpha),
        "soft_labels": lambda z, labels: losses.soft_labels(z, labels, hierarchy, beta=loss.beta),
    }
    return lambda _, x, logits, labels: (of_logits[loss.name](logits, labels), {})


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch of −log p of the label."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


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

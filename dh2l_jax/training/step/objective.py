"""The objective J = L + Σ λ·terms, every term under the paper's symbol.

J = L + λ_e R_E + Σ_l λ_l (R_p/l + R_c/l) + λ_o R_o + Σ_k λ_k C_k/l
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.counts import has_nan
from dh2l_jax.metrics import get_metric
from dh2l_jax.models import Network
from dh2l_jax.models.heads import HierarchicalHead
from dh2l_jax.regularizers import classes_present, hierarchical, orthogonality, weight_energy
from dh2l_jax.spheres import Level, logit_vectors, sphere_levels
from dh2l_jax.training.config import RegConfig

__all__ = ["Terms", "head_levels", "make_objective", "make_regularizer"]

Terms = dict[str, jax.Array]
HEAD = r"^head/"


def make_regularizer(
    head: Any, hierarchy: Hierarchy, reg: RegConfig
) -> Callable[..., tuple[jax.Array, Terms]]:
    """A function (params, where, *, max_present=None, everything=False) → (Σ λ·terms, terms).

    The terms are not yet weighted. One whose λ is 0 is left out, unless `everything` asks for its
    value. `where` and `max_present` are those of `hierarchical`.
    """
    conv_metric = get_metric(reg.conv_metric, clamp=reg.clamp)
    fc_metric = get_metric(reg.fc_metric, clamp=reg.clamp)
    constraints = {"C1": reg.lambda_c1, "C2": reg.lambda_c2, "C3": reg.lambda_c3}
    in_tree = isinstance(head, HierarchicalHead)

    def energy(params: Any) -> jax.Array:
        of = functools.partial(weight_energy, params, half_space=reg.half_space)
        value = of(conv_metric, exclude=() if in_tree else HEAD)
        return value if in_tree else value + of(fc_metric, include=HEAD)

    def regularizer(
        params: Any,
        where: jax.Array | None,
        *,
        max_present: int | None = None,
        everything: bool = False,
    ):
        value, terms = jnp.zeros((), jnp.float32), {}
        if reg.lambda_e or everything:
            terms["R_E"] = energy(params)
            value += reg.lambda_e * terms["R_E"]
        if not in_tree:
            return value, terms
        levels = head_levels(params, head)
        if reg.lambda_l or any(constraints.values()) or everything:
            R, R_terms = hierarchical(
                levels,
                hierarchy,
                fc_metric,
                where=where,
                max_present=max_present,
                half_space=reg.half_space,
                weight=reg.lambda_l,
                pairs=reg.pairs,
                constraints=constraints,
                outer_radius=reg.outer_radius,
            )
            value, terms = value + R, terms | R_terms
        centers = [level.center for level in levels if level.center is not None]
        if centers and (reg.lambda_o or everything):
            terms["R_o"] = sum(map(orthogonality, centers[1:]), start=orthogonality(centers[0]))
            value += reg.lambda_o * terms["R_o"]
        return value, terms

    return regularizer


def make_objective(
    model: Network, hierarchy: Hierarchy, reg: RegConfig
) -> Callable[..., tuple[jax.Array, tuple[Any, Terms]]]:
    """A function (params, batch_stats, images, labels) → (J, (batch_stats, terms)).

    `terms` holds J, the cross-entropy L, "hits" (right classes in the batch) and every
    regulariser before its λ.
    """
    head, regularizer = model.head, make_regularizer(model.head, hierarchy, reg)

    def objective(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        with jax.named_scope("forward"):
            features, updates = model.apply(
                variables, images, True, method=model.features, mutable=["batch_stats"]
            )
            logits = cast(
                jax.Array, model.apply({"params": params}, features, method=lambda m, x: m.head(x))
            )
            L = _cross_entropy(logits, labels)
        with jax.named_scope("regulariser"):
            where = max_present = None
            if reg.presence == "batch":
                where, max_present = classes_present(labels, hierarchy.num_classes), len(labels)
            R, terms = regularizer(params, where, max_present=max_present)
        J = L + R
        if reg.parent_ce_weight and isinstance(head, HierarchicalHead):
            L_parent = _parent_cross_entropy(params, head, features, labels)
            J += reg.parent_ce_weight * L_parent
            terms = {"L_parent": L_parent, **terms}
        right = jnp.argmax(logits, axis=-1) == labels
        hits = jnp.sum(right & ~has_nan(logits))
        batch_stats = cast(dict, updates)["batch_stats"]
        return J, (batch_stats, {"J": J, "L": L, **terms, "hits": hits})

    return objective


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def head_levels(params: Any, head: HierarchicalHead) -> tuple[Level, ...]:
    """The levels of a model's head, with the head's own options."""
    return sphere_levels(
        params["head"],
        head.hierarchy,
        center=head.center,
        epsilon=head.epsilon,
        logits=head.logits,
    )


def _parent_cross_entropy(
    params: Any, head: HierarchicalHead, features: jax.Array, labels: jax.Array
) -> jax.Array:
    """Sum over the inner levels of the cross-entropy of the labels' ancestors."""
    tree, levels = head.hierarchy, head_levels(params, head)
    total = jnp.zeros((), jnp.float32)
    for level, ancestors in enumerate(tree.ancestors()[:-1], 1):
        vectors = logit_vectors(levels, tree, logits=head.logits, level=level)
        total += _cross_entropy(jnp.dot(features, vectors.T), jnp.asarray(ancestors)[labels])
    return total

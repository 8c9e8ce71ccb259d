"""The objective J = L + Σ λ·terms, every term under the paper's symbol.

J = L + m (λ_e R_E + Σ_l λ_l (R_p/l + R_c/l) + Σ_k λ_k C_k/l) + λ_o R_o

m is the factor of `reg.schedule`, 1 where that is constant. With `reg.rules` their plan takes the
place of λ_e R_E: R_E is its value, the sum of the layers' parts, each of them under its path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.counts import has_nan
from dh2l_jax.hierarchy.learn.nodes import nodes_above
from dh2l_jax.metrics import get_metric
from dh2l_jax.models import Network, outputs_in_training
from dh2l_jax.models.heads import FrameHead, HierarchicalHead, SphereHead
from dh2l_jax.regularizers import (
    Plan,
    classes_present,
    hierarchical,
    orthogonality,
    plan,
    regularizer,
    rules,
    weight_energy,
)
from dh2l_jax.spheres import Level, logit_vectors, sphere_levels
from dh2l_jax.training.config import LossConfig, RegConfig
from dh2l_jax.training.config.rule_texts import rules_of
from dh2l_jax.training.step.losses import cross_entropy, make_loss

__all__ = ["Terms", "energy_plan", "factor_of", "head_levels", "make_objective", "make_regularizer"]

Terms = dict[str, jax.Array]
HEAD, NECK = r"^head/", r"^neck/"
DROPOUT = 2**31  # folded into the key of a run, whose augmentation folds in the number of a step
WARMUP = 0.1  # part of the run in which the factor "warmup" rises


def factor_of(schedule: str, steps: int) -> Callable[[jax.Array], jax.Array] | None:
    """The factor of E and R at each step, counted from 0, of so many; None for a constant 1."""
    rise = max(1, round(WARMUP * steps))
    return {
        "constant": None,
        "linear": lambda step: 1 - step / steps,
        "cosine": lambda step: (1 + jnp.cos(jnp.pi * step / steps)) / 2,
        "warmup": lambda step: jnp.minimum((step + 1) / rise, 1.0),
    }[schedule]


def energy_plan(params: Any, reg: RegConfig) -> Plan:
    """The plan of `reg.rules`; of the parameters the shapes are looked at alone.

    Raises:
      ValueError: a rule fits no weight, or does not say what is needed; the line says what to add.
    """
    try:
        return plan(params, rules(rules_of(reg.rules)))
    except ValueError as error:
        form = "a rule is written PATTERN => REGULARIZER * WEIGHT @ AXES here"
        raise ValueError(f"reg.rules: {error}; {form}") from None


def make_regularizer(
    head: Any, hierarchy: Hierarchy, reg: RegConfig
) -> Callable[..., tuple[jax.Array, Terms]]:
    """A function (params, where, *, max_present, factor, everything) → (Σ λ·terms, terms).

    The terms are not yet weighted, but those of `reg.rules`. One whose λ is 0 is left out, unless
    `everything` asks for its value. `where` and `max_present` are those of `hierarchical`.
    """
    constraints = {"C1": reg.lambda_c1, "C2": reg.lambda_c2, "C3": reg.lambda_c3}
    in_tree = isinstance(head, HierarchicalHead)
    fc_metric = get_metric(reg.fc_metric, clamp=reg.clamp) if in_tree else ""
    energy = make_energy(reg, head)

    def terms_of(
        params: Any,
        where: jax.Array | None,
        *,
        max_present: int | None = None,
        factor: jax.Array | None = None,
        everything: bool = False,
    ):
        value, terms = jnp.zeros((), jnp.float32), {}
        if reg.rules or reg.lambda_e or everything:
            E, terms = energy(params)
            value += E
        if not in_tree:
            return scaled(value, factor), terms
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
        value = scaled(value, factor)
        centers = [level.center for level in levels if level.center is not None]
        if centers and (reg.lambda_o or everything):
            terms["R_o"] = sum(map(orthogonality, centers[1:]), start=orthogonality(centers[0]))
            value += reg.lambda_o * terms["R_o"]
        return value, terms

    return terms_of


def make_energy(reg: RegConfig, head: Any) -> Callable[[Any], tuple[jax.Array, Terms]]:
    """A function params → λ_e R_E, and R_E with its parts, if `reg.rules` name them.

    E sees the convolutions, and the kernel of a head that has one.
    """
    with_kernel = not isinstance(head, HierarchicalHead | FrameHead | SphereHead)
    with_neck = isinstance(head, FrameHead)
    others = HEAD if with_kernel else NECK if with_neck else ()
    of_convolutions = regularizer(reg.conv_metric, clamp=reg.clamp)
    of_head = regularizer(reg.fc_metric, clamp=reg.clamp) if with_kernel else None

    def energy(params: Any) -> tuple[jax.Array, Terms]:
        if reg.rules:
            parts = energy_plan(params, reg).report(params)
            total = sum(parts.values(), start=jnp.zeros((), jnp.float32))
            return total, {"R_E": total, **parts}
        of = functools.partial(weight_energy, params, half_space=reg.half_space)
        value = of(of_convolutions, exclude=others)
        value = value if of_head is None else value + of(of_head, include=HEAD)
        return reg.lambda_e * value, {"R_E": value}

    return energy


def make_objective(
    model: Network,
    hierarchy: Hierarchy,
    reg: RegConfig,
    *,
    loss: LossConfig | None = None,
    counts: np.ndarray | None = None,
    steps: int = 1,
) -> Callable[..., tuple[jax.Array, tuple[Any, Terms]]]:
    """A function (params, batch_stats, images, labels, step=0, mixed=None, key=None) → (J, aux).

    `terms` holds J, the loss L and its parts, "hits" (right classes in the batch, by the highest
    logit; of a label at an inner node, those below it), every regulariser before its λ and, where
    it is not constant, the factor "schedule". `loss` is the cross-entropy if None, `counts` are
    those of `make_loss`, `steps` those of the run. `mixed` are the labels of other images that are
    in the images too, and the share s of the first: L is s L(labels) + (1 − s) L(others), "hits"
    are of the larger share. `key` is the run's, for dropout. `aux` is (batch_stats, terms).
    """
    head, terms_of = model.head, make_regularizer(model.head, hierarchy, reg)
    loss_of = make_loss(loss or LossConfig(), head, hierarchy, counts)
    has_inner = counts is not None and bool(counts[hierarchy.num_classes :].any())
    labelled = hierarchy if has_inner else hierarchy.num_classes
    schedule = factor_of(reg.schedule, steps)

    def objective(params, batch_stats, images, labels, step=0, mixed=None, key=None):
        variables = {"params": params, "batch_stats": batch_stats}
        with jax.named_scope("forward"):
            if key is not None and not isinstance(model, Network):
                key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT), step)
            features, logits, batch_stats = outputs_in_training(model, variables, images, key)
            loss = functools.partial(loss_of, params.get("head", {}), features, logits)
            L, parts = shared(loss, labels, mixed)
        with jax.named_scope("regulariser"):
            where = max_present = None
            if reg.presence == "batch":
                where, max_present = classes_present(labels, labelled), len(labels)
            factor = schedule(jnp.asarray(step)) if schedule else None
            R, terms = terms_of(params, where, max_present=max_present, factor=factor)
            if factor is not None:
                terms["schedule"] = factor
        J = L + R
        if reg.parent_ce_weight and isinstance(head, HierarchicalHead):
            parent = functools.partial(_parent_cross_entropy, params, head, features, has_inner)
            L_parent = shared(parent, labels, mixed)
            J += reg.parent_ce_weight * L_parent
            terms = {"L_parent": L_parent, **terms}
        if mixed is not None:
            labels = jnp.where(mixed[1] >= 0.5, labels, mixed[0])
        hits = _hits(logits, labels, hierarchy if has_inner else None)
        return J, (batch_stats, {"J": J, "L": L, **parts, **terms, "hits": hits})

    return objective


def _hits(logits: jax.Array, labels: jax.Array, tree: Hierarchy | None) -> jax.Array:
    """How many of the highest logits are right; with a tree, labels may be inner nodes."""
    right = jnp.argmax(logits, axis=-1)
    if tree is None:
        right = right == labels
    else:
        right = jnp.any(jnp.asarray(tree.ancestor_nodes())[:, right] == labels[None], axis=0)
    return jnp.sum(right & ~has_nan(logits))


def shared(
    loss: Callable[[jax.Array], Any], labels: jax.Array, mixed: tuple[jax.Array, jax.Array] | None
) -> Any:
    """The loss of labels, or of them and of others by their shares."""
    own = loss(labels)
    if mixed is None:
        return own
    others, share = mixed
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, own, loss(others))


def scaled(value: jax.Array, factor: jax.Array | None) -> jax.Array:
    """The value times the factor, if there is one."""
    return value if factor is None else factor * value


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
    params: Any,
    head: HierarchicalHead,
    features: jax.Array,
    has_inner: bool,
    labels: jax.Array,
) -> jax.Array:
    """Sum over the inner levels of the cross-entropy of the labels' ancestors, 0 where unknown."""
    tree, levels = head.hierarchy, head_levels(params, head)
    total = jnp.zeros((), jnp.float32)
    for level, nodes in enumerate(nodes_above(tree)[:-1], 1):
        vectors = logit_vectors(levels, tree, logits=head.logits, level=level)
        places = np.full(tree.num_nodes + 1, -1, np.int32)  # the last of "unknown", node −1
        places[tree.level_nodes(level)] = np.arange(tree.size(level))
        ancestors = jnp.asarray(places[nodes])[labels]
        logits = jnp.dot(features, vectors.T)
        if has_inner:
            each = cross_entropy(logits, jnp.maximum(ancestors, 0), reduction="none")
            total += jnp.mean(jnp.where(ancestors < 0, 0, each))
        else:
            total += cross_entropy(logits, ancestors)
    return total

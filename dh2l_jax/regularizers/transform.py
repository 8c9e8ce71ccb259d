"""A regulariser as one link of an optax chain; steps on spheres."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from dh2l_jax.checks import unknown_name
from dh2l_jax.numerics import safe_normalize
from dh2l_jax.regularizers.params.leaves import named, path_text
from dh2l_jax.regularizers.params.plan import Plan

__all__ = [
    "RegularizationState",
    "add_gradient_of",
    "add_regularization",
    "ascend",
    "riemannian",
]


class RegularizationState(NamedTuple):
    """For logging: what the last update added.

    Attributes:
      count: () int32, updates so far, which a schedule is asked with.
      weight: () λ of the last update.
      value: () R of the last update, before λ.
    """

    count: ArrayLike
    weight: jax.Array
    value: jax.Array


def add_regularization(
    plan: Plan, weight: float | optax.Schedule = 1.0, decoupled: bool = False
) -> optax.GradientTransformation:
    """Adds λ∇R of a plan to the updates: one link of any optax chain.

    Before momentum or Adam the link is a term λR of the loss. After the preconditioner and before
    the learning rate, where AdamW has its decay, moments do not see it: a step then moves by −ηλ∇R,
    however large the gradients of the loss are. What is added is the same at both places.

    Parameters that `optax.masked` or `multi_transform` keep from the link take no part in R.

    Args:
      plan: what R looks at.
      weight: λ, or a schedule of it by the number of updates.
      decoupled: says that the link stands after the preconditioner; it is then not to be found
        first in a chain, and no loss needs its value.

    Raises:
      ValueError: on update, a layer of the plan is not among the parameters.

    >>> import dh2l_jax as dh2l
    >>> params = {"kernel": jnp.eye(4, 3)}
    >>> link = add_regularization(dh2l.plan(params), optax.linear_schedule(0.0, 0.1, 100))
    >>> tx = optax.chain(link, optax.adam(1e-3))
    >>> updates, (state, _) = tx.update(params, tx.init(params), params)
    >>> int(state.count), round(float(state.value), 4)
    (1, 0.75)
    """

    def init(params: Any) -> RegularizationState:
        present = _among(plan, params)
        value = jax.eval_shape(present.value, present.leaves(dict(named(params))))
        zero = jnp.zeros((), value.dtype)
        return RegularizationState(jnp.zeros((), jnp.int32), zero, zero)

    def update(updates: Any, state: Any, params: Any = None):
        if params is None:
            raise ValueError("the parameters are needed: call update(gradients, state, params)")
        present = _among(plan, params)
        leaves = present.leaves(dict(named(params)))
        value, slopes = jax.value_and_grad(present.value)(leaves)
        now = jnp.asarray(weight(state.count) if callable(weight) else weight, value.dtype)
        sums = [
            leaf + (now * slopes[path]).astype(leaf.dtype) if path in slopes else leaf
            for path, leaf in named(updates)
        ]
        updates = jax.tree.unflatten(jax.tree.structure(updates), sums)
        return updates, RegularizationState(optax.safe_increment(state.count), now, value)

    return optax.GradientTransformation(init, update)


def _among(plan: Plan, params: Any) -> Plan:
    """The plan without what optax masks."""
    masked = [
        path_text(path)
        for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_masked)
        if _is_masked(node)
    ]
    present = {path for path, _ in named(params)}
    for layer in plan.layers:
        hidden = any(f"{layer.path}/".startswith(f"{path}/") for path in masked)
        if layer.path not in present and not hidden:
            raise ValueError(unknown_name("leaf of the plan", layer.path, present))
    return plan.among(present)


def _is_masked(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def add_gradient_of(regularizer: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """Adds the gradient of regularizer(params) to the updates: one link of any optax chain.

    Put it where a loss term's gradient would enter, before momentum or Adam.

    >>> import dh2l_jax as dh2l
    >>> link = add_gradient_of(lambda params: 0.1 * dh2l.weight_energy(params, "d_am_cos"))
    >>> tx = optax.chain(link, optax.adam(1e-3))
    >>> params = {"kernel": jnp.eye(4)}
    >>> updates, _ = tx.update(params, tx.init(params), params)
    """

    def update(updates: Any, state: Any, params: Any = None):
        if params is None:
            raise ValueError("the parameters are needed: call update(gradients, state, params)")
        gradient = jax.grad(regularizer)(params)
        return jax.tree.map(lambda u, g: u + g, updates, gradient), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ascend(pattern: str) -> optax.GradientTransformation:
    """Turns the gradients of leaves whose path matches: they ascend what the others descend.

    First in a chain it makes each step one of a min–max problem, such as that of weights and a pole
    (`mhp`, `mhc`): the weights move to a smaller loss, the pole to a larger one.

    Args:
      pattern: regular expression, searched in paths such as "head/pole".

    Raises:
      ValueError: on update, no leaf has such a path.

    >>> from dh2l_jax.regularizers.field.hyperspherical import mhc
    >>> params = {"W": jnp.eye(3), "pole": jnp.array([1.0, 0.5, 0.2])}
    >>> tx = optax.chain(ascend(r"(^|/)pole$"), optax.sgd(0.1))
    >>> gradients = jax.grad(lambda p: mhc(p["W"], p["pole"]))(params)
    >>> updates, _ = tx.update(gradients, tx.init(params))
    >>> bool(jnp.vdot(updates["pole"], gradients["pole"]) > 0)
    True
    """

    def update(updates: Any, params: Any = None) -> Any:
        del params
        paths = [path for path, _ in named(updates)]
        turned = {path for path in paths if re.search(pattern, path)}
        if not turned:
            raise ValueError(unknown_name("leaf", pattern, paths))
        leaves = [-leaf if path in turned else leaf for path, leaf in named(updates)]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves)

    return optax.stateless(update)


def riemannian(
    optimizer: optax.GradientTransformation,
    where: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Steps of an optimiser on unit spheres: each row δ of a leaf (..., d) keeps its length 1.

        P = I − δδᵀ,   u = P · optimizer(P g),   δ ← (δ + u)/‖δ + u‖

    The optimiser sees gradients along the sphere. What its momentum remembers of former points is
    projected again where the row is now; so is whatever a preconditioner turns out of the tangent.

    Args:
      optimizer: with its learning rate.
      where: parameters → tree of bools of the same structure, the leaves on spheres; all of them if
        None. The others are the optimiser's alone.

    Raises:
      ValueError: on update, no parameters are given.

    >>> tx = riemannian(optax.sgd(0.1, momentum=0.9))
    >>> delta = jnp.array([[0.6, 0.8, 0.0]])
    >>> updates, _ = tx.update(jnp.array([[1.0, 2.0, 3.0]]), tx.init(delta), delta)
    >>> (delta + updates).round(4).tolist()
    [[0.6049000024795532, 0.7426999807357788, -0.2870999872684479]]

    Reference: Scieur and Kim, "Connecting Sphere Manifolds Hierarchically for Regularization",
    ICML 2021 ("+Riemann").
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise ValueError("the parameters are needed: call update(gradients, state, params)")
        on_sphere = where(params) if where else jax.tree.map(lambda leaf: True, params)
        updates = jax.tree.map(_tangent, on_sphere, params, updates)
        updates, state = inner.update(updates, state, params, **extra)
        return jax.tree.map(_retraction, on_sphere, params, updates), state

    inner = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(inner.init, update)


def _tangent(on_sphere: bool, delta: jax.Array, u: jax.Array) -> jax.Array:
    """The part of u along the sphere at δ; u itself where there is no sphere."""
    if not on_sphere:
        return u
    point = safe_normalize(delta)
    return (u - jnp.sum(point * u, axis=-1, keepdims=True) * point).astype(u.dtype)


def _retraction(on_sphere: bool, delta: jax.Array, u: jax.Array) -> jax.Array:
    """What takes δ to the point of the sphere in the direction of δ + u."""
    if not on_sphere:
        return u
    step = _tangent(on_sphere, delta, u)
    return (safe_normalize(safe_normalize(delta) + step) - delta).astype(u.dtype)

"""A plan: which layers of a model a regulariser looks at, and how each is read.

It is made once, outside jit, from the model's types, rules and shapes; what it keeps is static, so
that under jit, grad, vmap and scan it is a constant.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dh2l_jax.checks import as_float, unknown_name
from dh2l_jax.metrics import Metric, mean_energy
from dh2l_jax.metrics.pairs import stacked_energy
from dh2l_jax.metrics.sums.plan import Method
from dh2l_jax.metrics.sums.stacks import joined
from dh2l_jax.regularizers.params.axes import Axes, parse
from dh2l_jax.regularizers.params.layouts.models import Leaf, known_leaves
from dh2l_jax.regularizers.params.layouts.names import ask
from dh2l_jax.regularizers.params.leaves import parameters
from dh2l_jax.regularizers.params.rules import Rule, Rules, as_rules, looked_at
from dh2l_jax.regularizers.params.table import as_html, as_text
from dh2l_jax.regularizers.table import mean_of

__all__ = ["Layer", "Plan", "plan", "seen", "sum_of_stacks"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A leaf, how it is read, and the rule that looks at it.

    Attributes:
      path: "encoder/dense/kernel".
      shape: of the leaf.
      axes: of its vectors.
      source: who knows them: a type of layer, its name, or a rule.
      rule: with regulariser and weight.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    source: str
    rule: Rule


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """Layers and what was left out; see `plan`. Static and hashable; prints as a table."""

    layers: tuple[Layer, ...]
    not_taken: tuple[tuple[str, str], ...] = ()

    @property
    def left_out(self) -> dict[str, str]:
        """Path → why the leaf takes no part."""
        return dict(self.not_taken)

    def matrices(self, params: Any) -> dict[str, jax.Array]:
        """Path → (..., n, d), the vectors that the plan looks at."""
        leaves = self.leaves(params)
        return {layer.path: layer.axes.vectors(leaves[layer.path]) for layer in self.layers}

    def value(self, params: Any) -> jax.Array:
        """Σ over layers of weight × regulariser, of a batch of matrices the sum; for the loss.

        Small layers share one program.
        """
        total: Any = 0.0  # no array, whose dtype could be wider than the weights'
        leaves = self.leaves(params)
        for regularizer, group in self._by_regularizer().items():
            stacks = [_seen(layer, leaves) for layer in group]
            total += sum_of_stacks(regularizer, stacks, [layer.rule.weight for layer in group])
        return jnp.asarray(total)

    def report(self, params: Any) -> dict[str, jax.Array]:
        """Path → the layer's part of `value`, all in one compiled call."""
        return _report(self, self._chosen(self.layers).leaves(params))

    def leaves(self, params: Any) -> dict[str, jax.Array]:
        """Path → array, of the plan's layers."""
        leaves = parameters(params)
        return {layer.path: jnp.asarray(_leaf(layer, leaves)) for layer in self.layers}

    def among(self, paths: Iterable[str]) -> Plan:
        """The plan of those layers alone."""
        paths = set(paths)
        return self._chosen(layer for layer in self.layers if layer.path in paths)

    def _chosen(self, layers: Iterable[Layer]) -> Plan:
        return dataclasses.replace(self, layers=tuple(layers))

    def _by_regularizer(self) -> dict[Any, list[Layer]]:
        groups = defaultdict(list)
        for layer in self.layers:
            groups[layer.rule.regularizer].append(layer)
        return groups

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def plan(
    params_or_module: Any,
    rules: Rules | Mapping[str, Any] | str = "default",
    *,
    module: Any = None,
    inputs: Any = (),
) -> Plan:
    """What is looked at in a model: made once, outside jit, then used as `plan.value(params)`.

    Layouts are known from the types of layers or from names that leave no doubt (`kernel` of Flax
    and `w` of Haiku with two axes, or four of a convolution), or told by a rule; anything else is
    an error that prints the rule to add. Biases, normalisations and integers are left out.

    Args:
      params_or_module: a tree of parameters, or a module of Flax NNX or Equinox.
      rules: of `dh2l.rules`, or its argument; "default" is `d_am_cos` with weight 1 of every leaf
        named `kernel` or `w`.
      module: the module of Flax Linen whose parameters are given.
      inputs: its example inputs, a tuple, or by name; shapes alone will do, and flags such as
        `train` are kept as they are.

    Raises:
      ValueError: a pattern matches nothing, axes do not fit, a leaf can be read in several ways, an
        optimiser's state is in the tree.

    >>> params = {"attn": {"query": {"kernel": jnp.ones((5, 4, 3)), "bias": jnp.ones((4, 3))}}}
    >>> heads = plan(params, {"attn": ("cosine", 0.5, "i h d -> h d i")})
    >>> heads.matrices(params)["attn/query/kernel"].shape, heads.left_out
    ((4, 3, 5), {'attn/query/bias': 'a bias'})
    >>> round(float(heads.value(params)), 4)  # 0.5 · 4 heads · 1
    2.0

    Reference: DH²L, §3.1 (E).
    """
    leaves, asked = known_leaves(params_or_module, module, inputs), as_rules(rules)
    chosen, left_out, unclear = [], {}, []
    rule_of = {path: _first(asked, path) for path in leaves}
    for path, (array, known) in leaves.items():
        rule = rule_of[path]
        if known.left_out or rule is None or rule.regularizer is None:
            left_out[path] = known.left_out or ("no rule matches" if rule is None else "by a rule")
        elif not (rule.axes or known.axes):
            unclear.append((path, array.shape, rule))
        else:
            chosen.append(_layer(path, leaves[path], rule))
    _check_rules(asked, rule_of, leaves)
    if unclear:
        raise ask(unclear)
    return Plan(_with_copies_named(chosen, leaves), tuple(left_out.items()))


def _first(rules: Rules, path: str) -> Rule | None:
    return next((rule for rule in rules if re.search(rule.pattern, path)), None)


def _layer(path: str, leaf: Leaf, rule: Rule) -> Layer:
    axes, shape = rule.axes or parse(leaf.known.axes or ""), tuple(leaf.array.shape)
    if not axes.fits(len(shape)):
        raise ValueError(
            f"rule r{rule.pattern!r} names {len(axes.left)} axes, {axes.text!r}, {path!r} of shape "
            f"{shape} has {len(shape)}"
        )
    axes.shape(shape)
    looked_at(rule.regularizer, path, shape, axes)
    return Layer(path, shape, axes, "a rule" if rule.axes else leaf.known.source, rule)


def _check_rules(rules: Rules, rule_of: dict[str, Rule | None], leaves: dict[str, Leaf]) -> None:
    """Every rule has a leaf that may hold vectors."""
    vectors = [path for path, leaf in leaves.items() if not leaf.known.left_out]
    for rule in rules:
        if any(rule_of[path] is rule for path in (vectors if rule.regularizer else leaves)):
            continue
        hits = [path for path in leaves if re.search(rule.pattern, path)]
        if not hits:
            raise ValueError(unknown_name("path pattern", rule.pattern, vectors))
        first = next((rule_of[path] for path in hits if rule_of[path] is not rule), None)
        why = (
            f"an earlier one, r{first.pattern!r}, takes {hits[0]!r}"
            if first
            else f"{hits[0]!r} is left out: {leaves[hits[0]].known.left_out}"
        )
        raise ValueError(f"rule r{rule.pattern!r} has no leaf: {why}")


def _with_copies_named(layers: Sequence[Layer], leaves: dict[str, Leaf]) -> tuple[Layer, ...]:
    """One array in two places is two leaves of a tree, and counts as such: the table says so."""
    seen, result = {}, []
    for layer in layers:
        first = seen.setdefault(id(leaves[layer.path].array), layer.path)
        copy = "" if first == layer.path else f", the same array as {first}"
        result.append(dataclasses.replace(layer, source=layer.source + copy))
    return tuple(result)


def _leaf(layer: Layer, leaves: Mapping[str, jax.Array]) -> jax.Array:
    if layer.path not in leaves:
        raise ValueError(unknown_name("leaf of the plan", layer.path, leaves))
    leaf = leaves[layer.path]
    if tuple(leaf.shape) != layer.shape:
        raise ValueError(f"{layer.path!r} had shape {layer.shape} in the plan, found {leaf.shape}")
    return leaf


def _seen(layer: Layer, leaves: Mapping[str, jax.Array]) -> jax.Array:
    return seen(layer.rule.regularizer, layer.path, layer.axes, leaves[layer.path])


def seen(regularizer: Any, path: str, axes: Axes, leaf: jax.Array) -> jax.Array:
    """What a regulariser sees of a leaf, (k, n, d) or kernels (k, kh, kw, i, o), as floats."""
    axes = looked_at(regularizer, path, leaf.shape, axes)
    X = as_float(axes.vectors(jnp.asarray(leaf)))
    return X.reshape(-1, *X.shape[-axes.rank :])


def sum_of_stacks(
    regularizer: Any,
    stacks: Sequence[jax.Array],
    weights: Sequence[float],
    *,
    method: Method = "auto",
    half_space: bool = False,
) -> jax.Array:
    """Σ weight × regulariser of every matrix of the stacks; options of means as `mean_energy`."""
    if pairs := mean_of(regularizer):
        metric, opposites = pairs
        options = {"method": method, "half_space": half_space or opposites}
        return stacked_energy(stacks, metric, weights=weights, **options)
    if method != "auto" or half_space:
        name = getattr(regularizer, "name", "a function of a matrix")
        raise ValueError(f"{name} is no mean over pairs: it takes no method and no half_space")
    total: Any = 0.0
    for stack, weight in joined([*zip(stacks, weights, strict=True)]):
        total += weight * jnp.sum(jax.vmap(regularizer)(stack))
    return total


@functools.partial(jax.jit, static_argnums=0)
def _report(plan: Plan, leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    # Layers of one shape go through one program: a profile compiles slowly.
    groups = defaultdict(dict)
    for layer in plan.layers:
        X = _seen(layer, leaves)
        groups[layer.rule.regularizer, X.shape, X.dtype][layer.path] = X
    parts = {}
    for (regularizer, *_), group in groups.items():
        values = jax.vmap(functools.partial(_unweighted, regularizer))(jnp.stack([*group.values()]))
        parts |= dict(zip(group, values, strict=True))
    return {layer.path: layer.rule.weight * parts[layer.path] for layer in plan.layers}


def _unweighted(regularizer: Any, stack: jax.Array) -> jax.Array:
    if isinstance(regularizer, Metric):
        regularizer = functools.partial(mean_energy, metric=regularizer)
    return jnp.sum(jax.vmap(regularizer)(stack))

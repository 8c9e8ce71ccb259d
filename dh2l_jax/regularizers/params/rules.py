"""Rules of a plan: which regulariser looks at which leaves, with which weight, along which axes."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from dh2l_jax.metrics import Metric, get_metric
from dh2l_jax.regularizers.params.axes import Axes, parse
from dh2l_jax.regularizers.table import KERNEL, Regularizer, regularizer

__all__ = ["Rule", "Rules", "as_regularizer", "as_rules", "looked_at", "rules"]

OfMatrix = Metric | Callable[[jax.Array], jax.Array]
DEFAULT = {r"(^|/)(kernel|w)$": ("d_am_cos", 1.0)}
FORM = "(regulariser, weight) or (regulariser, weight, axes), or None to leave leaves out"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      pattern: regular expression, searched for in a leaf's path.
      regularizer: a function (n, d) → scalar, or a metric, whose mean energy is taken; None leaves
        the leaves out.
      weight: of each layer.
      axes: how the leaves are read; None where their layout is known.
    """

    pattern: str
    regularizer: OfMatrix | None
    weight: float = 1.0
    axes: Axes | None = None

    @property
    def name(self) -> str:
        """Of the regulariser."""
        return getattr(self.regularizer, "name", getattr(self.regularizer, "__name__", "function"))

    def __str__(self) -> str:
        if self.regularizer is None:
            return f'r"{self.pattern}": None'
        axes = f', "{self.axes.text}"' if self.axes else ""
        return f'r"{self.pattern}": ("{self.name}", {self.weight:g}{axes})'


@dataclasses.dataclass(frozen=True, repr=False)
class Rules:
    """Rules in their order; of those that match a leaf the first one counts."""

    items: tuple[Rule, ...]

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.items)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.items))


def rules(by_pattern: Mapping[str, Any]) -> Rules:
    """Which regulariser looks at which leaves of a model; the first pattern that matches counts.

    Args:
      by_pattern: regular expression, searched for in the path → (regulariser, weight) or
        (regulariser, weight, axes), or None to leave those leaves out. The regulariser is a
        name that `dh2l.regularizer` takes, such as a metric's, a `Metric` or a function
        (n, d) → scalar. Axes are a text as einops has it:
        its last axis on the right is the vectors' length, the one before it their number, and
        further ones are a batch of matrices, whose values are summed.

    Raises:
      ValueError: a pattern, a regulariser, a weight or axes that cannot be.

    >>> rules({r"(query|key)/": ("d_cos_hm", 0.01, "i h d -> h d i"), r"kernel$": ("d_am", 1)})
    r"(query|key)/": ("d_cos_hm", 0.01, "i h d -> h d i")
    r"kernel$": ("d_am", 1)
    """
    return Rules(tuple(_rule(pattern, value) for pattern, value in by_pattern.items()))


def as_rules(given: Rules | Mapping[str, Any] | str) -> Rules:
    """Rules as `plan` takes them: made, as a mapping, or "default"."""
    if isinstance(given, str):
        if given != "default":
            raise ValueError(f"expected rules, a mapping or 'default', found {given!r}")
        given = DEFAULT
    return given if isinstance(given, Rules) else rules(given)


def _rule(pattern: str, value: Any) -> Rule:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if value is None:
        return Rule(pattern, None)
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        raise ValueError(f"rule {pattern!r}: expected {FORM}, found {value!r}")
    given, weight, axes = (*value, None)[:3]
    if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
        raise ValueError(f"rule {pattern!r}: expected a number as its weight, found {weight!r}")
    known = None if axes is None else parse(axes)
    return Rule(pattern, as_regularizer(given), float(weight), known)


def as_regularizer(given: Any) -> Any:
    """What a model's weights can be looked at with: of a name, a metric or a function.

    Raises:
      ValueError: an unknown name, or it needs more than weights.
    """
    if isinstance(given, str):
        given = regularizer(given)
    if isinstance(given, Regularizer):
        given.refuse_parameters()
    return given if callable(given) else get_metric(given)


def looked_at(regularizer: Any, path: str, shape: tuple[int, ...], axes: Axes) -> Axes:
    """The axes as a regulariser takes them: vectors (..., n, d), or kernels (..., kh, kw, i, o).

    Raises:
      ValueError: the leaf is no kernel of a convolution, which the regulariser looks at.
    """
    if not isinstance(regularizer, Regularizer) or regularizer.row.looks_at != KERNEL:
        return axes
    kernel = axes.kernel()
    if kernel is None:
        raise ValueError(
            f"{regularizer.name} looks at kernels of convolutions, such as "
            f"'kh kw i o -> o (kh kw i)', and {path!r} of shape {shape} is read as {axes.text!r}: "
            f'leave it out by a rule before the others, r"^{re.escape(path)}$": None, or give its '
            "axes those names"
        )
    return kernel

"""The texts of `reg.rules`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

__all__ = ["rules_of"]

_RULE = re.compile(
    r"(?P<pattern>.+?)\s*=>\s*(?P<regularizer>[^@]+?)\s*\*\s*(?P<weight>[^*@\s]+)\s*"
    r"(?:@\s*(?P<axes>.+?)\s*)?"
)


def rules_of(texts: Sequence[str]) -> dict[str, tuple[str, float, str | None]]:
    """pattern → (regularizer, weight, axes or None), as `dh2l.rules` takes them.

    >>> rules_of(["query => d_cos_hm * 0.01 @ i h d -> h d i", "kernel$ => d_am_cos * 0.1"])
    {'query': ('d_cos_hm', 0.01, 'i h d -> h d i'), 'kernel$': ('d_am_cos', 0.1, None)}

    Raises:
      ValueError: a text is no rule, its weight no number ≥ 0, or a pattern is there twice.
    """
    found = {}
    for text in texts:
        match = _RULE.fullmatch(text.strip())
        if not match:
            raise ValueError(
                f"reg.rules: expected PATTERN => REGULARIZER * WEIGHT [@ AXES], found {text!r}"
            )
        if match["pattern"] in found:
            raise ValueError(f"reg.rules: the pattern {match['pattern']!r} is there twice")
        found[match["pattern"]] = match["regularizer"], _weight(match["weight"]), match["axes"]
    return found


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"reg.rules: expected a weight ≥ 0, found {text!r}")
    return weight

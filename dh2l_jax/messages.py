"""The wording of errors about names: what was found, what was expected, the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["unknown_name"]


def unknown_name(what: str, found: object, valid: Iterable[str]) -> str:
    """One line that names the value found, the nearest valid name and all valid names.

    >>> unknown_name("shortcut", "a", ["A", "B"])
    "unknown shortcut 'a': did you mean 'A'? Valid: A, B"
    """
    valid = [str(name) for name in valid]
    folded = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(str(found).lower(), folded, n=1, cutoff=0.0)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"unknown {what} {found!r}: {hint}Valid: {', '.join(valid)}"

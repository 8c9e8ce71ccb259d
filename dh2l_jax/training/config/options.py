"""Sections of options: frozen dataclasses whose values are checked, made from dicts and texts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["Checked", "field", "flat", "make", "replace", "sentences", "text_of", "unknown_option"]

# The annotations are texts: evaluating them takes longer than all else that makes a config.
_type_hints = functools.cache(typing.get_type_hints)

# The size of a normal number of the type that everything is computed in.
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


class Checked:
    """Types and ranges are checked when a section is made; integers are taken for floats."""

    def __post_init__(self) -> None:
        hints = _type_hints(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = _typed(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field.name, value, field.metadata)


def field(default: Any, **rule: Any) -> Any:
    """A field with a rule: `low` and `high` (inclusive), `above`/`below` (exclusive), `choices`."""
    return dataclasses.field(default=default, metadata=rule)


def flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All options by their dotted names, in the order of the fields."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def sentences(section: type) -> dict[str, str]:
    """What the docstring of a section says of each of its options."""
    text = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.MULTILINE)
    return {name: " ".join(sentence.split()) for name, sentence in found}


def text_of(value: Any) -> str:
    """The text that `replace` makes the value of.

    >>> text_of(True), text_of((0.5, 0.85)), text_of(1e-4), text_of(("a", "b"))
    ('true', '0.5,0.85', '0.0001', 'a; b')
    """
    if isinstance(value, tuple):
        return ("; " if value and isinstance(value[0], str) else ",").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def make(root: type, values: Mapping[str, Any]) -> Any:
    """The section of nested plain values; keys that are left out keep their defaults.

    Raises:
      ValueError: no such key (the nearest one is named), or the value has a wrong type or range.
    """
    return _make(root, root, values, "")


def replace(root: Any, key: str, text: str) -> Any:
    """The section with one value replaced by what a text stands for.

    Args:
      root: of all sections.
      key: dotted, such as "optim.lr".
      text: of the value, such as "0.05", "true" or "0.5, 0.85".

    Raises:
      ValueError: no such key (the nearest one is named), or the value has a wrong type or range.
    """
    return _replace(root, root, key.split("."), text, key)


def _make(root: type, cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = _type_hints(cls)
    if not isinstance(values, Mapping):
        where = f"{prefix.rstrip('.')}: " if prefix else ""
        raise ValueError(f"{where}expected a section of options, found {_shown(values)}")
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(unknown_option(prefix + str(key), _keys(root)))
        if dataclasses.is_dataclass(hints[key]):
            value = _make(root, hints[key], value, f"{prefix}{key}.")
        elif typing.get_origin(hints[key]) is tuple and isinstance(value, list):
            value = tuple(value)
        arguments[key] = value
    with _named(prefix):
        return cls(**arguments)


def _replace(root: Any, section: Any, path: list[str], text: str, key: str) -> Any:
    hints = _type_hints(type(section))
    if path[0] not in hints:
        raise ValueError(unknown_option(key, _keys(type(root))))
    value = getattr(section, path[0])
    if dataclasses.is_dataclass(value) != (len(path) > 1):
        raise ValueError(unknown_option(key, _keys(type(root))))
    if len(path) > 1:
        value = _replace(root, value, path[1:], text, key)
        return dataclasses.replace(section, **{path[0]: value})
    value = _parsed(key, text, hints[path[0]])
    with _named(key.removesuffix(path[0])):
        return dataclasses.replace(section, **{path[0]: value})


@contextlib.contextmanager
def _named(prefix: str) -> Iterator[None]:
    """Puts the name of the section before what a section says of one of its options."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def unknown_option(key: str, valid: Iterable[str]) -> str:
    """One line that names the key found and the nearest of the valid ones."""
    short = key[:100]  # comparing a long one would take long

    def likeness(name: str) -> tuple[bool, bool, float]:
        """A key in the wrong section is the commonest slip, letters in the wrong order the next."""
        return (
            name.split(".")[-1] == short.split(".")[-1],
            sorted(name) == sorted(short),
            difflib.SequenceMatcher(None, short, name).ratio(),
        )

    return f"unknown option {_shown(key)}: did you mean {max(valid, key=likeness)!r}?"


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    for name, hint in _type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield prefix + name


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def _parsed(key: str, text: str, hint: Any) -> Any:
    """The value that a text stands for."""
    try:
        if hint is bool:
            return _BOOLEANS[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        item = typing.get_args(hint)[0]
        if item is str:
            return tuple(part.strip() for part in text.split(";") if part.strip())
        return tuple(item(part) for part in text.strip("()[]").split(",") if part.strip())
    except (KeyError, ValueError):
        raise ValueError(f"{key} must be {_type_name(hint)}, found {_shown(text)}") from None


def _typed(name: str, value: Any, hint: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must be finite, found {_shown(value)}") from None
    if isinstance(hint, types.GenericAlias):
        if isinstance(value, tuple):
            return tuple(_typed(name, part, typing.get_args(hint)[0]) for part in value)
    elif isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
        return value
    raise ValueError(f"{name} must be {_type_name(hint)}, found {_shown(value)}")


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    if dataclasses.is_dataclass(hint):
        return f"a {hint.__name__}"  # pyright: ignore[reportAttributeAccessIssue]
    names[tuple[str, ...]] = "a list of strings"
    return names.get(hint) or f"a list of numbers, such as {(0.5, 0.85)}"


def _check_range(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    choices = rule.get("choices")
    if choices and value not in choices:
        close = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        expected = " or ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{name} must be {expected}, found {_shown(value)}: did you mean {close!r}?"
        )
    bounds = {
        "low": ("≥", lambda x, bound: x >= bound),
        "high": ("≤", lambda x, bound: x <= bound),
        "above": (">", lambda x, bound: x > bound),
        "below": ("<", lambda x, bound: x < bound),
    }
    parts: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if isinstance(part, float):
            _check_float32(name, part)
        for key, (sign, holds) in bounds.items():
            if key in rule and not holds(part, rule[key]):
                raise ValueError(f"{name} must be {sign} {rule[key]}, found {_shown(part)}")


def _check_float32(name: str, value: float) -> None:
    """Refuses what would become infinite, or 0, where it is computed with."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, found {value}")
    if value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(
            f"{name} must be 0 or of a size that float32 holds, {SMALLEST:.2g} to {LARGEST:.2g}, "
            f"found {value}"
        )


def _shown(value: Any) -> str:
    """The value for a message: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).splitlines())
    except (ValueError, RecursionError):  # more digits, or lists in lists, than Python writes
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else text[:99] + "…"

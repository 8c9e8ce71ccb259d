"""Lists of classes in CSV files: rows with their line numbers, which errors name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_class_list"]


MAX_LEVELS = 100  # columns of a file: work on a tree grows with the square of its depth


def read_class_list(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line number, cells) of every class, in the order of the file; blank lines are skipped.

    Raises:
      ValueError: no such table, or a name with two parents or at two levels; names the file, the
        line and the node.
      OSError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, tuple(cell.strip() for cell in row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines or lines[0][1][0].lower() != "class":
        found = repr(",".join(lines[0][1]))[:80] if lines else "an empty file"
        raise ValueError(f"{path}: expected the header class,parent[,grandparent], found {found}")
    width = len(lines[0][1])
    if width > MAX_LEVELS:
        raise ValueError(f"{path}: expected at most {MAX_LEVELS} columns, found {width}")
    if len(lines) == 1:
        raise ValueError(f"{path}: no classes below the header")
    for number, row in lines[1:]:
        if len(row) != width:
            raise ValueError(
                f"{path}, line {number}: class {row[0]!r} has {len(row)} columns, expected {width}"
            )
        if not all(row):
            raise ValueError(f"{path}, line {number}: class {row[0]!r} has a blank name")
    _check_one_level(path, lines[0][1], lines[1:])
    _check_one_parent(path, lines[1:])
    return lines[1:]


def _check_one_level(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, tuple[str, ...]]]
) -> None:
    """A name in two columns would be the ancestor of itself, or a class above another."""
    seen: dict[str, tuple[int, int]] = {}
    for number, cells in rows:
        for column, name in enumerate(cells):
            first, known = seen.setdefault(name, (number, column))
            if known != column:
                raise ValueError(
                    f"{path}, line {number}: {name!r} is a {header[column]} here and a "
                    f"{header[known]} on line {first}: a name stands at one level of the tree"
                )


def _check_one_parent(path: Path, rows: Sequence[tuple[int, tuple[str, ...]]]) -> None:
    """In a table of names a node is its name, so a name has one line of ancestors."""
    classes: dict[str, int] = {}
    seen: dict[tuple[int, str], tuple[int, tuple[str, ...]]] = {}
    for number, cells in rows:
        first = classes.setdefault(cells[0], number)
        if first != number:
            raise ValueError(
                f"{path}, line {number}: class {cells[0]!r} occurs twice (first on line {first})"
            )
        for column in range(1, len(cells)):
            above = cells[column + 1 :]
            first, known = seen.setdefault((column, cells[column]), (number, above))
            if known != above:
                raise ValueError(
                    f"{path}, line {number}: {cells[column]!r} stands under {above[0]!r} here and "
                    f"under {known[0]!r} on line {first}"
                )

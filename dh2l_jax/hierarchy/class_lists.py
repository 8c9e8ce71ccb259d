"""Lists of classes: CSV files, paths and pairs, and the tables of levels that they make.

A full path holds the names from the root's child down to the class. Where classes lie at different
depths, a class stands for itself in the tables of the levels below its own.
"""

from __future__ import annotations

import collections
import csv
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dh2l_jax.checks import unknown_name

__all__ = [
    "as_integers",
    "check_depths",
    "check_names",
    "check_parents",
    "default_names",
    "find_node",
    "kind_of",
    "level_tables",
    "path_parts",
    "paths_of_edges",
    "read_class_list",
    "unique_names",
    "with_top_level",
]


MAX_LEVELS = 100  # columns of a file: work on a tree grows with the square of its depth


def read_class_list(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """(line number, names from the class upwards) of every class, in the order of the file.

    Blank lines are skipped, and so are the empty cells at the end of a line.

    Raises:
      ValueError: no such table, a name with two parents, or a class above another; names the file,
        the line and the node.
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
    rows = []
    for number, row in lines[1:]:
        if len(row) != width:
            raise ValueError(
                f"{path}, line {number}: class {row[0]!r} has {len(row)} columns, expected {width}"
            )
        cells = row[: max(i for i, cell in enumerate(row, 1) if cell)]
        if not all(cells):
            raise ValueError(
                f"{path}, line {number}: class {row[0]!r} has a blank name before "
                f"{cells[-1]!r}: only the last cells of a line may be empty"
            )
        rows.append((number, cells))
    _check_no_class_above(path, lines[0][1], rows)
    _check_one_parent(path, rows)
    return rows


def _check_no_class_above(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, tuple[str, ...]]]
) -> None:
    """A name that is a class and above a class would be the ancestor of itself or of a class."""
    seen: dict[str, tuple[int, int]] = {}
    for number, cells in rows:
        for column, name in enumerate(cells):
            first, known = seen.setdefault(name, (number, column))
            if bool(known) != bool(column):
                raise ValueError(
                    f"{path}, line {number}: {name!r} is a {header[column]} here and a "
                    f"{header[known]} on line {first}: a name stands at one place of the tree"
                )


def _check_one_parent(path: Path, rows: Sequence[tuple[int, tuple[str, ...]]]) -> None:
    """In a table of names a node is its name, so a name has one line of ancestors."""
    classes: dict[str, int] = {}
    seen: dict[str, tuple[int, tuple[str, ...]]] = {}
    for number, cells in rows:
        first = classes.setdefault(cells[0], number)
        if first != number:
            raise ValueError(
                f"{path}, line {number}: class {cells[0]!r} occurs twice (first on line {first})"
            )
        for column, name in enumerate(cells[1:], 2):
            above = cells[column:]
            first, known = seen.setdefault(name, (number, above))
            if known != above:
                here, there = (repr(line[0]) if line else "the root" for line in (above, known))
                raise ValueError(
                    f"{path}, line {number}: {name!r} stands under {here} here and under {there} "
                    f"on line {first}"
                )


def path_parts(name: str, path: str | Sequence[str]) -> tuple[str, ...]:
    """The full path of a class, of its ancestors as names or as one text with "/" between them."""
    if isinstance(path, str):
        path = path.split("/") if path else ()
    parts = tuple(str(part).strip() for part in path)
    if not str(name).strip() or not all(parts):
        raise ValueError(f"class {name!r} has a blank name in its path {'/'.join(parts)!r}")
    return (*parts, str(name))


def paths_of_edges(
    edges: Iterable[tuple[str, str]], classes: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """The full paths of the classes, below the one root or from several roots on."""
    above: dict[str, str] = {}
    for edge in edges:
        if isinstance(edge, str) or len(edge) != 2 or not all(str(name).strip() for name in edge):
            raise ValueError(f"from_edges takes pairs (child, parent) of names, found {edge!r}")
        child, parent = (str(name).strip() for name in edge)
        if above.setdefault(child, parent) != parent:
            raise ValueError(f"{child!r} has two parents, {above[child]!r} and {parent!r}")
    _check_no_circle(above)
    if classes is None:
        inner = set(above.values())
        classes = [child for child in above if child not in inner]
    if not classes:
        raise ValueError("a Hierarchy needs at least one class, found no pairs (child, parent)")
    for name in classes:
        if name not in above:
            raise ValueError(f"class {name!r} is the child of no pair (child, parent)")
    paths = [_line(str(name), above)[::-1] for name in classes]
    return [path[1:] for path in paths] if len({path[0] for path in paths}) == 1 else paths


def _line(name: str, above: dict[str, str]) -> tuple[str, ...]:
    """A name and all that lies above it."""
    line = [name]
    while line[-1] in above:
        line.append(above[line[-1]])
    return tuple(line)


def _check_no_circle(above: dict[str, str]) -> None:
    """Walks up from every name until it meets a root or a name that has been seen to reach one."""
    safe: set[str] = set()
    for start in above:
        line: dict[str, None] = {}
        name = start
        while name in above and name not in safe:
            if name in line:
                circle = [*line][[*line].index(name) :]
                raise ValueError(f"{name!r} lies below itself: {' in '.join([*circle, name])}")
            line[name] = None
            name = above[name]
        safe.update(line)


def level_tables(
    full: Sequence[tuple[str, ...]],
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Parents, names and depths of full paths in class order; nodes are numbered by appearance."""
    classes = set(full)
    for path in full:
        for length in range(1, len(path)):
            if path[:length] in classes:
                raise ValueError(
                    f"class {path[length - 1]!r} is also an inner node, above class {path[-1]!r}: "
                    "a class has nothing below it"
                )
    depth = max(map(len, full))
    table, names = [], []
    above: dict[tuple[str, ...], int] = {(): 0}
    for level in range(1, depth + 1):
        nodes = [path[:level] for path in full]
        if level < depth:
            nodes = list(dict.fromkeys(nodes))
        # A class that ended above is its own parent in the table.
        table.append(tuple(above[node[: level - 1]] for node in nodes))
        names.append(tuple(node[-1] for node in nodes))
        above = {node: index for index, node in enumerate(nodes)}
    return tuple(table), tuple(names), tuple(map(len, full))


def kind_of(value: object) -> str:
    """A value as errors show it."""
    return f"{value!r} of type {type(value).__name__}"


def as_integers(values: Iterable[object], what: str) -> tuple[int, ...]:
    """Integers as Python ints; booleans, floats and strings are refused."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a sequence of integers, found {kind_of(values)}")
    result = []
    for index, value in enumerate(values):
        if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
            raise TypeError(f"{what} must be integers, found {kind_of(value)} at index {index}")
        result.append(operator.index(value))  # pyright: ignore[reportArgumentType]
    return tuple(result)


def default_names(table: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Numbers."""
    return tuple(tuple(str(i) for i in range(len(row))) for row in table)


def check_names(table: tuple[tuple[int, ...], ...], names: tuple[tuple[str, ...], ...]) -> None:
    """ValueError unless there is a name for each entry, and one class of a name."""
    found, expected = [len(row) for row in names], [len(row) for row in table]
    if found != expected:
        raise ValueError(f"names must hold {expected} nodes (levels 1..L), found {found}")
    seen: dict[str, int] = {}
    for index, name in enumerate(names[-1]):
        if name in seen:
            raise ValueError(f"class {name!r} occurs twice, as number {seen[name]} and {index}")
        seen[name] = index


def check_parents(table: tuple[tuple[int, ...], ...], names: tuple[tuple[str, ...], ...]) -> None:
    """ValueError unless each level is the children of the whole level above."""
    above, above_names = 1, ("the root",)
    for level, (row, row_names) in enumerate(zip(table, names, strict=True), 1):
        if not row:
            raise ValueError(f"level {level} has no nodes")
        for index, parent in enumerate(row):
            if not 0 <= parent < above:
                raise ValueError(
                    f"node {row_names[index]!r} (number {index} of level {level}) has the parent "
                    f"{parent}, expected 0..{above - 1}, the nodes of level {level - 1}"
                )
        for index in sorted(set(range(above)) - set(row)):
            raise ValueError(
                f"node {above_names[index]!r} (number {index} of level {level - 1}) has no child "
                f"at level {level}: these tables are of an even tree, whose classes lie at one "
                "depth; from_paths, from_edges and from_csv make uneven ones"
            )
        above, above_names = len(row), row_names


def check_depths(
    depths: tuple[int, ...], ancestors: np.ndarray, names: tuple[tuple[str, ...], ...]
) -> None:
    """A class stands for itself below its depth, as an only child."""
    L, C = ancestors.shape
    if len(depths) != C or min(depths) < 1 or max(depths) != L:
        raise ValueError(
            f"expected the depths of {C} classes in 1..{L}, the deepest {L}, found {len(depths)} "
            f"from {min(depths)} to {max(depths)}"
        )
    for level, row in enumerate(ancestors, 1):
        row_names, below = names[level - 1], np.bincount(row)
        for index in np.flatnonzero(np.asarray(depths) <= level):
            entry = row[index]
            if below[entry] > 1 or row_names[entry] != names[-1][index]:
                raise ValueError(
                    f"class {names[-1][index]!r} of depth {depths[index]} must stand alone for "
                    f"itself at level {level}, found {row_names[entry]!r} above {below[entry]} "
                    "classes"
                )


def find_node(name: str | Sequence[str], paths: Sequence[tuple[str, ...]]) -> int:
    """The number of a path, as names or as one text, or else of the last name of one path."""
    if isinstance(name, str):
        found = [node for node, path in enumerate(paths) if "/".join(path) == name]
        found = found or [node for node, path in enumerate(paths) if path[-1:] == (name,)]
    else:
        found = [node for node, path in enumerate(paths) if path == tuple(name)]
    if len(found) > 1:
        places = ", ".join(repr("/".join(paths[node])) for node in found)
        raise ValueError(f"{name!r} names {len(found)} nodes: give one of the paths {places}")
    if not found:
        raise ValueError(unknown_name("node", name, unique_names(paths)))
    return found[0]


def unique_names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The last name of each path, or all of it where several end in that name."""
    counts = collections.Counter(path[-1:] for path in paths)
    return tuple("/".join(p if counts[p[-1:]] > 1 else p[-1:]) for p in paths)


def with_top_level(parents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The parents of levels 1, 2, …, L from those of levels 2, …, L."""
    rows = tuple(
        as_integers(row, f"the parents of level {level}") for level, row in enumerate(parents, 2)
    )
    if not rows or not rows[0]:
        raise ValueError("no parents given: use Hierarchy.flat(n) for classes without parents")
    used, last = set(rows[0]), max(rows[0])
    gap = next(number for number in range(len(used) + 1) if number not in used)
    if gap < last:
        raise ValueError(
            f"the parents of level 2 leave out number {gap}: expected each of 0..{last}, the "
            "nodes of level 1, at least once"
        )
    return ((0,) * (last + 1), *rows)

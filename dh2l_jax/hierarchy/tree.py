"""The tree of classes: static, hashable, NumPy only.

Levels are numbered 1..L from the root down, as in the paper; the root itself is level 0 and holds
no vector. Node k of level l−1 owns one *group* of level l: its children. Level 1 is one group.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dh2l_jax.hierarchy.class_lists import read_class_list

__all__ = ["Hierarchy"]


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """A tree whose leaves are the classes; every leaf lies at the same depth L ≥ 1.

    Build one with `flat`, `two_level`, `from_parents`, `from_paths` or `from_csv`. Instances hold
    tuples only, so they are hashable, comparable and can be static arguments of a jitted function.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> tree.num_levels, tree.size(1), tree.size(2)
    (2, 2, 3)
    >>> tree.adjacency(2).tolist()
    [[1, 0], [1, 0], [0, 1]]

    Attributes:
      parent_table: for each level 1..L the parent of every node in the level above.
      node_names: for each level 1..L the name of every node.

    Raises:
      ValueError: a level is empty, a parent is out of range, or an inner node has no child.
      TypeError: a parent is not an integer.

    Reference: DH²L, §3 (the adjacency P^(l,l−1)).
    """

    parent_table: tuple[tuple[int, ...], ...]
    node_names: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        table = tuple(
            _integers(row, f"the parents of level {level}")
            for level, row in enumerate(self.parent_table, 1)
        )
        if not table:
            raise ValueError("a Hierarchy needs at least one level, found none")
        names = self.node_names or _default_names(table)
        names = tuple(tuple(str(name) for name in row) for row in names)
        _check_names(table, names)
        _check_parents(table, names)
        object.__setattr__(self, "parent_table", table)
        object.__setattr__(self, "node_names", names)

    # Constructors.

    @classmethod
    def flat(cls, n: int, *, names: Sequence[str] | None = None) -> Hierarchy:
        """One level of `n` classes under the root (CIFAR-10: {1, 10}).

        >>> Hierarchy.flat(10).group_sizes(1).tolist()
        [10]
        """
        (n,) = _integers((n,), "the number of classes")
        if n < 1:
            raise ValueError(f"a Hierarchy needs at least one class, found n = {n}")
        return cls(((0,) * n,), () if names is None else (tuple(names),))

    @classmethod
    def two_level(
        cls, parents: Sequence[int], *, names: Sequence[Sequence[str]] | None = None
    ) -> Hierarchy:
        """The paper's {parent, child} pair; `parents[i]` is the parent of class i.

        >>> Hierarchy.two_level([0, 0, 1]).group_sizes(2).tolist()
        [2, 1]
        """
        return cls.from_parents((parents,), names=names)

    @classmethod
    def from_parents(
        cls, parents: Sequence[Sequence[int]], *, names: Sequence[Sequence[str]] | None = None
    ) -> Hierarchy:
        """Any depth: `parents = (p2, p3, ..., pL)`, `p_l[i]` the parent of node i of level l.

        `names`, if given, holds one sequence a level, 1..L.

        >>> Hierarchy.from_parents(([0, 0, 1], [0, 1, 1, 2])).num_levels
        3
        """
        rows = tuple(
            _integers(row, f"the parents of level {level}") for level, row in enumerate(parents, 2)
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
        top = (0,) * (last + 1)
        return cls((top, *rows), () if names is None else tuple(tuple(row) for row in names))

    @classmethod
    def from_paths(cls, paths: Mapping[str, str | Sequence[str]]) -> Hierarchy:
        """From {class: ancestors}, the ancestors named from the root down without the class itself.

        A path is a sequence of names or one string with "/" between them; "" makes a flat tree.
        Classes keep the order of the mapping, inner nodes the order of their first appearance;
        an inner node is identified by its whole path.

        >>> tree = Hierarchy.from_paths({"Sandal": "Goods/Shoes", "Coat": "Clothes/Outers"})
        >>> tree.names(2)
        ('Shoes', 'Outers')
        """
        if not isinstance(paths, Mapping):
            raise TypeError(f"from_paths takes a mapping {{class: path}}, found {_kind(paths)}")
        if not paths:
            raise ValueError("a Hierarchy needs at least one class, found an empty mapping")
        full = [(*_path_parts(name, path), str(name)) for name, path in paths.items()]
        return _from_full_paths(full)

    @classmethod
    def from_csv(cls, path: str | Path) -> Hierarchy:
        """From a CSV file with the header `class,parent[,grandparent[,...]]`, one line a class.

        Columns run from the class upwards; a name that stands under two parents is an error.

        Raises:
          ValueError: names the file, the line and the node.
        """
        path = Path(path)
        rows = read_class_list(path)
        return _from_full_paths([tuple(reversed(cells)) for _, cells in rows])

    # Shape of the tree.

    @property
    def num_levels(self) -> int:
        """L, the number of levels below the root."""
        return len(self.parent_table)

    @property
    def num_classes(self) -> int:
        """C, the number of leaves."""
        return len(self.parent_table[-1])

    def size(self, level: int) -> int:
        """Number of nodes of a level; level 0 is the root alone."""
        if level == 0:
            return 1
        return len(self.parent_table[self._index(level)])

    def names(self, level: int) -> tuple[str, ...]:
        """Names of the nodes of a level."""
        return self.node_names[self._index(level)]

    def parents(self, level: int) -> np.ndarray:
        """(size(level),) int32: each node's parent in the level above; zeros at level 1."""
        return np.asarray(self.parent_table[self._index(level)], np.int32)

    def adjacency(self, level: int) -> np.ndarray:
        """(size(level), size(level−1)) int32: P^(l,l−1), 1 where the column is the row's parent."""
        return np.eye(self.size(level - 1), dtype=np.int32)[self.parents(level)]

    def group_sizes(self, level: int) -> np.ndarray:
        """(size(level−1),) int32: |g_k|, the number of children of each node of the level above."""
        counts = np.bincount(self.parents(level), minlength=self.size(level - 1))
        return counts.astype(np.int32)

    def ancestors(self) -> np.ndarray:
        """(L, C) int32: row l−1 holds each leaf's ancestor at level l; the last row is 0..C−1.

        >>> Hierarchy.two_level([0, 0, 1]).ancestors().tolist()
        [[0, 0, 1], [0, 1, 2]]
        """
        rows = [np.arange(self.num_classes, dtype=np.int32)]
        for level in range(self.num_levels, 1, -1):
            rows.append(self.parents(level)[rows[-1]])
        return np.stack(rows[::-1])

    def lca_height(self) -> np.ndarray:
        """(C, C) int32: height of the lowest common ancestor of two leaves.

        0 for a leaf with itself, 1 for siblings, L where only the root is shared.

        >>> Hierarchy.two_level([0, 0, 1]).lca_height().tolist()
        [[0, 1, 2], [1, 0, 2], [2, 2, 0]]
        """
        height = np.full((self.num_classes, self.num_classes), self.num_levels, np.int32)
        for row in self.ancestors():
            height -= row[:, None] == row[None, :]
        return height

    def _index(self, level: int) -> int:
        level = operator.index(level)
        if not 1 <= level <= self.num_levels:
            raise ValueError(f"level {level} does not exist: levels are 1..{self.num_levels}")
        return level - 1

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(row)) for row in self.parent_table)
        return f"Hierarchy({{{sizes}}})"


def _kind(value: object) -> str:
    return f"{value!r} of type {type(value).__name__}"


def _integers(values: Iterable[object], what: str) -> tuple[int, ...]:
    """Integers as Python ints; booleans, floats and strings are refused."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a sequence of integers, found {_kind(values)}")
    result = []
    for index, value in enumerate(values):
        if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
            raise TypeError(f"{what} must be integers, found {_kind(value)} at index {index}")
        result.append(operator.index(value))  # pyright: ignore[reportArgumentType]
    return tuple(result)


def _default_names(table: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(str(i) for i in range(len(row))) for row in table)


def _check_names(table: tuple[tuple[int, ...], ...], names: tuple[tuple[str, ...], ...]) -> None:
    found, expected = [len(row) for row in names], [len(row) for row in table]
    if found != expected:
        raise ValueError(f"names must hold {expected} nodes (levels 1..L), found {found}")
    seen: dict[str, int] = {}
    for index, name in enumerate(names[-1]):
        if name in seen:
            raise ValueError(f"class {name!r} occurs twice, as number {seen[name]} and {index}")
        seen[name] = index


def _check_parents(table: tuple[tuple[int, ...], ...], names: tuple[tuple[str, ...], ...]) -> None:
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
                f"at level {level}: every class must lie at the same depth"
            )
        above, above_names = len(row), row_names


def _path_parts(name: str, path: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(path, str):
        path = path.split("/") if path else ()
    parts = tuple(str(part).strip() for part in path)
    if not str(name).strip() or not all(parts):
        raise ValueError(f"class {name!r} has a blank name in its path {'/'.join(parts)!r}")
    return parts


def _from_full_paths(full: Sequence[tuple[str, ...]]) -> Hierarchy:
    """Full paths (root's child, ..., class) in class order; nodes are numbered by appearance."""
    depth = len(full[0])
    for path in full:
        if len(path) != depth:
            raise ValueError(
                f"class {path[-1]!r} lies at depth {len(path)} and {full[0][-1]!r} at {depth}: "
                "every class must lie at the same depth"
            )
    table, names = [], []
    above: dict[tuple[str, ...], int] = {(): 0}
    for level in range(1, depth + 1):
        nodes = [path[:level] for path in full]
        if level < depth:
            nodes = list(dict.fromkeys(nodes))
        table.append(tuple(above[node[:-1]] for node in nodes))
        names.append(tuple(node[-1] for node in nodes))
        above = {node: index for index, node in enumerate(nodes)}
    return Hierarchy(tuple(table), tuple(names))

"""The tree of classes: static, hashable, NumPy only.

Levels are numbered 1..L from the root down, as in the paper; the root itself is level 0 and holds
no vector. Node k of level l−1 owns one *group* of level l: its children. Level 1 is one group.

Classes may lie at different depths. In the tables of levels (`size`, `names`, `parents`,
`ancestors`) a class of depth p < L stands for itself at every deeper level, so that each level
holds all classes. The *nodes* are the true ones, each once, with an id: the classes 0..C−1, then
the inner nodes from level L−1 up to 1, each level in the order of its table, and the root last.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dh2l_jax.hierarchy.class_lists import (
    as_integers,
    check_depths,
    check_names,
    check_parents,
    default_names,
    find_node,
    kind_of,
    level_tables,
    path_parts,
    paths_of_edges,
    read_class_list,
    unique_names,
    with_top_level,
)
from dh2l_jax.hierarchy.readable import tree_html, tree_summary, tree_text

__all__ = ["Hierarchy"]


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """A tree whose leaves are the classes, L ≥ 1 levels deep.

    Build one with `flat`, `two_level`, `from_parents`, `from_paths`, `from_edges` or `from_csv`.
    Instances hold tuples only, so they are hashable, comparable and can be static arguments of a
    jitted function.

    >>> tree = Hierarchy.two_level([0, 0, 1])
    >>> tree.num_levels, tree.size(1), tree.size(2)
    (2, 2, 3)
    >>> tree.adjacency(2).tolist()
    [[1, 0], [1, 0], [0, 1]]
    >>> Hierarchy.from_paths({"sun": "", "gull": "animals/birds", "cat": "animals"})
    Hierarchy(3 classes at depths {1: 1, 2: 1, 3: 1}, 2 inner nodes)

    Attributes:
      parent_table: for each level 1..L the parent of every entry in the level above.
      node_names: for each level 1..L the name of every entry.
      class_depths: the depth of each class; empty where all lie at depth L.

    Raises:
      ValueError: a level is empty, a parent is out of range, an inner node has no child, or the
        depths do not fit the tables.
      TypeError: a parent or a depth is not an integer.

    Reference: DH²L, §3 (the adjacency P^(l,l−1)).
    """

    parent_table: tuple[tuple[int, ...], ...]
    node_names: tuple[tuple[str, ...], ...] = ()
    class_depths: tuple[int, ...] = dataclasses.field(default=(), hash=False)

    def __post_init__(self) -> None:
        table = tuple(
            as_integers(row, f"the parents of level {level}")
            for level, row in enumerate(self.parent_table, 1)
        )
        if not table:
            raise ValueError("a Hierarchy needs at least one level, found none")
        names = self.node_names or default_names(table)
        names = tuple(tuple(str(name) for name in row) for row in names)
        check_names(table, names)
        check_parents(table, names)
        object.__setattr__(self, "parent_table", table)
        object.__setattr__(self, "node_names", names)
        depths = as_integers(self.class_depths, "the depths of the classes")
        if depths:
            check_depths(depths, self.ancestors(), names)
        if all(depth == len(table) for depth in depths):
            # The class's own () stands in: an even tree holds, and pickles, its two tables alone.
            object.__delattr__(self, "class_depths")
        else:
            object.__setattr__(self, "class_depths", depths)

    # Constructors.

    @classmethod
    def flat(cls, n: int, *, names: Sequence[str] | None = None) -> Hierarchy:
        """One level of `n` classes under the root (CIFAR-10: {1, 10}).

        >>> Hierarchy.flat(10).group_sizes(1).tolist()
        [10]
        """
        (n,) = as_integers((n,), "the number of classes")
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
        return cls(
            with_top_level(parents), () if names is None else tuple(tuple(row) for row in names)
        )

    @classmethod
    def from_paths(cls, paths: Mapping[str, str | Sequence[str]]) -> Hierarchy:
        """From {class: ancestors}, the ancestors named from the root down without the class itself.

        A path is a sequence of names or one string with "/" between them; "" is the root itself,
        and paths may differ in length. Classes keep the order of the mapping, inner nodes the order
        of their first appearance; an inner node is identified by its whole path.

        >>> tree = Hierarchy.from_paths({"Sandal": "Goods/Shoes", "Coat": "Clothes/Outers"})
        >>> tree.names(2)
        ('Shoes', 'Outers')
        """
        if not isinstance(paths, Mapping):
            raise TypeError(f"from_paths takes a mapping {{class: path}}, found {kind_of(paths)}")
        if not paths:
            raise ValueError("a Hierarchy needs at least one class, found an empty mapping")
        return cls(*level_tables([path_parts(name, path) for name, path in paths.items()]))

    @classmethod
    def from_edges(
        cls, edges: Iterable[tuple[str, str]], *, classes: Sequence[str] | None = None
    ) -> Hierarchy:
        """From a list of (child, parent), as WordNet's.

        The one name without a parent is the root; several are the nodes of level 1 instead.

        Args:
          edges: pairs of names in any order.
          classes: in the order of their labels; what lies not above them is left out. None: all
            names without children, in the order of the list.

        Raises:
          ValueError: a name with two parents or below itself, a class above another or unknown.

        >>> tree = Hierarchy.from_edges([("gull", "bird"), ("bird", "animal"), ("cat", "animal")])
        >>> tree.node_names
        (('bird', 'cat'), ('gull', 'cat'))
        """
        return cls(*level_tables(paths_of_edges(edges, classes)))

    @classmethod
    def from_csv(cls, path: str | Path) -> Hierarchy:
        """From a CSV file with the header `class,parent[,grandparent[,...]]`, one line a class.

        Columns run from the class upwards, and the last ones are empty where a class lies less
        deep. A node is its name in whichever column it stands; under two parents it is an error.

        Raises:
          ValueError: names the file, the line and the node.
        """
        return cls(*level_tables([cells[::-1] for _, cells in read_class_list(Path(path))]))

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
        """Number of entries of a level's table; level 0 is the root alone."""
        if level == 0:
            return 1
        return len(self.parent_table[self._index(level)])

    def names(self, level: int) -> tuple[str, ...]:
        """Names of the entries of a level's table."""
        return self.node_names[self._index(level)]

    def parents(self, level: int) -> np.ndarray:
        """(size(level),) int32: each entry's parent in the level above; zeros at level 1."""
        return np.asarray(self.parent_table[self._index(level)], np.int32)

    def adjacency(self, level: int) -> np.ndarray:
        """(size(level), size(level−1)) int32: P^(l,l−1), 1 where the column is the row's parent."""
        return np.eye(self.size(level - 1), dtype=np.int32)[self.parents(level)]

    def group_sizes(self, level: int) -> np.ndarray:
        """(size(level−1),) int32: |g_k|, how many children each entry of the level above has."""
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
        """(C, C) int32: height of the lowest common ancestor of two leaves, see `node_heights`.

        0 for a leaf with itself, L where only the root is shared, on even trees 1 for siblings.

        >>> Hierarchy.two_level([0, 0, 1]).lca_height().tolist()
        [[0, 1, 2], [1, 0, 2], [2, 2, 0]]
        """
        height = np.full((self.num_classes, self.num_classes), self.num_levels, np.int32)
        heights = self.node_heights()
        for row in self.ancestor_nodes():
            np.copyto(height, heights[row], where=row[:, None] == row[None, :])
        return height

    # Its true nodes.

    @property
    def num_nodes(self) -> int:
        """Number of true nodes: classes, inner nodes and the root, whose id is the last."""
        return self.inner_nodes(0).stop

    def inner_nodes(self, level: int) -> range:
        """The ids of the inner nodes of a level; each owns one group of the next level.

        >>> tree = Hierarchy.from_paths({"sun": "", "gull": "animals/birds", "cat": "animals"})
        >>> [tree.inner_nodes(level) for level in (0, 1, 2)]
        [range(5, 6), range(4, 5), range(3, 4)]
        """
        last = self._index(level) + 1 if level else 0
        counts = [self.size(n) - len(self._ended(n)) for n in range(self.num_levels, last - 1, -1)]
        stop = self.num_classes + sum(counts)
        return range(stop - counts[-1], stop)

    def level_nodes(self, level: int) -> np.ndarray:
        """(size(level),) int32: the node of each entry of a level's table; level 0 is the root.

        >>> tree = Hierarchy.from_paths({"sun": "", "gull": "animals/birds", "cat": "animals"})
        >>> [tree.level_nodes(level).tolist() for level in (0, 1, 2, 3)]
        [[5], [0, 4], [0, 3, 2], [0, 1, 2]]
        """
        return self._tables()[level if level == 0 else self._index(level) + 1]

    def members(self, level: int) -> np.ndarray:
        """(n,) int32: the nodes whose depth is the level, in the order of the level's table."""
        return self._links()[self._index(level)][0]

    def ancestor_nodes(self) -> np.ndarray:
        """(L, C) int32: the node above each class at each level, itself from its depth on."""
        rows = zip(self._tables()[1:], self.ancestors(), strict=True)
        return np.stack([nodes[row] for nodes, row in rows])

    def node_parents(self) -> np.ndarray:
        """(num_nodes,) int32: the node above each node; the root's is itself."""
        parents = np.arange(self.num_nodes, dtype=np.int32)
        for nodes, above in self._links():
            parents[nodes] = above
        return parents

    def node_depths(self) -> np.ndarray:
        """(num_nodes,) int32: the level of each node, 0 for the root."""
        depths = np.zeros(self.num_nodes, np.int32)
        for level, (nodes, _) in enumerate(self._links(), 1):
            depths[nodes] = level
        return depths

    def node_heights(self) -> np.ndarray:
        """(num_nodes,) int32: the longest way from each node down to a class, 0 for the classes.

        >>> Hierarchy.from_paths({"sun": "", "gull": "animals/birds"}).node_heights().tolist()
        [0, 0, 1, 2, 3]
        """
        heights = np.zeros(self.num_nodes, np.int32)
        for nodes, above in reversed(self._links()):
            np.maximum.at(heights, above, heights[nodes] + 1)
        return heights

    def depth(self, node: int) -> int:
        """The level of a node, 0 for the root."""
        node = operator.index(node)
        if not 0 <= node < self.num_nodes:
            raise ValueError(f"node {node} does not exist: nodes are 0..{self.num_nodes - 1}")
        return int(self.node_depths()[node])

    def node_id(self, name: str | Sequence[str]) -> int:
        """The node of a path from the root down, or of a name that stands at one place only.

        Args:
          name: "a/b" or ("a", "b"), which are paths, or "b"; "" is the root. A text that is both a
            path and a name is taken for the path.

        Raises:
          ValueError: there is no such node, or there are several.

        >>> tree = Hierarchy.from_paths({"gull": "birds", "toy": "birds/other", "car": "other"})
        >>> tree.node_id("toy"), tree.node_id("birds/other"), tree.node_id("other")
        (1, 3, 5)
        """
        return find_node(name, self.node_paths())

    def unique_names(self) -> tuple[str, ...]:
        """For each node its name, or its path where several nodes have that name; "" for the root.

        >>> tree = Hierarchy.from_paths({"gull": "birds", "toy": "birds/other", "car": "other"})
        >>> tree.unique_names()
        ('gull', 'toy', 'car', 'birds/other', 'birds', 'other', '')
        """
        return unique_names(self.node_paths())

    def node_paths(self) -> list[tuple[str, ...]]:
        """For each node the names from the root down to it; () for the root."""
        paths: list[tuple[str, ...]] = [()] * self.num_nodes
        tables = zip(self._tables()[1:], self.node_names, strict=True)
        names = {node: name for nodes, row in tables for node, name in zip(nodes, row, strict=True)}
        for nodes, above in self._links():
            for node, parent in zip(nodes, above, strict=True):
                paths[node] = (*paths[parent], names[node])
        return paths

    def _ended(self, level: int) -> np.ndarray:
        """The classes of at most this depth."""
        depths = self.class_depths or (self.num_levels,) * self.num_classes
        return np.flatnonzero(np.asarray(depths) <= level)

    def _tables(self) -> list[np.ndarray]:
        """For levels 0..L the node of each entry."""
        tables = [np.full(1, self.num_nodes - 1, np.int32)]
        for level, row in enumerate(self.ancestors(), 1):
            classes = self._ended(level)
            nodes = np.full(self.size(level), -1, np.int32)
            nodes[row[classes]] = classes
            nodes[nodes < 0] = self.inner_nodes(level)
            tables.append(nodes)
        return tables

    def _links(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For levels 1..L the nodes of that depth, and the nodes above them."""
        tables, links = self._tables(), []
        for level in range(1, self.num_levels + 1):
            above = tables[level - 1][self.parents(level)]
            true = tables[level] != above
            links.append((tables[level][true], above[true]))
        return links

    def _index(self, level: int) -> int:
        level = operator.index(level)
        if not 1 <= level <= self.num_levels:
            raise ValueError(f"level {level} does not exist: levels are 1..{self.num_levels}")
        return level - 1

    def as_text(self, rows: int = 40) -> str:
        """The names, a node a line; of a larger tree the levels that fit into so many rows.

        >>> tree = Hierarchy.from_paths({"gull": "birds", "crow": "birds", "cat": ""})
        >>> print(tree.as_text())
        Hierarchy(3 classes at depths {1: 1, 2: 2}, 1 inner nodes)
        ├─ birds
        │  ├─ gull
        │  └─ crow
        └─ cat
        """
        return tree_text(self, rows)

    def __repr__(self) -> str:
        return tree_summary(self)

    def _repr_html_(self) -> str:
        return tree_html(self)

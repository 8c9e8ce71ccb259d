"""What a page says of the answers of a run: plain numbers from logits, labels and the tree."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn.decoding import answer, crm
from dh2l_jax.hierarchy.scores import tree_order

__all__ = ["Answers", "Branch", "ClassRow", "LevelRow", "SureRow"]

BINS = 10  # of the calibration, equally wide
THRESHOLDS = np.arange(101) / 100
LARGEST = 256  # children of a node up to which their confusion is shown cell by cell
PAIRS = 20  # of the most frequent confusions


class LevelRow(NamedTuple):
    """A level: its nodes, the images whose label reaches it, and how many are right.

    Attributes:
      deep: how many classes truly lie that deep, at this depth or below it.
      balanced: mean recall over the nodes that occur.
      error: binomial standard error of the accuracy.
    """

    level: int
    nodes: int
    deep: int
    images: int
    accuracy: float
    balanced: float
    error: float


class ClassRow(NamedTuple):
    """A class: recall and precision (None where nothing asks for it), and what it is taken for."""

    node: int
    images: int
    recall: float | None
    precision: float | None
    taken_for: int | None
    times: int
    sure: float | None
    """Mean probability of the class on its own images."""


class Branch(NamedTuple):
    """How the children of an inner node are taken for each other.

    Attributes:
      way: the nodes from the root down to this one.
      counts: (k, k + 1) true child by answer, the last column for answers outside of the node.
    """

    node: int
    way: list[int]
    children: list[int]
    counts: np.ndarray


class SureRow(NamedTuple):
    """What the answers are with a threshold τ, as shares of the images without NaN."""

    threshold: float
    right: float
    undecided: float
    wrong: float
    root: float
    specificity: float
    depths: list[float]
    """Share answered at each depth 1..L."""


class Answers:
    """The answers of one state of a run on one split.

    Args:
      temperature: what the logits are divided by.
      decision: "argmax", or "crm" for the class of the lowest expected height.
    """

    def __init__(
        self,
        tree: Hierarchy,
        logits: np.ndarray,
        labels: np.ndarray,
        temperature: float = 1.0,
        decision: str = "argmax",
    ):
        self.tree, self.labels = tree, labels
        self.known = np.logical_not(np.isnan(logits).any(axis=1))
        self._logits = np.where(self.known[:, None], logits, 0) / np.float32(temperature)
        odds = np.exp(self._logits - self._logits.max(axis=1, keepdims=True), dtype=np.float64)
        self._p = odds / odds.sum(axis=1, keepdims=True)
        by_risk = decision == "crm"
        self.answers = np.asarray(crm(self._logits, tree) if by_risk else self._logits.argmax(1))
        self.sure = np.take_along_axis(self._p, self.answers[:, None], axis=1)[:, 0]

    @functools.cached_property
    def line(self) -> np.ndarray:
        """(L + 1, num_nodes): the node above each node at each depth, itself from its depth on."""
        return lines(self.tree)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each node."""
        return (*self.tree.unique_names()[:-1], "all classes")

    @functools.cached_property
    def own_names(self) -> tuple[str, ...]:
        """The name of each node without those above it."""
        found, depths = [""] * self.tree.num_nodes, self.tree.node_depths()
        for level in range(1, self.tree.num_levels + 1):
            pairs = zip(self.tree.level_nodes(level), self.tree.names(level), strict=True)
            for node, name in pairs:
                # A folder whose name stands at several places of the tree is named by its path.
                above = self.line[1 : int(depths[node]), node].tolist()
                found[node] = name.removeprefix("".join(f"{found[n]}/" for n in above))
        return tuple(found)

    @functools.cached_property
    def leaves(self) -> np.ndarray:
        """(num_nodes,): how many classes lie below each node."""
        C = self.tree.num_classes
        counts = np.bincount(self.line[:, :C].ravel(), minlength=self.tree.num_nodes)
        counts[:C] = 1  # a class stands for itself at every deeper level
        return counts

    def way(self, node: int) -> list[int]:
        """The nodes from below the root down to a node."""
        return self.line[1 : int(self.tree.node_depths()[node]) + 1, node].tolist()

    def levels(self) -> list[LevelRow]:
        """A row a level; an inner label reaches its own level and those above."""
        depths, C, rows = self.tree.node_depths(), self.tree.num_classes, []
        for level in range(1, self.tree.num_levels + 1):
            reach = (self.labels < C) | (depths[self.labels] >= level)
            truth = self.line[level, self.labels[reach]]
            hit = np.equal(self.line[level, self.answers[reach]], truth) & self.known[reach]
            n = int(reach.sum())
            nodes, number = np.unique(truth, return_inverse=True)
            recalls = np.bincount(number, hit) / np.bincount(number)
            share = float(hit.mean()) if n else math.nan
            error = math.sqrt(share * (1 - share) / n) if n else math.nan
            deep = int((depths[:C] >= level).sum())
            balanced = float(recalls.mean()) if len(nodes) else math.nan
            rows.append(LevelRow(level, self.tree.size(level), deep, n, share, balanced, error))
        return rows

    def classes(self) -> list[ClassRow]:
        """A row a class, in the order of the tree."""
        rows = []
        for node in tree_order(self.tree).tolist():
            mine, said = self.labels == node, (self.answers == node) & self.known
            n, hits = int(mine.sum()), int((mine & said).sum())
            others = self.answers[mine & ~said & self.known]
            number = np.bincount(others) if len(others) else np.zeros(1, int)
            rows.append(
                ClassRow(
                    node,
                    n,
                    hits / n if n else None,
                    hits / int(said.sum()) if said.any() else None,
                    int(number.argmax()) if len(others) else None,
                    int(number.max()),
                    float(self._p[mine, node].mean()) if n else None,
                )
            )
        return rows

    def confusion(self) -> np.ndarray:
        """(C, C) counts of the images labelled at classes, both axes in the order of the tree."""
        C, used = self.tree.num_classes, self.known & (self.labels < self.tree.num_classes)
        place = np.argsort(tree_order(self.tree))
        counts = np.zeros((C, C), np.int64)
        np.add.at(counts, (place[self.labels[used]], place[self.answers[used]]), 1)
        return counts

    def pairs(self) -> list[tuple[int, int, int]]:
        """The most frequent confusions: true class, answer, how often."""
        counts, order = self.confusion(), tree_order(self.tree)
        np.fill_diagonal(counts, 0)
        best = np.argsort(-counts, axis=None, kind="stable")[:PAIRS]
        rows, columns = np.unravel_index(best, counts.shape)
        found = zip(order[rows], order[columns], counts[rows, columns], strict=True)
        return [(int(a), int(b), int(n)) for a, b, n in found if n]

    def branches(self) -> list[Branch]:
        """A branch for each inner node with two children or more, the root first."""
        tree, depths = self.tree, self.tree.node_depths()
        parents = tree.node_parents()
        found = []
        for node in range(tree.num_nodes - 1, tree.num_classes - 1, -1):
            depth = int(depths[node])
            children = np.flatnonzero((parents == node) & (np.arange(tree.num_nodes) != node))
            if not 1 < len(children) <= LARGEST:
                continue
            below = depth + 1
            used = self.known & (depths[self.labels] >= below)
            used &= self.line[depth, self.labels] == node
            place = np.full(tree.num_nodes, len(children))
            place[children] = np.arange(len(children))
            counts = np.zeros((len(children), len(children) + 1), np.int64)
            truth, said = (self.line[below, n[used]] for n in (self.labels, self.answers))
            np.add.at(counts, (place[truth], place[said]), 1)
            way = [tree.num_nodes - 1, *self.way(node)] if depth else [node]
            found.append(Branch(node, way, children.tolist(), counts))
        return found

    def sure_against_right(self) -> list[SureRow]:
        """How deep, how often right and how exact answers are, for each threshold."""
        logits, labels = self._logits[self.known], self.labels[self.known]
        of = jax.vmap(lambda threshold: answer(logits, self.tree, threshold)[0])
        return [
            self._row(float(threshold), nodes, labels)
            for threshold, nodes in zip(THRESHOLDS, np.asarray(of(THRESHOLDS)), strict=True)
        ]

    def _row(self, threshold: float, nodes: np.ndarray, labels: np.ndarray) -> SureRow:
        depths, C, n = self.tree.node_depths(), self.tree.num_classes, max(len(labels), 1)
        right = self.line[depths[nodes], labels] == nodes
        undecided = ~right & (self.line[depths[labels], nodes] == labels)
        at = np.bincount(depths[nodes], minlength=self.tree.num_levels + 1)
        lost = np.log(self.leaves[nodes]).sum() / n
        exact = 1 - lost / math.log(C) if C > 1 else 1.0
        return SureRow(
            threshold,
            int(right.sum()) / n,
            int(undecided.sum()) / n,
            int((~right & ~undecided).sum()) / n,
            int(at[0]) / n,
            float(exact),
            [int(count) / n for count in at[1:]],
        )

    def calibration(self) -> tuple[list[tuple[int, float, float]], float]:
        """(images, mean certainty, accuracy) of each bin, and the expected calibration error."""
        used = self.known & (self.labels < self.tree.num_classes)
        sure, right = self.sure[used], (self.answers == self.labels)[used]
        number = np.minimum((sure * BINS).astype(int), BINS - 1)
        rows, error = [], 0.0
        for bin_ in range(BINS):
            chosen = number == bin_
            n = int(chosen.sum())
            mean, share = (float(x[chosen].mean()) if n else math.nan for x in (sure, right))
            rows.append((n, mean, share))
            error += n * abs(mean - share) / max(len(sure), 1) if n else 0.0
        return rows, error

    def severity(self, rows: np.ndarray) -> np.ndarray:
        """Height of the lowest common ancestor of label and answer of some images."""
        heights = self.tree.node_heights()
        found = np.full(len(rows), int(heights[-1]))
        for nodes in self.line:
            same = nodes[self.labels[rows]] == nodes[self.answers[rows]]
            found[same] = heights[nodes[self.labels[rows]][same]]
        return found


def lines(tree: Hierarchy) -> np.ndarray:
    """(L + 1, num_nodes): the node above each node at each depth, itself from its depth on.

    >>> lines(Hierarchy.two_level([0, 0, 1])).tolist()
    [[5, 5, 5, 5, 5, 5], [3, 3, 4, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    """
    depths, parents = tree.node_depths(), tree.node_parents()
    rows = [np.arange(tree.num_nodes)]
    for depth in range(tree.num_levels - 1, -1, -1):
        rows.append(np.where(depths[rows[-1]] > depth, parents[rows[-1]], rows[-1]))
    return np.stack(rows[::-1])

"""Trees and scores as people read them: text, and HTML for notebooks."""

from __future__ import annotations

import collections
import html
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dh2l_jax.checks import one_line

__all__ = ["Scores", "tree_html", "tree_summary", "tree_text"]

OPEN = 40  # rows up to which the branches of a notebook's tree are open
SHOWN = 2_000  # rows that it has at all


# Trees. `Hierarchy` imports this module: here a tree is whatever has its methods.


class _Node(NamedTuple):
    """A node that is shown.

    Attributes:
      name: its own.
      classes: how many lie below an inner node; 0 of a class.
      depth: its level.
      children: those that are shown.
      left_out: how many are not; all of them where `children` is empty.
    """

    name: str
    classes: int
    depth: int
    children: list[_Node]
    left_out: int


def tree_summary(tree: Any) -> str:
    """The sizes of the levels, or the depths of the classes where they differ."""
    if tree.class_depths:
        depths = dict(sorted(collections.Counter(tree.class_depths).items()))
        inner = tree.num_nodes - 1 - tree.num_classes
        return f"Hierarchy({tree.num_classes} classes at depths {depths}, {inner} inner nodes)"
    sizes = ", ".join(str(len(row)) for row in tree.parent_table)
    return f"Hierarchy({{{sizes}}})"


def tree_text(tree: Any, rows: int) -> str:
    """See `Hierarchy.as_text`."""
    return "\n".join([tree_summary(tree), *_lines(_shown(tree, rows))])


def tree_html(tree: Any) -> str:
    """The tree as lists that open and close; names are escaped."""
    whole = _whole_levels(_children(tree), tree.num_nodes - 1, OPEN)
    head = html.escape(tree_summary(tree))
    return f"<details open><summary>{head}</summary>{_list(_shown(tree, SHOWN), whole)}</details>"


def _children(tree: Any) -> list[list[int]]:
    """The nodes below each node, in the order of their level's table."""
    found: list[list[int]] = [[] for _ in range(tree.num_nodes)]
    parents = tree.node_parents()
    for level in range(1, tree.num_levels + 1):
        for node in tree.members(level).tolist():
            found[parents[node]].append(node)
    return found


def _whole_levels(children: Sequence[Sequence[int]], root: int, rows: int) -> int:
    """How many levels fit into so many rows."""
    level, depth = list(children[root]), 0
    while level and len(level) <= rows:
        rows -= len(level)
        level, depth = [child for node in level for child in children[node]], depth + 1
    return depth


def _shown(tree: Any, rows: int) -> _Node:
    """The levels that fit, and of the next one the first children of each node, equally many."""
    children, root = _children(tree), tree.num_nodes - 1
    whole = _whole_levels(children, root, rows)
    names = [path[-1] if path else "" for path in tree.node_paths()]
    level = [root]
    for _ in range(whole):
        rows -= sum(len(children[node]) for node in level)
        level = [child for node in level for child in children[node]]
    sizes = [len(children[node]) for node in level]

    def needed(k: int) -> int:
        return sum(min(size, k) + (size > k) for size in sizes)

    first = next((k for k in range(max(sizes, default=0), 0, -1) if needed(k) <= rows), 0)

    def node(number: int, depth: int) -> _Node:
        below = children[number]
        taken = below if depth < whole else below[: first if depth == whole else 0]
        nodes = [node(child, depth + 1) for child in taken]
        return _Node(names[number], counts[number], depth, nodes, len(below) - len(taken))

    counts = _classes_below(tree, children)
    return node(root, 0)


def _classes_below(tree: Any, children: Sequence[Sequence[int]]) -> list[int]:
    """Of each node; 0 for the classes themselves. Children have smaller numbers than parents."""
    counts = [0] * tree.num_classes
    for below in children[tree.num_classes :]:
        counts.append(sum(counts[child] or 1 for child in below))
    return counts


def _label(node: _Node) -> str:
    hidden = node.left_out and not node.children
    return one_line(node.name) + (f"  ({_several(node.classes)})" if hidden else "")


def _several(classes: int) -> str:
    return f"{classes:,} class{'es' if classes > 1 else ''}"


def _lines(node: _Node, indent: str = "") -> Iterator[str]:
    more = [f"… {node.left_out:,} more"] if node.left_out and (node.children or not indent) else []
    for number, child in enumerate(node.children, 1):
        last = number == len(node.children) and not more
        yield indent + ("└─ " if last else "├─ ") + _label(child)
        yield from _lines(child, indent + ("   " if last else "│  "))
    yield from (f"{indent}└─ {line}" for line in more)


def _list(node: _Node, whole: int) -> str:
    items = []
    for child in node.children:
        label = html.escape(_label(child))
        if child.children:
            state = " open" if child.depth < whole else ""
            inner = f"{label} <small>{_several(child.classes)}</small>"
            label = f"<details{state}><summary>{inner}</summary>{_list(child, whole)}</details>"
        items.append(f"<li>{label}</li>")
    if node.left_out and node.children:
        items.append(f"<li>… {node.left_out:,} more</li>")
    return f"<ul>{''.join(items)}</ul>"


# Scores.


class Scores(dict[str, Any]):
    """A dict of scores that shows as a table; what is in it see `summarize`."""

    def __repr__(self) -> str:
        if "accuracy" not in self:
            return super().__repr__()
        rows = _rows(self)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([_head(self), *table, *_notes(self)])

    def _repr_html_(self) -> str | None:
        if "accuracy" not in self:
            return None
        first, *rows = _rows(self)
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        head = "".join(f"<th>{cell}</th>" for cell in first)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        notes = "<br>".join(html.escape(note) for note in _notes(self))
        return (
            f"<table><caption>{html.escape(_head(self))}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{notes}</p>"
        )


def _head(scores: Scores) -> str:
    split = one_line(f"{scores['split']}, ") if "split" in scores else ""
    return f"{split}{scores['images']:,} images"


def _rows(scores: Scores) -> list[tuple[str, ...]]:
    """A head and a row a level: how many nodes and images it has, and the shares that are right."""
    columns = {"level": [str(level) for level, _ in enumerate(scores["accuracy"], 1)]}
    if "nodes" in scores:
        columns["nodes"] = [f"{count:,}" for count in scores["nodes"]]
    if len(set(scores.get("level_images", ()))) > 1:  # where all reach all levels, the head says it
        columns["images"] = [f"{count:,}" for count in scores["level_images"]]
    for name, title in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced")):
        if name in scores:
            columns[title] = ["–" if x is None else f"{100 * x:.2f} %" for x in scores[name]]
    return [tuple(columns), *zip(*columns.values(), strict=True)]


_NOTES = {
    "loss": "cross-entropy {:.4f}",
    "top5": "label among the best 5 {:.2%}",
    "mistake_severity": "mistake severity {:.3f}",
    "hF1": "hierarchical F1 {:.2%}",
}


def _notes(scores: Scores) -> list[str]:
    return [
        text.format(scores[name]) for name, text in _NOTES.items() if scores.get(name) is not None
    ]

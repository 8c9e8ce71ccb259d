"""Scores a finished run, or the answers of any program.

dh2l evaluate RUN [--data.data_dir DIR]     a finished run, on what it was evaluated on
dh2l evaluate --predictions FILE.csv --labels FILE.csv --tree TREE [--json FILE]

Each line of both files names an image and then a class or another node of the tree, by its name or,
where several have that name, its path: "a/b". The first line is a header; further columns are not
read. An empty name is the root: nothing is known. TREE is a file class,parent[,grandparent], the
name of a published tree, or a folder: of a run, or of images.

Exit codes: 0 done, 2 bad input, 4 the report can't be written.
"""

from __future__ import annotations

import argparse
import collections
import csv
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dh2l_jax.checks import one_line, unknown_name
from dh2l_jax.commands import BAD, Exit, Parser, fail, put
from dh2l_jax.hierarchy.published import TAXONOMIES, taxonomy
from dh2l_jax.hierarchy.tree import Hierarchy

# What needs JAX is imported in the functions: help and a wrong option answer at once.
if TYPE_CHECKING:
    from rich.console import Console

PROGRAM = "dh2l evaluate"

Rows = dict[str, tuple[int, str]]
"""By image, the line and the name of its node."""

Nodes = dict[str, list[int]]
"""Of each name."""


def main(arguments: list[str]) -> int:
    """Runs the command line; its exit code."""
    if arguments and not arguments[0].startswith("-"):
        # Imported late: it needs tyro.
        from dh2l_jax.commands import train

        run, *rest = arguments
        return train.main(["--eval-only", "--workdir", run, *rest], PROGRAM)
    try:
        options = parse_arguments(arguments)
        scores = score_files(Path(options.predictions), Path(options.labels), options.tree)
    except BAD as error:
        return fail(PROGRAM, error)
    if options.json:
        text = json.dumps(scores, indent=2, ensure_ascii=False) + "\n"
        try:
            put(text, options.json)
        except OSError as error:
            return fail(PROGRAM, error, Exit.CANNOT_WRITE)
    if options.json != "-":
        from rich.console import Console

        show(scores, Console(highlight=False))
    return Exit.FINISHED


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line of two files, taken apart; a `ValueError` says what is wrong with it."""
    parser = Parser(
        prog=PROGRAM,
        usage="dh2l evaluate RUN | --predictions FILE --labels FILE --tree TREE [--json FILE]",
        description=__doc__,
    )
    parser.add_argument("--predictions", metavar="FILE", help="CSV: image, class or node")
    parser.add_argument("--labels", metavar="FILE", help="CSV: image, class or node")
    parser.add_argument("--tree", metavar="TREE", help="a CSV file, a published tree or a folder")
    parser.add_argument("--json", metavar="FILE", help="all scores as JSON; - for stdout")
    options = parser.parse_args(arguments)
    for name in ("predictions", "labels", "tree"):
        if getattr(options, name) is None:
            raise ValueError(f"expected RUN, the folder of a finished run, or --{name}")
    return options


def score_files(predictions: Path, labels: Path, tree: str) -> dict[str, Any]:
    """The scores of the answers in a file to the labels in another.

    Raises:
      ValueError: a file is no such table, an image stands in one alone, or a name is of no node;
        the line and the nearest name are given.
      OSError: a file cannot be read.
    """
    from dh2l_jax.hierarchy.scores import judge_answers, score_answers

    hierarchy = read_tree(tree)
    nodes = nodes_by_name(hierarchy)
    answered = read_rows(predictions, "image,answer", nodes)
    labelled = read_rows(labels, "image,label", nodes)
    _refuse_unmatched(predictions, answered, labels, labelled)
    _refuse_unmatched(labels, labelled, predictions, answered)
    a = np.array([_node(predictions, *answered[image], nodes, hierarchy) for image in labelled])
    b = np.array([_node(labels, *row, nodes, hierarchy) for row in labelled.values()])
    sizes = [hierarchy.size(level) for level in range(1, hierarchy.num_levels + 1)]
    scores = {"nodes": sizes, **judge_answers(a, b, hierarchy)}
    return {**scores, **score_answers(a, b, hierarchy)}


def read_tree(text: str) -> Hierarchy:
    """The tree of a CSV file, of a name, of a run or of a folder of images."""
    path = Path(text).expanduser()
    if path.is_file():
        return Hierarchy.from_csv(path)
    if not path.is_dir():
        if "/" in text or "." in text:
            raise FileNotFoundError(f"expected a tree, found no file or folder {text!r}")
        return taxonomy(text) if text in TAXONOMIES else _unknown_tree(text)
    from dh2l_jax.training.run import folder as run_folder

    if run_folder.is_run(path):
        from dh2l_jax.training.run.facts import read_facts

        return read_facts(path).tree
    from dh2l_jax.data.folders.scan import open_folder

    return open_folder(path).hierarchy


def _unknown_tree(text: str) -> Hierarchy:
    raise ValueError(unknown_name("tree", text, TAXONOMIES))


def read_rows(path: Path, form: str, nodes: Nodes) -> Rows:
    """The lines of a file below its header, of this form, by the image that they name."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if len(lines) < 2:
        raise ValueError(f"{path}: expected a header, such as {form}, and a line an image")
    if lines[0][1][1:2] and lines[0][1][1] in nodes:
        raise ValueError(
            f"{path}: expected a header, such as {form}, found {','.join(lines[0][1])!r}"
        )
    rows: Rows = {}
    for number, row in lines[1:]:
        if len(row) < 2 or not row[0]:
            raise ValueError(f"{path}, line {number}: expected {form}, found {','.join(row)!r:.80}")
        if row[0] in rows:
            first = rows[row[0]][0]
            raise ValueError(
                f"{path}, line {number}: image {row[0]!r} occurs twice (first on line {first})"
            )
        rows[row[0]] = number, row[1]
    return rows


def _refuse_unmatched(path: Path, rows: Rows, other: Path, others: Rows) -> None:
    missing = next((image for image in rows if image not in others), None)
    if missing is not None:
        near = difflib.get_close_matches(missing, others, n=1, cutoff=0.0)
        raise ValueError(
            f"{path}, line {rows[missing][0]}: image {missing!r} does not stand in {other}, the "
            f"nearest there is {near[0]!r}"
        )


def nodes_by_name(tree: Hierarchy) -> Nodes:
    """The nodes of each name, and of each path from the root down, which goes before a name."""
    names = {
        int(node): name
        for level in range(1, tree.num_levels + 1)
        for node, name in zip(tree.level_nodes(level), tree.names(level), strict=True)
    }
    root, parents = tree.num_nodes - 1, tree.node_parents().tolist()
    found: Nodes = collections.defaultdict(list)
    paths = {"": [root]}
    for node, name in names.items():
        found[name].append(node)
        line, above = [name], parents[node]
        while above != root:
            line.append(names[above])
            above = parents[above]
        paths["/".join(line[::-1])] = [node]
    return found | paths


def _node(path: Path, line: int, name: str, nodes: Nodes, tree: Hierarchy) -> int:
    found = nodes.get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        try:
            return tree.node_id(name)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    near = difflib.get_close_matches(name, nodes, n=1, cutoff=0.0)[0]
    raise ValueError(f"{path}, line {line}: unknown class or node {name!r}: did you mean {near!r}?")


def show(scores: dict[str, Any], console: Console) -> None:
    """A table of the levels, and lines of what is said of all answers."""
    from dh2l_jax.training.run.console import level_table

    console.print(f"{scores['images']:,} images", markup=False)
    console.print(level_table(scores))
    percent = {name: f"{100 * value:.2f} %" for name, value in scores.items() if name in _SHARES}
    for line in (
        f"right {percent['right']}, undecided {percent['undecided']}, wrong {percent['wrong']}; "
        f"{percent['root']} say nothing, specificity {percent['specificity']}",
        f"mistake severity {scores['mistake_severity']:.3f} (mean height of the lowest common "
        "ancestor, wrong answers to labelled classes only)",
        f"hierarchical precision {percent['hP']}, recall {percent['hR']}, F1 {percent['hF1']}; "
        f"means of images {percent['macro_hP']}, {percent['macro_hR']}, {percent['macro_hF1']}",
    ):
        console.print(one_line(line), soft_wrap=True, markup=False)


_SHARES = (
    *("right", "undecided", "wrong", "root", "specificity"),
    *("hP", "hR", "hF1", "macro_hP", "macro_hR", "macro_hF1"),
)

"""From a run to its page: numbers and pictures are put into the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dh2l_jax.experiments.page import pictures
from dh2l_jax.experiments.page.numbers import Answers
from dh2l_jax.experiments.page.render import rendered
from dh2l_jax.experiments.page.weights import class_vectors, layers, read_arrays, spheres
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.scores import tree_order
from dh2l_jax.training.config import Config
from dh2l_jax.training.config.options import flat, text_of
from dh2l_jax.training.run.facts import Outputs, RunFacts
from dh2l_jax.training.run.folder import LAST, METRICS
from dh2l_jax.training.run.records import read_records

__all__ = ["run_page"]

PANELS = 12  # terms with a picture of their own; the table has all
ROWS = 60  # epochs in the table of the curves
STEP = 5  # of the thresholds in the table, in hundredths
SCORES = {
    "loss": "cross-entropy",
    "top5": "label among the best 5",
    "mistake_severity": "mean severity of a mistake",
    "hP": "hierarchical precision",
    "hR": "hierarchical recall",
    "hF1": "hierarchical F1",
    "hierarchical_distance": "mean severity of the best {}",
    "best_of_k_height": "least severity among the best {}",
    "hierarchical_precision": "hierarchical precision of the best {}",
    "full_path_accuracy": "full-path accuracy",
    "inconsistent_path_ratio": "inconsistent paths",
}


def run_page(facts: RunFacts) -> str:
    """The page of a finished run, complete in one text.

    What was evaluated last counts: the test images where `dh2l train --test` has seen them.

    Raises:
      ImportError: Jinja2 or matplotlib is missing; the message says what to install.
      ValueError: the run is not finished, or a file of it is damaged.
    """
    split = "test" if facts.test else facts.result.get("split", "test")
    outputs = facts.test_outputs(LAST) if facts.test else facts.outputs
    decision = facts.config.eval.decision
    answers = Answers(facts.tree, outputs.logits, outputs.labels, facts.temperature, decision)
    records = read_records(facts.workdir / METRICS)
    arrays = read_arrays(facts.workdir)
    groups = spheres(class_vectors(facts, arrays), facts.tree)
    rows = layers(arrays)
    context = {
        "title": facts.workdir.resolve().name,
        "facts": facts,
        "split": {"test": "test", "validation": "held-out"}.get(split, split),
        "answers": answers,
        "scored": _scored(facts),
        "scores": _scores(_scored(facts)),
        "training": _training(records, facts),
        "confusion": _confusion(answers),
        "mistakes": _mistakes(answers, outputs),
        "sure": _sure(answers),
        "calibration": _calibration(answers),
        "layers": rows,
        "layer_pictures": pictures.diversity(rows),
        "spheres": [(group, pictures.sphere(group)) for group in groups],
        "config": _config(facts.config),
    }
    return rendered("run.html", context)


def _scored(facts: RunFacts) -> dict[str, dict[str, Any]]:
    """What was evaluated, by what a column is called."""
    if not facts.test:
        return {f"last state, {facts.result['split']}": facts.result}
    names = {state: f"{state.replace('_', ' ')}, test" for state in facts.test if state != "data"}
    tests = {
        names[state]: scores
        for state, scores in facts.test.items()
        if isinstance(scores, dict) and "accuracy" in scores
    }
    return {f"last state, {facts.result['split']}": facts.result} | tests


def _scores(scored: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """A row a score that a run has: what it is, and its value in each column."""
    rows = []
    for name, text in SCORES.items():
        columns = [scores[name] for scores in scored.values() if name in scores]
        if len(columns) != len(scored):
            continue  # an earlier version did not count it
        if isinstance(columns[0], dict):
            rows += [(text.format(k), [column[k] for column in columns]) for k in columns[0]]
        else:
            rows.append((text, columns))
    return rows


def _training(records: Sequence[Mapping[str, Any]], facts: RunFacts) -> dict[str, Any]:
    """The terms of J by epoch: pictures, and the table that they are drawn from."""
    names = [name for name in facts.result["last_epoch"] if name != "train_accuracy"]
    epochs = [record["epoch"] for record in records]

    def line(name: str) -> tuple[list[int], list[float]]:
        found = [(r["epoch"], r[name]) for r in records if name in r]
        return [e for e, _ in found], [value for _, value in found]

    first = {name: line(name) for name in names if name in ("J", "L")}
    accuracy = {"training": line("train_accuracy")}
    evaluated = [(r["epoch"], r["accuracy"]) for r in records if "accuracy" in r]
    evaluated += [(epochs[-1] if epochs else 0, facts.result["accuracy"])]
    for level in range(1, facts.tree.num_levels + 1):
        name = f"{facts.result['split']}, level {level}"
        accuracy[name] = [e for e, _ in evaluated], [scores[level - 1] for _, scores in evaluated]
    panels = {"J and the cross-entropy L": first, "accuracy": accuracy}
    others = [name for name in names if name not in first]
    panels |= {name: {name: line(name)} for name in others[:PANELS]}
    panels["learning rate"] = {"rate": line("lr")}
    step = -(-len(records) // ROWS)
    shown = [r for i, r in enumerate(records, 1) if i % max(step, 1) == 0 or i == len(records)]
    columns = [*names, "train_accuracy", "lr"]
    return {
        "pictures": pictures.curves(list(panels), list(panels.values())),
        "left": others[PANELS:],
        "step": step,
        "columns": columns,
        "rows": [(r["epoch"], [r.get(name) for name in columns]) for r in shown],
    }


def _confusion(answers: Answers) -> dict[str, Any]:
    """The picture of all classes, the frames of the first level in it, and a table a branch."""
    counts, order = answers.confusion(), tree_order(answers.tree)
    branches = answers.branches()
    tops, frames = answers.line[1, order], []
    for node in dict.fromkeys(tops.tolist()):
        (places,) = np.nonzero(tops == node)
        frames.append((node, int(places[0]), len(places)))
    return {
        "picture": pictures.confusion(counts),
        "size": len(counts),
        "frames": frames,
        "branches": branches,
        "leads": _leads(answers.tree, {branch.node for branch in branches}),
        "pairs": answers.pairs(),
    }


def _leads(tree: Hierarchy, shown: set[int]) -> dict[int, int]:
    """For each node the branch that shows it: its own or, below an only child, the next one."""
    parents = tree.node_parents()
    children = {node: np.flatnonzero(parents[:-1] == node) for node in set(parents.tolist())}
    leads = {}
    for node in children:
        below = node
        while below not in shown and len(children.get(below, ())) == 1:
            below = int(children[below][0])
        if below in shown:
            leads[node] = below
    return leads


def _mistakes(answers: Answers, outputs: Outputs) -> list[dict[str, Any]]:
    severity = answers.severity(outputs.worst)
    return [
        {
            "name": name,
            "picture": pictures.png(pixels),
            "size": pixels.shape,
            "label": answers.way(int(answers.labels[row])),
            "answer": answers.way(int(answers.answers[row])),
            "sure": float(answers.sure[row]),
            "severity": int(height),
        }
        for row, name, pixels, height in zip(
            outputs.worst, outputs.names, outputs.thumbnails, severity, strict=True
        )
    ]


def _sure(answers: Answers) -> dict[str, Any]:
    rows = answers.sure_against_right()
    return {"pictures": pictures.sure(rows), "rows": rows[::STEP]}


def _calibration(answers: Answers) -> dict[str, Any]:
    bins, error = answers.calibration()
    return {"pictures": pictures.calibration(bins), "bins": bins, "error": error}


def _config(config: Config) -> list[tuple[str, str, bool]]:
    """Every option with its value, and whether it is another than the default."""
    defaults = dict(flat(Config()))
    return [(key, text_of(value), value != defaults[key]) for key, value in flat(config)]

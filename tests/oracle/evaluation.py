"""The oracle of evaluation: every number from its definition, one image after another, no JAX.

A tree is given by `parents = [p_1, ..., p_L]` as in `oracle_tree`. Means are exact fractions, so a
float is rounded once, at the end; probabilities are float64.
"""

import math
from fractions import Fraction
from typing import Any

from oracle import learn
from oracle.tree import ancestor


def path(parents, leaf):
    """The set of a leaf and its ancestors without the root, as (level, node)."""
    return {(level, ancestor(parents, leaf, level)) for level in range(1, len(parents) + 1)}


def lca_height(parents, a, b):
    """How many steps up two leaves meet."""
    height = 0
    while a != b:
        a, b = parents[-1 - height][a], parents[-1 - height][b]
        height += 1
    return height


def ranking(row):
    """Classes from the largest value to the smallest, the lower index first among equals."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def probabilities(parents, row, level):
    """Of the nodes of a level: the sum over the classes below."""
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    result = []
    for node in range(len(parents[level - 1])):
        below = [i for i in range(len(row)) if ancestor(parents, i, level) == node]
        result.append(math.fsum(math.exp(row[i] - top) for i in below) / total)
    return result


def choices(parents, row, level_rows=None):
    """The independent prediction of every level 1..L."""
    if level_rows is None:
        level_rows = [probabilities(parents, row, level) for level in range(1, len(parents))]
    return [ranking(values)[0] for values in (*level_rows, row)]


def with_ancestors(parents, nodes):
    """The set of nodes, one a level, with all their ancestors but the root."""
    result = set()
    for level, node in enumerate(nodes, 1):
        while level > 0:
            result.add((level, node))
            level, node = level - 1, parents[level - 1][node]
    return result


def is_path(parents, nodes):
    """Whether each node is the parent of the next level's."""
    return all(parents[level][nodes[level]] == nodes[level - 1] for level in range(1, len(nodes)))


def cross_entropy(row, label):
    top = max(row)
    return top + math.log(math.fsum(math.exp(x - top) for x in row)) - row[label]


def mean(values):
    """0 if there are none."""
    values = [Fraction(value) for value in values]
    return sum(values) / len(values) if values else Fraction(0)


def precision_recall_f(predicted, true):
    """Of lists of sets, sizes summed over all images before dividing."""
    common = sum(len(p & t) for p, t in zip(predicted, true, strict=True))
    precision = Fraction(common, sum(map(len, predicted)))
    recall = Fraction(common, sum(map(len, true)))
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else Fraction(0)


def precision_at(parents, heights, labels, k):
    """Σ (1 − h/H) of the k best classes, over the same sum of the k nearest."""
    classes = range(len(parents[-1]))
    nearest = [sorted(lca_height(parents, label, other) for other in classes) for label in labels]
    gained, gainable = (
        sum(1 - Fraction(h, len(parents)) for row in rows for h in row[:k])
        for rows in (heights, nearest)
    )
    return gained / gainable


def tree_order(parents):
    """Classes sorted by their ancestors from the top down."""
    return sorted(range(len(parents[-1])), key=lambda leaf: sorted(path(parents, leaf)))


def confusion(parents, guesses, labels):
    order = tree_order(parents)
    pairs = list(zip(labels, guesses, strict=True))
    return [[pairs.count((true, guess)) for guess in order] for true in order]


def leaf_scores(parents, logits, labels):
    """The numbers of the leaf predictions."""
    best = [ranking(row) for row in logits]
    guesses = [row[0] for row in best]
    pairs = list(zip(guesses, labels, strict=True))
    levels = range(1, len(parents) + 1)
    heights = [
        [lca_height(parents, guess, label) for guess in row]
        for row, label in zip(best, labels, strict=True)
    ]
    paths = [[path(parents, leaf) for leaf in leaves] for leaves in (guesses, labels)]
    return {
        "accuracy": [
            mean(ancestor(parents, g, level) == ancestor(parents, t, level) for g, t in pairs)
            for level in levels
        ],
        "balanced_accuracy": [
            mean(
                mean(
                    ancestor(parents, g, level) == node
                    for g, t in pairs
                    if ancestor(parents, t, level) == node
                )
                for node in {ancestor(parents, t, level) for t in labels}
            )
            for level in levels
        ],
        "top5": mean(label in row[:5] for row, label in zip(best, labels, strict=True)),
        "mistake_severity": mean(lca_height(parents, g, t) for g, t in pairs if g != t),
        "hierarchical_distance": {
            str(k): mean(mean(row[:k]) for row in heights) for k in (1, 5, 20)
        },
        "best_of_k_height": {str(k): mean(min(row[:k]) for row in heights) for k in (1, 5, 20)},
        "hierarchical_precision": {
            str(k): precision_at(parents, heights, labels, k) for k in (1, 5, 20)
        },
        **dict(zip(("hP", "hR", "hF1"), precision_recall_f(*paths), strict=True)),
        "confusion": confusion(parents, guesses, labels),
    }


def independent_scores(parents, logits, labels, level_logits=None):
    """The numbers of the independent predictions."""
    chosen = [
        choices(parents, row, level_logits and [level[i] for level in level_logits])
        for i, row in enumerate(logits)
    ]
    truth = [[node for _, node in sorted(path(parents, label))] for label in labels]
    sets = [with_ancestors(parents, nodes) for nodes in chosen]
    scores = precision_recall_f(sets, [path(parents, label) for label in labels])
    return {
        "full_path_accuracy": mean(c == t for c, t in zip(chosen, truth, strict=True)),
        "inconsistent_path_ratio": mean(not is_path(parents, nodes) for nodes in chosen),
        "independent_accuracy": [
            mean(c[level] == t[level] for c, t in zip(chosen, truth, strict=True))
            for level in range(len(parents))
        ],
        **dict(zip(("independent_hP", "independent_hR", "independent_hF1"), scores, strict=True)),
    }


def evaluate(parents, logits, labels, level_logits=None):
    """All numbers but the names; fractions as floats."""
    losses = [cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)]
    return {
        "images": len(labels),
        "loss": math.fsum(losses) / len(labels),
        "class_images": len(labels),
        "level_images": [len(labels)] * len(parents),
        "level_classes": [len(parents[-1])] * len(parents),
        **_floats(leaf_scores(parents, logits, labels)),
        **_floats(independent_scores(parents, logits, labels, level_logits)),
    }


def of_levels(classes, answers, labels):
    """What answers and labels at any nodes, paths of names, say of each level 1..L.

    A class is a path of `classes`; it reaches the levels below its own, other nodes do not.
    """
    pairs, rows = list(zip(answers, labels, strict=True)), []
    for level in range(1, max(map(len, classes)) + 1):
        reach = [(a, t) for a, t in pairs if t in classes or len(t) >= level]
        hits: dict = {}
        for answer, label in reach:
            node = label[:level]
            hits.setdefault(node, []).append(answer[: len(node)] == node)
        right = [hit for found in hits.values() for hit in found]
        rows.append(
            {
                "accuracy": float(mean(right)) if reach else None,
                "balanced_accuracy": float(mean(map(mean, hits.values()))) if reach else None,
                "level_images": len(reach),
                "level_classes": sum(len(path) >= level for path in classes),
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def judged(classes, answers, labels):
    """The parts of right, undecided and wrong answers, and the severity of the latter."""
    verdicts, heights = [], []
    for answer, label in zip(answers, labels, strict=True):
        inside = set(learn.below(classes, label)) <= set(learn.below(classes, answer))
        below = answer[: len(label)] == label
        verdicts.append("right" if inside else "undecided" if below else "wrong")
        if verdicts[-1] == "wrong" and label in classes:
            heights.append(learn.distance(classes, answer, label))
    specific = [len(learn.below(classes, answer)) for answer in answers]
    C = len(classes)
    return {
        **{name: verdicts.count(name) / len(labels) for name in ("right", "undecided", "wrong")},
        "answered": [
            sum(len(a) == level for a in answers) / len(labels)
            for level in range(1, max(map(len, classes)) + 1)
        ],
        "root": answers.count(()) / len(labels),
        "specificity": math.fsum((math.log(C) - math.log(n)) / math.log(C) for n in specific)
        / len(labels),
        "mistake_severity": float(mean(heights)),
    }


def _floats(value) -> Any:
    if isinstance(value, dict):
        return {key: _floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return float(value) if isinstance(value, Fraction) else value

"""The oracle of losses, decisions and frames on trees: float64 and loops over leaves and paths.

A tree is the list of its classes, each the tuple of names from the root's child down to the class;
a node is a prefix of such a path, the root (). Scores of nodes are a dict from node to number.
"""

import math

import numpy as np


def nodes(classes):
    """All nodes but the root."""
    return list(dict.fromkeys(path[:i] for path in classes for i in range(1, len(path) + 1)))


def below(classes, node):
    return [k for k, path in enumerate(classes) if path[: len(node)] == node]


def height(classes, node):
    return max(len(classes[k]) for k in below(classes, node)) - len(node)


def steps(node):
    """The node and its ancestors but the root, from above."""
    return [node[:i] for i in range(1, len(node) + 1)]


def meet(a, b):
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    return a[:shared]


def distance(classes, a, b):
    """The height of the lowest common ancestor of two nodes."""
    return height(classes, meet(a, b))


def children(classes, node):
    return [n for n in nodes(classes) if n[:-1] == node]


def log_sum(values):
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def log_p(classes, row, node):
    return log_sum([row[k] for k in below(classes, node)]) - log_sum(row)


def hxe(classes, row, label, alpha, by="depth", normalise=None):
    def weight(node):
        return math.exp(-alpha * (len(node) if by == "depth" else height(classes, node)))

    total = sum(map(weight, [(), *nodes(classes)])) if normalise else 1
    return sum(
        weight(node) * (log_p(classes, row, node[:-1]) - log_p(classes, row, node)) / total
        for node in steps(label)
    )


def soft_labels(classes, row, label, beta):
    """The classes below the label are one, with the label's probability."""
    rest = [k for k in range(len(classes)) if k not in below(classes, label)]
    sure = [
        math.exp(-beta * distance(classes, label, classes[k]) / height(classes, ())) for k in rest
    ]
    cost = -log_p(classes, row, label)
    cost -= sum(y * log_p(classes, row, classes[k]) for y, k in zip(sure, rest, strict=True))
    return cost / (1 + sum(sure))


def marginal(classes, row, label):
    return -log_p(classes, row, label)


def log_q(classes, scores, node):
    """Among siblings."""
    return scores[node] - log_sum([scores[n] for n in children(classes, node[:-1])])


def conditional(classes, scores, label):
    return -sum(log_q(classes, scores, node) for node in steps(label))


def states(classes, scores):
    """Every path with its sum of scores, the empty one too."""
    return {end: sum(scores[n] for n in steps(end)) for end in [(), *nodes(classes)]}


def hrn(classes, scores, label):
    table = states(classes, scores)
    inside = [value for end, value in table.items() if end[: len(label)] == label]
    return log_sum([*table.values()]) - log_sum(inside)


def risk(classes, row):
    p = [math.exp(log_p(classes, row, path)) for path in classes]
    return [
        math.fsum(distance(classes, a, b) * q for b, q in zip(classes, p, strict=True))
        for a in classes
    ]


def way(classes, row):
    """(node, P) from the root to the likeliest children."""
    result = [((), 1.0)]
    while result[-1][0] not in classes:
        options = children(classes, result[-1][0])
        sure = [math.exp(log_p(classes, row, node)) for node in options]
        best = sure.index(max(sure))
        result.append((options[best], sure[best]))
    return result


def answer(classes, row, threshold):
    found = way(classes, row)
    deep = 0
    while deep + 1 < len(found) and found[deep + 1][1] >= threshold:
        deep += 1
    return found[deep]


def frame_gram(classes, gamma):
    """s by bisection on the least eigenvalue."""
    D = np.array([[distance(classes, a, b) for b in classes] for a in classes])
    K = np.exp(-gamma * D / height(classes, ()))
    low, high = -1.0, 0.0
    for s in [-1.0] + [None] * 60:
        s = (low + high) / 2 if s is None else s
        if np.linalg.eigvalsh((1 - s) * K + s)[0] > -1e-13:
            high = s
        else:
            low = s
    return (1 - high) * K + high


def random_tree(rng, depth=4):
    """Class paths of a tree with inner nodes of one to three children, classes at any depth."""
    classes = []

    def grow(node):
        for name in "abc"[: rng.integers(1, 4)]:
            child = (*node, name + "".join(node))  # no two nodes of a name
            if len(child) == depth or rng.random() < 0.4:
                classes.append(child)
            else:
                grow(child)

    while not 2 <= len(classes) <= 12:
        classes.clear()
        grow(())
    return classes

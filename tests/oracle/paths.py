"""The oracle of trees with classes at different depths: names, dictionaries and loops, float64.

A tree is the tuple of its classes, each the tuple of the names from the root's child down to it. A
node is such a tuple, () the root. Vectors are dictionaries: `surface[node]`, `center[node]`, the
latter the centre of the group that the node owns.
"""

import functools
import itertools
import math

import numpy as np


def random_tree(rng, depth=5, groups=3):
    """Classes at depths 1 to 5: groups of one, classes beside inner nodes, names in any order."""
    classes = []

    def grow(path, level):
        for i in range(rng.integers(1, groups + 1)):
            node = (*path, f"{level}{i}")
            if level < depth and rng.random() < 0.55:
                grow(node, level + 1)
            else:
                classes.append(node)

    while not classes or {len(path) for path in classes} == {depth}:
        classes.clear()
        grow((), 1)
    classes = [(*path[:-1], f"class {i}") for i, path in enumerate(classes)]
    return tuple(classes[i] for i in rng.permutation(len(classes)))


def depth(classes):
    return max(len(path) for path in classes)


@functools.cache
def inner(classes, level):
    """The inner nodes of a level in the order of the classes below them."""
    return list(dict.fromkeys(path[:level] for path in classes if len(path) > level))


@functools.cache
def nodes(classes):
    """All nodes by their ids."""
    levels = range(depth(classes) - 1, -1, -1)
    return [*classes, *itertools.chain.from_iterable(inner(classes, level) for level in levels)]


def table(classes, level):
    """The entries of a level: a class that lies less deep stands for itself."""
    return list(dict.fromkeys(path[:level] for path in classes))


@functools.cache
def children(classes, node):
    return [child for child in nodes(classes) if child and child[:-1] == node]


def height(classes, node):
    below = children(classes, node)
    return 1 + max(height(classes, child) for child in below) if below else 0


def lca(a, b):
    return tuple(x for x, y in itertools.takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False)))


def present(classes, labels):
    """The labels, which may be inner nodes, and all above them."""
    return {label[:level] for label in labels for level in range(len(label) + 1)}


def norm(w):
    return math.sqrt(sum(x * x for x in w))


class Head:
    """The vectors of a head: `surface` of all classes, of inner nodes if they are stored."""

    def __init__(self, classes, surface, center, kind="free", epsilon=0.6, logits="relative"):
        self.classes, self.surface, self.stored = classes, surface, center
        self.kind, self.epsilon, self.logits = kind, epsilon, logits

    def center(self, node):
        """Of the group of a node, relative to the level above; the root's is 0."""
        if not node:
            return 0.0
        if self.kind == "free":
            return self.stored[node]
        if self.kind == "epsilon":
            return self.epsilon * self.vector(node)
        below = children(self.classes, node)
        return sum(self.surface[n] if n in self.surface else self.center(n) for n in below) / len(
            below
        )

    def vector(self, node):
        """w of a node."""
        if self.logits == "absolute":
            return self.surface[node]
        return self.surface[node] - self.center(node[:-1])

    def logit_vector(self, node):
        if self.logits == "relative":
            return self.vector(node)
        return self.vector(node) + sum(self.center(node[:n]) for n in range(len(node)))

    def r_p(self, level, there, energy):
        """R_p: pairs of a group's members that have vectors and are there."""
        means = []
        for group in inner(self.classes, level - 1):
            members = self.members(group, there)
            pairs = list(itertools.combinations(members, 2))
            if pairs:
                means.append(sum(self._pair(a, b, energy, self.vector) for a, b in pairs))
                means[-1] /= len(pairs)
        return sum(means) / len(means) if means else 0.0

    def r_c(self, level, there, energy):
        """R_c: pairs of the centres of siblings, each with a member that is there."""
        groups = [
            node
            for node in inner(self.classes, level - 1)
            if any(child in there for child in children(self.classes, node))
        ]
        pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if a[:-1] == b[:-1]]
        values = [self._pair(a, b, energy, self.center) for a, b in pairs]
        return sum(values) / len(values) if values else 0.0

    def members(self, group, there):
        return [n for n in children(self.classes, group) if n in there and n in self.surface]

    def radius(self, group, there):
        """Mean ‖w‖ of the members; None where there is none."""
        norms = [norm(self.vector(node)) for node in self.members(group, there)]
        return sum(norms) / len(norms) if norms else None

    def outer(self, group, there, outermost):
        """The radius of the next sphere outwards that has one."""
        for level in range(len(group) - 1, -1, -1):
            found = self.radius(group[:level], there)
            if found is not None:
                return found
        return outermost

    def constraints(self, level, there, outermost):
        """Hinges of C1, C2 and C3 over the groups of a level that have a radius."""
        groups = [g for g in inner(self.classes, level - 1) if self.radius(g, there) is not None]
        r = {g: self.radius(g, there) for g in groups}
        room = {g: self.outer(g, there, outermost) - r[g] for g in groups}
        result = {"C1": hinge(room.values())}
        if level > 1:
            result["C2"] = hinge(room[g] - norm(self.center(g)) for g in groups)
            result["C3"] = hinge(
                norm(self.center(a) - self.center(b)) - r[a] - r[b]
                for a, b in itertools.combinations(groups, 2)
                if a[:-1] == b[:-1]
            )
        return result

    def has_vectors(self, level):
        return any(len(node) == level for node in self.surface)

    def _pair(self, a, b, energy, vector):
        u, v = vector(a), vector(b)
        return energy(sum(x * y for x, y in zip(u, v, strict=True)) / (norm(u) * norm(v)))


def hinge(values):
    values = [max(0.0, -value) for value in values]
    return sum(values) / len(values) if values else 0.0


def arrays(classes, values, level):
    """The rows of the inner nodes of a level."""
    return np.array([values[node] for node in inner(classes, level)])

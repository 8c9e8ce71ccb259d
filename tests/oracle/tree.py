"""The oracle of the tree: projections, the mini-batch hierarchy, constraints; float64 and loops.

A tree is given by `parents = [p_1, ..., p_L]`, p_l[i] the parent of node i of level l in level
l − 1; p_1 is all zeros. Level l has one surface vector a node and one centre a *group*, that is
a node of level l − 1.
"""

import math

import numpy as np

from oracle import metrics as oracle


def norm(w):
    return math.sqrt(sum(x * x for x in w))


def ancestor(parents, leaf, level):
    """The node of a level above (or at) a leaf; level 0 is the root."""
    node = leaf
    for l in range(len(parents), level, -1):  # noqa: E741
        node = parents[l - 1][node]
    return node


def eq1_projection(surface, center, groups):
    """w_i = w_s,i − w_c,g(i), Eq. (1) and, but for a misprint, Eq. (2)."""
    return np.array(
        [
            [s - c for s, c in zip(w, center[g], strict=True)]
            for w, g in zip(surface, groups, strict=True)
        ]
    )


def absolute_centers(centers, parents, level):
    """w_c^(l) = Σ_{l' ≤ l} w_c^(l',l'−1) along the ancestors, for every group of the level."""
    d = next(len(c[0]) for c in centers if c is not None)
    result = []
    for group in range(1 if level == 1 else len(parents[level - 2])):
        total, node = np.zeros(d), group
        for l in range(level, 0, -1):  # noqa: E741
            if centers[l - 1] is not None:
                total = total + centers[l - 1][node]
            node = parents[l - 2][node] if l >= 2 else None
        result.append(total)
    return np.array(result)


def mean_center(surface, groups, count):
    """The mean of each group's surface vectors."""
    return np.array(
        [
            np.mean([w for w, g in zip(surface, groups, strict=True) if g == k], axis=0)
            for k in range(count)
        ]
    )


def epsilon_center(projection, epsilon=0.6):
    """w_c of a child group = ε · projection vector of the parent node."""
    return np.array([[epsilon * x for x in w] for w in projection])


def orthogonality(C):
    """‖C Cᵀ − I‖_F."""
    total = 0.0
    for i in range(len(C)):
        for j in range(len(C)):
            total += (sum(a * b for a, b in zip(C[i], C[j], strict=True)) - (i == j)) ** 2
    return math.sqrt(total)


def batch_pairs(parents, level, labels, key):
    """Pairs of different nodes of a level that two samples of the batch bring along.

    `key(node)` restricts them to pairs with the same key (siblings: the parent).
    """
    pairs = set()
    for a in labels:
        for b in labels:
            i, j = ancestor(parents, a, level), ancestor(parents, b, level)
            if i < j and key(i) == key(j):
                pairs.add((i, j))
    return sorted(pairs)


def minibatch_projection_energy(vectors, parents, level, labels, name):
    """R_lp of Eq. (5) over the pairs of the batch."""
    groups = parents[level - 1]
    pairs = batch_pairs(parents, level, labels, lambda i: groups[i])
    return oracle.pair_sum(vectors, oracle.eq5_weights(groups, pairs), name)


def minibatch_center_energy(center, parents, level, labels, name, siblings=True):
    """R_lc of Eq. (6) over the pairs of the batch; groups of level l are nodes of level l − 1."""
    key = (lambda k: parents[level - 2][k]) if siblings else (lambda _: 0)
    pairs = batch_pairs(parents, level - 1, labels, key)
    return oracle.pair_sum(center, oracle.mean_weights(pairs), name)


def radii(vectors, groups, count):
    """Mean ‖w_i‖ of each group's members."""
    return [
        float(np.mean([norm(w) for w, g in zip(vectors, groups, strict=True) if g == k]))
        for k in range(count)
    ]


def constraint_1(r_outer, r_inner):
    """r^(l−1) − r^(l) ≥ 0."""
    return [a - b for a, b in zip(r_outer, r_inner, strict=True)]


def constraint_2(r_outer, centers, r_inner):
    """r^(l−1) − (‖w_c^(l,l−1)‖ + r^(l)) ≥ 0: the inner sphere lies inside the outer one."""
    return [a - (norm(c) + b) for a, c, b in zip(r_outer, centers, r_inner, strict=True)]


def constraint_3(centers, r, groups=None):
    """‖c_i − c_j‖ − (r_i + r_j) ≥ 0 for i < j in one group, in order of (i, j)."""
    return [
        norm(centers[i] - centers[j]) - (r[i] + r[j])
        for i, j in oracle.unordered_pairs(len(centers))
        if groups is None or groups[i] == groups[j]
    ]


def hinge(values):
    """Mean max(0, −C); 0 if there is none."""
    return sum(max(0.0, -v) for v in values) / len(values) if len(values) else 0.0

"""What a page says of the weights of a run: how diverse layers are, and the vectors of classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import HierarchicalHead, dense_kernel
from dh2l_jax.regularizers.params.diversity import Figures, diversity
from dh2l_jax.regularizers.params.layouts.files import file_rules
from dh2l_jax.regularizers.params.leaves import named
from dh2l_jax.regularizers.params.plan import plan
from dh2l_jax.spheres import logit_vectors
from dh2l_jax.training.config.origins import tell_where_parts_were
from dh2l_jax.training.experiment import without_data
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.facts import RunFacts
from dh2l_jax.training.step.objective import head_levels

__all__ = ["HEAD_RULE", "Sphere", "by_path", "class_vectors", "layers", "read_arrays", "spheres"]

HEAD_RULE = r"^head/((surface|center)_\d+|direction)$"  # of heads on a tree, a vector a row
GROUPS = 12  # the largest are shown


class Sphere(NamedTuple):
    """The class vectors of a group, as seen from its centre.

    Attributes:
      node: the inner node whose children they are.
      members: the classes.
      points: (n, 2), the unit vectors projected on the plane that keeps most of them.
      kept: share of their squared length that the plane keeps.
      mean: angle of a pair, in degrees.
      nearest: the two members of the smallest angle, and that angle.
    """

    node: int
    members: list[int]
    points: np.ndarray
    kept: float
    mean: float
    nearest: tuple[int, int, float]


def read_arrays(workdir: Path) -> dict[str, Any]:
    """The parameters of the last state of a run, by their paths."""
    return by_path(checkpoint.read_params(workdir))


def by_path(params: Any) -> dict[str, Any]:
    """The arrays of a tree, by the names from its root down, as "head/kernel"."""
    return dict(named(params))


def layers(arrays: dict[str, Any]) -> dict[str, Figures]:
    """How diverse each layer is."""
    heads = any(re.search(HEAD_RULE, name) for name in arrays)
    rules = file_rules(arrays, None, {HEAD_RULE: "n d -> n d"} if heads else {})
    return diversity(plan(arrays, rules), arrays)


def class_vectors(facts: RunFacts, arrays: dict[str, Any]) -> np.ndarray:
    """(d, C), the vector of each class, where the head has such as seen from its group's centre."""
    with tell_where_parts_were(facts.workdir):
        network, _ = without_data(facts.config, facts.data)
    head = {name[5:]: array for name, array in arrays.items() if name.startswith("head/")}
    if isinstance(network.head, HierarchicalHead):
        levels = head_levels({"head": head}, network.head)
        return np.asarray(logit_vectors(levels, facts.tree, logits="relative")).T
    if "direction" in head:  # of each node, as seen from its parent
        return head["direction"][: facts.tree.num_classes].T
    if "kernel" in head:  # of the classes, or of all nodes, the classes first
        return head["kernel"][:, : facts.tree.num_classes]
    return np.asarray(dense_kernel(head, network.head))  # a frame, which has no parameters


def spheres(kernel: np.ndarray, tree: Hierarchy) -> list[Sphere]:
    """The largest groups of at least three classes, in the order of the tree.

    Args:
      kernel: (d, C), a vector for each class.
    """
    parents = tree.node_parents()[: tree.num_classes]
    groups = {int(node): np.flatnonzero(parents == node) for node in np.unique(parents)}
    large = sorted(groups, key=lambda node: (-len(groups[node]), node))[:GROUPS]
    return [_sphere(node, groups[node], kernel) for node in large if len(groups[node]) > 2]


def _sphere(node: int, members: np.ndarray, kernel: np.ndarray) -> Sphere:
    vectors = np.asarray(kernel, np.float64).T[members]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    _, lengths, axes = np.linalg.svd(units, full_matrices=False)
    axes = axes[:2] * np.where(axes[:2].sum(axis=1, keepdims=True) < 0, -1, 1)
    points = np.zeros((len(members), 2))
    points[:, : len(axes)] = units @ axes.T
    i, j = np.triu_indices(len(members), 1)
    gaps = np.linalg.norm(units[i] - units[j], axis=1)
    angles = np.degrees(2 * np.arcsin(np.minimum(gaps / 2, 1)))
    closest = int(angles.argmin())
    kept = float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), 1e-30))
    pair = int(members[i[closest]]), int(members[j[closest]]), float(angles[closest])
    return Sphere(node, members.tolist(), points, kept, float(angles.mean()), pair)

"""Folders → classes, inner nodes with images of their own, and the tree above them.

Without a CSV file a class is the path of a folder that holds no folders; its name is the last part
of the path, or the whole path where several classes end alike. Images beside sub-folders are of the
folder's node: the expert stopped where he was sure.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from dh2l_jax.data.folders.walk import Findings, Folder, composed, shown
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.class_lists import level_tables, read_class_list

__all__ = ["INNER", "OWN", "Labelled", "from_csv", "from_folders", "note_similar_names"]

INNER = ("label", "class", "skip", "refuse")
"""What becomes of images at inner nodes."""

OWN = "·"
"""The class of the images beside sub-folders, where they are a class of their own."""

NodePath = tuple[str, ...]
Folders = dict[NodePath, list[Folder]]

_BESIDE = "images beside folders, in no class (how many)"
_KEPT = "images at inner nodes, which are their labels (how many)"
_LEFT_OUT = "images at inner nodes, left out (how many)"
_SPELT_TWICE = "folders whose names differ only in how accents are written"
_UNUSABLE = "CSV file that cannot be used"

# Names beyond these are listed without the nearest: each is compared with all others.
_HINTED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """The folders of each label.

    Attributes:
      classes: by the class's path, in label order; a class of a CSV file is its name alone.
      inner: by the path of the inner node.
      tree: None if the problems leave none.
      labels: of the inner nodes; any beyond the classes where there is no tree.
      left_out: how many images at inner nodes are of no label.
    """

    classes: Folders
    inner: Folders
    tree: Hierarchy | None
    labels: dict[NodePath, int]
    left_out: int = 0


# Folders that are the tree.


def from_folders(folders: list[Folder], findings: Findings, inner: str) -> Labelled:
    """The lowest folders are the classes, those above them the tree."""
    paths = {folder.parts for folder in folders}
    above = {parts[:end] for parts in paths for end in range(1, len(parts))}
    lowest: Folders = {}
    beside: Folders = {}
    for folder in folders:
        if not folder.parts:
            _note_top(folder, findings)
        elif folder.parts not in above:
            _add(lowest, folder, findings)
        elif folder.images:
            _add(beside, folder, findings)
    for path in [path for path, found in lowest.items() if not any(f.images for f in found)]:
        for folder in lowest.pop(path):
            findings.problem("folders without images", shown(folder.path, findings.root))
    own, beside, left_out = _by_option(beside, findings, inner)
    classes = dict(sorted((lowest | {(*path, OWN): own[path] for path in own}).items()))
    if len(classes) < len(lowest) + len(own):
        findings.problem("names that cannot be used", f"a folder is called {OWN!r}")
    _note_twofold_names(classes, findings)
    names = _class_names(classes)
    tree = None
    try:
        if classes:
            tree = Hierarchy.from_paths({names[path]: path[:-1] for path in classes})
    except ValueError as error:
        findings.problem("names that cannot be used", str(error))
    inner_paths = {path: path for path in beside}
    return _labelled(classes, beside, tree, list(classes), inner_paths, left_out)


def _labelled(
    classes: Folders,
    inner: Folders,
    tree: Hierarchy | None,
    full: Sequence[NodePath],
    nodes: dict[NodePath, NodePath],
    left_out: int,
) -> Labelled:
    """`full` are the paths of the classes in the tree, `nodes` those of the inner nodes."""
    above = [] if tree is None else tree.ancestor_nodes().tolist()
    ids = {
        path[: i + 1]: row[k]
        for k, path in enumerate(full)
        for i, row in enumerate(above[: len(path)])
    }
    beyond = len(classes) if tree is None else tree.num_nodes
    labels = {path: ids.get(nodes[path], beyond + i) for i, path in enumerate(inner)}
    inner = dict(sorted(inner.items(), key=lambda item: labels[item[0]]))
    return Labelled(classes, inner, tree, labels, left_out)


def _note_top(folder: Folder, findings: Findings) -> None:
    """Images beside all classes are of none."""
    if folder.images:
        where = _first_of([folder], findings)
        if folder.path == findings.root:
            findings.remark("images beside all folders, not read", where)
        else:
            findings.problem(_BESIDE, where)


def _add(to: Folders, folder: Folder, findings: Findings) -> None:
    known = to.setdefault(folder.parts, [])
    if any(folder.split == other.split for other in known):
        findings.problem(_SPELT_TWICE, shown(folder.path, findings.root))
    known.append(folder)


def _by_option(beside: Folders, findings: Findings, inner: str) -> tuple[Folders, Folders, int]:
    """Folders that become classes, folders that stay at inner nodes, and images left out."""
    if inner == "class":
        return beside, {}, 0
    for folders in beside.values():
        if inner == "refuse":
            for folder in folders:
                findings.problem(_BESIDE, _first_of([folder], findings))
        else:
            what = _LEFT_OUT if inner == "skip" else _KEPT
            findings.remark(what, _first_of(folders, findings))
    images = sum(len(folder.images) for folders in beside.values() for folder in folders)
    return {}, beside if inner == "label" else {}, images if inner == "skip" else 0


def _first_of(folders: Sequence[Folder], findings: Findings) -> str:
    """The first image, and how many there are."""
    first = shown(folders[0].path / folders[0].images[0], findings.root)
    return f"{first} ({sum(len(folder.images) for folder in folders)})"


def _class_names(classes: Iterable[NodePath]) -> dict[NodePath, str]:
    """The last part of each path, after its parent's where it is `OWN`; all of it if not unique."""
    short = {path: "/".join(path[-2 if path[-1] == OWN else -1 :]) for path in classes}
    counts = collections.Counter(short.values())
    return {p: name if counts[name] == 1 else "/".join(p) for p, name in short.items()}


def _note_twofold_names(classes: Iterable[NodePath], findings: Findings) -> None:
    """Two nodes of one name are known by their paths; often they are a slip."""
    groups = {path[:end]: None for path in classes for end in range(1, len(path))}
    for what, paths in (("class names", classes), ("names of groups", groups)):
        parents: dict[str, list[str]] = collections.defaultdict(list)
        for path in paths:
            if path[-1] != OWN:
                parents[path[-1]].append("/".join(path[:-1]) or "the root")
        for name, above in parents.items():
            if len(above) > 1:
                where = f"{name} under {' and '.join(above)}"
                findings.remark(f"{what} that stand under several parents", where)


def note_similar_names(levels: Iterable[Iterable[str]], findings: Findings) -> None:
    """Two names that people would not tell apart are often one class, written in two ways."""
    remarks: dict[str, None] = {}
    for names in levels:
        alike: dict[str, dict[str, None]] = collections.defaultdict(dict)
        for name in names:
            alike["".join(name.casefold().split())][name] = None
        groups = (found for found in alike.values() if len(found) > 1)
        remarks |= {" and ".join(map(repr, found)): None for found in groups}
    for where in remarks:
        findings.remark("names that differ only in case or blanks", where)


# Folders beside each other, and a CSV file with the tree.


def from_csv(csv: Path, folders: list[Folder], findings: Findings, inner: str) -> Labelled:
    """The tree of the file; a folder is a class in its order, or the labels of an inner node."""
    flat = _flat_folders(folders, findings)
    try:
        paths = [cells[::-1] for _, cells in read_class_list(csv)]
        tree = Hierarchy(*level_tables(paths))
    except ValueError as error:
        findings.problem(_UNUSABLE, str(error))
        return Labelled(flat, {}, None, {})
    named: list[NodePath] = [(composed(path[-1]),) for path in paths]
    if len(set(named)) < len(named):
        what = "two classes whose names differ only in how accents are written"
        findings.problem(_UNUSABLE, f"{csv}: {what}")
    nodes: dict[NodePath, NodePath] = {
        (composed(path[end - 1]),): path[:end] for path in paths for end in range(1, len(path))
    }
    beside: Folders = {path: found for path, found in flat.items() if path in nodes}
    there = [path for path in flat if path not in beside]
    _report_missing("classes of the CSV file without a folder", named, there, findings)
    _report_missing("folders without a line in the CSV file", there, named, findings)
    beside = {p: found for p, found in beside.items() if any(f.images for f in found)}
    own, beside, left_out = _by_option(beside, findings, inner)
    classes = {path: flat[path] for path in [*named, *there] if path in flat}
    if own:
        paths += [(*nodes[path], f"{nodes[path][-1]}/{OWN}") for path in own]
        tree = Hierarchy(*level_tables(paths))
        classes.update(((f"{path[0]}/{OWN}",), found) for path, found in own.items())
    return _labelled(classes, beside, tree, paths, nodes, left_out)


def _flat_folders(folders: list[Folder], findings: Findings) -> Folders:
    """The folders at depth 1, sorted; others must hold no images."""
    flat: Folders = {}
    for folder in folders:
        where = shown(folder.path, findings.root)
        if not folder.parts:
            _note_top(folder, findings)
        elif folder.is_inner:
            if folder.images:
                findings.problem(_BESIDE, _first_of([folder], findings))
        elif len(folder.parts) == 1:
            _add(flat, folder, findings)
        elif folder.images:
            depth = f"{len(folder.parts)}, expected 1, as the CSV file has it"
            findings.problem("classes at another depth", f"{where}: {depth}")
        else:
            findings.problem("folders without images", where)
    return dict(sorted(flat.items()))


def _report_missing(
    what: str, wanted: Sequence[NodePath], there: Sequence[NodePath], findings: Findings
) -> None:
    """Names what is not there, with the nearest of what is there, if possible unwanted."""
    known = set(there)
    missing = [path[0] for path in wanted if path not in known]
    spare = sorted(path[0] for path in (known - set(wanted) or known))
    for number, name in enumerate(missing):
        near = spare if number < _HINTED else []
        close = difflib.get_close_matches(name, near, n=1, cutoff=0.0)
        findings.problem(what, f"{name!r} (nearest: {close[0]!r})" if close else f"{name!r}")

"""A folder of images → `Source`: the folders are the classes, those above them the tree.

    birds/train/gulls/ivory_gull/1.jpg       any depth, the same for all classes
    birds/test/gulls/ivory_gull/2.webp       or val/, valid/; without it, a fixed split of train/
    birds/gulls/ivory_gull/1.jpg             without train/, a fixed split of everything
    birds/ivory_gull/1.jpg, birds/classes.csv    flat, the tree from `class,parent[,grandparent]`

Images are neither opened nor decoded here, so a million files take seconds. `scan` collects every
problem, for `check` to show; `open_folder` raises the first.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dh2l_jax.data.folders.walk import (
    SUFFIXES,
    Finding,
    Findings,
    Folder,
    as_findings,
    composed,
    shown,
    split_folders,
    walk,
)
from dh2l_jax.data.store.source import Source
from dh2l_jax.hierarchy import Hierarchy

__all__ = ["SUFFIXES", "FolderExamples", "Scan", "open_folder", "scan"]

CSV_NAME = "classes.csv"

# The folders of each class, in label order; a class is known by its path.
_Classes = dict[tuple[str, ...], list[Folder]]

# Names beyond these are listed without the nearest: each is compared with all others.
_HINTED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class FolderExamples:
    """Images of one split, as `Examples`: by label, then by name in the order of code points.

    Attributes:
      root: the folder that `describe` leaves out.
      folders: the folders of the classes.
      names: (n) file names.
      folder: (n,) int32, the index in `folders`.
      labels: (n,) int32.
    """

    root: Path
    folders: tuple[Path, ...]
    names: tuple[str, ...]
    folder: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> tuple[bytes, int]:
        """The bytes of the file, and its label.

        Raises:
          OSError: the file cannot be read.
        """
        return self.path(index).read_bytes(), int(self.labels[index])

    def describe(self, index: int) -> str:
        """The file's path below the root."""
        return shown(self.path(index), self.root)

    def path(self, index: int) -> Path:
        """The file."""
        return self.folders[self.folder[index]] / self.names[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What a folder holds, with everything that is wrong with it.

    Attributes:
      root: the folder.
      layout: where the two splits come from, in words.
      fingerprint: see `Source`.
      classes: each class with its ancestors, in label order.
      hierarchy: the tree; None if the problems leave none.
      train: training examples.
      test: test examples.
      problems: why `open_folder` refuses the folder; empty if it does not.
      remarks: what is skipped, and what a user may not have meant.
    """

    root: Path
    layout: str
    fingerprint: str
    classes: tuple[tuple[str, ...], ...]
    hierarchy: Hierarchy | None
    train: FolderExamples
    test: FolderExamples
    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def open_folder(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source:
    """The images in a folder, with the tree that its folders or a CSV file make.

    Args:
      path: the folder; the module says how it may look.
      classes_csv: file `class,parent[,grandparent]`, see `Hierarchy.from_csv`; its order is the
        order of the labels. None for `classes.csv` in the folder, if it is there.
      test_fraction: in (0, 1), the share of test images, on average, where no folder holds them.
        An image's place depends on its class's name, its own and the seed, so that new images do
        not move old ones; but every class keeps a training image and, of two, gives one to test.
      seed: of that split.

    Returns:
      The source. Without a CSV file, classes are sorted by path, in the order of code points.

    Raises:
      ValueError: the folder cannot be trained on; the message names the first problem.
      OSError: the folder or the CSV file is missing.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp(), "birds")
    >>> for name in ("gulls/ivory_gull/1.jpg", "gulls/ivory_gull/2.jpg", "ovenbird/ovenbird/3.JPG"):
    ...     (root / name).parent.mkdir(parents=True, exist_ok=True)
    ...     _ = (root / name).write_bytes(name.encode())
    >>> source = open_folder(root)
    >>> source.hierarchy, source.hierarchy.names(2), len(source.train), len(source.test)
    (Hierarchy({2, 2}), ('ivory_gull', 'ovenbird'), 2, 1)
    >>> source.train[1], source.train.describe(1)
    ((b'ovenbird/ovenbird/3.JPG', 1), 'ovenbird/ovenbird/3.JPG')
    """
    found = scan(path, classes_csv=classes_csv, test_fraction=test_fraction, seed=seed)
    if found.problems:
        first = found.problems[0]
        count = len(first.where)
        more = f" and {count - 1} more" if count > 1 else ""
        raise ValueError(
            f"{found.root}: {first.what}: {first.where[0]}{more}; "
            "`dh2l data check` lists all that is wrong with a folder"
        )
    assert found.hierarchy is not None  # else there is a problem
    name = found.root.resolve().name or "folder"
    return Source(name, found.fingerprint, found.hierarchy, found.train, found.test)


def scan(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Scan:
    """Reads the names, sizes and times of all files in a folder; takes what `open_folder` takes.

    Raises:
      ValueError: `test_fraction` is not in (0, 1).
      OSError: the folder or the CSV file is missing.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, found {test_fraction}")
    root = _find_folder(path)
    csv = _find_csv(root, classes_csv)
    findings = Findings(root)
    tops = split_folders(findings)
    folders = [folder for split, top in tops.items() for folder in walk(split, top, findings)]
    classes = _class_folders(folders, findings, flat=csv is not None)
    classes, tree = _from_csv(csv, classes, findings) if csv else _from_folders(classes, findings)
    _note_similar_names(tree.node_names if tree else zip(*classes, strict=True), findings)
    by_chance = None if "test" in tops else (test_fraction, seed)
    train, test = _examples(root, classes, by_chance)
    _check_counts(classes, train, test, findings)
    layout = " and ".join(f"{top.name}/" for top in tops.values())
    return Scan(
        root=root,
        layout=f"a fixed split, {test_fraction:.0%} for the test" if by_chance else layout,
        fingerprint=_fingerprint(classes, by_chance, csv.read_bytes() if csv else b""),
        classes=tuple(classes),
        hierarchy=tree,
        train=train,
        test=test,
        problems=as_findings(findings.problems),
        remarks=as_findings(findings.remarks),
    )


def _find_folder(path: str | Path) -> Path:
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    kind = NotADirectoryError if root.exists() else FileNotFoundError
    raise kind(f"expected a folder of images, found no folder {str(root)!r}")


def _find_csv(root: Path, given: str | Path | None) -> Path | None:
    path = root / CSV_NAME if given is None else Path(given).expanduser()
    if path.is_file():
        return path
    if given is None:
        return None
    raise FileNotFoundError(f"expected a CSV file with the classes, found no file {str(path)!r}")


# From folders to classes and their tree.


def _class_folders(folders: list[Folder], findings: Findings, *, flat: bool) -> _Classes:
    """The folders at the depth of the classes: 1 if they must be flat, else the most frequent."""
    lowest = [folder for folder in folders if folder.parts and not folder.is_inner]
    for folder in folders:
        if folder.images and (folder.is_inner or not folder.parts):
            where = f"{shown(folder.path / folder.images[0], findings.root)} ({len(folder.images)})"
            if folder.path == findings.root:
                findings.remark("images beside all folders, not read", where)
            else:
                findings.problem("images beside folders, in no class (how many)", where)
    depths = collections.Counter(len(folder.parts) for folder in lowest if folder.images)
    depth = 1 if flat or not depths else max(depths, key=lambda d: (depths[d], d))
    classes: _Classes = collections.defaultdict(list)
    for folder in lowest:
        if len(folder.parts) == depth:
            if any(folder.split == other.split for other in classes[folder.parts]):
                where = shown(folder.path, findings.root)
                findings.problem(
                    "folders whose names differ only in how accents are written", where
                )
            classes[folder.parts].append(folder)
        elif folder.images:
            expected = f"{depth}, as the CSV file has it" if flat else f"{depth}, as most are"
            where = f"{shown(folder.path, findings.root)}: {len(folder.parts)}, expected {expected}"
            findings.problem("classes at another depth", where)
        else:
            findings.problem("folders without images", shown(folder.path, findings.root))
    return dict(sorted(classes.items()))


def _from_folders(classes: _Classes, findings: Findings) -> tuple[_Classes, Hierarchy | None]:
    """The tree of the paths; None if there is none, or a class stands twice in it."""
    names = {path[-1]: path[:-1] for path in classes}
    _note_twofold_names(classes, findings)
    if not classes or len(names) < len(classes):
        return classes, None
    try:
        return classes, Hierarchy.from_paths(names)
    except ValueError as error:
        findings.problem("names that cannot be used", str(error))
        return classes, None


def _note_twofold_names(classes: _Classes, findings: Findings) -> None:
    """Two classes need two names; two groups may share one, but often it is a slip."""
    depth = len(next(iter(classes), ()))
    for level in range(1, depth + 1):
        parents: dict[str, list[str]] = collections.defaultdict(list)
        for node in dict.fromkeys(path[:level] for path in classes):
            parents[node[-1]].append("/".join(node[:-1]))
        for name, above in parents.items():
            where = f"{name} under {' and '.join(above)}"
            if len(above) > 1 and level == depth:
                findings.problem("class names that stand under several parents", where)
            elif len(above) > 1:
                findings.remark("names of groups that stand under several parents", where)


def _note_similar_names(levels: Iterable[Sequence[str]], findings: Findings) -> None:
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


def _from_csv(
    csv: Path, classes: _Classes, findings: Findings
) -> tuple[_Classes, Hierarchy | None]:
    """The tree of the file, and the classes in its order."""
    try:
        tree = Hierarchy.from_csv(csv)
    except ValueError as error:
        findings.problem("CSV file that cannot be used", str(error))
        return classes, None
    named = [(composed(name),) for name in tree.names(tree.num_levels)]
    if len(set(named)) < len(named):
        what = "two classes whose names differ only in how accents are written"
        findings.problem("CSV file that cannot be used", f"{csv}: {what}")
    _report_missing("classes of the CSV file without a folder", named, list(classes), findings)
    _report_missing("folders without a line in the CSV file", list(classes), named, findings)
    return {path: classes[path] for path in [*named, *classes] if path in classes}, tree


def _report_missing(
    what: str,
    wanted: Sequence[tuple[str, ...]],
    there: Sequence[tuple[str, ...]],
    findings: Findings,
) -> None:
    """Names what is not there, with the nearest of what is there, if possible unwanted."""
    known = set(there)
    missing = [path[0] for path in wanted if path not in known]
    spare = sorted(path[0] for path in (known - set(wanted) or known))
    for number, name in enumerate(missing):
        near = spare if number < _HINTED else []
        close = difflib.get_close_matches(name, near, n=1, cutoff=0.0)
        findings.problem(what, f"{name!r} (nearest: {close[0]!r})" if close else f"{name!r}")


def _check_counts(
    classes: _Classes, train: FolderExamples, test: FolderExamples, findings: Findings
) -> None:
    """Every class needs images to learn from; the test may lack some classes, but not all."""
    in_train, in_test = (np.bincount(x.labels, minlength=len(classes)) for x in (train, test))
    for path, trains, tests in zip(classes, in_train, in_test, strict=True):
        if not trains:
            where = f"{'/'.join(path)} ({tests} for the test)" if tests else "/".join(path)
            findings.problem("classes without training images", where)
        elif not tests:
            findings.remark("classes without test images", "/".join(path))
    if not len(train):
        findings.problem("no training images", "expected <class>/*.jpg, at any depth")
    elif not len(test):
        findings.problem("no test images", "no class has two images, or the test's folder is empty")


# From classes to examples.


def _examples(
    root: Path, classes: _Classes, by_chance: tuple[float, int] | None
) -> tuple[FolderExamples, FolderExamples]:
    """Training and test examples; `by_chance` is the share and the seed of a fixed split."""
    rows: dict[str, list[tuple[Path, list[str], int]]] = {"train": [], "test": []}
    for label, (path, folders) in enumerate(classes.items()):
        for folder in folders:
            if by_chance is None:
                rows[folder.split].append((folder.path, list(folder.images), label))
                continue
            chosen = _chosen(path[-1], folder.images, *by_chance).tolist()
            for split, wanted in (("train", False), ("test", True)):
                names = [n for n, c in zip(folder.images, chosen, strict=True) if c == wanted]
                rows[split].append((folder.path, names, label))
    return _pack(root, rows["train"]), _pack(root, rows["test"])


def _chosen(of: str, names: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(n,) bool: which images of a class are for the test, each decided by a hash of its own.

    The class's name is hashed too: many data sets number the images of every class from 1.
    """
    texts = (f"{seed}/{of}/{composed(name)}".encode() for name in names)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    draws = np.frombuffer(digests, "<u8") / 2.0**64
    chosen = draws < fraction
    if len(names):
        chosen[draws.argmin()] = True
        # A single image is the smallest and the largest draw: it is for training.
        chosen[draws.argmax()] = False
    return chosen


def _pack(root: Path, rows: Sequence[tuple[Path, Sequence[str], int]]) -> FolderExamples:
    counts = [len(names) for _, names, _ in rows]
    return FolderExamples(
        root=root,
        folders=tuple(path for path, _, _ in rows),
        names=tuple(itertools.chain.from_iterable(names for _, names, _ in rows)),
        folder=np.repeat(np.arange(len(rows), dtype=np.int32), counts),
        labels=np.repeat(np.array([label for _, _, label in rows], np.int32), counts),
    )


def _fingerprint(classes: _Classes, by_chance: tuple[float, int] | None, csv: bytes) -> str:
    """Of all that decides images, labels and the tree; the content of images is not read."""
    digest = hashlib.sha256(repr((by_chance, csv)).encode())
    for path, folders in classes.items():
        for folder in folders:
            digest.update(repr((path, folder.split, folder.digest)).encode())
    return digest.hexdigest()

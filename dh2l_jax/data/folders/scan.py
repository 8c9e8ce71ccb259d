"""A folder of images → `Source`: the folders are the classes, those above them the tree.

    birds/train/gulls/ivory_gull/1.jpg       any depth
    birds/train/gulls/2.jpg                  a gull of a kind that nobody knows, see `data.inner`
    birds/test/gulls/ivory_gull/2.webp       or val/, valid/; without it, a fixed split of train/
    birds/gulls/ivory_gull/1.jpg             without train/, a fixed split of everything
    birds/ivory_gull/1.jpg, birds/classes.csv    flat, the tree from `class,parent[,grandparent]`

Images are neither opened nor decoded here, so a million files take seconds. `scan` collects every
problem, for `check` to show; `open_folder` raises the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.folders.classes import (
    INNER,
    Labelled,
    from_csv,
    from_folders,
    note_similar_names,
)
from dh2l_jax.data.folders.walk import (
    SUFFIXES,
    Finding,
    Findings,
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


@dataclasses.dataclass(frozen=True, eq=False)
class FolderExamples:
    """Images of one split, as `Examples`: by label, then by name in the order of code points.

    Attributes:
      root: the folder that `describe` leaves out.
      folders: the folders of the classes.
      names: (n) file names.
      folder: (n,) int32, the index in `folders`.
      labels: (n,) int32, nodes of the tree.
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
      inner: {label: path} of the inner nodes that have images of their own.
      hierarchy: the tree; None if the problems leave none.
      train: training examples.
      test: test examples.
      left_out: how many images at inner nodes are in neither.
      problems: why `open_folder` refuses the folder; empty if it does not.
      remarks: what is skipped, and what a user may not have meant.
    """

    root: Path
    layout: str
    fingerprint: str
    classes: tuple[tuple[str, ...], ...]
    inner: dict[int, tuple[str, ...]]
    hierarchy: Hierarchy | None
    train: FolderExamples
    test: FolderExamples
    left_out: int
    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def open_folder(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    inner: str = "label",
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
      inner: what becomes of images beside sub-folders, or in a folder that the CSV file has as an
        inner node: "label" (the node is their label), "class" (they are a class of their own,
        NODE/·), "skip" (left out, and counted in a warning) or "refuse".

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
    found = scan(path, classes_csv=classes_csv, test_fraction=test_fraction, seed=seed, inner=inner)
    if found.problems:
        first = found.problems[0]
        count = len(first.where)
        more = f" and {count - 1} more" if count > 1 else ""
        raise ValueError(
            f"{found.root}: {first.what}: {first.where[0]}{more}; "
            "`dh2l data check` lists all that is wrong with a folder"
        )
    assert found.hierarchy is not None  # else there is a problem
    if found.left_out:
        logging.getLogger(__name__).warning(
            "inner=skip leaves out %d images at inner nodes", found.left_out
        )
    name = found.root.resolve().name or "folder"
    return Source(name, found.fingerprint, found.hierarchy, found.train, found.test)


def scan(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    inner: str = "label",
) -> Scan:
    """Reads the names, sizes and times of all files in a folder; takes what `open_folder` takes.

    Raises:
      ValueError: `test_fraction` is not in (0, 1), or `inner` is unknown.
      OSError: the folder or the CSV file is missing.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, found {test_fraction}")
    if inner not in INNER:
        raise ValueError(unknown_name("inner", inner, INNER))
    root = _find_folder(path)
    csv = _find_csv(root, classes_csv)
    findings = Findings(root)
    tops = split_folders(findings)
    folders = [folder for split, top in tops.items() for folder in walk(split, top, findings)]
    read = (
        from_csv(csv, folders, findings, inner) if csv else from_folders(folders, findings, inner)
    )
    note_similar_names(_names_by_level(read), findings)
    by_chance = None if "test" in tops else (test_fraction, seed)
    train, test = _examples(root, read, by_chance)
    _check_counts(read, train, test, findings)
    layout = " and ".join(f"{top.name}/" for top in tops.values())
    return Scan(
        root=root,
        layout=f"a fixed split, {test_fraction:.0%} for the test" if by_chance else layout,
        fingerprint=_fingerprint(read, by_chance, csv.read_bytes() if csv else b""),
        classes=tuple(read.classes),
        inner={read.labels[path]: path for path in read.inner},
        hierarchy=read.tree,
        train=train,
        test=test,
        left_out=read.left_out,
        problems=as_findings(findings.problems),
        remarks=as_findings(findings.remarks),
    )


def _names_by_level(read: Labelled) -> Sequence[Sequence[str]]:
    if read.tree:
        return read.tree.node_names
    return [
        [path[level] for path in read.classes if len(path) > level]
        for level in range(max(map(len, read.classes), default=0))
    ]


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


def _check_counts(
    read: Labelled, train: FolderExamples, test: FolderExamples, findings: Findings
) -> None:
    """Every class needs images to learn from; the test may lack some classes, but not all."""
    C = len(read.classes)
    in_train, in_test = (np.bincount(x.labels, minlength=C)[:C] for x in (train, test))
    for path, trains, tests in zip(read.classes, in_train, in_test, strict=True):
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
    root: Path, read: Labelled, by_chance: tuple[float, int] | None
) -> tuple[FolderExamples, FolderExamples]:
    """Training and test examples; `by_chance` is the share and the seed of a fixed split."""
    rows: dict[str, list[tuple[Path, list[str], int]]] = {"train": [], "test": []}
    labelled = [
        *enumerate(read.classes.values()),
        *((read.labels[path], folders) for path, folders in read.inner.items()),
    ]
    for label, folders in labelled:
        for folder in folders:
            if by_chance is None:
                rows[folder.split].append((folder.path, list(folder.images), label))
                continue
            chosen = _chosen(folder.parts[-1], folder.images, *by_chance).tolist()
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


def _fingerprint(read: Labelled, by_chance: tuple[float, int] | None, csv: bytes) -> str:
    """Of all that decides images, labels and the tree; the content of images is not read."""
    digest = hashlib.sha256(repr((by_chance, csv)).encode())
    for path, folders in [*read.classes.items(), *read.inner.items()]:
        for folder in folders:
            digest.update(repr((path, folder.split, folder.digest)).encode())
    return digest.hexdigest()

"""The folders below a folder, with the names, sizes and times of the images in them.

Hidden files and what operating systems leave behind are skipped. Links are followed, but no folder
is read twice: there is no going round, and no image in two places. `Findings` gets what is odd.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import stat
import unicodedata
from pathlib import Path, PurePath

from dh2l_jax.checks import one_line

__all__ = [
    "SUFFIXES",
    "Finding",
    "Findings",
    "Folder",
    "as_findings",
    "composed",
    "is_visible",
    "shown",
    "split_folders",
    "walk",
]

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_TEST_NAMES = ("test", "val", "valid", "validation")
_Entry = os.DirEntry[str]
_LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A kind of problem or remark, and all that it was found at.

    Attributes:
      what: the kind, such as "classes without training images".
      where: the files, folders or classes, in order.
    """

    what: str
    where: tuple[str, ...]


class Findings:
    """What has been found so far, by kind, and the folders that have been read."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: dict[str, list[str]] = {}
        self.remarks: dict[str, list[str]] = {}
        self.seen: dict[tuple[int, int], str] = {}

    def problem(self, what: str, where: str) -> None:
        """Adds a reason why the folder cannot be used."""
        self.problems.setdefault(what, []).append(one_line(where))

    def remark(self, what: str, where: str) -> None:
        """Adds what a user may not have meant."""
        self.remarks.setdefault(what, []).append(one_line(where))


def as_findings(by_kind: dict[str, list[str]]) -> tuple[Finding, ...]:
    """The kinds at which anything was found."""
    return tuple(Finding(what, tuple(where)) for what, where in by_kind.items() if where)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that has been read.

    Attributes:
      split: "train" or "test".
      parts: the folders from the split's downwards to this one, as `composed` names: a Mac writes
        them decomposed, a CSV file does not.
      path: where it is.
      images: names of the images, sorted by code point.
      is_inner: it holds folders.
      digest: of the images' names, sizes and times.
    """

    split: str
    parts: tuple[str, ...]
    path: Path
    images: tuple[str, ...]
    is_inner: bool
    digest: bytes


def split_folders(findings: Findings) -> dict[str, Path]:
    """{"train": folder, "test": folder}; {"train": folder} where there is no test.

    The folder of training images is `train`, else the root; a class may be called "train" too, so
    that name counts only beside a test or above folders.
    """
    folders = [Path(entry.path) for entry in _visible(findings.root) if _is_folder(entry)]
    by_name = {folder.name.lower(): folder for folder in reversed(folders)}
    train = by_name.get("train")
    test = next((by_name[name] for name in _TEST_NAMES if name in by_name), None)
    if train is None or not (test or any(map(_is_folder, _visible(train)))):
        return {"train": findings.root}
    tops = {"train": train, "test": test} if test else {"train": train}
    for folder in folders:
        if folder not in tops.values():
            findings.remark(
                "folders beside those of the splits, not read", shown(folder, findings.root)
            )
    return tops


def walk(split: str, top: Path, findings: Findings) -> list[Folder]:
    """All folders from `top` downwards, parents first; those behind links last."""
    folders: list[Folder] = []
    others: dict[str, list[str]] = collections.defaultdict(list)
    waiting: list[tuple[Path, tuple[str, ...]]] = [(top, ())]
    while waiting:
        path, parts = waiting.pop()
        inner, images, rest = _sort(_enter(path, findings))
        names, digest = _stat(images, findings)
        folders.append(Folder(split, parts, path, names, bool(inner), digest))
        for entry in reversed(inner):
            # Links wait until all else has been read, so that a folder goes by its own name.
            place = 0 if entry.is_symlink() else len(waiting)
            waiting.insert(place, (Path(entry.path), (*parts, composed(entry.name))))
        if parts:  # files beside the classes, such as a README or a CSV file, are in their place
            for entry in rest:
                others[PurePath(entry.name).suffix.lower()].append(entry.path)
    for suffix, paths in sorted(others.items()):
        first = shown(Path(paths[0]), findings.root)
        where = f"{suffix or 'without suffix'}: {len(paths)}, the first is {first}"
        findings.remark("files with other suffixes, not read", where)
    return folders


def shown(path: Path, root: Path) -> str:
    """A path below the root as messages show it."""
    return one_line(path.relative_to(root).as_posix())


def composed(name: str) -> str:
    """A name in Unicode's composed form; bytes that are not UTF-8 become "�"."""
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


def _enter(path: Path, findings: Findings) -> list[_Entry]:
    """The entries of a folder that is read for the first time; none if it cannot be read."""
    name = shown(path, findings.root)
    try:
        status, entries = path.stat(), _visible(path)
    except OSError as error:
        findings.problem("folders that cannot be read", f"{name}: {error.strerror}")
        return []
    identity = (status.st_dev, status.st_ino)
    if identity in findings.seen:
        findings.problem(
            "folders that a link leads to again", f"{name} is {findings.seen[identity]}"
        )
        return []
    findings.seen[identity] = name
    return entries


def _visible(path: Path) -> list[_Entry]:
    with os.scandir(path) as entries:
        kept = [entry for entry in entries if is_visible(entry.name)]
    return sorted(kept, key=lambda entry: entry.name)


def is_visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor left behind by an operating system."""
    return not name.startswith(".") and name.lower() not in _LEFT_BEHIND


def _sort(entries: list[_Entry]) -> tuple[list[_Entry], list[_Entry], list[_Entry]]:
    """Folders, images by their suffix, and the rest."""
    folders, images, rest = [], [], []
    for entry in entries:
        if _is_folder(entry):
            folders.append(entry)
        else:
            (images if entry.name.lower().endswith(SUFFIXES) else rest).append(entry)
    return folders, images, rest


def _is_folder(entry: _Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stat(images: list[_Entry], findings: Findings) -> tuple[tuple[str, ...], bytes]:
    """The names of those that are files, and a digest of their names, sizes and times."""
    names, lines = [], []
    for entry in images:
        try:
            status = entry.stat()
        except OSError:
            findings.problem(
                "images that are links to nothing", shown(Path(entry.path), findings.root)
            )
            continue
        if not stat.S_ISREG(status.st_mode):  # a pipe, say: who opens it waits for ever
            findings.problem("images that are no files", shown(Path(entry.path), findings.root))
            continue
        names.append(entry.name)
        lines.append(f"{entry.name}/{status.st_size}/{status.st_mtime_ns}\n")
    return tuple(names), hashlib.sha256(os.fsencode("".join(lines))).digest()

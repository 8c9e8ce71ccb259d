"""What is wrong with a folder of images: `dh2l data check FOLDER [--csv FILE]`.

`inspect` looks at everything that training would read, and decodes each image as the cache does;
`show` prints what it found.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dh2l_jax.data.folders.scan import Scan, scan
from dh2l_jax.data.folders.walk import Finding, as_findings, one_line
from dh2l_jax.data.store.source import Examples
from dh2l_jax.hierarchy import Hierarchy

__all__ = ["LISTED", "SMALL", "FolderReport", "inspect", "show"]

SMALL = 32
"""Pixels; a shorter side below that of CIFAR's images is remarked on."""

LISTED = 20
"""Files or classes of a kind that are named; the others are counted."""

_SMALLEST = 5  # rows in the table of the smallest classes
_CHUNK = 1024  # images that are handed to the threads at a time


@dataclasses.dataclass(frozen=True, eq=False)
class FolderReport:
    """What `inspect` found.

    Attributes:
      root: the folder.
      layout: where the two splits come from, in words.
      hierarchy: the tree; None if the problems leave none.
      classes: (C) each class with its ancestors, in label order.
      train: (C,) training images of each class.
      test: (C,) test images of each class.
      problems: why the folder cannot be trained on, or its test not be trusted.
      remarks: what a user may not have meant.
    """

    root: Path
    layout: str
    hierarchy: Hierarchy | None
    classes: tuple[tuple[str, ...], ...]
    train: np.ndarray
    test: np.ndarray
    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def inspect(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> FolderReport:
    """Looks for everything that is wrong with a folder of images.

    The report has no problem exactly if `open_folder` takes the folder, every image can be decoded,
    and no image is in both splits.

    Args:
      path: the folder, see `dh2l_jax.data.folders.scan`.
      classes_csv: see `open_folder`.
      on_image: is called after each image with the numbers of images looked at and of all.

    Raises:
      ValueError: Pillow is not installed.
      OSError: the folder or the CSV file is missing.
    """
    found = scan(path, classes_csv=classes_csv)
    problems, remarks = _look_at_images(found, on_image)
    train, test = (
        np.bincount(examples.labels, minlength=len(found.classes))
        for examples in (found.train, found.test)
    )
    return FolderReport(
        root=found.root,
        layout=found.layout,
        hierarchy=found.hierarchy,
        classes=found.classes,
        train=train,
        test=test,
        problems=(*found.problems, *problems),
        remarks=(*found.remarks, *remarks),
    )


def _look_at_images(
    found: Scan, on_image: Callable[[int, int], object]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Problems and remarks of the images themselves."""
    bad, twice, small = [], [], []
    train_index: dict[bytes, int] = {}
    done, total = 0, len(found.train) + len(found.test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about oddities that do no harm
        for examples in (found.train, found.test):
            for index, (side, digest, error) in enumerate(_decode(examples)):
                name = examples.describe(index)
                done += 1
                on_image(done, total)
                if error:
                    bad.append(one_line(f"{name}: {error}"))
                    continue
                if side < SMALL:
                    small.append(f"{name}: {side} pixels")
                if examples is found.train:
                    train_index.setdefault(digest, index)
                elif digest in train_index:
                    twice.append(f"{name} is {found.train.describe(train_index[digest])}")
    problems = {"images that cannot be read": bad, "images both for training and the test": twice}
    remarks = {f"images with a side below {SMALL} pixels": small}
    return as_findings(problems), as_findings(remarks)


def _decode(examples: Examples) -> Iterator[tuple[int, bytes, str]]:
    """Of each image the shorter side and a hash of the file, or else what is wrong; in order."""
    from dh2l_jax.data.store.decode import decode  # needs Pillow

    def look(index: int) -> tuple[int, bytes, str]:
        try:
            encoded, _ = examples[index]
            side = min(decode(encoded).shape[:2])
        except OSError as error:
            return 0, b"", str(error.strerror)
        except ValueError as error:
            return 0, b"", str(error)
        return side, hashlib.blake2b(encoded, digest_size=16).digest(), ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), _CHUNK):
            yield from pool.map(look, range(start, min(start + _CHUNK, len(examples))))


# What is printed.


def show(report: FolderReport, console: Console) -> None:
    """Prints a report; problems come last, where the eye rests."""
    console.print(Text(f"{one_line(str(report.root))}: {report.layout}", style="bold"))
    if report.hierarchy is not None:
        console.print(_tree_table(report.hierarchy))
    if report.classes:
        console.print(_count_table(report))
        console.print(_smallest_table(report))
    for findings, style in ((report.remarks, "bold yellow"), (report.problems, "bold red")):
        for finding in findings:
            console.print(Text(f"\n{finding.what}: {len(finding.where)}", style=style))
            for where in finding.where[:LISTED]:
                console.print(Text(f"  {where}", overflow="fold"))
            if len(finding.where) > LISTED:
                console.print(f"  and {len(finding.where) - LISTED} more")


def _tree_table(tree: Hierarchy) -> Table:
    table = Table("level", "nodes", "children each", "names")
    for level in range(1, tree.num_levels + 1):
        children = "–"
        if level < tree.num_levels:
            sizes = tree.group_sizes(level + 1)
            children = f"{sizes.min()}–{sizes.max()}" if np.ptp(sizes) else f"{sizes.min()}"
        names = [one_line(name) for name in tree.names(level)]
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        table.add_row(str(level), str(len(names)), children, Text(shown, overflow="fold"))
    return table


def _count_table(report: FolderReport) -> Table:
    table = Table("split", title_justify="left")
    for column in ("images", "classes", "fewest", "median", "most"):
        table.add_column(column, justify="right")
    for split, counts in (("training", report.train), ("test", report.test)):
        numbers = (
            counts.sum(),
            np.count_nonzero(counts),
            counts.min(),
            np.median(counts),
            counts.max(),
        )
        table.add_row(split, *(f"{number:,.10g}" for number in numbers))
    return table


def _smallest_table(report: FolderReport) -> Table:
    table = Table("smallest classes")
    table.add_column("training", justify="right")
    table.add_column("test", justify="right")
    for label in np.argsort(report.train, kind="stable")[:_SMALLEST]:
        name = Text(one_line("/".join(report.classes[label])), overflow="fold")
        table.add_row(name, f"{report.train[label]:,}", f"{report.test[label]:,}")
    return table

"""What is wrong with a folder of images: `dh2l data check FOLDER [--csv FILE]`.

`inspect` looks at everything that training would read, and decodes each image as the cache does.
What it found is shown to people by `show`, a finding a line by `lines`, to programs by `as_json`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dh2l_jax.checks import one_line
from dh2l_jax.data.folders.scan import Scan, scan
from dh2l_jax.data.folders.walk import Finding, as_findings
from dh2l_jax.data.store.images import digest
from dh2l_jax.data.store.source import Examples
from dh2l_jax.hierarchy import Hierarchy

if TYPE_CHECKING:
    from dh2l_jax.data.store.decode import Decoded

__all__ = ["LISTED", "LONG", "SMALL", "FolderReport", "as_json", "inspect", "lines", "show"]

SMALL = 32
"""Pixels; a shorter side below that of CIFAR's images is remarked on."""

LONG = 10
"""A longer side above so many times the shorter is remarked on: a crop sees little of it."""

LISTED = 20
"""On a terminal, files or classes of a kind that are named; the others are counted."""

SAME_PICTURE = "the same picture in two classes"

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
      inner: of each inner node with images of its own, its path, training and test images.
      problems: why the folder cannot be trained on, or its test not be trusted.
      remarks: what a user may not have meant.
    """

    root: Path
    layout: str
    hierarchy: Hierarchy | None
    classes: tuple[tuple[str, ...], ...]
    train: np.ndarray
    test: np.ndarray
    inner: tuple[tuple[tuple[str, ...], int, int], ...]
    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def inspect(
    path: str | Path,
    *,
    classes_csv: str | Path | None = None,
    resize: int = 0,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> FolderReport:
    """Looks for everything that is wrong with a folder of images.

    The report has no problem exactly if `open_folder` takes the folder, every image can be decoded,
    and no image is in both splits.

    Args:
      path: the folder, see `dh2l_jax.data.folders.scan`.
      classes_csv: see `open_folder`.
      resize: to look at the images as training with this `data.resize` will.
      on_image: is called after each image with the numbers of images looked at and of all.

    Raises:
      ValueError: Pillow is not installed.
      OSError: the folder or the CSV file is missing.
    """
    found = scan(path, classes_csv=classes_csv)
    problems, remarks = _look_at_images(found, resize, on_image)
    C = len(found.classes)
    size = max([C, *(label + 1 for label in found.inner)])
    train, test = (
        np.bincount(examples.labels, minlength=size) for examples in (found.train, found.test)
    )
    return FolderReport(
        root=found.root,
        layout=found.layout,
        hierarchy=found.hierarchy,
        classes=found.classes,
        train=train[:C],
        test=test[:C],
        inner=tuple((path, int(train[i]), int(test[i])) for i, path in found.inner.items()),
        problems=(*found.problems, *problems),
        remarks=(*found.remarks, *remarks),
    )


def _look_at_images(
    found: Scan, resize: int, on_image: Callable[[int, int], object]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Problems and remarks of the images themselves."""
    bad, twice = [], []
    remarks: dict[str, list[str]] = collections.defaultdict(list)
    seen: dict[bytes, list[int]] = {}  # by content, the first image of each split and class
    first_of_test, labels = len(found.train), [*found.train.labels, *found.test.labels]

    def name(number: int) -> str:
        is_test = number >= first_of_test
        examples = found.test if is_test else found.train
        return examples.describe(number - first_of_test * is_test)

    for number, (image, content) in enumerate(_decoded(found, resize)):
        on_image(number + 1, len(labels))
        if isinstance(image, str):
            bad.append(one_line(f"{name(number)}: {image}"))
            continue
        for what, detail in _remarks(image):
            remarks[what].append(name(number) + detail)
        is_known = False
        for other in seen.setdefault(content, []):
            both_splits = (other < first_of_test) != (number < first_of_test)
            if both_splits:
                twice.append(f"{name(number)} is {name(other)}")
            if labels[other] != labels[number]:
                remarks[SAME_PICTURE].append(f"{name(number)} is {name(other)}")
            is_known |= not both_splits and labels[other] == labels[number]
        if not is_known:
            seen[content].append(number)
    problems = {"images that cannot be read": bad, "images both for training and the test": twice}
    return as_findings(problems), as_findings(remarks)


def _remarks(image: Decoded) -> Iterator[tuple[str, str]]:
    """(what, detail) of an image that a user may not have meant."""
    height, width = image.pixels.shape[:2]
    shorter, longer = sorted((height, width))
    if shorter < SMALL:
        yield f"images with a side below {SMALL} pixels", f": {shorter} pixels"
    if longer > LONG * shorter:
        yield f"images with a side over {LONG} times the other", f": {width} × {height} pixels"
    if image.is_turned:
        yield "images turned upright, as their EXIF data ask", ""
    if image.is_transparent:
        yield "images with transparent pixels, which become those of data.background", ""


def _decoded(found: Scan, resize: int) -> Iterator[tuple[Decoded | str, bytes]]:
    """Of each image of both splits, in order, what is in it, or else what is wrong; a digest."""
    from dh2l_jax.data.store.decode import decode_traced, scaled_size  # needs Pillow

    def look(examples: Examples, index: int) -> tuple[Decoded | str, bytes]:
        try:
            image = decode_traced(examples[index][0])
            scaled_size(image.pixels.shape[1::-1], resize)
        except OSError as error:
            return str(error.strerror), b""
        except ValueError as error:
            return str(error), b""
        # The pixels of a chunk would fill the memory: their shape is enough from here on.
        shape = np.broadcast_to(np.uint8(0), image.pixels.shape)
        return image._replace(pixels=shape), digest(image.pixels)

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's, about oddities that do no harm
        for examples in (found.train, found.test):
            for start in range(0, len(examples), _CHUNK):
                numbers = range(start, min(start + _CHUNK, len(examples)))
                yield from pool.map(functools.partial(look, examples), numbers)


# What is printed.


def lines(report: FolderReport) -> list[str]:
    """Everything in a report, a finding a line: for programs that read lines, and for files."""
    kinds = (("remark", report.remarks), ("problem", report.problems))
    return [
        f"{one_line(str(report.root))}: {report.layout}",
        *(
            f"{split}: {counts.sum()} images in {np.count_nonzero(counts)} classes"
            for split, counts in (("training", report.train), ("test", report.test))
        ),
        *_odd_lines(report),
        *(
            f"{kind}: {finding.what}: {where}"
            for kind, findings in kinds
            for finding in findings
            for where in finding.where
        ),
    ]


def _odd_lines(report: FolderReport) -> Iterator[str]:
    """Of an uneven tree, and of images at inner nodes."""
    tree = report.hierarchy
    if tree is not None and tree.class_depths:
        counts = sorted(collections.Counter(tree.class_depths).items())
        yield "classes at depths: " + ", ".join(f"{depth}: {number}" for depth, number in counts)
    if report.inner:
        train = sum(train for _, train, _ in report.inner)
        test = sum(test for _, _, test in report.inner)
        yield (
            f"inner nodes: {train} training and {test} test images at {len(report.inner)} nodes, "
            "see data.inner"
        )


def as_json(report: FolderReport) -> dict[str, Any]:
    """Everything in a report, as values of JSON; names of classes are exact."""
    return {
        "folder": str(report.root),
        "layout": report.layout,
        "classes": [
            {"path": path, "train": int(train), "test": int(test)}
            for path, train, test in zip(report.classes, report.train, report.test, strict=True)
        ],
        "inner": [
            {"path": path, "train": train, "test": test} for path, train, test in report.inner
        ],
        "problems": [dataclasses.asdict(finding) for finding in report.problems],
        "remarks": [dataclasses.asdict(finding) for finding in report.remarks],
    }


def show(report: FolderReport, console: Console) -> None:
    """Prints a report on a terminal; problems come last, where the eye rests."""
    console.print(Text(f"{one_line(str(report.root))}: {report.layout}", style="bold"))
    if report.hierarchy is not None:
        console.print(_tree_table(report.hierarchy))
    if report.classes:
        console.print(_count_table(report))
        console.print(_smallest_table(report))
        for line in _odd_lines(report):
            console.print(Text(line))
    for findings, style in ((report.remarks, "bold yellow"), (report.problems, "bold red")):
        for finding in findings:
            console.print(Text(f"\n{finding.what}: {len(finding.where)}", style=style))
            for where in finding.where[:LISTED]:
                console.print(Text(f"  {where}", overflow="fold"))
            if len(finding.where) > LISTED:
                more = len(finding.where) - LISTED
                console.print(f"  and {more} more, which --json FILE lists")


def _tree_table(tree: Hierarchy) -> Table:
    table = Table("level", "nodes", "children each", "names")
    if tree.class_depths:
        table = Table("level", "nodes", "of them classes", "children each", "names")
    children_of = np.bincount(tree.node_parents()[:-1], minlength=tree.num_nodes)
    for level in range(1, tree.num_levels + 1):
        children, inner = "–", tree.inner_nodes(level)
        if inner:
            sizes = children_of[inner.start : inner.stop]
            children = f"{sizes.min()}–{sizes.max()}" if np.ptp(sizes) else f"{sizes.min()}"
        nodes = tree.members(level)
        here = np.isin(tree.level_nodes(level), nodes)
        names = [one_line(name) for name in np.array(tree.names(level), object)[here]]
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        classes = [str(np.sum(nodes < tree.num_classes))] if tree.class_depths else []
        row = (str(level), str(len(names)), *classes, children)
        table.add_row(*row, Text(shown, overflow="fold"))
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

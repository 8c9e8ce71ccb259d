"""What a finished run says of pictures: a line each, with its probability at every level.

  dh2l predict runs/mine photos/               CSV on stdout: all pictures below the folder
  dh2l predict runs/mine a.jpg 'b/*.png' --out answers.csv
  find . -name '*.jpg' | dh2l predict runs/mine - --json
  dh2l predict runs/mine photos/ --accuracy 0.95

With --accuracy or --threshold an answer goes only as deep in the tree as it is sure, and may stop
at an inner node. The run's folder is all that is needed: its training images may be elsewhere.

Exit codes: 0 done; 1 some pictures could not be read, each is named; 2 bad input; 3 the network
gives NaN; 4 something can't be written.
"""

from __future__ import annotations

import argparse
import csv
import functools
import glob
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dh2l_jax.checks import one_line
from dh2l_jax.commands import BAD, Exit, Parser, fail, refuse_small_limits
from dh2l_jax.files import write_atomically

# What needs JAX is imported in the functions: help and a wrong option answer at once.
if TYPE_CHECKING:
    from dh2l_jax.training.finished.predictor import Prediction, Predictor

PROGRAM = "dh2l predict"
STDIN = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson")
DIGITS = 6  # of a probability


def main(arguments: list[str] | None = None) -> int:
    """Prints or writes the predictions; the exit code."""
    try:
        options = parse_arguments(arguments)
        refuse_lost(options.paths)
        if options.out and options.out.is_dir():
            raise ValueError(f"--out must be a file, found the folder {options.out}")
        refuse_small_limits()
        from dh2l_jax.training.finished.predictor import Predictor
        from dh2l_jax.training.host.programs import prepare_jax

        prepare_jax()
        predictor = Predictor.load(options.run, decision=options.decision, print_line=_tell)
        threshold = _threshold(predictor, options)
    except BAD as error:
        return fail(PROGRAM, error)
    rows = Rows(predictor, options, threshold)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about oddities that do no harm
            if options.out:
                write_atomically(options.out, rows.write)
            else:
                rows.print()
    except FloatingPointError as error:
        return fail(PROGRAM, error, Exit.NOT_FINITE)
    except ValueError as error:
        return fail(PROGRAM, error)
    except OSError as error:
        return fail(PROGRAM, error, Exit.CANNOT_WRITE)
    return rows.end()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, taken apart; a `ValueError` says what is wrong with it."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a picture, a folder of pictures, a pattern such as 'b/*.png', or - for a list on "
        "stdin, a path a line (or between NULs, as find -print0 writes it)",
    )
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument(
        "--accuracy",
        metavar="A",
        type=float,
        help="answers are right so often, such as 0.95: the threshold is chosen on the run's "
        "validation images, and holds with a probability of 95 %%",
    )
    depth.add_argument(
        "--threshold",
        metavar="P",
        type=float,
        help="answers go only as deep as their probability is at least P",
    )
    depth.add_argument(
        "--decision",
        choices=("argmax", "crm"),
        help="which class is the answer: the most probable, or that of the least expected height "
        "(default: the run's)",
    )
    parser.add_argument(
        "--best", metavar="K", type=int, default=5, help="most probable classes (default: 5)"
    )
    parser.add_argument(
        "--json", action="store_true", help="JSON lines, names as they are; CSV is for spreadsheets"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where to write; FILE.jsonl is JSON lines"
    )
    options = parser.parse_args(arguments)
    _refuse_numbers(options)
    options.json |= options.out is not None and options.out.suffix in JSON_SUFFIXES
    return options


def _refuse_numbers(options: argparse.Namespace) -> None:
    accuracy, threshold = options.accuracy, options.threshold
    if accuracy is not None and not 0 < accuracy < 1:
        raise ValueError(f"--accuracy must be in (0, 1), found {accuracy:g}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], found {threshold:g}")
    if options.best < 0:
        raise ValueError(f"--best must be at least 0, found {options.best}")


def _threshold(predictor: Predictor, options: argparse.Namespace) -> float | None:
    """How sure answers must be; where it is chosen for an accuracy, it is told."""
    if options.accuracy is None:
        return options.threshold
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        threshold = predictor.threshold_for(options.accuracy)
    for warning in told:
        _tell(str(warning.message))
    if not told:
        _tell(
            f"answers go as deep as their probability is at least {threshold:g}, chosen on "
            f"{len(predictor.certainty.labels):,} validation images: with a probability of 95 %, "
            f"at least {100 * options.accuracy:g} % are right"
        )
    return threshold


# The pictures.


def refuse_lost(words: Sequence[str]) -> None:
    """Raises a `ValueError` for a path that leads nowhere, before anything is computed."""
    for word in words:
        if word != STDIN and not os.path.lexists(word) and not any(_fitting(word)):
            raise ValueError(f"no picture or folder {word!r}, and no file fits it as a pattern")


def pictures(words: Sequence[str], stdin: BinaryIO | None = None) -> Iterator[str]:
    """The files that the words mean, in order; looked up as they are asked for."""
    for word in words:
        if word == STDIN:
            yield from _listed(stdin or sys.stdin.buffer)
        else:
            for path in [word] if os.path.lexists(word) else sorted(_fitting(word)):
                yield from _below(path) if Path(path).is_dir() else [path]


def _fitting(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207 (a Path takes no absolute pattern)


def _below(folder: str) -> Iterator[str]:
    """Pictures by their suffix, no folder twice; a folder that can't be read is one that can't."""
    from dh2l_jax.data.folders.walk import SUFFIXES, is_visible

    known: set[tuple[int, int]] = set()
    unread: list[OSError] = []
    for path, inner, names in os.walk(folder, followlinks=True, onerror=unread.append):
        yield from (str(error.filename) for error in unread)
        unread.clear()
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in known:
            inner.clear()
            continue
        known.add((status.st_dev, status.st_ino))
        inner[:] = sorted(filter(is_visible, inner))
        for name in sorted(filter(is_visible, names)):
            if name.lower().endswith(SUFFIXES):
                yield str(Path(path, name))
    yield from (str(error.filename) for error in unread)


def _listed(stdin: BinaryIO) -> Iterator[str]:
    """The paths of a list, a line each or between NULs."""
    rest, end = b"", b""
    while block := stdin.read1(2**16):  # pyright: ignore[reportAttributeAccessIssue]
        rest += block
        end = end or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
        *whole, rest = rest.split(end) if end else [rest]
        yield from (os.fsdecode(path) for path in whole if path)
    if rest:
        yield os.fsdecode(rest)


# What is written.


class Rows:
    """The predictions as text, a line each; names those pictures that can't be read."""

    def __init__(self, predictor: Predictor, options: argparse.Namespace, threshold: float | None):
        self._predictor, self._options, self._threshold = predictor, options, threshold
        self._done, self._unreadable, self._start = 0, 0, time.perf_counter()
        tree = predictor.facts.tree
        best = min(options.best, tree.num_classes)
        pairs = [f"level_{level}" for level in range(1, tree.num_levels + 1)]
        pairs += [f"best_{rank}" for rank in range(1, best + 1)]
        self._levels = tree.num_levels
        self._depths = [0] * (tree.num_levels + 1)
        self._head = ["path", "answer", "level", "p"]
        self._head += [name for pair in pairs for name in (pair, f"p_{pair}")]

    def write(self, file: BinaryIO) -> None:
        """To a file; a path keeps its bytes, whatever they are."""
        for line in self._lines(is_shown=False):
            file.write(line.encode("utf-8", "surrogateescape"))

    def print(self) -> None:
        """To stdout; on a terminal, control characters in names are escaped."""
        for line in self._lines(is_shown=sys.stdout.isatty()):
            print(line, end="")

    def end(self) -> Exit:
        """Says how many there were and how fast; the exit code."""
        seconds, count = time.perf_counter() - self._start, self._done + self._unreadable
        speed = f"{self._done / seconds:,.0f} images/s"
        _tell(f"{self._done:,} of {count:,} pictures in {seconds:.1f} s, {speed}")
        if self._threshold is not None:
            levels = ", ".join(map(str, range(self._levels + 1)))
            counts = ", ".join(map(str, self._depths))
            _tell(f"answered at level {levels}: {counts} (0 is the root, where nothing is sure)")
        if not self._unreadable:
            return Exit.FINISHED
        line = f"{self._unreadable:,} of {count:,} pictures can't be read, and are left out"
        return fail(PROGRAM, line, Exit.FAILED)

    def _lines(self, is_shown: bool) -> Iterator[str]:
        from dh2l_jax.training.finished.predictor import Unreadable

        options = self._options
        text = _json if options.json else functools.partial(self._csv, is_shown=is_shown)
        with self._bar(is_hidden=is_shown) as bar:
            (task,) = bar.task_ids
            found = self._predictor.stream(
                pictures(options.paths), self._threshold, best=options.best
            )
            for told in found:
                if not (options.json or self._done + self._unreadable):
                    yield _csv_line(self._head)
                if isinstance(told, Unreadable):
                    self._unreadable += 1
                    line = one_line(f"{PROGRAM}: {told.path}: {told.reason}")
                    bar.console.print(line, soft_wrap=True, markup=False)
                else:
                    self._done += 1
                    self._depths[told.level] += 1
                    yield text(told)
                speed = bar.tasks[0].speed
                bar.update(task, advance=1, speed=f"{speed:,.0f} images/s" if speed else "")
        if not self._done + self._unreadable:
            raise ValueError(f"no pictures in {', '.join(map(repr, options.paths))}")

    def _bar(self, is_hidden: bool) -> Progress:
        console = Console(stderr=True, highlight=False)
        is_hidden |= not console.is_terminal
        bar = Progress(
            TextColumn("predicting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=is_hidden,
        )
        paths = self._options.paths
        is_counted = not is_hidden and STDIN not in paths
        bar.add_task("", total=sum(1 for _ in pictures(paths)) if is_counted else None, speed="")
        return bar

    def _csv(self, found: Prediction, is_shown: bool) -> str:
        levels = [*found.levels, *[("", "")] * (self._levels - len(found.levels))]
        pairs = [cell for pair in (*levels, *found.best) for cell in pair]
        cells = [found.path, found.answer, found.level, found.probability, *pairs]
        if is_shown:
            cells = [one_line(cell) if isinstance(cell, str) else cell for cell in cells]
        return _csv_line(cells)


def _csv_line(cells: Sequence[Any]) -> str:
    from dh2l_jax.training.run.records import spreadsheet_cell

    text = io.StringIO()
    rounded = (round(cell, DIGITS) if isinstance(cell, float) else cell for cell in cells)
    csv.writer(text, lineterminator="\n").writerow(map(spreadsheet_cell, rounded))
    return text.getvalue()


def _json(found: Prediction) -> str:
    """In ASCII, so that half a letter in a path survives and a terminal is not steered."""
    values = {
        "path": found.path,
        "answer": found.answer,
        "level": found.level,
        "p": round(found.probability, DIGITS),
        "levels": _pairs(found.levels),
        "best": _pairs(found.best),
    }
    return json.dumps(values) + "\n"


def _pairs(pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "p": round(p, DIGITS)} for name, p in pairs]


def _tell(line: str) -> None:
    print(one_line(f"{PROGRAM}: {line}"), file=sys.stderr)

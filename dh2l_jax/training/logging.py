"""What a run writes and shows: metrics.jsonl, JSON files, the progress bar, the summary."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = [
    "Log",
    "append_record",
    "keep_records",
    "print_scores",
    "read_records",
    "versions",
    "write_json",
    "write_text",
]

PACKAGES = ("dh2l-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one JSON object, readable by people: all of it or, on failure, nothing."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step; of several processes of a run, the first one does it."""
    if jax.process_index():
        return
    beside = path.with_name(f"{path.name}.tmp")
    with _named(path):
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line; of several processes, the first one does it."""
    if jax.process_index():
        return
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file.

    A last line without its end, which a killed process leaves, is passed over.

    Raises:
      ValueError: a line is no JSON object; its number is named.
      OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    records, lines = [], path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number}: expected a JSON object, found {record!r:.40}")
        records.append(record)
    return records


def keep_records(path: Path, step: int) -> None:
    """Drops the records of later steps than `step`, which will be done again.

    Raises:
      ValueError: as `read_records`, or a record names no step.
      OSError: the file cannot be written.
    """
    kept = []
    for number, record in enumerate(read_records(path), 1):
        if not isinstance(record.get("step"), int):
            raise ValueError(f"{path}: line {number}: expected the number of a step, found none")
        if record["step"] <= step:
            kept.append(json.dumps(record, ensure_ascii=False) + "\n")
    if path.exists():
        write_text(path, "".join(kept))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the path in an error of writing, which Python leaves out where a disk is full."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path} cannot be written: {reason}") from error


def versions() -> dict[str, str]:
    """Versions of what computed a result, and on what."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    devices = jax.devices()
    return found | {"devices": f"{len(devices)} × {devices[0].device_kind}"}


class Log:
    """Progress of a run: a bar with images/s and time left on a terminal, a line an epoch always.

    Use it as a context manager around the training loop.
    """

    def __init__(self, total_steps: int, batch_size: int, *, console: Console | None = None):
        """A log of so many steps of so many images."""
        self.console = console or Console(highlight=False)
        self._batch_size = batch_size
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, speed="")

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Tells that so many steps have been done before, or are done again no more."""
        self._progress.reset(self._task, completed=step)

    def step(self, epoch: int, steps: int = 1) -> None:
        """Tells that steps have been finished."""
        speed = self._progress.tasks[self._task].speed
        shown = f"{speed * self._batch_size:,.0f} images/s" if speed else ""
        self._progress.update(self._task, advance=steps, description=f"epoch {epoch}", speed=shown)

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Prints the line of a finished epoch above the bar."""
        scores = record.get("accuracy")
        text = (
            f"epoch {record['epoch']:>3}/{epochs}  J {record['J']:.4f}  L {record['L']:.4f}  "
            f"train accuracy {100 * record['train_accuracy']:.2f} %  lr {record['lr']:.4g}  "
            f"{record['images_per_second']:,.0f} images/s"
        )
        if scores:
            text += f"  {record['split']} accuracy {100 * scores[-1]:.2f} %"
        self.console.print(text, soft_wrap=True, markup=False)


def print_scores(console: Console, scores: Mapping[str, Any]) -> None:
    """A table of the accuracy at every level, and one line a kind of other scores."""
    console.print(f"{scores['split']} accuracy ({scores['images']:,} images)", markup=False)
    table = Table()
    table.add_column("level")
    table.add_column("nodes", justify="right")
    table.add_column("accuracy", justify="right")
    rows = zip(scores["nodes"], scores["accuracy"], strict=True)
    for level, (nodes, accuracy) in enumerate(rows, 1):
        table.add_row(str(level), f"{nodes:,}", f"{100 * accuracy:.2f} %")
    console.print(table)
    if len(scores["nodes"]) > 1:
        for line in _hierarchical_lines(scores):
            console.print(line, soft_wrap=True, markup=False)


def _hierarchical_lines(scores: Mapping[str, Any]) -> list[str]:
    distances = scores["hierarchical_distance"].items()
    return [
        f"mistake severity {scores['mistake_severity']:.3f} (mean height of the lowest common "
        "ancestor, wrong predictions only)",
        "hierarchical distance " + ", ".join(f"@{k} {value:.3f}" for k, value in distances),
        f"hierarchical F1 {100 * scores['hF1']:.2f} %, full-path accuracy "
        f"{100 * scores['full_path_accuracy']:.2f} %, inconsistent paths "
        f"{100 * scores['inconsistent_path_ratio']:.2f} %",
    ]

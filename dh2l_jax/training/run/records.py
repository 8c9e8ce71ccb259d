"""Files of a run that people read: JSON objects, JSON lines, replaced in one step."""

from __future__ import annotations

import csv
import io
import json
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dh2l_jax.files import name_in_errors, write_atomically

__all__ = [
    "CONFUSION",
    "append_record",
    "keep_records",
    "read_records",
    "spreadsheet_cell",
    "versions",
    "write_confusion",
    "write_json",
    "write_text",
]

CONFUSION = "confusion.csv"
# How a formula begins, as OWASP lists it (CSV injection); the wide forms are those of East Asia.
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
PACKAGES = ("dh2l-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one JSON object, readable by people: all of it or, on failure, nothing."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step; of several processes of a run, the first one does it."""
    if not jax.process_index():
        write_atomically(path, text.encode())


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line; of several processes, the first one does it."""
    if jax.process_index():
        return
    with name_in_errors(path), path.open("a", encoding="utf-8") as file:
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
      ValueError: a line is no JSON object, or a record names no step.
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


def write_confusion(workdir: Path, scores: dict[str, Any], name: str = CONFUSION) -> None:
    """Moves the confusion matrix from the scores to a table: true class by predicted class.

    A JSON file beside it has the names of the classes as they are.
    """
    rows, names = scores.pop("confusion", None), scores.pop("confusion_names", None)
    if rows is None or names is None:
        return
    text = io.StringIO()
    table = csv.writer(text)
    cells = list(map(spreadsheet_cell, names))
    table.writerow(["", *cells])
    table.writerows([cell, *row] for cell, row in zip(cells, rows, strict=True))
    write_text(workdir / name, text.getvalue())
    exact = {"classes": names, "confusion": rows}
    write_text((workdir / name).with_suffix(".json"), json.dumps(exact, ensure_ascii=False) + "\n")


def spreadsheet_cell(value: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would execute gets an apostrophe before it.

    >>> spreadsheet_cell("=1+1"), spreadsheet_cell("a-b"), spreadsheet_cell(-1)
    ("'=1+1", 'a-b', -1)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

"""Files of a run that people read: JSON objects, JSON lines, replaced in one step."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dh2l_jax.files import append, read_plain, write_atomically

__all__ = [
    "CONFUSION",
    "append_record",
    "keep_records",
    "read_records",
    "read_sealed",
    "refuse_damaged",
    "spreadsheet_cell",
    "versions",
    "write_bytes",
    "write_confusion",
    "write_json",
    "write_sealed",
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
    """See `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step; of several processes of a run, the first one does it."""
    if not jax.process_index():
        write_atomically(path, content)


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line, on disk when the call returns.

    Of several processes, the first one does it.
    """
    if not jax.process_index():
        append(path, (json.dumps(values, ensure_ascii=False) + "\n").encode())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file.

    A last line without its end, which a killed process leaves, is passed over.

    Raises:
      ValueError: a line is no JSON object; its number is named.
      OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    records, lines = [], read_plain(path).split(b"\n")
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


# The end of a sealed file, which the seal itself does not cover.
_SEAL = re.compile(r',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')


def write_sealed(path: Path, values: Mapping[str, Any], files: Iterable[str] = ()) -> None:
    """Writes a JSON object with the SHA-256 of files beside it and, last, of its own text."""
    if jax.process_index():
        return
    digests = {name: _sha256(read_plain(path.with_name(name))) for name in files}
    text = json.dumps({**values, "files": digests}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f'{text[:-2]},\n  "sha256": "{_sha256(text.encode())}"\n}}\n')


def read_sealed(path: Path) -> dict[str, Any]:
    """What was written with a seal, or without one by an earlier version.

    Raises:
      ValueError: it is no JSON object, or not what was written.
      OSError: it cannot be read.
    """
    content = read_plain(path)
    try:
        text = content.decode("utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error!r:.80}") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, found {values!r:.40}")
    if not {"files", "sha256"} & values.keys():
        return values
    seal = _SEAL.search(text)
    if seal is None or _sha256(f"{text[: seal.start()]}\n}}".encode()) != seal[1]:
        raise ValueError("its SHA-256 is not the one in its last line")
    return values


def refuse_damaged(workdir: Path, values: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if a file that a sealed object names is not as it was then."""
    for name, digest in values.get("files", {}).items():
        path = workdir / name
        if not path.exists() or _sha256(read_plain(path)) != digest:
            found = "damaged" if path.exists() else "missing"
            raise ValueError(f"{path} is {found}: its SHA-256 is not what the run wrote at its end")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


def write_confusion(workdir: Path, scores: dict[str, Any], name: str = CONFUSION) -> list[str]:
    """Moves the confusion matrix from the scores to a table: true class by predicted class.

    A JSON file beside it has the names of the classes as they are.

    Returns:
      The names of both files, if there is a matrix.
    """
    rows, names = scores.pop("confusion", None), scores.pop("confusion_names", None)
    if rows is None or names is None:
        return []
    text = io.StringIO()
    table = csv.writer(text)
    cells = list(map(spreadsheet_cell, names))
    table.writerow(["", *cells])
    table.writerows([cell, *row] for cell, row in zip(cells, rows, strict=True))
    write_text(workdir / name, text.getvalue())
    exact = {"classes": names, "confusion": rows}
    beside = (workdir / name).with_suffix(".json")
    write_text(beside, json.dumps(exact, ensure_ascii=False) + "\n")
    return [name, beside.name]


def spreadsheet_cell(value: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would execute gets an apostrophe before it.

    >>> spreadsheet_cell("=1+1"), spreadsheet_cell("a-b"), spreadsheet_cell(-1)
    ("'=1+1", 'a-b', -1)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

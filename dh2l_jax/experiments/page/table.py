"""From a folder of tables to its page."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

from dh2l_jax.experiments.page.render import rendered
from dh2l_jax.files import read_plain

__all__ = ["is_tables", "table_page"]


def is_tables(folder: Path) -> bool:
    """Whether `dh2l tables` or `dh2l compare` has written a table there."""
    return bool(_tables(folder))


def table_page(folder: Path) -> str:
    """The tables of a folder with their pictures, complete in one text.

    Raises:
      ImportError: Jinja2 is missing; the message says what to install.
      ValueError: a file is no text.
      OSError: a file cannot be read.
    """
    tables = []
    for path in _tables(folder):
        text, picture = read_plain(path).decode("utf-8"), path.with_suffix(".png")
        drawn = base64.b64encode(read_plain(picture)).decode() if picture.is_file() else ""
        told = path.with_suffix(".json")
        about = json.loads(read_plain(told)) if told.is_file() else {}
        if not isinstance(about, dict):
            raise ValueError(f"{told}: expected an object, found {type(about).__name__}")
        tables.append(
            {
                "name": path.stem,
                "sentences": about.get("sentences", []),
                "rows": list(csv.reader(io.StringIO(text))),
                "text": read_plain(path.with_suffix(".md")).decode("utf-8"),
                "picture": f"data:image/png;base64,{drawn}" if drawn else "",
            }
        )
    return rendered("table.html", {"title": folder.resolve().name, "tables": tables})


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.csv")) if path.with_suffix(".md").is_file()]

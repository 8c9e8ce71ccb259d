"""One HTML file about a finished run, or about tables of many: it opens anywhere, offline.

  dh2l report runs/mine                  writes runs/mine/report.html
  dh2l report runs/mine --out mine.html
  dh2l report runs/tables                what `dh2l tables` has written there

In it: curves of J and its terms, accuracy at each level, confusion branch by branch, the gravest
mistakes, a table of classes, how right answers are that are so sure, calibration, diversity of the
layers, class vectors, config, versions and data. No image of the data set is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dh2l_jax.checks import one_line
from dh2l_jax.commands import BAD, Exit, Parser, fail
from dh2l_jax.experiments.page.run import run_page
from dh2l_jax.experiments.page.table import is_tables, table_page
from dh2l_jax.files import write_atomically
from dh2l_jax.training.run.facts import read_facts
from dh2l_jax.training.run.folder import CONFIG, is_run

PROGRAM = "dh2l report"
REPORT = "report.html"


def main(arguments: list[str] | None = None) -> int:
    """Writes the page; the exit code."""
    try:
        options = parse_arguments(arguments)
        text = _page(options.folder)
    except BAD as error:
        return fail(PROGRAM, error)
    path = options.out or options.folder / REPORT
    try:
        # A name of a file may hold half a letter, which UTF-8 does not have.
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        return fail(PROGRAM, error, Exit.CANNOT_WRITE)
    print(f"written: {one_line(path)}")
    return Exit.FINISHED


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, taken apart; a `ValueError` says what is wrong with it."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a run, or of tables")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"where to write it (default: RUN/{REPORT})"
    )
    return parser.parse_args(arguments)


def _page(folder: Path) -> str:
    if is_run(folder):
        return run_page(read_facts(folder))
    if is_tables(folder):
        return table_page(folder)
    raise ValueError(
        f"{folder} holds neither a run nor tables: expected {CONFIG}, or NAME.csv and NAME.md"
    )

"""Commands about data sets.

dh2l data prepare NAME [--data-dir DIR] [--manual-dir DIR]   downloads or imports, and prepares
dh2l data check FOLDER [--csv FILE] [--resize N]             reports what is wrong with own images
                       [--json FILE]                         … to a file, or to stdout: --json -

Exit codes: 0 done, no problems; 1 a folder that can't be trained on; 2 bad input; 4 the report
can't be written.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dh2l_jax.checks import one_line
from dh2l_jax.commands import BAD, Exit, Parser, dispatch, fail, put
from dh2l_jax.data.folders.check import FolderReport, as_json, inspect, lines, show
from dh2l_jax.data.prepared.prepare import PREPARED, is_prepared, our_name, prepare

COMMANDS = {
    "prepare": "downloads or imports a data set, and prepares it through TFDS",
    "check": "reports what is wrong with a folder of images",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs `prepare` or `check`; its exit code."""
    runs = {"prepare": _prepare, "check": _check}
    return dispatch("dh2l data", COMMANDS, lambda name, rest: runs[name](rest), arguments)


def _prepare(arguments: list[str]) -> Exit:
    parser = Parser(
        prog="dh2l data prepare",
        description="Prepares a data set through TFDS, without TensorFlow.",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(PREPARED)}")
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where to write (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--manual-dir",
        metavar="DIR",
        help="original files fetched by other means (default: downloads/manual in --data-dir)",
    )
    try:
        options = parser.parse_args(arguments)
        name = our_name(options.name)
        state = "already prepared" if is_prepared(name, options.data_dir) else "prepared"
        folder = prepare(name, data_dir=options.data_dir, manual_dir=options.manual_dir)
    except BAD as error:
        return fail(parser.prog, error)
    print(one_line(f"{name}: {state} in {folder}"))
    return Exit.FINISHED


def _check(arguments: list[str]) -> Exit:
    """A folder that can't be trained on has the code of a failure."""
    parser = Parser(
        prog="dh2l data check", description="Reports what is wrong with a folder of images."
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="<group>/<class>/*.jpg, *.png, …"
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="class,parent[,grandparent] for flat folders"
    )
    parser.add_argument(
        "--resize", metavar="N", type=int, default=0, help="the data.resize of the training"
    )
    parser.add_argument("--json", metavar="FILE", help="the whole report as JSON; - for stdout")
    bar = Progress(
        TextColumn("decoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.disable = not bar.console.is_terminal
    try:
        options = parser.parse_args(arguments)
        if options.resize < 0:
            raise ValueError(f"--resize must be at least 0, found {options.resize}")
        with bar:
            task = bar.add_task("")
            report = inspect(
                options.folder,
                classes_csv=options.csv,
                resize=options.resize,
                on_image=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except BAD as error:
        return fail(parser.prog, error)
    if options.json:
        text = json.dumps(as_json(report), indent=2) + "\n"
        try:
            put(text, options.json)
        except OSError as error:
            return fail(parser.prog, error, Exit.CANNOT_WRITE)
    if options.json != "-":
        _show(report, _next_command(options))
    return Exit.FAILED if report.problems else Exit.FINISHED


def _show(report: FolderReport, command: str) -> None:
    """Tables on a terminal; else a finding a line."""
    console = Console(highlight=False)
    if report.problems:
        end = f"{len(report.problems)} kinds of problems: mend them, then check again."
    else:
        end = f"No problems. Next: {command}"
    if console.is_terminal:
        show(report, console)
        console.print(Text(f"\n{end}"), soft_wrap=True)
    else:
        print(*lines(report), end, sep="\n")


def _next_command(options: argparse.Namespace) -> str:
    values = {
        "data.name": "folder",
        "data.data_dir": options.folder,
        "data.csv": options.csv,
        "data.resize": options.resize,
    }
    command = ["dh2l", "train"]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"] if value else []
    return one_line(shlex.join(command))

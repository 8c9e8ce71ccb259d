"""Commands about data sets.

dh2l data prepare NAME [--data-dir DIR] [--manual-dir DIR]   downloads or imports, and prepares
dh2l data check FOLDER [--csv FILE]                          reports what is wrong with own images
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dh2l_jax.commands import BAD, Exit, Parser, dispatch, fail
from dh2l_jax.data.folders.check import inspect, show
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
    print(f"{name}: {state} in {folder}")
    return Exit.FINISHED


def _check(arguments: list[str]) -> Exit:
    """A folder that can't be trained on has the code of a failure."""
    parser = Parser(
        prog="dh2l data check", description="Reports what is wrong with a folder of images."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="<group>/<class>/*.jpg, *.png")
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="class,parent[,grandparent] for flat folders"
    )
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
        with bar:
            task = bar.add_task("")
            report = inspect(
                options.folder,
                classes_csv=options.csv,
                on_image=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except BAD as error:
        return fail(parser.prog, error)
    console = Console(highlight=False)
    show(report, console)
    console.print()
    if report.problems:
        console.print(f"{len(report.problems)} kinds of problems: mend them, then check again.")
        return Exit.FAILED
    command = ["dh2l", "train", "--set", "data.name=folder"]
    command += ["--set", f"data.data_dir={options.folder}"]
    command += ["--set", f"data.csv={options.csv}"] if options.csv else []
    console.print("No problems. Next:", Text(shlex.join(command)), soft_wrap=True)
    return Exit.FINISHED

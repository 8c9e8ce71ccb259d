"""The commands of `dh2l`, a file each: how one is chosen, how it fails, and its exit codes.

Nothing here is imported with JAX, and only the command that runs is imported at all.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from dh2l_jax.checks import one_line, unknown_name

__all__ = ["BAD", "COMMANDS", "Exit", "Parser", "dispatch", "fail", "run_command"]

COMMANDS = {
    "train": "trains a classifier; goes on with, evaluates, tests or exports a run",
    "data": "prepares a data set, or checks a folder of images",
    "diversity": "says how diverse the weights of a file or a run are, beside random ones",
    "tables": "runs, or resumes, a table of the paper",
}


class Exit(enum.IntEnum):
    """Exit codes; one that a signal stopped has 128 + the signal's number: 130, 143."""

    FINISHED = 0
    FAILED = 1
    """What was looked at has problems, or a run of several failed."""
    BAD_INPUT = 2
    NOT_FINITE = 3
    """NaN or infinity in training."""
    CANNOT_WRITE = 4
    PROCESS_LOST = 5
    """Another process of the run is gone."""


BAD = (ValueError, TypeError, OSError, ImportError)
"""What bad input raises, before anything has been written."""


def fail(program: str, error: BaseException | str, code: Exit = Exit.BAD_INPUT) -> Exit:
    """One line on stderr about what went wrong; the exit code."""
    line = " ".join(str(error).split()) or type(error).__name__
    print(one_line(f"{program}: error: {line}"), file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """A command line that raises what is wrong with it, as all other bad input is raised."""

    def error(self, message: str) -> NoReturn:
        """Raises a `ValueError` where argparse would print its usage and end the process."""
        raise ValueError(message)


def run_command(name: str, arguments: list[str]) -> int:
    """Runs one of `COMMANDS`; its exit code."""
    return importlib.import_module(f"dh2l_jax.commands.{name}").main(arguments)


def dispatch(
    program: str,
    commands: Mapping[str, str],
    run: Callable[[str, list[str]], int],
    arguments: list[str] | None,
) -> int:
    """Runs the command that the first argument names with the others; its exit code.

    Args:
      program: what messages call the program.
      commands: what each does.
      run: (name, arguments) → exit code.
      arguments: None for those of the process.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{what}" for command, what in commands.items()]
        print(f"usage: {program} COMMAND ...\n", *lines, sep="\n")
        print(f"\n{program} COMMAND --help lists the options of a command.")
        return Exit.FINISHED
    if name not in commands:
        return fail(program, unknown_name("command", name, commands))
    return run(name, rest)

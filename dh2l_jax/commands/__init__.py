"""The commands of `dh2l`, a file each: how one is chosen, how it fails, and its exit codes.

Nothing here is imported with JAX, and only the command that runs is imported at all.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from dh2l_jax.checks import one_line, unknown_name
from dh2l_jax.files import write_atomically

__all__ = [
    "BAD",
    "COMMANDS",
    "Exit",
    "Parser",
    "dispatch",
    "fail",
    "guarded",
    "put",
    "refuse_small_limits",
    "run_command",
]

COMMANDS = {
    "train": "trains a classifier; goes on with, evaluates, tests or exports a run",
    "data": "prepares a data set, or checks a folder of images",
    "diversity": "says how diverse the weights of a file or a run are, beside random ones",
    "predict": "says what a run sees in pictures, as deep in the tree as it is sure",
    "report": "writes one HTML file about a run or a table",
    "export": "writes weights, or a program for JAX alone",
    "evaluate": "scores a finished run, or the answers of any program",
    "compare": "compares methods on any data set: which helps, and how sure that is",
    "tables": "runs, or resumes, a table of the paper",
}


class Exit(enum.IntEnum):
    """Exit codes; one that a signal stopped has 128 + the signal's number: 130, 143."""

    FINISHED = 0
    FAILED = 1
    """What was looked at has problems, or a run of several failed; with a traceback, a bug."""
    BAD_INPUT = 2
    NOT_FINITE = 3
    """NaN or infinity in training."""
    CANNOT_WRITE = 4
    PROCESS_LOST = 5
    """Another process of the run is gone."""
    NO_RESOURCES = 6
    """Memory, threads or open files ran out."""
    INTERRUPTED = 130
    """By SIGINT, before or after what a run saves by itself."""
    NO_READER = 141
    """What reads the output is gone, as for SIGPIPE."""


BAD = (ValueError, TypeError, OSError, ImportError)
"""What bad input raises, before anything has been written."""

MIN_ADDRESSES = 2_621_440 << 10
"""Bytes of address space in which ResNet-8 trains on two cores; with 5 % less, XLA aborts."""
MIN_FILES = 64
"""Files that can be open; a save takes about 20."""

# Pieces of messages that say what ran out, by what raises them.
_RAN_OUT = {
    RuntimeError: ("RESOURCE_EXHAUSTED", "Out of memory", "can't start new thread"),
    ImportError: ("failed to map segment", "cannot allocate memory", "Too many open files"),
    OSError: ("Too many open files", "Cannot allocate memory"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_HOME = "Could not determine home directory."  # pathlib's, of ~


def guarded(program: str, run: Callable[[], int]) -> int:
    """Runs a command from its first import on; one line and an exit code for what ends it early.

    A closed stream is /dev/null, and letters that a stream does not have are escaped. An exception
    that nothing here knows is a bug, and keeps its traceback.
    """
    _mend_streams()
    try:
        return _flushed(run)
    except KeyboardInterrupt:
        return _last_line(f"{program}: stopped by SIGINT", Exit.INTERRUPTED)
    except Exception as error:
        if str(error) == _NO_HOME:
            return fail(program, "no home folder: HOME is not set, or ~ names an unknown user")
        if not isinstance(error, OSError) and not _ran_out(error):
            raise
        return fail(program, error, Exit.CANNOT_WRITE)


def _flushed(run: Callable[[], int]) -> int:
    try:
        code = run()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None  # Rich makes an end of it
        code = int(end.code or 0)  # argparse's help
    sys.stdout.flush()
    return code


def fail(program: str, error: BaseException | str, code: Exit = Exit.BAD_INPUT) -> Exit:
    """One line on stderr about what went wrong; the exit code.

    The code is another one where memory or the like ran out, or the output can't be written.
    """
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _FULL:
        code = Exit.CANNOT_WRITE
    if _ran_out(error):
        line, code = f"out of memory, threads or open files: {line}", Exit.NO_RESOURCES
    try:
        sys.stdout.flush()
    except OSError as unwritten:
        error = unwritten
        line, code = f"the output can't be written: {unwritten.strerror}", Exit.CANNOT_WRITE
        _point_to_null(sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        line, code = "the output can't be written: its reader is gone", Exit.NO_READER
    return _last_line(f"{program}: error: {line}", code)


def refuse_small_limits() -> None:
    """Raises where JAX and Orbax would end the process themselves, or print pages.

    Raises:
      MemoryError: names the limit that there is and what is needed.
    """
    try:
        import resource  # Unix alone has it
    except ImportError:
        return
    addresses, files = (
        resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)
    )
    if 0 <= addresses < MIN_ADDRESSES:
        raise MemoryError(f"ulimit -v is {addresses >> 10} (kB), JAX needs {MIN_ADDRESSES >> 10}")
    if 0 <= files < MIN_FILES:
        raise MemoryError(f"ulimit -n is {files} (open files), Orbax needs {MIN_FILES}")


def _last_line(line: str, code: Exit) -> Exit:
    try:
        print(one_line(line), file=sys.stderr, flush=True)
    except OSError:
        _point_to_null(sys.stderr.fileno())  # else Python tries again at its end, and ends with 120
    return code


def _ran_out(error: BaseException | str) -> bool:
    return isinstance(error, MemoryError) or any(
        isinstance(error, kind) and any(piece in str(error) for piece in pieces)
        for kind, pieces in _RAN_OUT.items()
    )


def _mend_streams() -> None:
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # the next file would get its number, and what is printed
            _point_to_null(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _point_to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class Parser(argparse.ArgumentParser):
    """A command line that raises what is wrong with it, as all other bad input is raised."""

    def __init__(self, **options: Any) -> None:
        """As argparse has it, but the description keeps its lines."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises a `ValueError` where argparse would print its usage and end the process."""
        what, is_unknown, words = message.partition("unrecognized arguments: ")
        word = words.partition(" ")[0].partition("=")[0]
        near = difflib.get_close_matches(word, self._option_string_actions, 1)
        if is_unknown and near:
            raise ValueError(f"{what}unknown option {word!r}: did you mean {near[0]!r}?")
        raise ValueError(message)

    def print_help(self, file: IO[str] | None = None) -> None:
        """Prints it, also to nobody: argparse would keep such an error to itself."""
        print(self.format_help(), end="", file=file)


def put(text: str, place: str) -> None:
    """Prints the text if the place is "-", else writes that file, whole or not at all."""
    if place == "-":
        print(text, end="")
    else:
        write_atomically(Path(place), text.encode())


def run_command(name: str, arguments: list[str], *typed: str) -> int:
    """Runs one of `COMMANDS`; its exit code. `typed` is what the command is called, if not so."""
    return importlib.import_module(f"dh2l_jax.commands.{name}").main(arguments, *typed)


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

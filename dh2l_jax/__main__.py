"""The console script `dh2l`, and `python -m dh2l_jax`."""

from __future__ import annotations

import sys
from pathlib import Path

from dh2l_jax import __version__
from dh2l_jax.commands import COMMANDS, Exit, dispatch, guarded, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not {"", str(Path.cwd())} & {*sys.path}:
        sys.path.append(str(Path.cwd()))  # as `python -m` has it, for package.module:function
    command = [word for word in words[:1] if word in COMMANDS]
    return guarded(" ".join(["dh2l", *command]), lambda: _run(words))


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"dh2l_jax {__version__}")
        return Exit.FINISHED
    return dispatch("dh2l", COMMANDS, run_command, words)


if __name__ == "__main__":
    sys.exit(main())

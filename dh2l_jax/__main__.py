"""The console script `dh2l`, and `python -m dh2l_jax`."""

from __future__ import annotations

import sys

from dh2l_jax.commands import COMMANDS, dispatch, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit code."""
    return dispatch("dh2l", COMMANDS, run_command, arguments)


if __name__ == "__main__":
    sys.exit(main())

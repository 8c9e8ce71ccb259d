"""`dh2l train` from a checkout: `python train.py` does the main job, `--help` lists the rest."""

from __future__ import annotations

import sys

from dh2l_jax.commands import guarded, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return guarded("train.py", lambda: run_command("train", words, "python train.py"))


if __name__ == "__main__":
    sys.exit(main())

"""`dh2l train` from a checkout: `python train.py` does the main job, `--help` lists the rest."""

from __future__ import annotations

import sys

from dh2l_jax.commands import train


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    return train.main(sys.argv[1:] if arguments is None else arguments, "python train.py")


if __name__ == "__main__":
    sys.exit(main())

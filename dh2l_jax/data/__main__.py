"""Commands about data sets.

python -m dh2l_jax.data prepare NAME [--manual-dir DIR]   downloads or imports, and prepares
python -m dh2l_jax.data check FOLDER [--csv FILE]         reports what is wrong with own images
"""

from __future__ import annotations

import importlib
import sys

from dh2l_jax.checks import unknown_name

COMMANDS = {"prepare": "dh2l_jax.data.prepared.prepare", "check": "dh2l_jax.data.folders.check"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 if all went well, 2 for bad input."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        message = unknown_name("command", name, COMMANDS)
        print(f"python -m dh2l_jax.data: error: {message}", file=sys.stderr)
        return 2
    # Only the command that runs is imported: `check` needs no tensorflow_datasets.
    return importlib.import_module(COMMANDS[name]).main(rest)


if __name__ == "__main__":
    sys.exit(main())

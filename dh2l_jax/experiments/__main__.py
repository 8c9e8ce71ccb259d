"""`python -m dh2l_jax.experiments`, as `dh2l tables`."""

import sys

from dh2l_jax.commands import guarded, run_command

if __name__ == "__main__":
    sys.exit(guarded("dh2l tables", lambda: run_command("tables", sys.argv[1:])))

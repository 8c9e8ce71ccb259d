"""`python -m dh2l_jax.data`, as `dh2l data`."""

import sys

from dh2l_jax.commands import guarded, run_command

if __name__ == "__main__":
    sys.exit(guarded("dh2l data", lambda: run_command("data", sys.argv[1:])))

"""`python -m dh2l_jax.data`, as `dh2l data`."""

import sys

from dh2l_jax.commands.data import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m dh2l_jax.experiments`, as `dh2l tables`."""

import sys

from dh2l_jax.commands.tables import main

if __name__ == "__main__":
    sys.exit(main())

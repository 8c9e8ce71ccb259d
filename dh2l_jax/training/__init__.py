"""Training: configuration, objective, optimiser, jitted steps, checkpoints, logs and the loop.

What ends a run early is told by the type of the exception, to which `commands` gives exit codes:

    ValueError, TypeError, ImportError, OSError    of `build` and `folder`: the input is bad
    CheckpointError                                no checkpoint is of use: the input is bad
    NotFiniteError                                 NaN or ±∞ in a step
    OSError                                        of `loop.train`: something cannot be written
    Stopped                                        a signal asked for it, and all is saved
    anything else                                  another process is `lost`, or there is a bug
"""

import sys

from dh2l_jax.training.config import recipes

__all__ = ["recipes"]

# Configs import the recipes from here; both spellings of the import work.
sys.modules[f"{__name__}.recipes"] = recipes

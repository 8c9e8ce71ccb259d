"""Training: configuration, objective, optimiser, jitted steps, checkpoints, logs and the loop."""

import sys

from dh2l_jax.training.config import recipes

__all__ = ["recipes"]

# Configs import the recipes from here; both spellings of the import work.
sys.modules[f"{__name__}.recipes"] = recipes

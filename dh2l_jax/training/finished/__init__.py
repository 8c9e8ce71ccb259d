"""What can be done with a finished run: evaluate, test, export, and predict: `predictor`."""

from dh2l_jax.training.finished.exports import export
from dh2l_jax.training.finished.scores import eval_only, test

__all__ = ["eval_only", "export", "test"]

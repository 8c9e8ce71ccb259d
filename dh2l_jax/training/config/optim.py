"""The section of the optimiser."""

from __future__ import annotations

import dataclasses

from dh2l_jax.training.config.options import Checked, field

__all__ = ["OptimConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """The optimiser, and the learning rate's schedule.

    Attributes:
      name: "sgd", "adamw", "lamb", "lion" or "muon" (on kernels; Adam on the head, biases and
        norms).
      lr: highest learning rate.
      momentum: of sgd; the others have optax's own.
      nesterov: Nesterov's form of it.
      weight_decay: λ_f on kernels and head vectors: of sgd coupled l2, added to the gradient before
        momentum; of the others decoupled, times the learning rate and unseen by their moments.
      schedule: "step" (× `decay` at each milestone), "cosine" or "linear" (to 0), or "constant".
      milestones: fractions of the run at which "step" decays.
      decay: factor of "step".
      warmup_epochs: the rate first rises linearly from 0 over so many epochs.
      clip: highest global norm of the gradient, before λ_f; 0 for none.
      accumulate: batches whose mean gradient is one of the optimiser's; of a last, incomplete lot
        nothing is learnt.
      ema: β of the running mean of weights and statistics, which is evaluated and exported in place
        of the last; a step counts β times the one after it; 0 for none.
      head_rate: factor of the head's learning rate.
      freeze: "PATTERN; ...": weights in whose path one is found are not trained; statistics of
        BatchNorm go on.
    """

    name: str = field("sgd", choices=("sgd", "adamw", "lamb", "lion", "muon"))
    lr: float = field(0.1, above=0)
    momentum: float = field(0.9, low=0, below=1)
    nesterov: bool = False
    weight_decay: float = field(5e-4, low=0)
    schedule: str = field("step", choices=("step", "cosine", "linear", "constant"))
    milestones: tuple[float, ...] = field((0.5, 0.85), low=0, high=1)
    decay: float = field(0.1, above=0)
    warmup_epochs: float = field(0.0, low=0)
    clip: float = field(0.0, low=0)
    accumulate: int = field(1, low=1)
    ema: float = field(0.0, low=0, below=1)
    head_rate: float = field(1.0, above=0)
    freeze: tuple[str, ...] = ()

"""How sure a finished run is: the temperature of its logits, and the threshold of its answers.

Both are fitted on the validation images of the run that are labelled at classes. Where the run has
fitted its temperature already, on images that are not among its outputs, all of them choose the
threshold; else a fixed half fits the temperature and the other half chooses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dh2l_jax.hierarchy.learn.decoding import temperature
from dh2l_jax.training.run.facts import RunFacts

__all__ = ["Certainty", "certainty_of", "halves"]


class Certainty(NamedTuple):
    """What the validation images say.

    Attributes:
      temperature: what logits are divided by.
      logits: (n, C), divided already, of the images that neither trained nor fitted anything.
      labels: (n,) int32, their classes.
    """

    temperature: float
    logits: np.ndarray
    labels: np.ndarray


def certainty_of(facts: RunFacts) -> Certainty:
    """From the outputs of the last state.

    Raises:
      ValueError: the run has no validation images, or has not kept what it says of them.
    """
    if facts.result and facts.result["split"] != "validation":
        raise ValueError(
            f"{facts.workdir} held no images out, on which it could be learned how sure it is: "
            "train it with data.holdout=0.1"
        )
    outputs = facts.outputs
    at_classes = outputs.labels < facts.tree.num_classes
    logits, labels = outputs.logits[at_classes], outputs.labels[at_classes]
    if "temperature" in facts.result:
        return Certainty(facts.temperature, logits / np.float32(facts.temperature), labels)
    fit = halves(len(labels))
    T = float(temperature(logits[fit], labels[fit])) if fit.any() else 1.0
    return Certainty(T, logits[~fit] / np.float32(T), labels[~fit])


def halves(count: int) -> np.ndarray:
    """(count,) bool: the half, by a hash of their numbers, that fits the temperature.

    >>> halves(9).sum()
    np.int64(4)
    """
    # Ranks of raw generator output: NumPy fixes that stream for good.
    order = np.argsort(np.random.PCG64(0).random_raw(count), kind="stable")
    chosen = np.zeros(count, bool)
    chosen[order[: count // 2]] = True
    return chosen

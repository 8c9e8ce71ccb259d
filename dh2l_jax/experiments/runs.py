"""One run of a table: its name, and what its folder says about it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dh2l_jax.experiments.plan.settings import Setting, Weights, shown
from dh2l_jax.training.config import Config, from_dict, identity
from dh2l_jax.training.run.folder import BEST, CONFIG, LAST, RESULT, TEST
from dh2l_jax.training.run.records import read_sealed

__all__ = ["Run", "RunResult", "check_result", "check_test", "read"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A setting with weights and a seed; its config identifies it.

    Attributes:
      setting: of the cells that it belongs to.
      weights: one of the setting's candidates.
      seed: also in the config.
      config: all of it.
    """

    setting: Setting
    weights: Weights
    seed: int
    config: Config

    @functools.cached_property
    def name(self) -> str:
        """Name of its folder: readable, and unique by a hash of the config."""
        parts = [self.setting.data, *str(self.setting).split()]
        parts += [
            f"{re.split('[._]', key)[-1]}{shown(value)}" for key, value in self.weights.values
        ]
        parts = [re.sub(r"[^\w.+=()-]", "_", part) for part in parts]
        text = json.dumps(identity(self.config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return "-".join([*parts, f"s{self.seed}", digest])

    def __str__(self) -> str:
        weights = [str(self.weights)] if self.weights else []
        return ", ".join([str(self.setting), *weights, f"seed {self.seed}"])


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What is known of a run; neither `scores` nor `reason` means that it has not been run.

    Attributes:
      run: which.
      scores: of the validation split, as in result.json.
      test: scores of the test set, as in test.json; only the chosen weights have them.
      reason: why the run failed; empty if it did not.
    """

    run: Run
    scores: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    reason: str = ""

    @property
    def validation(self) -> float | None:
        """Accuracy on the classes of the validation images, after the last epoch; a fraction."""
        return self.scores["accuracy"][-1] if self.scores else None

    def test_accuracy(self, state: str) -> float | None:
        """Accuracy on the classes of the test images, of the state `LAST` or `BEST`."""
        return self.test[state]["accuracy"][-1] if self.test else None


def read(folder: Path, run: Run) -> RunResult:
    """The result that a folder of runs holds; without scores if the run is not finished."""
    workdir = folder / run.name
    try:
        config = from_dict(json.loads((workdir / CONFIG).read_text("utf-8")))
        scores = check_result(read_sealed(workdir / RESULT))
    except (OSError, ValueError):
        return RunResult(run)
    if identity(config) != identity(run.config):
        return RunResult(run)
    try:
        test = check_test(read_sealed(workdir / TEST))
    except (OSError, ValueError):
        test = None
    return RunResult(run, scores, test)


def check_result(values: Any) -> Mapping[str, Any]:
    """The scores of a finished run.

    Raises:
      ValueError: they are not what a run on a validation split writes, or not finite.
    """
    _check_scores(values, "the result")
    if values.get("split") != "validation":
        raise ValueError(f"expected scores of the validation split, found {values.get('split')!r}")
    _check_scores(values.get("best"), "the result's best epoch")
    return values


def check_test(values: Any) -> Mapping[str, Any]:
    """The test scores of the last state and of the best on validation.

    Raises:
      ValueError: one of them is missing or not finite.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected test scores, found {values!r}")
    for state in (LAST, BEST):
        scores = _check_scores(values.get(state), f"the test scores of {state}")
        images = scores.get("images")
        if not isinstance(images, int) or images < 1:
            raise ValueError(f"expected a number of test images, found {images!r}")
    return values


def _check_scores(values: Any, what: str) -> Mapping[str, Any]:
    accuracy = values.get("accuracy") if isinstance(values, Mapping) else None
    if not isinstance(accuracy, list) or not accuracy:
        raise ValueError(f"expected a list of accuracies in {what}, found {accuracy!r}")
    for value in accuracy:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"expected accuracies in [0, 1] in {what}, found {value!r}")
    return values

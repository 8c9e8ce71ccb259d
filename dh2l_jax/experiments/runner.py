"""From the settings of a table to finished runs: resume, choice of λ, seeds, test."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dh2l_jax.experiments.plan.settings import Options, Setting, Weights, config_of
from dh2l_jax.experiments.runs import Outcome, Run, check_result, check_test, read
from dh2l_jax.training.config import Config

__all__ = ["LoopTrainer", "Runner", "Settled", "Trainer", "choose"]

LOG, ERROR = "log.txt", "error.txt"


class Trainer(Protocol):
    """Trains and tests one run; any exception of `train` and `test` is a failed run."""

    def check(self, config: Config) -> None:
        """Raises what would stop a run before its first step: missing data, unknown names."""
        ...

    def train(self, config: Config, workdir: Path) -> Any:
        """Trains in a folder, which may hold an interrupted run; writes config and result."""
        ...

    def test(self, workdir: Path) -> Any:
        """Scores of the saved states on the test set; writes test.json."""
        ...

    def forget(self) -> None:
        """Called after the last run of a setting: later runs share less with it."""
        ...


class LoopTrainer:
    """The trainer of `training.loop`; what a run prints goes into its folder."""

    # Imported late: a plan is shown without the packages that training needs.
    def check(self, config: Config) -> None:
        """Builds the experiment and lets it go; images that have to be decoded are, once."""
        from dh2l_jax.training import loop

        loop.build(config, progress=True)

    def train(self, config: Config, workdir: Path) -> Any:
        """Builds, trains from where an interrupted run got to, writes result.json."""
        from rich.console import Console

        from dh2l_jax.training import loop
        from dh2l_jax.training.run.folder import opened, refuse_foreign_folder

        experiment = loop.build(config)
        try:
            refuse_foreign_folder(workdir, config)
        except ValueError:  # what is there is no run, or another one
            shutil.rmtree(workdir)
        with opened(workdir, config), (workdir / LOG).open("a", encoding="utf-8") as file:
            console = Console(file=file, highlight=False, width=120)
            return loop.train(experiment, workdir, console)

    def test(self, workdir: Path) -> Any:
        """Evaluates the last state and the best on validation."""
        from dh2l_jax.training import finished

        return finished.test(workdir)

    def forget(self) -> None:
        """Hundreds of runs share the process, and each would leave its programs behind."""
        import jax

        jax.clear_caches()
        gc.collect()


@dataclasses.dataclass(frozen=True)
class Settled:
    """What is known of a setting.

    Attributes:
      weights: the chosen ones; None as long as nothing could be chosen.
      outcomes: of all its runs: candidates with the first seed, then the chosen with the others.
    """

    weights: Weights | None
    outcomes: tuple[Outcome, ...]

    @property
    def chosen(self) -> tuple[Outcome, ...]:
        """The outcomes with the chosen weights, a seed each."""
        return tuple(outcome for outcome in self.outcomes if outcome.run.weights == self.weights)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The runs that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.reason)

    @property
    def finished(self) -> int:
        """Number of runs with a result."""
        return sum(outcome.result is not None for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train or to test."""
        return self.finished == len(self.outcomes) and all(o.test for o in self.chosen)


def choose(outcomes: Sequence[Outcome]) -> Weights | None:
    """The weights with the highest validation accuracy of the last epoch; a tie takes the smaller.

    A setting with one candidate has nothing to choose, so there the run need not have finished.

    Args:
      outcomes: of the candidates.

    Returns:
      None if there are several candidates and none has finished.
    """
    if len(outcomes) == 1:
        return outcomes[0].run.weights
    scores = [(-o.validation, o.run.weights) for o in outcomes if o.validation is not None]
    return min(scores)[1] if scores else None


class Runner:
    """Runs settings one after another in one folder; a run that is finished there is reused."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        options: Options,
        trainer: Trainer,
        tell: Callable[[str], None] = print,
    ):
        """A runner that trains nothing yet.

        Args:
          folder: of the runs, each in a folder of its own.
          seeds: λ is chosen with the first.
          options: of the table.
          trainer: what trains.
          tell: called with a line for each run that was trained.
        """
        self.folder, self.seeds, self.options = folder, tuple(seeds), options
        self.trainer, self.tell = trainer, tell

    def look(self, setting: Setting) -> Settled:
        """What the folder holds of a setting; nothing is trained."""
        return self._settle(setting, lambda run: read(self.folder, run))

    def check(self, setting: Setting) -> None:
        """Raises what would stop the setting's runs before their first step."""
        self.trainer.check(self._run(setting, setting.candidates[0], self.seeds[0]).config)

    def settle(self, setting: Setting) -> Settled:
        """Trains what is missing, chooses λ on validation, tests the chosen runs and no others."""
        settled = self._settle(setting, self._obtain)
        outcomes = [
            self._tested(outcome) if outcome.run.weights == settled.weights else outcome
            for outcome in settled.outcomes
        ]
        self.trainer.forget()
        return Settled(settled.weights, tuple(outcomes))

    def _settle(self, setting: Setting, obtain: Callable[[Run], Outcome]) -> Settled:
        first, *others = self.seeds
        outcomes = [obtain(self._run(setting, weights, first)) for weights in setting.candidates]
        weights = choose(outcomes)
        if weights is not None:
            outcomes += [obtain(self._run(setting, weights, seed)) for seed in others]
        return Settled(weights, tuple(outcomes))

    def _run(self, setting: Setting, weights: Weights, seed: int) -> Run:
        return Run(setting, weights, seed, config_of(setting, weights, seed, self.options))

    def _obtain(self, run: Run) -> Outcome:
        """The outcome of a finished run, or of training it now."""
        outcome = read(self.folder, run)
        return outcome if outcome.result else self._train(run)

    def _train(self, run: Run) -> Outcome:
        workdir, start = self.folder / run.name, time.perf_counter()
        try:
            outcome = Outcome(run, check_result(self.trainer.train(run.config, workdir)))
        except Exception as error:  # the other cells don't depend on this run
            return self._failed(Outcome(run), error)
        seconds = time.perf_counter() - start
        self.tell(f"{run}: validation {100 * (outcome.validation or 0):.2f} %, {seconds:.0f} s")
        return outcome

    def _tested(self, outcome: Outcome) -> Outcome:
        """With the scores on the test set, if it has finished."""
        if outcome.test or not outcome.result:
            return outcome
        try:
            test = check_test(self.trainer.test(self.folder / outcome.run.name))
        except Exception as error:
            return self._failed(outcome, error)
        return dataclasses.replace(outcome, test=test)

    def _failed(self, outcome: Outcome, error: Exception) -> Outcome:
        """The outcome with the reason; the traceback goes into the run's folder."""
        workdir = self.folder / outcome.run.name
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        lines = str(error).splitlines() or [type(error).__name__]
        self.tell(f"{outcome.run}: failed: {lines[0]}")
        return dataclasses.replace(outcome, reason=lines[0])

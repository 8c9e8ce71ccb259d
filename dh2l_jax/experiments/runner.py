"""From the settings of a table to finished runs: resume, choice of λ, seeds, test."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dh2l_jax.experiments.plan.settings import Options, Setting, Weights, config_of
from dh2l_jax.experiments.runs import Run, RunResult, check_result, check_test, read
from dh2l_jax.experiments.trainers import Trainer
from dh2l_jax.files import write_atomically
from dh2l_jax.training.config import DataConfig

__all__ = ["Runner", "SettingResult", "choose"]

ERROR, MEMORY = "error.txt", "step_bytes.txt"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SettingResult:
    """What is known of a setting.

    Attributes:
      weights: the chosen ones; None as long as nothing could be chosen.
      runs: candidates with the first seed, then the chosen with the others.
      step_bytes: what a training step needs; None as long as no run is finished.
    """

    weights: Weights | None
    runs: tuple[RunResult, ...]
    step_bytes: int | None = None

    @property
    def chosen(self) -> tuple[RunResult, ...]:
        """The runs with the chosen weights, a seed each."""
        return tuple(result for result in self.runs if result.run.weights == self.weights)

    @property
    def failures(self) -> tuple[RunResult, ...]:
        """The runs that failed."""
        return tuple(result for result in self.runs if result.reason)

    @property
    def seconds(self) -> list[float]:
        """Duration of each finished run."""
        return [result.scores["seconds"] for result in self.runs if result.scores]

    @property
    def finished(self) -> int:
        """Number of runs with a result."""
        return sum(result.scores is not None for result in self.runs)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train or to test."""
        return self.finished == len(self.runs) and all(o.test for o in self.chosen)


def choose(results: Sequence[RunResult]) -> Weights | None:
    """The weights with the highest validation accuracy of the last epoch; a tie takes the smaller.

    A single candidate need not have finished. Of several, None if none has.
    """
    if len(results) == 1:
        return results[0].run.weights
    scores = [(-o.validation, o.run.weights) for o in results if o.validation is not None]
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
        """Trains nothing yet; λ is chosen with the first seed; `tell` gets a line a trained run."""
        self.folder, self.seeds, self.options = folder, tuple(seeds), options
        self.trainer, self.tell = trainer, tell

    def look(self, setting: Setting) -> SettingResult:
        """What the folder holds of a setting; nothing is trained."""
        return self._collect(setting, lambda run: read(self.folder, run))

    def check(self, setting: Setting) -> None:
        """Raises what would stop the setting's runs before their first step."""
        self.trainer.check(self._run(setting, setting.candidates[0], self.seeds[0]).config)

    def seconds(self, setting: Setting) -> float:
        """About the time of a run, where none has been finished."""
        return self.trainer.seconds(self._run(setting, setting.candidates[0], self.seeds[0]).config)

    def refuse_other_data(self, found: Mapping[Setting, SettingResult]) -> None:
        """Raises if finished runs saw other images than there are now.

        Raises:
          ValueError: names the run.
        """
        digests: dict[DataConfig, str] = {}
        for result in (result for setting in found.values() for result in setting.runs):
            theirs, data = (result.scores or {}).get("data", {}), result.run.config.data
            if not theirs:
                continue
            if data not in digests:
                digests[data] = self.trainer.data(result.run.config)
            if digests[data] != theirs["sha256"]:
                raise ValueError(
                    f"{self.folder / result.run.name} was trained on other data than there are "
                    "now: choose another --out"
                )

    def run(self, setting: Setting) -> SettingResult:
        """Trains what is missing, chooses λ on validation, tests the chosen runs and no others."""
        found = self._collect(setting, self._obtain)
        results = self._each(
            lambda o: self._tested(o) if o.run.weights == found.weights else o, found.runs
        )
        self._measure(results)
        self.trainer.forget()
        return SettingResult(found.weights, tuple(results), self._step_bytes(results))

    def _measure(self, results: Sequence[RunResult]) -> None:
        """Writes the memory of a step beside the first finished run, unless it is known."""
        finished = next((result.run for result in results if result.scores), None)
        if finished and self._step_bytes(results) is None:
            size = self.trainer.memory(finished.config)
            write_atomically(self.folder / finished.name / MEMORY, f"{size}\n".encode())

    def _step_bytes(self, results: Sequence[RunResult]) -> int | None:
        """What a run of the setting says of it."""
        for result in results:
            try:
                return int((self.folder / result.run.name / MEMORY).read_text("ascii"))
            except (OSError, ValueError):
                continue
        return None

    def _collect(self, setting: Setting, obtain: Callable[[Run], RunResult]) -> SettingResult:
        first, *others = self.seeds
        tried = [self._run(setting, weights, first) for weights in setting.candidates]
        results = self._each(obtain, tried)
        weights = choose(results)
        if weights is not None:
            results += self._each(obtain, [self._run(setting, weights, s) for s in others])
        return SettingResult(weights, tuple(results), self._step_bytes(results))

    def _each(self, fn: Callable[[T], RunResult], items: Sequence[T]) -> list[RunResult]:
        """fn of each, as many at a time as the trainer can."""
        if self.trainer.jobs == 1:
            return [fn(item) for item in items]
        with ThreadPoolExecutor(self.trainer.jobs) as threads:
            try:
                return list(threads.map(fn, items))
            except KeyboardInterrupt:
                self.trainer.stop()
                raise

    def _run(self, setting: Setting, weights: Weights, seed: int) -> Run:
        return Run(setting, weights, seed, config_of(setting, weights, seed, self.options))

    def _obtain(self, run: Run) -> RunResult:
        """The result of a finished run, or of training it now."""
        result = read(self.folder, run)
        return result if result.scores else self._train(run)

    def _train(self, run: Run) -> RunResult:
        workdir, start = self.folder / run.name, time.perf_counter()
        try:
            result = RunResult(run, check_result(self.trainer.train(run.config, workdir)))
        except Exception as error:  # the other cells don't depend on this run
            return self._failed(RunResult(run), error)
        seconds = time.perf_counter() - start
        self.tell(f"{run}: validation {100 * (result.validation or 0):.2f} %, {seconds:.0f} s")
        return result

    def _tested(self, result: RunResult) -> RunResult:
        """With the scores on the test set, if it has finished."""
        if result.test or not result.scores:
            return result
        try:
            test = check_test(self.trainer.test(self.folder / result.run.name))
        except Exception as error:
            return self._failed(result, error)
        return dataclasses.replace(result, test=test)

    def _failed(self, result: RunResult, error: Exception) -> RunResult:
        """The result with the reason; the traceback goes into the run's folder."""
        workdir = self.folder / result.run.name
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / ERROR, "".join(traceback.format_exception(error)).encode())
        lines = str(error).splitlines() or [type(error).__name__]
        self.tell(f"{result.run}: failed: {lines[0]}")
        return dataclasses.replace(result, reason=lines[0])

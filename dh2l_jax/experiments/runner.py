"""From the settings of a table to finished runs: resume, choice of λ, seeds, test."""

from __future__ import annotations

import dataclasses
import gc
import io
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dh2l_jax.experiments.plan.settings import Options, Setting, Weights, config_of
from dh2l_jax.experiments.runs import Run, RunResult, check_result, check_test, read
from dh2l_jax.files import open_to_append, write_atomically
from dh2l_jax.training.config import Config, DataConfig
from dh2l_jax.training.run.folder import METRICS
from dh2l_jax.training.run.records import read_records

__all__ = ["LoopTrainer", "Runner", "SettingResult", "Trainer", "choose"]

LOG, ERROR, MEMORY = "log.txt", "error.txt", "step_bytes.txt"


class Trainer(Protocol):
    """Trains and tests one run; any exception of `train` and `test` is a failed run."""

    def check(self, config: Config) -> None:
        """Raises what would stop a run before its first step: missing data, unknown names."""
        ...

    def data(self, config: Config) -> str:
        """Digest of the images, labels and tree, as results have it."""
        ...

    def seconds(self, config: Config) -> float:
        """About the time that a run takes, from a short one."""
        ...

    def train(self, config: Config, workdir: Path) -> Any:
        """Trains in a folder, which may hold an interrupted run; writes config and result."""
        ...

    def test(self, workdir: Path) -> Any:
        """Scores of the saved states on the test set; writes test.json."""
        ...

    def memory(self, config: Config) -> int:
        """Bytes that a training step needs."""
        ...

    def forget(self) -> None:
        """Called after the last run of a setting: later runs share less with it."""
        ...


class LoopTrainer:
    """The trainer of `training.loop`; what a run prints goes into its folder."""

    # Training is imported late: a plan is shown without the packages that it needs.
    def check(self, config: Config) -> None:
        """Builds the experiment and lets it go; images that have to be decoded are, once."""
        from dh2l_jax.training import loop

        loop.build(config, progress=True)

    def data(self, config: Config) -> str:
        """Of all images in the folder, whatever part of them is trained on."""
        from dh2l_jax.training import loop

        return loop.build(config).source.fingerprint.sha256

    def seconds(self, config: Config) -> float:
        """From two epochs, whose programs are kept for the runs; the first one compiles."""
        epochs = min(2, config.epochs)
        warmup = min(config.optim.warmup_epochs, epochs)
        optim = dataclasses.replace(config.optim, warmup_epochs=warmup)
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "trial"
            short = dataclasses.replace(config, epochs=epochs, optim=optim)
            result = self.train(short, workdir)
            rate = read_records(workdir / METRICS)[-1]["images_per_second"]
        images = result["steps"] * config.batch_size / epochs
        return result["seconds"] + (config.epochs - epochs) * images / rate

    def train(self, config: Config, workdir: Path) -> Any:
        """Builds, trains from where an interrupted run got to, writes result.json."""
        from dh2l_jax.training import loop
        from dh2l_jax.training.run.console import file_console
        from dh2l_jax.training.run.folder import opened, refuse_foreign_folder

        experiment = loop.build(config)
        try:
            refuse_foreign_folder(workdir, config)
        except ValueError:  # the folder holds no run, or another one
            shutil.rmtree(workdir)
        with opened(workdir, config), open_to_append(workdir / LOG) as file:
            console = file_console(io.TextIOWrapper(file, "utf-8", write_through=True))
            return loop.train(experiment, workdir, console)

    def test(self, workdir: Path) -> Any:
        """Evaluates the last state and the best on validation."""
        from dh2l_jax.training import finished

        return finished.test(workdir)

    def memory(self, config: Config) -> int:
        """Of the compiled step: what goes in and out, and what is needed between."""
        from dh2l_jax.training import loop

        return loop.step_bytes(loop.build(config))

    def forget(self) -> None:
        """Hundreds of runs share the process, and each would leave its programs behind."""
        import jax

        jax.clear_caches()
        gc.collect()


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
        results = [
            self._tested(result) if result.run.weights == found.weights else result
            for result in found.runs
        ]
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
        results = [obtain(self._run(setting, weights, first)) for weights in setting.candidates]
        weights = choose(results)
        if weights is not None:
            results += [obtain(self._run(setting, weights, seed)) for seed in others]
        return SettingResult(weights, tuple(results), self._step_bytes(results))

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

"""The commands as calls: `train` and `evaluate` give back a run and its scores."""

from __future__ import annotations

import dataclasses
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dh2l_jax.hierarchy.readable import Scores
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config
from dh2l_jax.training.finished.scores import eval_only
from dh2l_jax.training.run.console import line_printer
from dh2l_jax.training.run.folder import METRICS, new_folder, opened, read_config, read_result
from dh2l_jax.training.run.records import read_records

__all__ = ["Run", "evaluate", "train"]

SEAL = ("files", "sha256")  # what result.json says of the run's files, and of itself


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished run; shows its scores, in a notebook its curves too.

    Wherever the folder of a run is asked for, as by `dh2l.Predictor.load`, a run will do.

    Attributes:
      folder: where it lies.
      config: its options.
      scores: what its result.json holds: the scores of its last state, all terms, seconds, …
      history: a record an epoch: J, its terms, the training accuracy, …
    """

    folder: Path
    config: Config
    scores: Scores
    history: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Run:
        """The finished run in a folder.

        Raises:
          ValueError: there is none, or a file of it is damaged.
          OSError: a file cannot be read.
        """
        folder = Path(folder)
        result = read_result(folder)
        scores = Scores({key: result[key] for key in result if key not in SEAL})
        return cls(folder, read_config(folder), scores, read_records(folder / METRICS))

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"{self._title}\n{self.scores!r}"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(self._title)}</b>{self.scores._repr_html_()}{_curves(self)}"

    @property
    def _title(self) -> str:
        model = self.config.model
        return f"Run({str(self.folder)!r}: {model.name}, {model.head}, {self.config.epochs} epochs)"


def train(
    config: Config, workdir: str | os.PathLike[str] | None = None, *, quiet: bool = False
) -> Run:
    """Trains, or goes on with, or only reads what `dh2l train` of this config would.

    Interrupt once and what is done is saved, for the same call to go on with; interrupted twice,
    the process ends.

    Args:
      config: see `dh2l_jax.training.config`.
      workdir: the run's folder; None for a new one in runs/.
      quiet: show neither bar nor lines.

    Raises:
      TypeError: the config is something else.
      ValueError: an option or an image is no good, or the folder is another run's.
      OSError: something cannot be read or written.
      NotFiniteError: a step gave NaN or ±∞.
      Stopped: a signal asked for it.
    """
    if not isinstance(config, Config):
        raise TypeError(f"expected a dh2l_jax.training.config.Config, found {config!r:.80}")
    console = Console(highlight=False, quiet=quiet)
    folder = new_folder(config.data.name) if workdir is None else Path(workdir)
    experiment = loop.know_all_before_writing(config, folder, console, is_named=workdir is not None)
    if experiment is not None:
        with opened(folder, config):
            loop.describe(experiment, console)
            loop.train(experiment, folder, console)
    return Run.load(folder)


def evaluate(run: str | os.PathLike[str], *, places: Sequence[str] = ()) -> Scores:
    """Evaluates the last state of a finished run again, as `dh2l train --eval-only` does.

    Args:
      run: a `Run`, or its folder.
      places: where its data are now, such as "data.data_dir=/new/disk".

    Raises:
      ValueError: the folder holds no finished run, a file is damaged, or the data are others.
    """
    return Scores(eval_only(Path(run), line_printer(Console(highlight=False)), places))


def _curves(run: Run) -> str:
    """J and the accuracies over the epochs, drawn; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would keep it
    except ImportError:
        return ""
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    evaluated = [record for record in run.history if "accuracy" in record]
    last = [(len(run.history), run.scores["accuracy"][-1])]
    lines = {
        (left, "J"): [(r["epoch"], r["J"]) for r in run.history],
        (right, "training accuracy"): [(r["epoch"], r["train_accuracy"]) for r in run.history],
        (right, run.scores["split"]): [(r["epoch"], r["accuracy"][-1]) for r in evaluated] + last,
    }
    for (axes, name), points in lines.items():
        epochs, values = np.array(points, float).T  # None, where no image counts, is NaN
        axes.plot(epochs, values, marker=".", label=name)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.legend()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]

"""What a run shows: the progress bar, a line an epoch, the table of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dh2l_jax.bars import Bar
from dh2l_jax.checks import one_line

__all__ = [
    "Console",
    "Log",
    "PrintLine",
    "file_console",
    "level_table",
    "line_printer",
    "print_scores",
]

PrintLine = Callable[[str], object]


def file_console(file: IO[str]) -> Console:
    """A console whose lines go to a file, of a width that does not depend on a terminal."""
    return Console(file=file, highlight=False, width=120)


def line_printer(console: Console) -> PrintLine:
    """A function that prints a line: not wrapped, with no markup or control characters in it."""
    return lambda line: console.print(one_line(line), soft_wrap=True, markup=False)


class Log:
    """Progress of a run: a bar with images/s and time left, a line an epoch always.

    Use it as a context manager around the training loop.

    Attributes:
      on_start: called before the first step, and after each roll-back.
      on_epoch: called with the record of each epoch.
    """

    on_start: Callable[[], object]
    on_epoch: Callable[[Mapping[str, Any]], object]

    def __init__(self, total_steps: int, batch_size: int, *, console: Console | None = None):
        self.on_start, self.on_epoch = (lambda: None), (lambda record: None)
        self.console = console or Console(highlight=False)
        self._batch_size = batch_size
        self._progress = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, speed="")

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Puts the bar at a step, that of a checkpoint or the first."""
        self._progress.reset(self._task, completed=step)
        self.on_start()

    def step(self, epoch: int, steps: int = 1) -> None:
        """Moves the bar on by finished steps."""
        speed = self._progress.tasks[self._task].speed
        shown = f"{speed * self._batch_size:,.0f} images/s" if speed else ""
        self._progress.update(self._task, advance=steps, description=f"epoch {epoch}", speed=shown)

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """Prints the line of a finished epoch above the bar."""
        self.on_epoch(record)
        scores = record.get("accuracy")
        text = (
            f"epoch {record['epoch']:>3}/{epochs}  J {record['J']:.4f}  L {record['L']:.4f}  "
            f"train accuracy {100 * record['train_accuracy']:.2f} %  lr {record['lr']:.4g}  "
            f"{record['images_per_second']:,.0f} images/s"
        )
        if scores:
            text += f"  {record['split']} accuracy {100 * scores[-1]:.2f} %"
        self.console.print(text, soft_wrap=True, markup=False)


def print_scores(console: Console, scores: Mapping[str, Any]) -> None:
    """A table of the accuracy at every level, and one line a kind of other scores."""
    console.print(f"{scores['split']} accuracy ({scores['images']:,} images)", markup=False)
    console.print(level_table(scores))
    if len(scores["nodes"]) > 1:
        for line in _hierarchical_lines(scores):
            console.print(line, soft_wrap=True, markup=False)


def level_table(scores: Mapping[str, Any]) -> Table:
    """What scores say of every level, and of how many images where not all reach it."""
    columns = {"nodes": [f"{nodes:,}" for nodes in scores["nodes"]]}
    for name, title in (("level_classes", "classes as deep"), ("level_images", "images")):
        if len(set(scores.get(name, ()))) > 1:
            columns[title] = [f"{number:,}" for number in scores[name]]
    # Older results lack the balanced one, and classes are always answered.
    for name in ("accuracy", "balanced_accuracy", "answered"):
        if name in scores:
            title = name.removesuffix("_accuracy")
            columns[title] = ["–" if x is None else f"{100 * x:.2f} %" for x in scores[name]]
    table = Table("level")
    for name in columns:
        table.add_column(name, justify="right")
    for level, row in enumerate(zip(*columns.values(), strict=True), 1):
        table.add_row(str(level), *row)
    return table


def _hierarchical_lines(scores: Mapping[str, Any]) -> list[str]:
    distances = scores["hierarchical_distance"].items()
    return [
        f"mistake severity {scores['mistake_severity']:.3f} (mean height of the lowest common "
        "ancestor, wrong predictions only)",
        "hierarchical distance " + ", ".join(f"@{k} {value:.3f}" for k, value in distances),
        f"hierarchical F1 {100 * scores['hF1']:.2f} %, full-path accuracy "
        f"{100 * scores['full_path_accuracy']:.2f} %, inconsistent paths "
        f"{100 * scores['inconsistent_path_ratio']:.2f} %",
    ]

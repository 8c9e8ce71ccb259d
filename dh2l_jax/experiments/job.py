"""A table being made: what is to be trained, what is known already, and the reports."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path

from dh2l_jax.checks import one_line
from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments.page.table import table_page
from dh2l_jax.experiments.plan.settings import Setting
from dh2l_jax.experiments.plan.tables import Table, count_runs
from dh2l_jax.experiments.reports import figures, markdown, records
from dh2l_jax.experiments.reports.markdown import Protocol
from dh2l_jax.experiments.reports.summary import summarize
from dh2l_jax.experiments.runner import Runner, SettingResult
from dh2l_jax.experiments.trainers import Trainer
from dh2l_jax.files import write_atomically

__all__ = ["TableJob"]

PAGE = "report.html"


@dataclasses.dataclass(frozen=True)
class TableJob:
    """A table being made: `wanted` of its settings are trained, `results` has all that is known.

    The reports are written to `path`, which has no suffix.
    """

    table: Table
    wanted: tuple[Setting, ...]
    runner: Runner
    protocol: Protocol
    path: Path
    results: dict[Setting, SettingResult]
    progress: Progress

    @classmethod
    def begin(
        cls,
        table: Table,
        wanted: tuple[Setting, ...],
        folder: Path,
        stem: str,
        protocol: Protocol,
        trainer: Trainer,
    ) -> TableJob:
        """With what the folder holds of it; nothing is trained, and nothing is written."""
        progress = Progress(count_runs(wanted, len(protocol.seeds)))
        runner = Runner(
            folder / "runs", protocol.seeds, protocol.options, trainer, tell=progress.tell
        )
        results = {setting: runner.look(setting) for setting in table.settings}
        progress.done = sum(results[setting].finished for setting in wanted)
        return cls(table, wanted, runner, protocol, folder / stem, results, progress)

    def show(self) -> None:
        """Prints the plan."""
        seeds, done = len(self.protocol.seeds), 0
        print(f"{markdown.title(self.table, self.protocol)}: {len(self.table.cells)} cells")
        for setting in self.wanted:
            finished = self.results[setting].finished
            done += finished
            weights = ", ".join(str(weights) for weights in setting.candidates if weights)
            print(
                f"  {finished:>2} of {count_runs([setting], seeds):>2} runs done: {setting}"
                + (f"; candidates {weights}" if weights else "")
            )
        total = count_runs(self.wanted, seeds)
        print(one_line(f"{total} runs, {done} done; reports in {self.path}.md, .csv, .png"))

    def check(self) -> None:
        """Raises what would stop runs before their first step, once for each kind of network.

        Of images that are known by their folder alone, also that they are those of the runs there.
        """
        left = [setting for setting in self.wanted if not self.results[setting].complete]
        kinds = {(s.model, s.variant in ("factored", "E+H"), s.changes): s for s in left}
        for setting in kinds.values():
            self.runner.check(setting)
        if self.table.data not in FACTS:
            self.runner.refuse_other_data(self.results)

    def announce(self, *, trial: bool) -> None:
        """Prints how many runs there are and how long they take, from finished ones or a trial."""
        total, done = count_runs(self.wanted, len(self.protocol.seeds)), self.progress.done
        known = [second for setting in self.wanted for second in self.results[setting].seconds]
        waiting = [setting for setting in self.wanted if not self.results[setting].complete]
        if trial and waiting and not known:
            known = self._tried(waiting[0])
        left = (total - done) / self.runner.trainer.jobs
        about = f", about {_duration(sum(known) / len(known) * left)}" if known else ""
        print(one_line(f"{total} runs, {done} done{about if total > done else ''}"), flush=True)

    def _tried(self, setting: Setting) -> list[float]:
        """Seconds of a run, from a short one; nothing where it fails, as the run itself may."""
        try:
            return [self.runner.seconds(setting)]
        except Exception as error:
            print(one_line(f"no estimate of the time: {error}"), file=sys.stderr)
            return []

    def run(self) -> int:
        """Trains setting by setting, the report grows with each; the exit code of the command."""
        interrupted = False
        self.progress.start()
        try:
            for setting in self.wanted:
                self.results[setting] = self.runner.run(setting)
                self._write_texts()
        except KeyboardInterrupt:
            interrupted = True
        self._write_texts()
        self._draw()
        if self.table.one_column:
            shown = self._shown()
            print(*markdown.sentences(shown, summarize(shown, self.results)), sep="\n")
        print(one_line(f"results in {self.path}.md and .csv"))
        if interrupted:
            print("interrupted: the same command goes on where it stopped", file=sys.stderr)
            return 130
        failures = sum(len(self.results[setting].failures) for setting in self.wanted)
        if failures:
            print(one_line(f"{failures} runs failed: {self.path}.md says why"), file=sys.stderr)
        return 1 if failures else 0

    def _shown(self) -> Table:
        """The rows that were asked for, and others that have been run before."""
        cells = self.table.cells
        return self.table.only(
            cell.row
            for cell in cells
            if cell.setting in self.wanted or self.results[cell.setting].finished
        )

    def _write_texts(self) -> None:
        table = self._shown()
        summaries = summarize(table, self.results)
        runs = records.run_records(table, summaries)
        about = {
            "title": markdown.title(table, self.protocol),
            "sentences": markdown.sentences(table, summaries) if table.one_column else [],
            "command": self.protocol.command,
        }
        texts = {
            ".md": markdown.markdown(table, summaries, self.protocol),
            ".csv": records.csv_text(runs),
            ".json": records.json_text(runs, about),
        }
        for suffix, text in texts.items():
            write_atomically(_with_suffix(self.path, suffix), text.encode())

    def _draw(self) -> None:
        table, path = self._shown(), _with_suffix(self.path, ".png")
        try:
            figures.draw(
                table, summarize(table, self.results), markdown.title(table, self.protocol), path
            )
        except ImportError as error:
            print(one_line(f"{path} is not drawn: {error}"), file=sys.stderr)
        try:
            page = table_page(path.parent)
        except ImportError as error:
            print(one_line(f"{path.parent / PAGE} is not written: {error}"), file=sys.stderr)
        else:
            write_atomically(path.parent / PAGE, page.encode("utf-8", "backslashreplace"))


def _with_suffix(path: Path, suffix: str) -> Path:
    """Appended: `Path.with_suffix` would cut "budget0.1"."""
    return path.with_name(path.name + suffix)


class Progress:
    """Numbers the lines of trained runs and estimates the time that is left.

    Attributes:
      done: runs that were done before the first line.
    """

    def __init__(self, total: int):
        """Nothing is done yet of `total` runs."""
        self.done, self._total, self._trained = 0, total, 0
        self._lock = threading.Lock()  # runs end in threads, where there are several at a time
        self.start()

    def start(self) -> None:
        """The time of the runs begins."""
        self._start = time.perf_counter()

    def tell(self, line: str) -> None:
        """Prints the line of one more run."""
        with self._lock:
            self._trained += 1
            number = min(self.done + self._trained, self._total)
            pace = (time.perf_counter() - self._start) / self._trained
            left = _duration(pace * (self._total - number))
            print(one_line(f"[{number}/{self._total}] {line}; {left} left"), flush=True)


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

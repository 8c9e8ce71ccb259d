"""What a table says of each cell, from the results of its runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dh2l_jax.experiments.plan.settings import Setting
from dh2l_jax.experiments.plan.tables import Cell, Table
from dh2l_jax.experiments.reports import statistics
from dh2l_jax.experiments.runner import SettingResult
from dh2l_jax.training.run.folder import BEST, LAST

__all__ = ["Summary", "comparisons", "summarize", "test_images"]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A cell with its figures; test accuracies are in %.

    Attributes:
      cell: of the table.
      result: its runs.
      last: seed → accuracy of the state after the last epoch.
      best: seed → accuracy of the state that was best on validation.
      delta: mean difference of `last` from the table's reference over the seeds of both, in points.
      interval: half the 95 % confidence interval of it.
      p: of the paired test of that difference.
      p_holm: p after Holm's correction over the table.
      visible: the difference that these seeds would have shown, see `visible_difference`.
    """

    cell: Cell
    result: SettingResult
    last: Mapping[int, float]
    best: Mapping[int, float]
    delta: float | None = None
    interval: float | None = None
    p: float | None = None
    p_holm: float | None = None
    visible: float | None = None

    def scores(self, name: str) -> list[Any]:
        """A score of the state after the last epoch, of each seed that has it."""
        tests = (result.test[LAST] for result in self.result.chosen if result.test)
        return [test[name] for test in tests if name in test]


def summarize(table: Table, results: Mapping[Setting, SettingResult]) -> list[Summary]:
    """The figures of all cells, in the table's order; `results` has every setting of the table."""
    pairs = {setting: _pair(table, setting, results) for setting in table.settings}
    tests = {setting: statistics.paired_difference(*pair) for setting, pair in pairs.items()}
    # Holm counts settings, not cells: cells that share their runs are one comparison.
    known = {setting: p for setting, (_, p) in tests.items() if p is not None}
    holm = dict(zip(known, statistics.holm(list(known.values())), strict=True))
    summaries = []
    for cell in table.cells:
        found = results[cell.setting]
        delta, p = tests[cell.setting]
        last, best = _by_seed(found, LAST), _by_seed(found, BEST)
        differences = statistics.paired_differences(*pairs[cell.setting])
        interval = statistics.half_interval(differences)
        visible = statistics.visible_difference(differences, max(1, len(known)))
        summaries.append(
            Summary(cell, found, last, best, delta, interval, p, holm.get(cell.setting), visible)
        )
    return summaries


def comparisons(summaries: list[Summary]) -> int:
    """Number of tests that Holm's correction counts."""
    return len({s.cell.setting for s in summaries if s.p is not None})


def test_images(summaries: list[Summary]) -> int | None:
    """Number of test images; None as long as nothing has been tested."""
    for summary in summaries:
        for result in summary.result.chosen:
            if result.test:
                return result.test[LAST]["images"]
    return None


def _by_seed(result: SettingResult, state: str) -> dict[int, float]:
    found = {}
    for run_result in result.chosen:
        accuracy = run_result.test_accuracy(state)
        if accuracy is not None:
            found[run_result.run.seed] = 100 * accuracy
    return found


def _pair(
    table: Table, setting: Setting, results: Mapping[Setting, SettingResult]
) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracies of a setting and of its reference, which has no pair itself."""
    reference = table.reference_of(setting)
    if setting == reference:
        return {}, {}
    return _by_seed(results[setting], LAST), _by_seed(results[reference], LAST)

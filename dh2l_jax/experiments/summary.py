"""What a table says of each cell, from the results of its runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dh2l_jax.experiments import statistics
from dh2l_jax.experiments.plan.settings import Setting
from dh2l_jax.experiments.plan.tables import Cell, Table
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
      delta: mean difference of `last` from the l2 baseline over the seeds of both, in points.
      p: of the paired test of that difference.
      p_holm: p after Holm's correction over the table.
      visible: the difference from l2 that these seeds would have shown, see `visible_difference`.
    """

    cell: Cell
    result: SettingResult
    last: Mapping[int, float]
    best: Mapping[int, float]
    delta: float | None = None
    p: float | None = None
    p_holm: float | None = None
    visible: float | None = None

    def scores(self, name: str) -> list[float]:
        """A score of the state after the last epoch, of each seed that has it."""
        tests = (result.test[LAST] for result in self.result.chosen if result.test)
        return [test[name] for test in tests if name in test]


def summarize(table: Table, results: Mapping[Setting, SettingResult]) -> list[Summary]:
    """The figures of all cells, in the table's order; `results` has every setting of the table."""
    tests = {setting: _compare(setting, results) for setting in table.settings}
    # Holm counts settings, not cells: cells that share their runs are one comparison.
    known = {setting: p for setting, (_, p) in tests.items() if p is not None}
    holm = dict(zip(known, statistics.holm(list(known.values())), strict=True))
    summaries = []
    for cell in table.cells:
        found = results[cell.setting]
        delta, p = tests[cell.setting]
        last, best = _by_seed(found, LAST), _by_seed(found, BEST)
        visible = _visible(cell.setting, results, max(1, len(known)))
        summaries.append(
            Summary(cell, found, last, best, delta, p, holm.get(cell.setting), visible)
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


def _compare(
    setting: Setting, results: Mapping[Setting, SettingResult]
) -> tuple[float | None, float | None]:
    """Mean difference from the l2 baseline of the same network, and its p."""
    return statistics.paired_difference(*_pair(setting, results))


def _visible(
    setting: Setting, results: Mapping[Setting, SettingResult], comparisons: int
) -> float | None:
    differences = statistics.paired_differences(*_pair(setting, results))
    return statistics.visible_difference(differences, comparisons)


def _pair(
    setting: Setting, results: Mapping[Setting, SettingResult]
) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracies of a setting and of the l2 baseline of its network, which has no pair itself."""
    l2 = Setting(setting.data, setting.model, "l2")
    if setting == l2:
        return {}, {}
    return _by_seed(results[setting], LAST), _by_seed(results[l2], LAST)

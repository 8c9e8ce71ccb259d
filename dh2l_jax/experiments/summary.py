"""What a table says of each cell, from the outcomes of its runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dh2l_jax.experiments import statistics
from dh2l_jax.experiments.plan.settings import Setting
from dh2l_jax.experiments.plan.tables import Cell, Table
from dh2l_jax.experiments.runner import Settled
from dh2l_jax.training.run.folder import BEST, LAST

__all__ = ["Summary", "comparisons", "summarize", "test_images"]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A cell with its figures; test accuracies are in %.

    Attributes:
      cell: of the table.
      settled: its runs.
      last: seed → accuracy of the state after the last epoch.
      best: seed → accuracy of the state that was best on validation.
      delta: mean difference of `last` from the l2 baseline over the seeds of both, in points.
      p: of the paired test of that difference.
      p_holm: p after Holm's correction over the table.
    """

    cell: Cell
    settled: Settled
    last: Mapping[int, float]
    best: Mapping[int, float]
    delta: float | None = None
    p: float | None = None
    p_holm: float | None = None


def summarize(table: Table, settled: Mapping[Setting, Settled]) -> list[Summary]:
    """The figures of all cells, in the table's order.

    Args:
      table: what the cells are.
      settled: of each of its settings, whether it has been run or not.

    Returns:
      A summary a cell.
    """
    tests = {setting: _compare(setting, settled) for setting in table.settings}
    # Cells that share their runs are one comparison.
    known = {setting: p for setting, (_, p) in tests.items() if p is not None}
    holm = dict(zip(known, statistics.holm(list(known.values())), strict=True))
    summaries = []
    for cell in table.cells:
        found = settled[cell.setting]
        delta, p = tests[cell.setting]
        last, best = _by_seed(found, LAST), _by_seed(found, BEST)
        summaries.append(Summary(cell, found, last, best, delta, p, holm.get(cell.setting)))
    return summaries


def comparisons(summaries: list[Summary]) -> int:
    """Number of tests that Holm's correction counts."""
    return len({s.cell.setting for s in summaries if s.p is not None})


def test_images(summaries: list[Summary]) -> int | None:
    """Number of test images; None as long as nothing has been tested."""
    for summary in summaries:
        for outcome in summary.settled.chosen:
            if outcome.test:
                return outcome.test[LAST]["images"]
    return None


def _by_seed(settled: Settled, state: str) -> dict[int, float]:
    found = {}
    for outcome in settled.chosen:
        accuracy = outcome.test_accuracy(state)
        if accuracy is not None:
            found[outcome.run.seed] = 100 * accuracy
    return found


def _compare(
    setting: Setting, settled: Mapping[Setting, Settled]
) -> tuple[float | None, float | None]:
    """Mean difference from the l2 baseline of the same network, and its p."""
    l2 = Setting(setting.data, setting.model, "l2")
    if setting == l2:
        return None, None
    ours, baseline = (_by_seed(settled[s], LAST) for s in (setting, l2))
    seeds = ours.keys() & baseline.keys()
    if not seeds:
        return None, None
    delta, _ = statistics.mean_and_deviation([ours[seed] - baseline[seed] for seed in seeds])
    return delta, statistics.paired_p(ours, baseline)

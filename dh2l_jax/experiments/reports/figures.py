"""A table as a picture: ours with error bars beside the paper's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dh2l_jax.experiments.plan.tables import COLUMN, FACTORED, Table
from dh2l_jax.experiments.reports.statistics import mean_and_deviation
from dh2l_jax.experiments.reports.summary import Summary

__all__ = ["draw"]

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {
    "baseline": "#7f7f7f",
    "l2": "#000000",
    "E": "#0072b2",
    "E+l2": "#d55e00",
    FACTORED: "#e69f00",
    "E+H": "#009e73",
    COLUMN: "#0072b2",
}
OURS: dict[str, Any] = {"marker": "o"}
PAPER: dict[str, Any] = {"marker": "D", "fillstyle": "none", "markersize": 8}
BASELINE: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": "--", "zorder": 0}


def draw(table: Table, summaries: list[Summary], heading: str, path: Path) -> None:
    """Writes a PNG: a panel a network, a line a row, dots for ours and diamonds for the paper's.

    Raises:
      ImportError: there is no matplotlib; the message says what to install.
      OSError: the file cannot be written.
    """
    try:
        # Figure, not pyplot, which keeps figures and looks for a window system.
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("no matplotlib: pip install 'dh2l_jax[tables]'") from None

    rows, models = table.rows, table.models
    figure = Figure(figsize=(2.2 + 5 * len(models), 2.2 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        shown = [s for s in summaries if s.cell.setting.model == model]
        _panel(axes, table, shown)
        if table.one_column:
            _seeds(axes, [summary.last for summary in shown])
        if len(models) > 1:
            axes.set_title(model, loc="left")
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # rows without a figure too
    figure.suptitle(heading, x=0.01, ha="left")
    figure.legend(
        handles=_legend(table, summaries), loc="outside lower left", ncols=4, frameon=False
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Any, table: Table, summaries: list[Summary]) -> None:
    """Rows downwards; the columns of a row lie a little apart."""
    used = {summary.cell.column for summary in summaries if _is_metric(summary)}
    columns = [column for column in table.columns if column in used]
    for summary in summaries:
        y = float(table.rows.index(summary.cell.row))
        if _is_metric(summary):
            y += 0.22 * (columns.index(summary.cell.column) - (len(columns) - 1) / 2)
        _marks(axes, table, summary, y)
    axes.set_xlabel("test accuracy, %")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _seeds(axes: Any, rows: list[Mapping[int, float]]) -> None:
    """A dot a seed, and a line from row to row, so that pairs are seen."""
    for seed in sorted(set().union(*rows)):
        points = [row.get(seed, math.nan) for row in rows]
        axes.plot(points, range(len(rows)), color="0.6", marker=".", linewidth=0.5, zorder=1)


def _marks(axes: Any, table: Table, summary: Summary, y: float) -> None:
    """Ours with a deviation, the paper's, and for the reference a line over the whole panel."""
    style: dict[str, Any] = {"color": COLOURS.get(_name(summary), "black"), "linestyle": "none"}
    if summary.last:
        mean, deviation = mean_and_deviation(summary.last.values())
        axes.errorbar(mean, y, xerr=deviation, capsize=3, **OURS, **style)
        if summary.cell.setting == table.reference_of(summary.cell.setting):
            axes.axvline(mean, **BASELINE)
    if summary.cell.paper is not None:
        axes.plot(summary.cell.paper, y, **PAPER, **style)


def _is_metric(summary: Summary) -> bool:
    setting = summary.cell.setting
    return bool(setting.method) or setting.variant not in ("baseline", "l2")


def _name(summary: Summary) -> str:
    """The column without its network; a baseline by its own name."""
    setting = summary.cell.setting
    if not _is_metric(summary):
        return setting.variant
    return summary.cell.column.removeprefix(setting.model).strip()


def _legend(table: Table, summaries: list[Summary]) -> list[Any]:
    """What the colours mean, then what the marks mean."""
    from matplotlib.lines import Line2D

    names = {_name(summary) for summary in summaries}
    black: dict[str, Any] = {"color": "black", "linestyle": "none"}
    marks = [
        Line2D([], [], color=colour, linewidth=4, label=name)
        for name, colour in COLOURS.items()
        if name in names and not table.one_column  # there the rows have the names
    ]
    marks.append(Line2D([], [], label="ours ± standard deviation", **OURS, **black))
    if any(summary.cell.paper is not None for summary in summaries):
        marks.append(Line2D([], [], label="the paper's, one run", **PAPER, **black))
    if table.one_column:
        marks.append(Line2D([], [], label="a seed", color="0.6", marker=".", linewidth=0.5))
    return [*marks, Line2D([], [], label=f"our {table.against}", **BASELINE)]

"""A table for programs, a record a run, so that nothing is lost: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from dh2l_jax.experiments.plan.tables import Table
from dh2l_jax.experiments.reports.statistics import mean_and_deviation
from dh2l_jax.experiments.reports.summary import Summary
from dh2l_jax.experiments.runs import RunResult
from dh2l_jax.training.run.folder import BEST, LAST
from dh2l_jax.training.run.records import spreadsheet_cell

__all__ = ["csv_text", "json_text", "run_records"]


def run_records(table: Table, summaries: list[Summary]) -> list[dict[str, object]]:
    """Each run of each cell, candidates that were not chosen too, with the figures of its cell.

    Accuracies are in %.
    """
    return [
        _cell_values(table, summary) | _run_values(summary, result)
        for summary in summaries
        for result in summary.result.runs
    ]


def csv_text(rows: list[dict[str, object]]) -> str:
    """A line for each record."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: spreadsheet_cell(v) for name, v in row.items()} for row in rows)
    return file.getvalue()


def json_text(rows: list[dict[str, object]], about: dict[str, Any]) -> str:
    """The records under "runs", beside what is said of all of them."""
    return json.dumps({**about, "runs": rows}, indent=1, ensure_ascii=False) + "\n"


def _cell_values(table: Table, summary: Summary) -> dict[str, object]:
    cell, setting = summary.cell, summary.cell.setting
    mean, deviation = mean_and_deviation(summary.last.values()) if summary.last else (None, None)
    return {
        "table": table.name,
        "row": cell.row,
        "column": cell.column,
        "data": setting.data,
        "model": setting.model,
        "variant": setting.variant,
        "method": setting.method,
        "conv_metric": setting.conv_metric,
        "fc_metric": setting.fc_metric,
        "cell_n": len(summary.last),
        "cell_mean": mean,
        "cell_deviation": deviation,
        "reference": table.against,
        "cell_delta": summary.delta,
        "cell_interval": summary.interval,
        "cell_p": summary.p,
        "cell_p_holm": summary.p_holm,
        "cell_visible": summary.visible,
        "cell_step_bytes": summary.result.step_bytes,
        "paper": cell.paper,
    }


def _run_values(summary: Summary, result: RunResult) -> dict[str, object]:
    run, scores, test = result.run, result.scores or {}, result.test or {}
    best = scores.get("best", {})
    levels = test[LAST]["accuracy"] if test else []
    return {
        "lambda_e": run.config.reg.lambda_e,
        "lambda_l": run.config.reg.lambda_l,
        "weights": str(run.weights),
        "weight_decay": run.config.optim.weight_decay,
        "seed": run.seed,
        "status": "failed" if result.reason else "finished" if scores else "not run",
        "chosen": "yes" if run.weights == summary.result.weights else "no",
        "validation_last": _percent(result.validation),
        "validation_best": _percent(best["accuracy"][-1] if best else None),
        "best_epoch": best.get("epoch"),
        "test_last": _percent(result.test_accuracy(LAST)),
        "test_best_on_validation": _percent(result.test_accuracy(BEST)),
        "test_images": test[LAST]["images"] if test else None,
        "test_last_levels": " ".join(str(_percent(level)) for level in levels),
        "test_last_severity": test[LAST].get("mistake_severity") if test else None,
        "parameters": scores.get("parameters"),
        "seconds": scores.get("seconds"),
        "epochs": run.config.epochs,
        "fraction": run.config.data.fraction,
        "reason": result.reason,
        "run": run.name,
    }


def _percent(fraction: float | None) -> float | None:
    """Without the last binary digits, which would only make 86.30000000000001 of 0.863."""
    return None if fraction is None else round(100 * fraction, 10)

"""A table as CSV, a line a run, so that nothing is lost; the figures of the cell are repeated."""

from __future__ import annotations

import csv
import io

from dh2l_jax.experiments.plan.tables import Table
from dh2l_jax.experiments.runs import RunResult
from dh2l_jax.experiments.statistics import mean_and_deviation
from dh2l_jax.experiments.summary import Summary
from dh2l_jax.training.run.folder import BEST, LAST
from dh2l_jax.training.run.records import spreadsheet_cell

__all__ = ["csv_text"]


def csv_text(table: Table, summaries: list[Summary]) -> str:
    """A line for each run of each cell, candidates that were not chosen too; accuracies in %."""
    records = [
        {
            name: spreadsheet_cell(value)
            for name, value in (_cell_values(table, summary) | _run_values(summary, result)).items()
        }
        for summary in summaries
        for result in summary.result.runs
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


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
        "cell_delta_l2": summary.delta,
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

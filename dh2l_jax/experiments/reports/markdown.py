"""A table as Markdown: the paper's layout, every cell, failed runs, protocol, versions."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments.plan.settings import (
    CHOSEN,
    LAMBDA_E,
    LAMBDA_L,
    Options,
    config_of,
    shown,
)
from dh2l_jax.experiments.plan.tables import Table
from dh2l_jax.experiments.reports.statistics import binomial_error, mean_and_deviation
from dh2l_jax.experiments.reports.summary import Summary, comparisons, test_images
from dh2l_jax.experiments.runs import RunResult
from dh2l_jax.training.config import Config

__all__ = ["Protocol", "markdown", "sentences", "title"]

NONE = "–"
DETAILS = (
    "row",
    "column",
    "network",
    "epochs",
    "n",
    "last",
    "best on validation",
    "Δ {}",
    "p",
    "p (Holm)",
    "visible",
    "above",
    "severity",
    "chosen",
    "s",
    "MB",
    "paper",
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the runs of a table were made.

    Attributes:
      seeds: λ is chosen with the first.
      options: of all runs.
      command: words of the command line.
    """

    seeds: tuple[int, ...]
    options: Options
    command: tuple[str, ...]


def title(table: Table, protocol: Protocol) -> str:
    """The table's title; a trial run says so."""
    budget = protocol.options.budget
    return table.title + (f" (trial run, budget {budget:g})" if budget < 1 else "")


def markdown(table: Table, summaries: list[Summary], protocol: Protocol) -> str:
    """The whole report: the paper's layout, every cell, failed runs, protocol, versions."""
    parts = [
        f"# {title(table, protocol)}",
        *(["\n".join(f"- {line}" for line in sentences(table, summaries))] * table.one_column),
        *_trial(table, protocol),
        "Test accuracy in %: mean ± standard deviation over seeds after the last epoch"
        + ("; in brackets the paper's figure, a single run." if table.has_paper else "."),
        _grid(table, summaries),
        *([table.note] if table.note else []),
        "## Every cell",
        _details(table, summaries),
        *_failures(summaries),
        "## Protocol",
        "\n".join(f"- {line}" for line in _protocol(table, summaries, protocol)),
        _footer(summaries, protocol),
    ]
    return "\n\n".join(parts) + "\n"


def sentences(table: Table, summaries: list[Summary]) -> list[str]:
    """Of each method, in words, whether it differs from the reference, and what could be seen."""
    return [
        _sentence(summary, table.against)
        for summary in summaries
        if summary.cell.setting != table.reference_of(summary.cell.setting)
    ]


def _sentence(s: Summary, against: str) -> str:
    row, seeds = s.cell.row, len(s.last)
    if s.delta is None:
        return f"{row} and {against} have no finished seed in common."
    if s.p_holm is None or s.interval is None or s.visible is None:
        same = "a test needs two seeds or more" if seeds < 2 else "every seed says the same"
        return f"{row} − {against}: {s.delta:+.1f} points ({_seeds(seeds)}: {same})."
    shown_p = _probability(s.p_holm)
    p = f"p {shown_p if shown_p.startswith('<') else f'= {shown_p}'} after Holm, {_seeds(seeds)}"
    size, unseen = f"{s.interval:.1f} points", f"a difference under {s.visible:.1f} points"
    if s.p_holm < 0.05:
        way = "better" if s.delta > 0 else "worse"
        found = f"{row} is {abs(s.delta):.1f} ± {size} {way} than {against} ({p})"
    else:
        found = f"{row} is not told apart from {against}: {s.delta:+.1f} ± {size} ({p})"
    return f"{found}; {unseen} might not have been seen."


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _trial(table: Table, protocol: Protocol) -> list[str]:
    if protocol.options.budget == 1:
        return []
    setting = table.settings[0]
    config = config_of(setting, setting.candidates[0], 0, protocol.options)
    return [
        f"**A trial run**: {config.epochs} epochs on {100 * config.data.fraction:.3g} % of the "
        "images of each class"
        + (". Its figures don't compare with the paper's." if table.has_paper else ".")
    ]


def _grid(table: Table, summaries: list[Summary]) -> str:
    """The table as the paper prints it."""
    entries = {(s.cell.row, s.cell.column): _entry(s) for s in summaries}
    rows = [[row, *(entries.get((row, c), "") for c in table.columns)] for row in table.rows]
    return _lines(["", *table.columns], rows)


def _entry(summary: Summary) -> str:
    paper = "" if summary.cell.paper is None else f" ({summary.cell.paper:.2f})"
    return _mean(summary.last) + (" failed" if _failed(summary) else "") + paper


def _failed(summary: Summary) -> bool:
    """Whether a cell has no figure because its runs failed."""
    return bool(summary.result.failures) and not summary.last


def _details(table: Table, summaries: list[Summary]) -> str:
    kept = len(DETAILS) - table.one_column  # no figures of the paper
    header = [name.format(table.against) for name in DETAILS[:kept]]
    return _lines(header, [_detail(summary)[:kept] for summary in summaries])


def _detail(s: Summary) -> list[str]:
    return [
        s.cell.row,
        s.cell.column,
        s.cell.setting.model,
        str(s.result.runs[0].run.config.epochs),
        str(len(s.last)),
        _mean(s.last),
        _mean(s.best),
        NONE if s.delta is None else f"{s.delta:+.2f}",
        _probability(s.p),
        _probability(s.p_holm),
        NONE if s.visible is None else f"{s.visible:.2f}",
        _above(s.scores("accuracy")),
        _mean(dict(enumerate(s.scores("mistake_severity")))),
        str(s.result.weights or NONE),
        _mean_number(s.result.seconds),
        NONE if s.result.step_bytes is None else f"{s.result.step_bytes / 1e6:.0f}",
        NONE if s.cell.paper is None else f"{s.cell.paper:.2f}",
    ]


def _mean(values: Mapping[int, float]) -> str:
    if not values:
        return NONE
    mean, deviation = mean_and_deviation(values.values())
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _above(accuracies: Sequence[Sequence[float]]) -> str:
    """The mean accuracy at each inner level."""
    levels = list(zip(*accuracies, strict=True))[:-1]
    return " / ".join(f"{100 * mean_and_deviation(level)[0]:.2f}" for level in levels) or NONE


def _mean_number(values: Sequence[float]) -> str:
    return f"{mean_and_deviation(values)[0]:.0f}" if values else NONE


def _probability(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _lines(header: Sequence[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are right-aligned."""
    rule = [":---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(header), rule, *rows])


def _failures(summaries: list[Summary]) -> list[str]:
    lines = [f"- {o.run}: {o.reason}" for o in _run_results(summaries) if o.reason]
    return ["## Failed runs", "\n".join(lines)] if lines else []


def _run_results(summaries: list[Summary]) -> Iterator[RunResult]:
    """Every run once, though cells share some."""
    for found in {s.cell.setting: s.result for s in summaries}.values():
        yield from found.runs


def _protocol(table: Table, summaries: list[Summary], protocol: Protocol) -> Iterator[str]:
    options, setting = protocol.options, table.settings[0]
    config = config_of(setting, setting.candidates[0], 0, options)
    yield _held_out(table, config)
    yield (
        f"{_lists(table)}, by validation accuracy after the last epoch with seed "
        f"{protocol.seeds[0]}, the smaller on a tie; the other seeds use the chosen ones. Only "
        "their runs see the test set, once."
    )
    yield (
        "A seed gives every method the same split, order of images and weights, as far as their "
        'networks agree. "last" is the state after the last epoch, "best on validation" the state '
        "of the epoch with the highest validation accuracy of its run. Nothing is chosen on the "
        "test set."
    )
    yield (
        f'Δ {table.against}: mean difference of "last" from {table.against}, of the same network '
        "and over the same seeds, in points; p of the two-sided paired t-test, then with Holm's "
        f"correction for the {comparisons(summaries)} comparisons of this table; {NONE} where it "
        'has no value. "visible": the true difference that these seeds would have shown with a '
        "probability of 0.8, at the level 0.05 of Holm's first step."
        + " In the sentences, ± is the 95 % confidence interval of a difference."
        * table.one_column
    )
    yield (
        '"above": mean test accuracy at the inner levels of the tree, from the root down, in %; '
        '"severity": mean height of the lowest common ancestor over the wrong answers; "s": mean '
        'seconds of a run, compilation included; "MB": what the compiled training step needs, its '
        "images included."
    )
    if images := test_images(summaries):
        accuracy = _typical(summaries)
        yield (
            f"{images:,} test images: one accuracy of {100 * accuracy:.0f} % has a binomial "
            f"standard error of {100 * binomial_error(accuracy, images):.2f} points, which all "
            "seeds share."
        )
    if config.data.crop:
        unlike = ", unlike the paper" * table.has_paper
        start = "ImageNet's weights" if config.model.pretrained else f"random weights{unlike}"
        yield f"Training starts from {start}."
    if options.overrides:
        yield f"Changed options: {', '.join(options.overrides)}."


def _held_out(table: Table, config: Config) -> str:
    held, fraction = config.data.holdout, config.data.fraction
    if table.data not in FACTS or held < 1:
        share = f"{100 * held:g} %" if held < 1 else f"{held:,}"
        return (
            f"{share} of the training images are held out for validation, of each class its part."
        )
    facts = FACTS[table.data]
    trained = round(fraction * facts.train) - held
    has = f"; the paper mentions no validation split and has {facts.train:,}" * table.has_paper
    return (
        f"{held:,} training images, {held // facts.classes} of each class, are held out for "
        f"validation. So our models train on {'about ' * (fraction < 1)}{trained:,} images{has}."
    )


def _lists(table: Table) -> str:
    """What the settings choose from; in a comparison every row has its own list."""
    if not table.one_column:
        lists = ("reg.lambda_e", LAMBDA_E), ("reg.lambda_l", LAMBDA_L)
        return f"{' and '.join(_list(*pair) for pair in lists)}, where a cell has the term"
    lists = {cell.row: cell.setting.lists or () for cell in table.cells}
    alike = [
        pair for pair in next(iter(lists.values())) if all(pair in of for of in lists.values())
    ]
    own = {row: [pair for pair in of if pair not in alike] for row, of in lists.items()}
    rows = {"every method alike": alike, **own}
    words = [f"{row} {' and '.join(_list(*pair) for pair in of)}" for row, of in rows.items() if of]
    return f"Chosen: {'; '.join(words) or 'nothing'}"


def _list(key: str, values: Sequence[float | str]) -> str:
    return f"{CHOSEN.get(key, key)} from {{{', '.join(map(shown, values))}}}"


def _typical(summaries: list[Summary]) -> float:
    values = [value for summary in summaries for value in summary.last.values()]
    return mean_and_deviation(values)[0] / 100


def _footer(summaries: list[Summary], protocol: Protocol) -> str:
    """The command, and the versions that the runs report: several where they differ."""
    found: dict[str, dict[str, None]] = {}
    for result in _run_results(summaries):
        for name, version in (result.scores or {}).get("versions", {}).items():
            found.setdefault(name, {})[str(version)] = None
    versions = "; ".join(f"{name} {' and '.join(values)}" for name, values in found.items())
    return f"`{shlex.join(protocol.command)}`" + (f"\n\n{versions}" if versions else "")

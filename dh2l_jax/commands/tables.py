"""Runs, or resumes, a table of the paper and writes it as Markdown, CSV and PNG.

dh2l tables table2 --data DIR --seeds 0 1 2
dh2l tables table5 --data DIR --pretrained DIR_OF_THE_PTH_FILES
dh2l tables table-fashion                     on the embedded images
dh2l tables table-fashion --data DIR          on the whole of Fashion-MNIST
dh2l tables table-field --model resnet8       the field's methods under one protocol
dh2l tables table2 --data DIR --budget 0.05   a trial run
dh2l tables table2 --dry-run                  what there is to do

Whatever stops it, the same command goes on: a finished run is not run again. λ is chosen on images
held out of the training images; only the chosen runs are evaluated on the test set.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dh2l_jax.commands import Parser
from dh2l_jax.commands.compare import add_common, make
from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments.job import TableJob
from dh2l_jax.experiments.plan.settings import WEIGHT_FILES, Options
from dh2l_jax.experiments.plan.tables import EMBEDDED, TABLES, Table, count_runs, table
from dh2l_jax.experiments.reports.markdown import Protocol
from dh2l_jax.experiments.trainers import Trainer

PROGRAM = "dh2l tables"
SEEDS = [0, 1, 2]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog=_list_of_tables(),
    )
    add = parser.add_argument
    add("table", metavar="TABLE", help="one of the tables below")
    add("--data", default="", metavar="DIR", help="data.data_dir of the runs")
    add("--seeds", type=int, nargs="+", default=SEEDS, metavar="N", help="default: 0 1 2")
    add("--budget", type=float, default=1.0, metavar="F", help="part of epochs and images, a trial")
    add(
        "--pretrained", metavar="DIR", help='folder of the ImageNet weights, or "none": random ones'
    )
    add("--rows", nargs="+", metavar="ROW", help="train these rows and the baselines alone")
    add(
        "--model",
        metavar="NAME",
        help="network of the tables on Fashion-MNIST (default: resnet20)",
    )
    add_common(parser, "runs/tables")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, trainer: Trainer | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.
      trainer: of the runs; None for `training.loop`.

    Returns:
      0 if all went well, 1 if a run failed, 2 for bad input, 130 if interrupted.
    """
    return make(PROGRAM, parse_arguments, _plan, arguments, trainer, trial=False)


def _plan(options: argparse.Namespace, command: Sequence[str], trainer: Trainer) -> TableJob:
    """Everything that can be said before a file is read; raises for what can't be run."""
    if options.model and options.table not in EMBEDDED:
        raise ValueError(
            f"--model is for {' and '.join(EMBEDDED)}: the networks of a paper's table are fixed"
        )
    plan = table(options.table, embedded=not options.data, model=options.model or "resnet20")
    wanted = plan.only(plan.rows if options.rows is None else options.rows).settings
    protocol = Protocol(_seeds(options.seeds), _run_options(options, plan), tuple(command))
    return TableJob.begin(plan, wanted, options.out, _stem(options, plan), protocol, trainer)


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds must be different and ≥ 0, found {' '.join(map(str, seeds))}")
    return tuple(seeds)


def _run_options(options: argparse.Namespace, plan: Table) -> Options:
    folder = _pretrained(options, plan)
    data_dir = str(Path(options.data).expanduser().resolve()) if options.data else ""
    return Options(data_dir, folder, options.budget, tuple(options.overrides))


def _pretrained(options: argparse.Namespace, plan: Table) -> str:
    """The folder of the ImageNet weights that a heavy network starts from; empty for none."""
    files = [WEIGHT_FILES[model] for model in plan.models if model in WEIGHT_FILES]
    if not files:
        if options.pretrained:
            raise ValueError(f"{plan.name} takes no --pretrained: its networks start at random")
        return ""
    if options.pretrained == "none":
        return ""
    if options.pretrained is None and not options.dry_run:
        raise ValueError(
            f"{plan.name} needs --pretrained, the folder of {' and '.join(files)}, or "
            "--pretrained none to start at random, unlike the paper"
        )
    folder = Path(options.pretrained or "").expanduser().resolve()
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and not options.dry_run:
        raise FileNotFoundError(f"--pretrained {folder} has no {' and no '.join(missing)}")
    return str(folder)


def _stem(options: argparse.Namespace, plan: Table) -> str:
    """Name of the reports; whatever gives other figures gives another name."""
    full = ["full"] if plan.data == "fashion_mnist" else []
    model = [options.model] if options.model else []
    budget = [f"budget{options.budget:g}"] if options.budget < 1 else []
    random = ["random"] if options.pretrained == "none" else []
    seeds = [] if options.seeds == SEEDS else ["seeds" + _label(map(str, options.seeds))]
    changes = [_label(options.overrides)] if options.overrides else []
    return "-".join([plan.name, *full, *model, *budget, *random, *seeds, *changes])


def _label(words: Iterable[str]) -> str:
    """The words as part of a file's name: a hash if they are long or would not do."""
    text = "-".join(words)
    if re.fullmatch(r"[\w.=,-]{1,60}", text, re.ASCII):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _list_of_tables() -> str:
    """Each table with its data set, networks, and number of runs with three seeds."""
    lines = ["tables, with the number of runs for three seeds:"]
    for name in TABLES:
        plan = table(name)
        facts = f"{FACTS[plan.data].title}, {', '.join(plan.models)}"
        lines.append(f"  {name:<15}{facts:<55}{count_runs(plan.settings, 3):>4}")
    return "\n".join(lines)

"""Compares methods on your own images, or any data set: which helps, and how sure that is.

  dh2l compare                                     l2, E, factored and E+H on embedded images
  dh2l compare ~/birds --methods l2 mhe_s2 factored          on a folder of images
  dh2l compare --search optim.lr=0.01,0.03,0.1     the rate is chosen, for every method alike
  dh2l compare --methods l2 "slow: --set epochs=9 --search optim.lr=0.01,0.02"
  dh2l compare --dry-run                           what there is to do

A method is one of the names below, a regulariser such as "mhe_s2(half_space=True)", "E(METRIC)",
"factored(METRIC)", "E+H(METRIC)", or "NAME: --set KEY=VALUE --search KEY=A,B", which changes l2.

Whatever stops it, the same command goes on: a finished run is not run again. Weights and what is
searched are chosen on images held out of the training images; only the chosen runs are evaluated
on the test set. All methods of a seed share split, order of images and initial weights.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from dh2l_jax.checks import unknown_name
from dh2l_jax.commands import BAD, Exit, Parser, fail, refuse_small_limits
from dh2l_jax.commands.train import config_file
from dh2l_jax.data.facts import FACTS
from dh2l_jax.experiments.job import TableJob
from dh2l_jax.experiments.plan.methods import METHODS
from dh2l_jax.experiments.plan.settings import Options, listed, recipe
from dh2l_jax.experiments.plan.tables import comparison
from dh2l_jax.experiments.reports.markdown import Protocol
from dh2l_jax.experiments.trainers import LoopTrainer, SideBySide, Trainer
from dh2l_jax.training.config import Config, load, override
from dh2l_jax.training.host.programs import prepare_jax
from dh2l_jax.training.run.lock import Lock

PROGRAM = "dh2l compare"
STEM = "comparison"
DEFAULT = ("l2", "E(d_am_cos)", "factored", "E+H(d_am_cos)")
HOLDOUT = 0.1
# What a method or a seed sets: --set for all of them would say nothing, or another thing.
OWN_KEYS = (
    "seed",
    "eval_every",
    "reg.conv_metric",
    "reg.fc_metric",
    "reg.lambda_e",
    "reg.lambda_l",
    "model.head",
)

Plan = Callable[[argparse.Namespace, Sequence[str], Trainer], TableJob]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    names = textwrap.fill(", ".join(METHODS), 90, initial_indent="  ", subsequent_indent="  ")
    parser = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog=f"methods by name, each with its own list of weights:\n{names}",
    )
    add = parser.add_argument
    add(
        "data",
        nargs="?",
        default="",
        metavar="DATA",
        help="a data set's name, or a folder of images (default: that of the config)",
    )
    add("--methods", nargs="+", default=list(DEFAULT), metavar="METHOD", help="see above")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each method (default: 5)")
    add(
        "--search",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="choose an option on validation, for every method alike",
    )
    add("--config", default="", metavar="CONFIG", help="what all begin with (default: a recipe)")
    add_common(parser, "runs/compare")
    return parser.parse_args(arguments)


def add_common(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds what every command of many runs has."""
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), metavar="DIR", help=f"default: {out}")
    add(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="replace one option in all runs, such as model.dtype=bfloat16",
    )
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, each on a GPU of its own or a share of the cores (default: 1)",
    )
    add("--dry-run", "--list", action="store_true", help="show the plan and what is done already")


def main(arguments: list[str] | None = None, trainer: Trainer | None = None) -> int:
    """Runs the command line, see `make`."""
    return make(PROGRAM, parse_arguments, _plan, arguments, trainer, trial=True)


def make(
    program: str,
    parse: Callable[[list[str]], argparse.Namespace],
    plan: Plan,
    arguments: list[str] | None,
    trainer: Trainer | None,
    *,
    trial: bool,
) -> int:
    """Runs a command of many runs.

    Args:
      program: what messages call it.
      parse: words → options.
      plan: options, words of the command, trainer → everything that can be said beforehand.
      arguments: without the program's name; None for those of the process.
      trainer: of the runs; None for `training.loop`.
      trial: whether a short run tells the time, where no run is finished.

    Returns:
      0 if all went well, 1 if a run failed, 2 for bad input, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with contextlib.ExitStack() as stack:
        try:
            options = parse(words)
            trainer = trainer or _trainer(options.jobs)
            job = plan(options, (*program.split(), *words), trainer)
            if options.dry_run:
                job.show()
                return Exit.FINISHED
            job.check()
            options.out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(options.out / ".lock"))
        except BAD as error:
            return fail(program, error)
        refuse_small_limits()
        if isinstance(trainer, LoopTrainer):
            prepare_jax()
        job.announce(trial=trial)
        return job.run()


def _trainer(jobs: int) -> Trainer:
    return LoopTrainer() if jobs == 1 else SideBySide(jobs, prepare_jax)


def _plan(options: argparse.Namespace, command: Sequence[str], trainer: Trainer) -> TableJob:
    if options.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, found {options.seeds}")
    search = tuple(listed(text) for text in options.search)
    base = _base(options, [key for key, _ in search])
    table = comparison(STEM, _name(base), base.model.name, options.methods, search)
    chosen = Options(overrides=tuple(options.overrides), base=base)
    protocol = Protocol(tuple(range(options.seeds)), chosen, tuple(command))
    return TableJob.begin(table, table.settings, options.out, STEM, protocol, trainer)


def _base(options: argparse.Namespace, searched: Sequence[str]) -> Config:
    """What every method changes."""
    config = _config(options.config, options.data)
    for text in options.overrides:
        key = text.partition("=")[0].strip()
        if key in OWN_KEYS or key in searched:
            raise ValueError(f"{key} is set by the comparison itself, found --set {text}")
        config = override(config, text)
    if refused := [key for key in searched if key in OWN_KEYS]:
        raise ValueError(f"{refused[0]} is set by the methods or the seed, found in --search")
    holdout = config.data.holdout or HOLDOUT
    return dataclasses.replace(config, data=dataclasses.replace(config.data, holdout=holdout))


def _name(config: Config) -> str:
    """Of the data, in reports and folders; own images never have the name of known ones."""
    if config.data.name != "folder":
        return config.data.name
    name = re.sub(r"[^\w.-]+", "_", Path(config.data.data_dir).name)
    return name if name and name not in FACTS else f"folder_{name}"


def _config(name: str, data: str) -> Config:
    """A config with the data set that is asked for: by name, or a folder of images."""
    known = data if data in FACTS else "fashion_mnist_mini"
    network = "resnet18" if FACTS[known].photographs else "resnet20"
    config = load(config_file(name)) if name else recipe(known, network)
    if not data:
        return config
    folder = Path(data).expanduser()
    if data in FACTS or not folder.is_dir():
        if data not in FACTS and ":" not in data:
            raise ValueError(f"{unknown_name('data set', data, FACTS)}; {folder} is no folder")
        return override(config, f"data.name={data}")
    own = dataclasses.replace(config.data, name="folder", data_dir=str(folder.resolve()))
    return dataclasses.replace(config, data=own)

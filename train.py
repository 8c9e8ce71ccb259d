"""Trains a classifier from a config; with no arguments, ResNet-20 on embedded images.

python train.py                                        the main job, a few minutes on a laptop
python train.py --set optim.lr=0.05 --set seed=1       with other options
python train.py --config configs/NAME.py --workdir DIR another experiment, results in DIR
python train.py --variant factored                     without R: the control of the comparison
python train.py --eval-only --workdir DIR              evaluates a finished run again
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_CONFIG = ROOT / "configs" / "fashion_mnist_mini.py"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="what the paper compares: baseline, l2, E, factored or E+H (default: the config's)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="replace one option, such as optim.lr=0.05; may be given several times",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="new folder for the results (default: in runs/)"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the finished run in --workdir"
    )
    options = parser.parse_args(arguments)
    if options.eval_only and options.workdir is None:
        parser.error("--eval-only needs --workdir, the folder of a finished run")
    if options.eval_only and (options.config or options.variant or options.overrides):
        parser.error("--eval-only takes the config of the run: leave out the other options")
    return options


def command(options: argparse.Namespace) -> str:
    """The command of the same run in another folder."""
    words = ["python", "train.py"]
    words += ["--config", str(options.config)] if options.config else []
    words += ["--variant", options.variant] if options.variant else []
    return shlex.join([*words, *(word for value in options.overrides for word in ("--set", value))])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 if all went well, 2 for bad input."""
    options = parse_arguments(arguments)
    # Imported late, so that --help and a wrong option answer at once.
    import jax
    from rich.console import Console

    from dh2l_jax.training import config, loop, memory, recipes

    console = Console(highlight=False)
    try:
        if options.eval_only:
            experiment, scores = loop.eval_only(options.workdir)
            loop.show_scores(experiment, scores, console)
            return 0
        path = options.config or DEFAULT_CONFIG
        run_config = config.load(path)
        if options.variant:
            run_config = recipes.with_variant(run_config, options.variant)
        for assignment in options.overrides:
            run_config = config.override(run_config, assignment)
        experiment = loop.build(run_config, progress=True)
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        workdir = options.workdir or Path("runs") / f"{path.stem}-{now}"
        loop.make_workdir(workdir, run_config)
    except (ValueError, TypeError, OSError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    loop.describe(experiment, console)
    result = loop.train(experiment, workdir, console)
    loop.show_scores(experiment, result, console)
    loop.show_next_steps(workdir, result, console, command(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

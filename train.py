"""Trains a classifier from a config; with no arguments, ResNet-20 on embedded images.

python train.py                                        the main job, a few minutes on a laptop
python train.py --set optim.lr=0.05 --set seed=1       with other options
python train.py --config configs/NAME.py --workdir DIR another experiment, results in DIR
python train.py --variant factored                     without R: the control of the comparison
python train.py --profile DIR                          with a trace of the tenth step in DIR
python train.py --eval-only --workdir DIR              evaluates a finished run again
python train.py --test --workdir DIR                   one with held-out images, on the test set
python train.py --export FILE --workdir DIR            writes its weights as torchvision's
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).resolve().parent
DEFAULT_CONFIG = ROOT / "configs" / "fashion_mnist_mini.py"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="replace one option, such as optim.lr=0.05; may be given several times",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="what the paper compares: baseline, l2, E, factored or E+H; applied last",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="new folder for the results (default: in runs/)"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIR",
        help="folder for the trace of the 10th step, or of the last of a shorter run; "
        "the run goes on after it",
    )
    finished = parser.add_argument_group("of the finished run in --workdir")
    finished.add_argument("--eval-only", action="store_true", help="evaluate the last state again")
    finished.add_argument(
        "--test",
        action="store_true",
        help="evaluate the last and the best state on the test set, which data.holdout kept apart",
    )
    finished.add_argument(
        "--export", type=Path, metavar="FILE", help="torchvision state dict in safetensors"
    )
    options = parser.parse_args(arguments)
    flags = {"--eval-only": options.eval_only, "--test": options.test, "--export": options.export}
    for flag in (flag for flag, given in flags.items() if given):
        if options.workdir is None:
            parser.error(f"{flag} needs --workdir, the folder of a finished run")
        if options.config or options.variant or options.overrides or options.profile:
            parser.error(f"{flag} takes the config of the run: leave out the other options")
    return options


def command(options: argparse.Namespace) -> str:
    """The command of the same run in another folder."""
    words = ["python", "train.py"]
    words += ["--config", str(options.config)] if options.config else []
    words += ["--variant", options.variant] if options.variant else []
    for assignment in options.overrides:
        words += ["--set", assignment]
    return shlex.join(words)


def use_finished(options: argparse.Namespace, console: Console) -> None:
    """Evaluates, tests or exports the run in `--workdir`."""
    from dh2l_jax.training import logging, loop

    if options.eval_only:
        logging.print_scores(console, loop.eval_only(options.workdir))
    if options.test:
        for name, scores in loop.test(options.workdir).items():
            console.print(f"{name.replace('_', ' ')}:")
            logging.print_scores(console, scores)
    if options.export:
        path = loop.export(options.workdir, options.export)
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; 0 if all went well, 2 for bad input."""
    options = parse_arguments(arguments)
    # Imported late, so that --help and a wrong option answer at once.
    import jax
    from rich.console import Console

    from dh2l_jax.training import config, logging, loop, memory, profiling, recipes

    console = Console(highlight=False)
    try:
        if options.eval_only or options.test or options.export:
            use_finished(options, console)
            return 0
        path = options.config or DEFAULT_CONFIG
        run_config = config.load(path)
        for assignment in options.overrides:
            run_config = config.override(run_config, assignment)
        if options.variant:
            run_config = recipes.with_variant(run_config, options.variant)
        if options.profile:
            profiling.check_folder(options.profile)
        experiment = loop.build(run_config, progress=True)
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        workdir = options.workdir or Path("runs") / f"{path.stem}-{now}"
        loop.make_workdir(workdir, run_config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    loop.describe(experiment, console)
    result = loop.train(experiment, workdir, console, profile=options.profile)
    logging.print_scores(console, result)
    loop.show_next_steps(workdir, result, console, command(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

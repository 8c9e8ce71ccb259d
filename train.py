"""Trains a classifier from a config; with no arguments, ResNet-20 on embedded images.

python train.py                                        the main job, a few minutes on a laptop
python train.py --set optim.lr=0.05 --set seed=1       with other options
python train.py --config configs/NAME.py --workdir DIR another experiment, results in DIR
python train.py --workdir DIR                          goes on with a run that was interrupted
python train.py --variant factored                     without R: the control of the comparison
python train.py --profile DIR                          with a trace of the tenth step in DIR
python train.py --eval-only --workdir DIR              evaluates a finished run again
python train.py --test --workdir DIR                   one with held-out images, on the test set
python train.py --export FILE --workdir DIR            writes its weights as torchvision's

Exit codes: 0 finished, 2 bad input, 3 NaN or infinity in training, 4 something can't be written,
5 another process of the run was lost, 130 and 143 stopped by SIGINT and SIGTERM with all saved.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dh2l_jax.training.config import Config

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
        "--workdir",
        type=Path,
        metavar="DIR",
        help="folder of the results (default: a new one in runs/); a run in it goes on",
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
    from dh2l_jax.training import finished as finished_module
    from dh2l_jax.training.run import console as console_module

    tell = functools.partial(console.print, soft_wrap=True, markup=False)
    if options.eval_only:
        console_module.print_scores(console, finished_module.eval_only(options.workdir, tell))
    if options.test:
        for name, scores in finished_module.test(options.workdir, tell).items():
            console.print(f"{name.replace('_', ' ')}:")
            console_module.print_scores(console, scores)
    if options.export:
        path = finished_module.export(options.workdir, options.export, tell)
        tell(f"written: {path}")


def read_config(options: argparse.Namespace) -> Config:
    """The config of the options or, where they only say where to run, of the run in `--workdir`."""
    from dh2l_jax.training.config import load, override, recipes
    from dh2l_jax.training.run import folder as run_folder

    where = all(key.lstrip().startswith("distributed.") for key in options.overrides)
    given = options.config or options.variant or not where
    if options.workdir and not given and run_folder.is_run(options.workdir):
        run_config = run_folder.read_config(options.workdir)
    else:
        run_config = load(options.config or DEFAULT_CONFIG)
    for assignment in options.overrides:
        run_config = override(run_config, assignment)
    if options.variant:
        run_config = recipes.with_variant(run_config, options.variant)
    return run_config


def default_workdir(options: argparse.Namespace) -> Path:
    """A new folder, named by the config file and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{(options.config or DEFAULT_CONFIG).stem}-{now}"


def fail(error: BaseException | str, code: int) -> int:
    """One line on what went wrong; the exit code."""
    line = " ".join(str(error).splitlines())
    print(f"train.py: error: {line}", file=sys.stderr)
    return code


def train(options: argparse.Namespace, console: Console) -> int:
    """Trains, or goes on with, the run of the options; the exit code."""
    # Imported late, so that --help and a wrong option answer at once.
    import jax

    from dh2l_jax.training import loop
    from dh2l_jax.training.config import conflicts
    from dh2l_jax.training.host import allocator, processes, profiling
    from dh2l_jax.training.run import console as console_module
    from dh2l_jax.training.run import folder as run_folder

    folder = options.workdir or default_workdir(options)
    with contextlib.ExitStack() as stack:
        try:
            config = read_config(options)
            run_folder.refuse_foreign_folder(folder, config)
            conflicts.check(config)
            if run_folder.is_finished(folder):
                loop.show_result(folder, console)
                return 0
            if options.profile:
                profiling.check_folder(options.profile)
            processes.start(config.distributed)
            if processes.several() and not options.workdir:
                raise ValueError("several processes need --workdir, a folder that all of them see")
            console.quiet = not processes.is_main()
            experiment = loop.build(config, progress=not console.quiet)
            stack.enter_context(run_folder.opened(folder, config))
        except (ValueError, TypeError, OSError, ImportError) as error:
            return fail(error, 2)
        if jax.default_backend() == "cpu":
            allocator.keep_freed_memory()
        loop.describe(experiment, console)
        result = loop.train(experiment, folder, console, profile=options.profile)
    console_module.print_scores(console, result)
    loop.show_next_steps(folder, result, console, command(options))
    return 0


def run(options: argparse.Namespace, console: Console) -> int:
    """`train`, with a line and an exit code for what ends it early."""
    from dh2l_jax.training.host import processes
    from dh2l_jax.training.host.signals import Stopped
    from dh2l_jax.training.run.checkpoint import CheckpointError
    from dh2l_jax.training.step.finite import NotFiniteError

    try:
        return train(options, console)
    except Stopped as stopped:
        print(f"train.py: {stopped}: the same command goes on", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except CheckpointError as error:
        return fail(error, 2)
    except NotFiniteError as error:
        return fail(error, 3)
    except OSError as error:
        return fail(error, 4)
    except Exception as error:
        if processes.lost(error):
            return fail(processes.LOST_LINE, processes.LOST)
        if not processes.several():
            raise
        traceback.print_exc()
        return 1


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    options = parse_arguments(arguments)
    # Imported late, so that --help and a wrong option answer at once.
    from rich.console import Console

    from dh2l_jax.training.host import processes

    console = Console(highlight=False)
    if not (options.eval_only or options.test or options.export):
        code = run(options, console)
        if processes.several() and code not in (0, 3, 130, 143):  # the others don't end alike
            processes.abandon(code)
        return code
    try:
        use_finished(options, console)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return fail(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())

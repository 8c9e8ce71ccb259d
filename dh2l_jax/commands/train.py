"""Trains a classifier from a config; with no arguments, ResNet-20 on embedded images.

  dh2l train                                   the main job, a few minutes on a laptop
  dh2l train --optim.lr 0.05 --seed 1          with other options; --set KEY=VALUE says the same
  dh2l train cifar100_resnet20                 another experiment, or FILE.py with get_config()
  dh2l train --workdir DIR                     goes on with a run that was interrupted
  dh2l train --init_from DIR --epochs 30       a new run from the weights and options of another
  dh2l train --variant factored                without R: the control of the comparison
  dh2l train --profile DIR                     with a trace of the tenth step in DIR
  dh2l train --eval-only --workdir DIR         evaluates a finished run again
  dh2l train --test --workdir DIR              one with held-out images, on the test set
  dh2l train --export FILE --workdir DIR       writes its weights in safetensors
  dh2l train --tyro-write-completion bash FILE completes its options in a shell, once FILE is read

Exit codes: 0 finished, 2 bad input, 3 NaN or infinity in training, 4 something can't be written,
5 another process of the run was lost, 130 and 143 stopped by SIGINT and SIGTERM with all saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dh2l_jax.checks import unknown_name
from dh2l_jax.commands import BAD, Exit, fail, refuse_small_limits
from dh2l_jax.commands.arguments import Arguments, parse, show_help
from dh2l_jax.training.config import Config, load, makes_another_run, override, recipes

# What needs JAX is imported in the functions: help and a wrong option answer at once.
if TYPE_CHECKING:
    from rich.console import Console


DEFAULT = "fashion_mnist_mini"
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""The configs that travel with the package: inside it in a wheel, beside it in a checkout."""


def main(arguments: list[str], command: str = "dh2l train") -> int:
    """Runs the command line; its exit code.

    Args:
      arguments: without the command itself.
      command: as it is typed; messages call the program by it.
    """
    program = command.removeprefix("python ")
    asked = {"-h", "--help"} & set(arguments)
    try:
        given = parse([word for word in arguments if word not in asked], program)
        _refuse_flags_that_contradict(given)
        if asked:
            show_help(program, (__doc__ or "").replace("dh2l train", command), read_config(given))
            return Exit.FINISHED
    except BAD as error:
        return fail(program, error)
    refuse_small_limits()
    from rich.console import Console

    from dh2l_jax.training.host import processes

    console = Console(highlight=False)
    if not (given.eval_only or given.test or given.export):
        code = run(given, console, command)
        if processes.several() and code not in (0, 3, 130, 143):  # the others don't end alike
            processes.abandon(code)
        return code
    try:
        use_finished(given, console)
    except BAD as error:
        return fail(program, error)
    return Exit.FINISHED


def _refuse_flags_that_contradict(given: Arguments) -> None:
    flags = {"--eval-only": given.eval_only, "--test": given.test, "--export": given.export}
    for flag in (flag for flag, is_given in flags.items() if is_given):
        if given.workdir is None:
            raise ValueError(f"{flag} needs --workdir, the folder of a finished run")
        others = [key for key in map(_key, given.overrides) if makes_another_run(key)]
        if given.name or given.config or given.variant or others or given.profile:
            raise ValueError(
                f"{flag} takes the config of the run: leave out the other options, but for those "
                "that say where its data are"
            )
    if given.name is not None and given.config is not None:
        raise ValueError(f"expected one config, found {given.name!r} and --config {given.config}")


def read_config(given: Arguments) -> Config:
    """The config that is asked for; where none is named, that of the run to go on with or from."""
    config = _base(given)
    for assignment in given.overrides:
        config = override(config, assignment)
    return recipes.with_variant(config, given.variant) if given.variant else config


def _key(assignment: str) -> str:
    return _pair(assignment)[0]


def _pair(assignment: str) -> tuple[str, str]:
    key, _, value = assignment.partition("=")
    return key.strip(), value.strip()


def _base(given: Arguments) -> Config:
    keys = map(_key, given.overrides)
    named = given.name if given.config is None else given.config
    if given.workdir and named is None and not given.variant:
        # Imported late: the folder of a run needs JAX.
        from dh2l_jax.training.run import folder as run_folder

        if not any(map(makes_another_run, keys)) and run_folder.is_run(Path(given.workdir)):
            return run_folder.read_config(Path(given.workdir))
    pairs = dict(map(_pair, given.overrides))
    if named is None and "init_from" in pairs:
        from dh2l_jax.training.run import folder as run_folder  # as above

        parent = Path(pairs["init_from"]).expanduser()
        if run_folder.is_run(parent):
            return run_folder.read_config(parent)
    return load(config_file(DEFAULT if named is None else named))


def config_file(name: str) -> Path:
    """The file of a config that travels with the package, or the file itself.

    Raises:
      ValueError: there is no such name; the nearest one is named.
    """
    path, names = Path(name), sorted(file.stem for file in CONFIGS.glob("*.py"))
    if name in names and not path.is_file():
        return CONFIGS / f"{name}.py"
    if name and not path.exists() and not path.suffix and len(path.parts) == 1:
        raise ValueError(unknown_name("config", name, names))
    return path


def run(given: Arguments, console: Console, command: str) -> int:
    """`train`, with a line and an exit code for what ends it early."""
    from dh2l_jax.training.host import processes
    from dh2l_jax.training.host.signals import Stopped
    from dh2l_jax.training.run.checkpoint import CheckpointError
    from dh2l_jax.training.step.finite import NotFiniteError

    program = command.removeprefix("python ")
    try:
        return train(given, console, command)
    except Stopped as stopped:
        print(f"{program}: {stopped}: the same command goes on", file=sys.stderr)
        return 128 + stopped.signal
    except CheckpointError as error:
        return fail(program, error)
    except NotFiniteError as error:
        return fail(program, error, Exit.NOT_FINITE)
    except OSError as error:
        return fail(program, error, Exit.CANNOT_WRITE)
    except Exception as error:
        if processes.lost(error):
            return fail(program, processes.LOST_LINE, Exit.PROCESS_LOST)
        if not processes.several():
            raise
        traceback.print_exc()
        return Exit.FAILED


def train(given: Arguments, console: Console, command: str) -> int:
    """Trains, or goes on with, the run that is asked for; the exit code."""
    from dh2l_jax.training import loop
    from dh2l_jax.training.host.programs import prepare_jax
    from dh2l_jax.training.run import console as console_module
    from dh2l_jax.training.run import folder as run_folder

    with contextlib.ExitStack() as stack:
        try:
            config = read_config(given)
            folder = Path(given.workdir) if given.workdir else default_workdir(given)
            profile = Path(given.profile) if given.profile else None
            experiment = loop.know_all_before_writing(
                config, folder, console, profile=profile, is_named=bool(given.workdir)
            )
            if experiment is None:
                show_result(folder, console)
                return Exit.FINISHED
            stack.enter_context(run_folder.opened(folder, config))
        except BAD as error:
            return fail(command.removeprefix("python "), error)
        prepare_jax()
        loop.describe(experiment, console)
        result = loop.train(experiment, folder, console, profile=profile)
    console_module.print_scores(console, result)
    show_next_steps(folder, result, console, command, given)
    return Exit.FINISHED


def default_workdir(given: Arguments) -> Path:
    """A new folder, named by the config and the time."""
    from dh2l_jax.training.run.folder import new_folder

    return new_folder(Path(given.config or given.name or DEFAULT).stem)


def use_finished(given: Arguments, console: Console) -> None:
    """Evaluates, tests or exports the run in `--workdir`."""
    from dh2l_jax.training import finished
    from dh2l_jax.training.host.programs import prepare_jax
    from dh2l_jax.training.run.console import line_printer, print_scores

    prepare_jax()
    print_line, workdir = line_printer(console), Path(given.workdir or "")
    if given.eval_only:
        print_scores(console, finished.eval_only(workdir, print_line, given.overrides))
    if given.test:
        for name, scores in finished.test(workdir, print_line, given.overrides).items():
            console.print(f"{name.replace('_', ' ')}:")
            print_scores(console, scores)
    if given.export:
        path = finished.export(workdir, Path(given.export), print_line)
        print_line(f"written: {path}")


# What is printed.


def show_result(workdir: Path, console: Console) -> None:
    """What the finished run in a folder has come to.

    Raises:
      ValueError: its result is damaged.
    """
    from dh2l_jax.training.run.console import line_printer, print_scores
    from dh2l_jax.training.run.folder import RESULT, read_result

    path, result = workdir / RESULT, read_result(workdir)
    try:
        print_scores(console, result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: {error!r:.80}: remove it, and the run makes it anew"
        ) from error
    line_printer(console)(f"finished already; results in {workdir}/")


def show_next_steps(
    workdir: Path, result: dict[str, Any], console: Console, command: str, given: Arguments
) -> None:
    """Where the results are, and what to try next."""
    from dh2l_jax.training.run.console import line_printer
    from dh2l_jax.training.run.folder import CONFIG, METRICS, RESULT

    others = {
        "the factored head without R, the control": ("factored", ()),
        "weight decay alone, the baseline": ("l2", ()),
        "another metric, another seed": (None, ("reg.fc_metric=d_cos_hm", "seed=1")),
    }
    lines = [
        f"{result['seconds']:.0f} s; results in {workdir}/ ({RESULT}, {METRICS}, {CONFIG})",
        "Next:",
        f"  dh2l evaluate {shlex.quote(str(workdir))}      its scores again",
        f"  dh2l report {shlex.quote(str(workdir))}      one HTML file about the run",
        f"  dh2l predict {shlex.quote(str(workdir))} PICTURE      what a picture shows",
    ]
    if result["split"] == "validation":
        test = f"{command} --test --workdir {shlex.quote(str(workdir))}"
        lines.append(f"  {test}      the last and the best state on the test set, once")
    for about, (variant, more) in others.items():
        other = dataclasses.replace(
            given, variant=variant or given.variant, overrides=(*given.overrides, *more)
        )
        if goes_together(other):
            lines.append(f"  {same_run_elsewhere(other, command)}      {about}")
    print_line = line_printer(console)
    for line in lines:
        print_line(line)


def goes_together(given: Arguments) -> bool:
    """Whether a command line makes a run, and is not refused."""
    from dh2l_jax.training.config.conflicts import refuse_conflicts

    try:
        refuse_conflicts(read_config(given))
    except ValueError:
        return False
    return True


def same_run_elsewhere(given: Arguments, command: str) -> str:
    """The command of the same run in another folder."""
    words = [*command.split(), *([given.name] if given.name else [])]
    words += ["--config", given.config] if given.config else []
    words += ["--variant", given.variant] if given.variant else []
    for assignment in given.overrides:
        words += ["--set", assignment]
    return shlex.join(words)

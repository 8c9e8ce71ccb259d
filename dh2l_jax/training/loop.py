"""A run from start to result: training, and the evaluation of what it saved."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dh2l_jax.data.batches.feed import Feed
from dh2l_jax.data.batches.mixing import mix
from dh2l_jax.data.batches.operations import randaugment
from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.data.batches.placement import place
from dh2l_jax.models import HierarchicalHead
from dh2l_jax.regularizers.constraints import constraint_values, satisfaction
from dh2l_jax.training.config import Config, to_dict
from dh2l_jax.training.config.conflicts import refuse_conflicts
from dh2l_jax.training.config.origins import (
    ORIGIN,
    origins,
    read_origins,
    tell_where_parts_were,
)
from dh2l_jax.training.config.parents import line_on
from dh2l_jax.training.epochs import Epochs, Progress, keep_better, make_evaluator
from dh2l_jax.training.experiment import Experiment, build, refuse_other_data
from dh2l_jax.training.host import processes, profiling
from dh2l_jax.training.host.loggers import Loggers
from dh2l_jax.training.host.signals import stop_requests
from dh2l_jax.training.run import checkpoint, evidence
from dh2l_jax.training.run.console import Console, Log, PrintLine, line_printer
from dh2l_jax.training.run.evidence import CONFIG, METRICS, CheckpointError
from dh2l_jax.training.run.folder import (
    OUTPUTS,
    RESULT,
    is_finished,
    refuse_damaged_run,
    refuse_foreign_folder,
    refuse_lost_checkpoints,
)
from dh2l_jax.training.run.records import (
    keep_records,
    read_records,
    versions,
    write_bytes,
    write_confusion,
    write_json,
    write_sealed,
)
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.finite import NotFiniteError
from dh2l_jax.training.step.objective import head_levels, make_objective, make_regularizer
from dh2l_jax.training.step.state import TrainState
from dh2l_jax.training.step.steps import make_train_step

__all__ = ["Experiment", "build", "step_bytes", "train"]

MAX_ROLLBACKS = 10
ROLLBACK_RATE = 0.5  # factor of the learning rate at each roll-back


def know_all_before_writing(
    config: Config,
    workdir: Path,
    console: Console,
    *,
    profile: Path | None = None,
    is_named: bool = True,
) -> Experiment | None:
    """Asks for everything that could refuse a run, the cheapest first; nothing is written.

    The folder and the options need no device and nobody's answer. Other processes come before the
    first use of a device, which would not find theirs. Images and weights take longest.

    Args:
      profile: see `train`.
      is_named: whether somebody has named the folder; several processes need one that all see.

    Returns:
      The experiment; None where the folder holds the finished run.
    """
    refuse_foreign_folder(workdir, config)
    with tell_where_parts_were(workdir):
        refuse_conflicts(config)
    if is_finished(workdir):
        return None
    if profile:
        profiling.check_folder(profile)
    processes.start(config.distributed)
    if processes.several() and not is_named:
        raise ValueError("several processes need --workdir, a folder that all of them see")
    console.quiet |= not processes.is_main()
    if config.init_from and evidence.steps(workdir / evidence.LAST):
        config = dataclasses.replace(config, init_from="")  # its checkpoints have its weights
    with tell_where_parts_were(workdir):
        experiment = build(config, progress=not console.quiet)
    refuse_other_data(experiment, workdir)
    return experiment


def describe(experiment: Experiment, console: Console) -> None:
    """One line on what is about to run, and one on what is odd about its images."""
    config, dataset, print_line = experiment.config, experiment.dataset, line_printer(console)
    print_line(
        f"{config.model.name}, {config.model.head} head on {dataset.hierarchy}, {dataset.name}: "
        f"{len(dataset.train_labels):,} training images, {config.epochs} × "
        f"{experiment.steps_per_epoch} steps of {config.batch_size}; {versions()['devices']}"
    )
    if experiment.parent:
        print_line(line_on(experiment.parent))
    tree, counts = dataset.hierarchy, dataset.label_counts
    C = tree.num_classes
    single = [name for name, n in zip(tree.names(tree.num_levels), counts, strict=False) if n == 1]
    odd = []
    if counts[C:].any():
        odd.append(
            f"{counts[C:].sum():,} of them at {(counts[C:] > 0).sum()} inner nodes, whose labels "
            "they are"
        )
    if single:
        odd.append(f"classes with one image to learn from: {len(single)}, {single[0]!r} the first")
    if odd:
        print_line("; ".join(odd))


def train(
    experiment: Experiment, workdir: Path, console: Console, *, profile: Path | None = None
) -> dict[str, Any]:
    """Trains to the end, from the newest intact checkpoint if there is one; writes result.json.

    Where images are held out, the state with the highest validation accuracy on the classes (of
    those evaluated, the earliest) is saved too. Results don't depend on interruptions: they are
    equal in every bit to those of a run without, on the same devices and versions.

    Args:
      workdir: kept for this run by `folder.opened`.
      profile: folder for the trace of one step; the run goes on after it.

    Raises:
      NotFiniteError: a step gave NaN or ±∞, and `on_nan` or too many roll-backs say to stop.
      Stopped: a signal asked for it; the same call goes on.
      OSError: something cannot be written; what was saved before is intact.
      CheckpointError: no checkpoint is intact and of this experiment, or they are of other data.
    """
    start, config, print_line = time.perf_counter(), experiment.config, line_printer(console)
    train_feed, test_feed = experiment.feeds()
    scores_of = make_evaluator(experiment, test_feed)
    state, progress = _begin(experiment, workdir, print_line)
    known = _keep_origins(experiment, workdir, int(state.step), print_line)
    step = _train_step(experiment, train_feed, int(state.step), print_line, profile)
    with Loggers(config.loggers, workdir, to_dict(config), print_line) as loggers:
        with Log(experiment.steps, config.batch_size, console=console) as log, stop_requests() as s:
            log.on_start = lambda: loggers.start(read_records(workdir / METRICS))
            log.on_epoch = loggers.log
            epochs = Epochs(experiment, train_feed, scores_of, step, workdir, log, s)
            state, progress = _run(epochs, state, progress, print_line)
        scores, outputs = scores_of.outputs(state)
        shown = {k: v for k, v in scores.items() if not k.startswith("confusion")}
        loggers.log({"epoch": config.epochs, "step": int(state.step), **shown})
    if experiment.split == "validation":
        data, best = experiment.data_record, progress.best
        progress.best = keep_better(workdir, state, config.epochs, scores, best, data)
    with checkpoint.tell_what_is_kept(workdir):
        write_bytes(workdir / OUTPUTS, outputs.pack())
        files = [CONFIG, METRICS, OUTPUTS, *write_confusion(workdir, scores)]
        result = _result(experiment, state, progress, scores, start) | known
        write_sealed(workdir / RESULT, result, files)
    return result


def _begin(
    experiment: Experiment, workdir: Path, print_line: PrintLine
) -> tuple[TrainState, Progress]:
    """The newest state on disk or, where there is none, the first; what came later is dropped.

    Whatever speaks against going on is said before anything is dropped.
    """
    is_known = refuse_other_data(experiment, workdir)
    try:
        like = experiment.init(abstract=True)
        state, progress = checkpoint.restore(workdir, like, print_line=print_line)
        progress = Progress(**progress)
        step = int(state.step)
        refuse_damaged_run(workdir, step)
        _refuse_other_epochs(experiment, workdir, step, progress)
    except checkpoint.NoCheckpoint:
        refuse_lost_checkpoints(workdir)
        state, progress, step = experiment.init(), Progress(), 0
    if not is_known:
        print_line(
            f"{workdir} is from before checkpoints knew their data: it goes on with those that are "
            "there, and its next checkpoint knows them"
        )
    if step:
        print_line(f"goes on after step {step:,}")
    checkpoint.forget_after(workdir, step)
    keep_records(workdir / METRICS, step)
    return state, progress


def _keep_origins(
    experiment: Experiment, workdir: Path, step: int, print_line: PrintLine
) -> dict[str, Any]:
    """Writes where the parts of a new run come from, or says which have changed since it began.

    Returns:
      {"origin": those that it began with}; nothing where all are the package's own.
    """
    now = origins(experiment.config)
    before = read_origins(workdir) if step else {}
    for option, origin in now.items():
        if before.get(option, origin).get("sha256") != origin.get("sha256"):
            print_line(
                f"{option}: {origin.get('file', origin['name'])} is not what {workdir} began with"
            )
    known = before or now | ({"init_from": experiment.parent} if experiment.parent else {})
    if known and not before:
        write_json(workdir / ORIGIN, known)
    return {"origin": known} if known else {}


def _refuse_other_epochs(
    experiment: Experiment, workdir: Path, step: int, progress: Progress
) -> None:
    """Raises where a state lies at no place of the run: its epochs had another number of steps."""
    steps = experiment.steps_per_epoch
    try:
        ends = ((record["step"], record["epoch"]) for record in read_records(workdir / METRICS))
        lengths = {end / epoch for end, epoch in ends if end <= step}
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"a record has no {error}"
        raise CheckpointError(f"{workdir / METRICS} is damaged: {reason}") from error
    ends_late = step > steps * experiment.config.epochs
    if ends_late or step % steps != len(progress.history) or lengths - {steps}:
        raise CheckpointError(
            f"{workdir} was trained on other data: step {step} is not where epochs of {steps} "
            "steps have it: choose another folder"
        )


def _run(
    epochs: Epochs, state: TrainState, progress: Progress, print_line: PrintLine
) -> tuple[TrainState, Progress]:
    """The end of the run; where numbers blow up, `on_nan` decides whether it goes back for it."""
    experiment = epochs.experiment
    while True:
        try:
            return epochs(state, progress), progress
        except NotFiniteError as error:
            if experiment.config.on_nan == "stop" or len(progress.rollbacks) == MAX_ROLLBACKS:
                raise NotFiniteError(error.step, f"{error.what}; {_advice(epochs)}") from error
            state, saved = _begin(experiment, epochs.workdir, print_line)
            step, rate = int(state.step), progress.rate * ROLLBACK_RATE
            rollbacks = [*progress.rollbacks, {"from": error.step, "to": step, "why": error.what}]
            progress = dataclasses.replace(saved, rate=rate, rollbacks=rollbacks)
            # The factor is placed as it was, so that the step is not compiled again.
            factor = place(np.float32(rate), state.rate.sharding)
            state = dataclasses.replace(state, rate=factor)
            print_line(f"{error}; back to step {step:,}, now with {rate:g} × the learning rate")


def _advice(epochs: Epochs) -> str:
    """What is kept of a run that blew up, and what to do about it."""
    steps = checkpoint.steps(epochs.workdir)
    kept = f"the state after step {steps[-1]} is kept" if steps else "nothing was saved before"
    if epochs.experiment.config.on_nan == "rollback":
        return f"{kept}, {MAX_ROLLBACKS} roll-backs were of no avail: lower optim.lr in another run"
    return f"{kept}: lower optim.lr in another run, or go on with --set on_nan=rollback"


def _train_step(
    experiment: Experiment, feed: Feed, done: int, print_line: PrintLine, profile: Path | None
) -> profiling.Step:
    """The train step, one call of which is recorded if there is a folder for its profile."""
    jitted, total = _jitted_step(experiment, feed), experiment.steps
    if profile is None:
        return profiling.annotate(jitted)
    return profiling.record(jitted, min(done + profiling.PROFILED, total), profile, print_line)


def _jitted_step(experiment: Experiment, feed: Feed) -> Callable[..., Any]:
    config, dataset = experiment.config, experiment.dataset
    objective = make_objective(
        experiment.model,
        dataset.hierarchy,
        config.reg,
        loss=config.loss,
        counts=dataset.label_counts,
        steps=experiment.steps,
    )
    average = functools.partial(optim.averaged, config.optim) if config.optim.ema else None
    data, augment, mixed = config.data, None, None
    if data.augment:
        augment = functools.partial(randaugment, magnitude=data.augment)
    if data.mixup or data.cutmix:
        mixed = functools.partial(mix, mixup=data.mixup, cutmix=data.cutmix)
    return make_train_step(
        objective, experiment.tx, dataset, feed, average, augment=augment, mix=mixed
    )


def step_bytes(experiment: Experiment) -> int:
    """Bytes of the compiled training step: its arguments and results, and what it needs between.

    The images of a split that lives on the device are among the arguments.
    """
    feed, _ = experiment.feeds()
    state, order = experiment.init(abstract=True), epoch_order(0, 0, len(feed))
    batch = next(feed.training(jax.random.key(0), order, 0, 1))
    step = functools.partial(_jitted_step(experiment, feed), state, *batch)
    memory = profiling.compiled(step).memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def _result(
    experiment: Experiment,
    state: TrainState,
    progress: Progress,
    scores: dict[str, Any],
    start: float,
) -> dict[str, Any]:
    """What a run has come to, as JSON values; `start` is when it began, by `perf_counter`."""
    return {
        **scores,
        **({"best": progress.best} if progress.best else {}),
        "last_epoch": progress.last_epoch,
        **({"rollbacks": progress.rollbacks} if progress.rollbacks else {}),
        "data": experiment.source.fingerprint.summary(),
        **_final_terms(experiment, state),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - start, 2),
        "versions": versions(),
    }


def _final_terms(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Every regulariser at the last state, whatever its λ, and how far C1-C3 are kept."""
    head, tree, reg = experiment.model.head, experiment.dataset.hierarchy, experiment.config.reg
    regularizer = make_regularizer(head, tree, reg)

    @jax.jit  # one program, where each operation would be one
    def final_terms(params: Any) -> tuple[Any, Any]:
        terms = regularizer(params, None, everything=True)[1]
        if not isinstance(head, HierarchicalHead):
            return terms, None
        levels = head_levels(params, head)
        return terms, constraint_values(levels, tree, outer_radius=reg.outer_radius)

    terms, quantities = final_terms(state.variables["params"])
    result: dict[str, Any] = {"terms": {name: float(value) for name, value in terms.items()}}
    if quantities is not None:
        result["constraints"] = {}
        for name, (quantity, counts) in quantities.items():
            fraction, worst = satisfaction(quantity, where=counts)
            result["constraints"][name] = {"satisfied": float(fraction), "worst": float(worst)}
    return result

"""What can be done with a finished run where its images are: evaluate and test.

Options that say where its data are now, such as "data.data_dir=/new/disk", may be given to each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dh2l_jax.training.config import Config, makes_another_run, override
from dh2l_jax.training.config.origins import tell_where_parts_were
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import Experiment, build, refuse_other_data
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.checkpoint import CheckpointError
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.folder import (
    BEST,
    LAST,
    OUTPUTS,
    RESULT,
    TEST,
    outputs_name,
    read_config,
    read_result,
    refuse_damaged_run,
)
from dh2l_jax.training.run.records import (
    CONFUSION,
    write_bytes,
    write_confusion,
    write_sealed,
)

__all__ = ["eval_only", "test"]


def eval_only(
    workdir: Path, print_line: PrintLine | None = None, places: Sequence[str] = ()
) -> dict[str, Any]:
    """The scores of the last state of a run, on what it was evaluated on.

    A run of an earlier version gets the outputs that it did not keep.

    Args:
      print_line: told of a run from before checkpoints knew their data.
      places: options that make no other run, as "key=value".

    Raises:
      ValueError: the folder holds no finished run, its last checkpoint is damaged or does not fit
        its config, or the data are not those that it was trained on.
    """
    config, result = _config(workdir, places), read_result(workdir)
    with tell_where_parts_were(workdir):
        experiment = build(config, training=False)
    _refuse_other_data(experiment, workdir, print_line)
    evaluator, state = make_evaluator(experiment), _state(experiment, workdir, result["steps"])
    if OUTPUTS in result.get("files", {}):
        return evaluator(state)
    scores, outputs = evaluator.outputs(state)
    write_bytes(workdir / OUTPUTS, outputs.pack())
    files = [*result.pop("files", {}), OUTPUTS]
    write_sealed(workdir / RESULT, {k: v for k, v in result.items() if k != "sha256"}, files)
    return scores


def test(
    workdir: Path,
    print_line: PrintLine | None = None,  # noqa: PT028 (no test)
    places: Sequence[str] = (),  # noqa: PT028
) -> dict[str, Any]:
    """Evaluates what a run with held-out images saved on the test set, and writes test.json.

    Nothing before this reads the test images; call it once every choice has been made. The result
    is {"last": scores, "best_on_validation": scores}. The temperature of CRM is the one that each
    state was given on the held-out images.

    Raises:
      ValueError: see `eval_only`, or the run has no held-out images.
    """
    config, result = _config(workdir, places), read_result(workdir)
    if not config.data.holdout:
        raise ValueError(f"{workdir}: expected a run with data.holdout, found one without")
    with tell_where_parts_were(workdir):
        experiment = build(config, split="test", training=False)
    _refuse_other_data(experiment, workdir, print_line)
    scores_of, scores, files = make_evaluator(experiment), {}, []
    best = result["best"]["epoch"] * experiment.steps_per_epoch
    state_of = functools.partial(_state, experiment, workdir)
    states = {LAST: state_of(result["steps"]), BEST: state_of(best, checkpoint.BEST)}
    temperatures = {LAST: result.get("temperature"), BEST: result["best"].get("temperature")}
    for name, state in states.items():
        scores[name], outputs = scores_of.outputs(state, temperatures[name])
        write_bytes(workdir / outputs_name(name), outputs.pack())
        files += [outputs_name(name)]
        files += write_confusion(workdir, scores[name], f"test_{name}_{CONFUSION}")
    summary = {"data": experiment.source.fingerprint.summary()}
    write_sealed(workdir / TEST, scores | summary, files)
    return scores


def _config(workdir: Path, places: Sequence[str]) -> Config:
    """The config of a run, with its data where they are now."""
    config = read_config(workdir)
    for assignment in places:
        key = assignment.partition("=")[0].strip()
        if makes_another_run(key):
            raise ValueError(f"{key} would make another run: leave it out")
        config = override(config, assignment)
    return config


def _refuse_other_data(experiment: Experiment, workdir: Path, print_line: PrintLine | None) -> None:
    """Raises where the data are not those of the run, or says that nobody knows."""
    if not refuse_other_data(experiment, workdir) and print_line:
        print_line(f"{workdir} is from before checkpoints knew their data: those here are taken")


def _state(experiment: Experiment, workdir: Path, step: int, folder: str = checkpoint.LAST) -> Any:
    """The state that a result is of: an older one would be another's."""
    lines: list[str] = []
    like = experiment.init(abstract=True)
    state = checkpoint.restore(workdir, like, folder, print_line=lines.append).state
    if state.step != step:
        reason = lines[0] if lines else f"{workdir / folder} has no step {step}"
        raise CheckpointError(f"the result of {workdir} is of step {step}: {reason}")
    if folder == checkpoint.LAST:
        refuse_damaged_run(workdir, step)
    return state

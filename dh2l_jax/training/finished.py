"""What can be done with a finished run: evaluate, test, export.

Options that say where its data are now, such as "data.data_dir=/new/disk", may be given to each.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dh2l_jax.data.store.fingerprint import DataRecord
from dh2l_jax.models import TorchvisionResNet
from dh2l_jax.training.config import Config, makes_another_run, override
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import Experiment, build, refuse_other_data, without_data
from dh2l_jax.training.run import checkpoint, evidence
from dh2l_jax.training.run.checkpoint import CheckpointError
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.folder import (
    BEST,
    LAST,
    OUTPUTS,
    RESULT,
    TEST,
    is_finished,
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

__all__ = ["eval_only", "export", "test"]


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


def export(
    workdir: Path, path: Path, print_line: PrintLine | None = None, places: Sequence[str] = ()
) -> Path:
    """Writes the last state of a run as a safetensors file, see `export_safetensors`.

    Its metadata name the network and its options, the classes in the order of the logits, and the
    mean and standard deviation that pixels / 255 are normalised by. The checkpoint knows them: no
    image is read, unless the run is from before checkpoints did.

    Raises:
      ValueError: the folder holds no run, or its checkpoint does not fit its config.
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    # Imported late: only this writes weights.
    from dh2l_jax.models.weights import export_safetensors, has_torch_names

    config = _config(workdir, places)
    record = evidence.data_record(workdir / checkpoint.LAST)
    if record is None:
        experiment = build(config, training=False)
        network, like, known = experiment.model, experiment.init(abstract=True), experiment.dataset
        tree = known.hierarchy
    else:
        known = DataRecord.unpack(record)
        network, like = without_data(config, known)
        tree = known.fingerprint.tree
    state = checkpoint.restore(workdir, like, print_line=print_line).state
    if print_line and not is_finished(workdir):
        print_line(f"the run is not finished: the weights are those after step {state.step}")
    metadata = {
        "network": config.model.name,
        "shortcut": config.model.shortcut,
        "dtype": config.model.dtype,
        "classes": json.dumps(tree.names(tree.num_levels), ensure_ascii=False),
        "mean": json.dumps(known.mean.tolist()),
        "std": json.dumps(known.std.tolist()),
    }
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    path = export_safetensors(path, network, variables, metadata)
    if print_line and not has_torch_names(network):
        name = f"{config.model.name} with its head"
        name = name if isinstance(network, TorchvisionResNet) else config.model.name
        print_line(f"torchvision has no {name}: the names are those of our variables")
    return path


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

"""What can be done with a finished run: evaluate, test, export.

Options that say where its data are now, such as "data.data_dir=/new/disk", may be given to each.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.store.fingerprint import DataRecord
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import TorchvisionResNet
from dh2l_jax.training.config import Config, makes_another_run, override
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import Experiment, build, refuse_other_data, without_data
from dh2l_jax.training.run import checkpoint, evidence
from dh2l_jax.training.run.checkpoint import CheckpointError
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.facts import crop_size
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

__all__ = ["FORMATS", "eval_only", "export", "export_facts", "test"]

SAFETENSORS, STABLEHLO = FORMATS = (".safetensors", ".stablehlo")


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
    """Writes the last state of a run for others, by the end of the file's name.

      .safetensors   its weights, see `export_safetensors`
      .stablehlo     a program from pixels to probabilities, see `export_stablehlo`

    Both hold `export_facts`. The checkpoint knows them: no image is read, unless the run is from
    before checkpoints did.

    Raises:
      ValueError: the folder holds no run, its checkpoint does not fit its config, or the name of
        the file ends in something else.
      OSError: the file cannot be written.
      ImportError: safetensors or flatbuffers is not installed.
    """
    # Imported late: only this writes weights.
    from dh2l_jax.models.weights import export_safetensors, export_stablehlo, has_torch_names

    config = _config(workdir, places)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
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
    print_line = print_line or (lambda line: None)
    if not is_finished(workdir):
        print_line(f"the run is not finished: the weights are those after step {state.step}")
    facts = export_facts(config, tree, known, read_result(workdir) if is_finished(workdir) else {})
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if path.suffix == STABLEHLO:
        scale = {name: np.float32(facts[name]) for name in ("mean", "std")}
        shape, T = facts["size"], facts["temperature"]
        print_line(f"pixels (b, {', '.join(map(str, shape))}) uint8 to logits and probabilities")
        return export_stablehlo(
            path, network, variables, shape, **scale, temperature=T, metadata=facts
        )
    texts = {
        name: value if isinstance(value, str) else _json(value) for name, value in facts.items()
    }
    path = export_safetensors(path, network, variables, texts)
    if not has_torch_names(network):
        name = f"{config.model.name} with its head"
        name = name if isinstance(network, TorchvisionResNet) else config.model.name
        print_line(f"torchvision has no {name}: the names are those of our variables")
    return path


def export_facts(
    config: Config, tree: Hierarchy, known: DataRecord | Dataset, result: Mapping[str, Any]
) -> dict[str, Any]:
    """What a file of weights says of its network, as JSON values.

    Returns:
      network, shortcut, dtype: which network it is.
      classes: in the order of the logits.
      tree: for each class the names from the root's child down to it.
      size: height, width and channels of what the network sees.
      resize: the shorter side that images are scaled to before their centre is cut out; 0: none.
      background: the colour behind transparent pixels.
      mean, std: pixels / 255 are normalised by them.
      temperature: what logits are divided by before their soft-max.
      decision: how a class is chosen, "argmax" or "crm".
    """
    height, width = crop_size(config, known.image_shape, config.data.name)
    depths = tree.node_depths()[: tree.num_classes]
    rows = zip(tree.node_names, tree.ancestors(), strict=True)
    paths = zip(*([names[node] for node in row] for names, row in rows), strict=True)
    return {
        "network": config.model.name,
        "shortcut": config.model.shortcut,
        "dtype": config.model.dtype,
        "classes": tree.names(tree.num_levels),
        "tree": [path[:depth] for path, depth in zip(paths, depths.tolist(), strict=True)],
        "size": (height, width, known.image_shape[2]),
        "resize": config.data.resize,
        "background": config.data.background,
        "mean": known.mean.tolist(),
        "std": known.std.tolist(),
        "temperature": float(result.get("temperature", 1.0)),
        "decision": config.eval.decision,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


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

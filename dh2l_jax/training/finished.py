"""What can be done with a finished run: evaluate, test, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dh2l_jax.models import TorchvisionResNet
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import build
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.console import Tell
from dh2l_jax.training.run.folder import TEST, read_config
from dh2l_jax.training.run.records import CONFUSION, write_confusion, write_json

__all__ = ["eval_only", "export", "test"]


def eval_only(workdir: Path, tell: Tell | None = None) -> dict[str, Any]:
    """The scores of the last state of a run, on what it was evaluated on.

    Args:
      workdir: of the run.
      tell: called with a line where a checkpoint is damaged and an older one takes its place.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
    """
    experiment = build(read_config(workdir), training=False)
    saved = checkpoint.restore(workdir, experiment.init(abstract=True), tell=tell)
    return make_evaluator(experiment)(saved.state)


def test(workdir: Path, tell: Tell | None = None) -> dict[str, Any]:  # noqa: PT028 (no test)
    """Evaluates what a run with held-out images saved on the test set, and writes test.json.

    Nothing before this reads the test images; call it once every choice has been made.

    Args:
      workdir: of the run.
      tell: as in `eval_only`.

    Returns:
      {"last": scores, "best_on_validation": scores}.

    Raises:
      ValueError: the folder holds no finished run, or one without held-out images.
    """
    config = read_config(workdir)
    if not config.data.holdout:
        raise ValueError(f"{workdir}: expected a run with data.holdout, found one without")
    experiment = build(config, split="test", training=False)
    scores_of, like = make_evaluator(experiment), experiment.init(abstract=True)
    result = {}
    for name, folder in (("last", checkpoint.LAST), ("best_on_validation", checkpoint.BEST)):
        result[name] = scores_of(checkpoint.restore(workdir, like, folder, tell=tell).state)
        write_confusion(workdir, result[name], f"test_{name}_{CONFUSION}")
    write_json(workdir / TEST, result)
    return result


def export(workdir: Path, path: Path, tell: Tell | None = None) -> Path:
    """Writes the last state of a run as a safetensors file, see `export_safetensors`.

    Its metadata name the network and its options, the classes in the order of the logits, and the
    mean and standard deviation that pixels / 255 are normalised by.

    Args:
      workdir: of the run.
      path: of the file.
      tell: as in `eval_only`; also called with a line where the names are not torchvision's.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    # Imported late: only this writes weights.
    from dh2l_jax.models.weights import export_safetensors

    experiment = build(read_config(workdir), training=False)
    model, data = experiment.config.model, experiment.dataset
    state = checkpoint.restore(workdir, experiment.init(abstract=True), tell=tell).state
    metadata = {
        "network": model.name,
        "shortcut": model.shortcut,
        "dtype": model.dtype,
        "classes": json.dumps(data.hierarchy.names(data.hierarchy.num_levels), ensure_ascii=False),
        "mean": json.dumps(data.mean.tolist()),
        "std": json.dumps(data.std.tolist()),
    }
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    path = export_safetensors(path, experiment.model, variables, metadata)
    if tell and not isinstance(experiment.model, TorchvisionResNet):
        tell(f"torchvision has no {model.name}: the names are those of our variables")
    return path

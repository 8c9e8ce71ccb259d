"""What can be done with a finished run: evaluate, test, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dh2l_jax.models import TorchvisionResNet
from dh2l_jax.training.epochs import make_evaluator
from dh2l_jax.training.experiment import build
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.folder import BEST, LAST, TEST, read_config
from dh2l_jax.training.run.records import CONFUSION, write_confusion, write_json

__all__ = ["eval_only", "export", "test"]


def eval_only(workdir: Path, print_line: PrintLine | None = None) -> dict[str, Any]:
    """The scores of the last state of a run, on what it was evaluated on.

    `print_line` names a checkpoint that is damaged, so that an older one takes its place.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
    """
    experiment = build(read_config(workdir), training=False)
    saved = checkpoint.restore(workdir, experiment.init(abstract=True), print_line=print_line)
    return make_evaluator(experiment)(saved.state)


def test(workdir: Path, print_line: PrintLine | None = None) -> dict[str, Any]:  # noqa: PT028 (no test)
    """Evaluates what a run with held-out images saved on the test set, and writes test.json.

    Nothing before this reads the test images; call it once every choice has been made. The result
    is {"last": scores, "best_on_validation": scores}.

    Raises:
      ValueError: the folder holds no finished run, or one without held-out images.
    """
    config = read_config(workdir)
    if not config.data.holdout:
        raise ValueError(f"{workdir}: expected a run with data.holdout, found one without")
    experiment = build(config, split="test", training=False)
    scores_of, like = make_evaluator(experiment), experiment.init(abstract=True)
    result = {}
    for name, folder in ((LAST, checkpoint.LAST), (BEST, checkpoint.BEST)):
        saved = checkpoint.restore(workdir, like, folder, print_line=print_line)
        result[name] = scores_of(saved.state)
        write_confusion(workdir, result[name], f"test_{name}_{CONFUSION}")
    write_json(workdir / TEST, result)
    return result


def export(workdir: Path, path: Path, print_line: PrintLine | None = None) -> Path:
    """Writes the last state of a run as a safetensors file, see `export_safetensors`.

    Its metadata name the network and its options, the classes in the order of the logits, and the
    mean and standard deviation that pixels / 255 are normalised by.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    # Imported late: only this writes weights.
    from dh2l_jax.models.weights import export_safetensors

    experiment = build(read_config(workdir), training=False)
    model, data = experiment.config.model, experiment.dataset
    state = checkpoint.restore(workdir, experiment.init(abstract=True), print_line=print_line).state
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
    if print_line and not isinstance(experiment.model, TorchvisionResNet):
        print_line(f"torchvision has no {model.name}: the names are those of our variables")
    return path

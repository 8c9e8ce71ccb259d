"""What can be done with a finished run: evaluate, test, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dh2l_jax.models import TORCHVISION, HierarchicalHead, TorchvisionResNet
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
    """Writes the last state of a run as torchvision's state dict, in a safetensors file.

    Raises:
      ValueError: the folder holds no finished run, or its network is not one of torchvision's.
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    # Imported late: only this needs the names of torchvision.
    from dh2l_jax.models.weights.torchvision import export_safetensors

    experiment = build(read_config(workdir), training=False)
    model, tree = experiment.model, experiment.dataset.hierarchy
    if not isinstance(model, TorchvisionResNet):
        raise ValueError(
            f"{workdir}: torchvision has no {experiment.config.model.name}; those that it has: "
            f"{', '.join(TORCHVISION)}"
        )
    state = checkpoint.restore(workdir, experiment.init(abstract=True), print_line=print_line).state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if not isinstance(model.head, HierarchicalHead):
        return export_safetensors(path, variables)
    options = {name: getattr(model.head, name) for name in ("center", "epsilon", "logits")}
    return export_safetensors(path, variables, tree, **options)

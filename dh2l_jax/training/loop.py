"""A run from start to result: training, and the evaluation of what it saved."""

from __future__ import annotations

import csv
import functools
import json
import shlex
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from dh2l_jax.constraints import constraint_values, satisfaction
from dh2l_jax.models import TORCHVISION, HierarchicalHead, TorchvisionResNet
from dh2l_jax.training import checkpoint, profiling
from dh2l_jax.training.config import Config, from_dict, to_dict
from dh2l_jax.training.epochs import METRICS, Evaluator, keep_better, run_epochs
from dh2l_jax.training.experiment import Experiment, build
from dh2l_jax.training.feeding import Feed
from dh2l_jax.training.logging import Log, versions, write_json
from dh2l_jax.training.objective import head_levels, make_objective, make_regularizer
from dh2l_jax.training.steps import TrainState, make_train_step

__all__ = [
    "Experiment",
    "build",
    "describe",
    "eval_only",
    "export",
    "make_evaluator",
    "make_workdir",
    "show_next_steps",
    "test",
    "train",
]

CONFIG, RESULT, TEST = "config.json", "result.json", "test.json"
CONFUSION = "confusion.csv"


def make_workdir(path: Path, config: Config) -> None:
    """Makes the folder of a new run and writes config.json; never touches an existing run.

    Raises:
      ValueError: the folder holds something, or is no folder.
      OSError: it cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"workdir {path} exists already and is never overwritten: choose another")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, to_dict(config))


def train(
    experiment: Experiment, workdir: Path, console: Console, *, profile: Path | None = None
) -> dict[str, Any]:
    """Trains, saves the last state, evaluates it, and writes result.json.

    Where images are held out, the state with the highest validation accuracy on the classes (of
    those evaluated, the earliest) is saved too.

    Args:
      experiment: what to train.
      workdir: of the run.
      console: where progress is shown.
      profile: folder for the trace of one step; the run goes on after it.

    Returns:
      The result: accuracy at every level, every term, parameter count, seconds, versions.
    """
    start = time.perf_counter()
    train_feed, test_feed = experiment.feeds()
    scores_of = make_evaluator(experiment, test_feed)
    step = _train_step(experiment, train_feed, console, profile)
    config = experiment.config
    steps = config.epochs * experiment.steps_per_epoch
    with Log(steps, config.batch_size, console=console) as log:
        state, losses, best = run_epochs(experiment, train_feed, scores_of, step, workdir, log)
    checkpoint.save(workdir, state)
    scores = scores_of(state)
    _write_confusion(workdir, scores)
    if experiment.split == "validation":
        best = keep_better(workdir, state, config.epochs, scores, best)
    result = {
        **scores,
        **({"best": best} if best else {}),
        "last_epoch": losses,
        **_final_terms(experiment, state),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - start, 2),
        "versions": versions(),
    }
    write_json(workdir / RESULT, result)
    return result


def eval_only(workdir: Path) -> dict[str, Any]:
    """The scores of the last state of a run, on what it was evaluated on.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
    """
    experiment = build(_read_config(workdir), training=False)
    state = checkpoint.restore(workdir, experiment.init(abstract=True))
    return make_evaluator(experiment)(state)


def test(workdir: Path) -> dict[str, Any]:
    """Evaluates what a run with held-out images saved on the test set, and writes test.json.

    Nothing before this reads the test images; call it once every choice has been made.

    Returns:
      {"last": scores, "best_on_validation": scores}.

    Raises:
      ValueError: the folder holds no finished run, or one without held-out images.
    """
    config = _read_config(workdir)
    if not config.data.holdout:
        raise ValueError(f"{workdir}: expected a run with data.holdout, found one without")
    experiment = build(config, split="test", training=False)
    scores_of, like = make_evaluator(experiment), experiment.init(abstract=True)
    result = {}
    for name, folder in (("last", checkpoint.LAST), ("best_on_validation", checkpoint.BEST)):
        result[name] = scores_of(checkpoint.restore(workdir, like, folder))
        _write_confusion(workdir, result[name], f"test_{name}_{CONFUSION}")
    write_json(workdir / TEST, result)
    return result


def export(workdir: Path, path: Path) -> Path:
    """Writes the last state of a run as torchvision's state dict, in a safetensors file.

    Raises:
      ValueError: the folder holds no finished run, or its network is not one of torchvision's.
      OSError: the file cannot be written.
      ImportError: safetensors is not installed.
    """
    # Imported late: only this needs the names of torchvision.
    from dh2l_jax.models.pretrained import export_safetensors

    experiment = build(_read_config(workdir), training=False)
    model, tree = experiment.model, experiment.dataset.hierarchy
    if not isinstance(model, TorchvisionResNet):
        raise ValueError(
            f"{workdir}: torchvision has no {experiment.config.model.name}; those that it has: "
            f"{', '.join(TORCHVISION)}"
        )
    state = checkpoint.restore(workdir, experiment.init(abstract=True))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if not isinstance(model.head, HierarchicalHead):
        return export_safetensors(path, variables)
    options = {name: getattr(model.head, name) for name in ("center", "epsilon", "logits")}
    return export_safetensors(path, variables, tree, **options)


def _write_confusion(workdir: Path, scores: dict[str, Any], name: str = CONFUSION) -> None:
    """Moves the confusion matrix from the scores to a table: true class by predicted class."""
    rows, names = scores.pop("confusion", None), scores.pop("confusion_names", None)
    if rows is None or names is None:
        return
    with (workdir / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", *names])
        table.writerows([label, *row] for label, row in zip(names, rows, strict=True))


def _read_config(workdir: Path) -> Config:
    path = workdir / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run: expected the file {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    return from_dict(values)


def make_evaluator(experiment: Experiment, feed: Feed | None = None) -> Evaluator:
    """A function state → scores, on the test images or on those held out for validation."""
    return Evaluator(experiment, feed or experiment.feeds()[1])


def describe(experiment: Experiment, console: Console) -> None:
    """One line on what is about to run."""
    config, dataset = experiment.config, experiment.dataset
    console.print(
        f"{config.model.name}, {config.model.head} head on {dataset.hierarchy}, {dataset.name}: "
        f"{len(dataset.train_labels):,} training images, {config.epochs} × "
        f"{experiment.steps_per_epoch} steps of {config.batch_size}; {versions()['devices']}",
        soft_wrap=True,
        markup=False,
    )


def show_next_steps(
    workdir: Path, result: dict[str, Any], console: Console, command: str = "python train.py"
) -> None:
    """Where the results are and what to try next; `command` trains what has just been trained."""
    lines = [
        f"{result['seconds']:.0f} s; results in {workdir}/ ({RESULT}, {METRICS}, {CONFIG})",
        "Next:",
        f"  python train.py --eval-only --workdir {shlex.quote(str(workdir))}",
        f"  {command} --variant factored      the factored head without R, the control",
        f"  {command} --variant l2      weight decay alone, the baseline",
        f"  {command} --set reg.fc_metric=d_cos_hm --set seed=1      another metric, another seed",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _train_step(
    experiment: Experiment, feed: Feed, console: Console, profile: Path | None
) -> profiling.Step:
    """The train step, one call of which is recorded if there is a folder for its profile."""
    config, dataset = experiment.config, experiment.dataset
    objective = make_objective(experiment.model, dataset.hierarchy, config.reg)
    step = make_train_step(objective, experiment.tx, dataset, feed)
    if profile is None:
        return profiling.annotate(step)
    recorded = min(profiling.PROFILED, config.epochs * experiment.steps_per_epoch)
    tell = functools.partial(console.print, soft_wrap=True, markup=False)
    return profiling.record(step, recorded, profile, tell)


def _final_terms(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Every regulariser at the last state, whatever its λ, and how far C1-C3 are kept."""
    head, tree, reg = experiment.model.head, experiment.dataset.hierarchy, experiment.config.reg
    regularizer = make_regularizer(head, tree, reg)
    terms = jax.jit(lambda p: regularizer(p, None, everything=True)[1])(state.params)
    result: dict[str, Any] = {"terms": {name: float(value) for name, value in terms.items()}}
    if isinstance(head, HierarchicalHead):
        quantities = constraint_values(
            head_levels(state.params, head), tree, outer_radius=reg.outer_radius
        )
        result["constraints"] = {}
        for name, (quantity, _) in quantities.items():
            fraction, worst = satisfaction(quantity)
            result["constraints"][name] = {"satisfied": float(fraction), "worst": float(worst)}
    return result

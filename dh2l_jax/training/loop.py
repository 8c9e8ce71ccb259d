"""A run from config to result: strings become callables here, once."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from dh2l_jax.constraints import constraint_values, satisfaction
from dh2l_jax.data import datasets
from dh2l_jax.data.pipeline import epoch_order
from dh2l_jax.models import CifarResNet, create
from dh2l_jax.models.head import HierarchicalHead
from dh2l_jax.training import checkpoint, optim
from dh2l_jax.training.config import Config, from_dict, to_dict
from dh2l_jax.training.logging import Log, append_json, print_accuracy, versions, write_json
from dh2l_jax.training.objective import Terms, head_levels, make_objective, make_regularizer
from dh2l_jax.training.steps import (
    TrainState,
    evaluate,
    init_state,
    make_eval_step,
    make_train_step,
    on_device,
)

__all__ = [
    "Experiment",
    "build",
    "describe",
    "eval_only",
    "make_evaluator",
    "make_workdir",
    "show_next_steps",
    "show_scores",
    "train",
]

Evaluator = Callable[[TrainState], dict[str, Any]]

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with everything that its strings stand for."""

    config: Config
    dataset: datasets.Dataset
    model: CifarResNet
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: jax.sharding.Mesh

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return len(self.dataset.train_labels) // self.config.batch_size

    def init(self) -> TrainState:
        """The state before the first step."""
        shape = self.dataset.train_images.shape[1:]
        return init_state(self.model, self.tx, shape, self.config.seed, self.mesh)


def build(config: Config) -> Experiment:
    """Loads the data and makes the model and the optimiser; nothing is written.

    Raises:
      ValueError: an option is unknown or does not fit the others; the line says which.
      OSError: a file of the data set cannot be read.
    """
    devices = jax.device_count()
    for name in ("batch_size", "eval_batch_size"):
        if getattr(config, name) % devices:
            raise ValueError(
                f"{name} must be a multiple of the {devices} devices, found {getattr(config, name)}"
            )
    dataset = datasets.load(config.data.name, data_dir=config.data.data_dir or None)
    if config.data.holdout:
        dataset = datasets.hold_out(dataset, config.data.holdout, config.seed)
    if config.batch_size > len(dataset.train_labels):
        raise ValueError(
            f"batch_size must be at most the {len(dataset.train_labels)} training images, "
            f"found {config.batch_size}"
        )
    model = _model(config, dataset)
    make_regularizer(model.head, dataset.hierarchy, config.reg)  # names that do not exist end here
    steps = len(dataset.train_labels) // config.batch_size
    schedule = optim.learning_rate(config.optim, steps, config.epochs)
    # Explicit axes, the default of newer JAX, refuse the gather by a sharded index.
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return Experiment(
        config, dataset, model, optim.optimizer(config.optim, schedule), schedule, mesh
    )


def _model(config: Config, dataset: datasets.Dataset) -> CifarResNet:
    options = config.model
    common = {"shortcut": options.shortcut, "dtype": jnp.dtype(options.dtype)}
    if options.head == "plain":
        return create(options.name, num_classes=dataset.hierarchy.num_classes, **common)
    return create(
        options.name,
        hierarchy=dataset.hierarchy,
        center=options.center,
        epsilon=options.epsilon,
        logits=options.logits,
        inner_surfaces=config.reg.parent_ce_weight > 0,
        **common,
    )


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


def train(experiment: Experiment, workdir: Path, console: Console) -> dict[str, Any]:
    """Trains, saves the last state, evaluates it, and writes result.json.

    Returns:
      The result: accuracy at every level, every term, parameter count, seconds, versions.
    """
    start = time.perf_counter()
    scores_of = make_evaluator(experiment)
    state, losses = _train(experiment, workdir, console, scores_of)
    checkpoint.save(workdir, state)
    result = {
        **scores_of(state),
        "last_epoch": losses,
        **_final_terms(experiment, state),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - start, 2),
        "versions": versions(),
    }
    write_json(workdir / RESULT, result)
    return result


def eval_only(workdir: Path) -> tuple[Experiment, dict[str, Any]]:
    """Evaluates the saved state of a run again.

    Raises:
      ValueError: the folder holds no finished run, or its checkpoint does not fit its config.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run: expected the file {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    experiment = build(from_dict(values))
    state = checkpoint.restore(workdir, experiment.init())
    return experiment, make_evaluator(experiment)(state)


def make_evaluator(experiment: Experiment) -> Evaluator:
    """A function state → scores, on the test images or on those held out for validation."""
    dataset, config = experiment.dataset, experiment.config
    name = "validation" if config.data.holdout else "test"
    split = on_device(dataset.test_images, dataset.test_labels, experiment.mesh)
    eval_step = make_eval_step(experiment.model, dataset, experiment.mesh)

    def scores_of(state: TrainState) -> dict[str, Any]:
        return {"split": name, **evaluate(eval_step, state, split, config.eval_batch_size)}

    return scores_of


def describe(experiment: Experiment, console: Console) -> None:
    """One line on what is about to run."""
    config, dataset = experiment.config, experiment.dataset
    console.print(
        f"{config.model.name}, {config.model.head} head on {dataset.hierarchy}, {dataset.name}: "
        f"{len(dataset.train_labels):,} training images, {config.epochs} epochs of "
        f"{experiment.steps_per_epoch} steps of {config.batch_size}; {versions()['devices']}",
        soft_wrap=True,
        markup=False,
    )


def show_next_steps(workdir: Path, result: dict[str, Any], console: Console) -> None:
    """Where the results are and what to try next."""
    script = "python train.py"
    lines = [
        f"{result['seconds']:.0f} s; results in {workdir}/ ({RESULT}, {METRICS}, {CONFIG})",
        "Next:",
        f"  {script} --eval-only --workdir {shlex.quote(str(workdir))}",
        f"  {script} --set reg.lambda_l=0      the factored head alone, the control",
        f"  {script} --set model.head=plain --set reg.lambda_e=0      without any of it",
        f"  {script} --set reg.fc_metric=d_cos_hm --set seed=1      another metric, another seed",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def show_scores(experiment: Experiment, scores: dict[str, Any], console: Console) -> None:
    """Prints the accuracy at every level."""
    tree = experiment.dataset.hierarchy
    sizes = [str(tree.size(level)) for level in range(1, tree.num_levels + 1)]
    print_accuracy(console, scores["accuracy"], sizes, scores["images"], scores["split"])


def _train(
    experiment: Experiment, workdir: Path, console: Console, scores_of: Evaluator
) -> tuple[TrainState, dict[str, float]]:
    """All epochs; one line of metrics.jsonl each. Returns the state and the last epoch's means."""
    config, dataset = experiment.config, experiment.dataset
    tree, steps = dataset.hierarchy, experiment.steps_per_epoch
    objective = make_objective(experiment.model, tree, config.reg)
    train_step = make_train_step(
        objective, experiment.tx, dataset, config.data, config.batch_size, experiment.mesh
    )
    split = on_device(dataset.train_images, dataset.train_labels, experiment.mesh)
    state, means = experiment.init(), {}
    with Log(config.epochs * steps, config.batch_size, console=console) as log:
        for epoch in range(1, config.epochs + 1):
            begin = time.perf_counter()
            order = epoch_order(config.seed, epoch - 1, len(dataset.train_labels))
            history = []
            for _ in range(steps):
                state, terms = train_step(state, split, order)
                history.append(terms)
                # Wait for the step before, never for the one just sent: the device stays busy.
                jax.block_until_ready(history[max(len(history) - 2, 0)])
                log.step(epoch)
            means = _means(history, config.batch_size)
            record = {"epoch": epoch, "step": epoch * steps, **means}
            record["lr"] = np.asarray(experiment.schedule(epoch * steps - 1)).item()
            record["images_per_second"] = round(
                steps * config.batch_size / (time.perf_counter() - begin), 1
            )
            if config.eval_every and epoch % config.eval_every == 0 and epoch < config.epochs:
                record |= scores_of(state)
            append_json(workdir / METRICS, record)
            log.epoch(record, config.epochs)
    return state, means


def _means(history: list[Terms], batch_size: int) -> dict[str, float]:
    """Means over the steps of an epoch; the hits become the accuracy in training."""
    values = jax.device_get(history)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    means["train_accuracy"] = means.pop("hits") / batch_size
    return means


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

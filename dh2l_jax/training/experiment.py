"""From a config to an experiment: strings become callables here, once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dh2l_jax.data import catalog, datasets
from dh2l_jax.data.batches.feed import CropOptions, Feed, check_sizes, make_feed
from dh2l_jax.data.datasets import Dataset, Split
from dh2l_jax.data.store.fingerprint import DataRecord, difference
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import Network, check_own_network, create
from dh2l_jax.training.config import Config
from dh2l_jax.training.config.conflicts import (
    NODE_LOSSES,
    refuse_conflicts,
    refuse_conflicts_with_tree,
)
from dh2l_jax.training.config.parents import Parent, read_parent, weights_for
from dh2l_jax.training.host.processes import on_first
from dh2l_jax.training.run import evidence
from dh2l_jax.training.run.evidence import CheckpointError
from dh2l_jax.training.run.facts import crop_size
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import energy_plan, make_regularizer
from dh2l_jax.training.step.state import TrainState, make_init

__all__ = ["Experiment", "build", "refuse_other_data", "without_data"]

# The mean and deviation of pixels that torchvision's ImageNet weights were trained with.
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# The highest step that the int32 of a state can count.
LAST_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with everything that its strings stand for.

    Attributes:
      dataset: its test part is what evaluation sees, see `split`.
      source: the data set that it is a part of, as it was loaded: what a run is known by.
      split: "test", or "validation" if images are held out of training.
      tx: the optimiser.
      schedule: the learning rate of each step.
      mesh: all devices, axis "data".
      pretrained: replaces random weights by those of `model.pretrained` or `init_from`; or None.
      parent: what `origin.json` says of the weights of `init_from`; {} without them.
      calibration: images and labels on which the temperature of `eval.decision=crm` is fitted, half
        of those held out; None where none is.
    """

    config: Config
    dataset: Dataset
    source: Dataset
    split: str
    model: Network
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: jax.sharding.Mesh
    pretrained: Callable[[Any], Any] | None = None
    calibration: Split | None = None
    parent: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return len(self.dataset.train_labels) // self.config.batch_size

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return crop_size(self.config, self.dataset.image_shape, self.dataset.name)

    @functools.cached_property
    def data_record(self) -> bytes:
        """What every checkpoint holds of the data."""
        data = self.dataset
        shape = data.image_shape
        return DataRecord(self.source.fingerprint, shape, data.mean, data.std).pack()

    def init(self, *, abstract: bool = False) -> TrainState:
        """The state before the first step; if `abstract`, its shapes for `checkpoint.restore`."""
        key, ema = jax.random.key(self.config.seed), self.config.optim.ema > 0
        state = jax.eval_shape(self._init, key) if abstract else self._init(key)
        if not self.pretrained:
            return state
        found = self.pretrained({"params": state.params, "batch_stats": state.batch_stats})
        if ema:  # apart from the weights: a step uses up both
            found = {**found, "ema": found if abstract else jax.tree.map(jnp.copy, found)}
        return dataclasses.replace(state, **found)

    @functools.cached_property
    def _init(self) -> jax.stages.Wrapped:
        """Kept, so that the network is traced once, for its shapes and for its weights."""
        shape, ema = (*self.crop, self.dataset.image_shape[2]), self.config.optim.ema > 0
        return make_init(self.model, self.tx, shape, self.mesh, ema=ema)

    def feeds(self) -> tuple[Feed, Feed]:
        """The feeds of training and of evaluation."""
        data = self.dataset
        train = self._feed((data.train_images, data.train_labels))
        return train, self._feed((data.test_images, data.test_labels))

    def calibration_feed(self) -> Feed | None:
        """The feed of the temperature's images, if one is fitted."""
        return None if self.calibration is None else self._feed(self.calibration)

    def _feed(self, split: Split) -> Feed:
        data = self.config.data
        options = CropOptions(self.crop, data.pad, data.flip, self.config.batch_size)
        return make_feed(*split, options=options, mesh=self.mesh, device_gb=data.device_gb)


def refuse_other_data(experiment: Experiment, workdir: Path) -> bool:
    """Whether the checkpoints in a folder say what they were trained on; if there are none, yes.

    Raises:
      CheckpointError: it was something else, or the processes of the run find different data.
      OSError: the checkpoints cannot be read.
    """
    source, folder = experiment.source, workdir / evidence.LAST

    def check() -> tuple[bool, str]:
        record = evidence.data_record(folder)
        # One process that begins needs no fingerprint before its first checkpoint.
        sha256 = source.fingerprint.sha256 if record or jax.process_count() > 1 else ""
        if record is None:
            known = not evidence.steps(folder)
            if source.first_new and not known:
                raise CheckpointError(
                    f"{workdir} began before images were decoded as now, which gives "
                    f"{source.first_new!r}, if not others too, other pixels: start it anew in "
                    "another folder"
                )
            return known, sha256
        before = DataRecord.unpack(record).fingerprint
        changed = difference(before, source.fingerprint, source.name_of)
        if changed:
            raise CheckpointError(
                f"{workdir} was trained on other data: {changed}: choose another folder, or set "
                "data.data_dir to where its own data are"
            )
        return True, sha256

    known, sha256 = on_first(check, (CheckpointError, OSError))
    if sha256 and sha256 != source.fingerprint.sha256:
        raise CheckpointError(
            f"process {jax.process_index()} finds other data in {source.name} than process 0"
        )
    return known


def without_data(config: Config, record: DataRecord) -> tuple[Network, TrainState]:
    """The network of a run and the abstract state of its checkpoints; no image is read."""
    tree, shape = record.fingerprint.tree, record.image_shape
    model, mesh = _model(config, tree), _mesh()
    tx = _optimizer(config, optim.learning_rate(config.optim, 1, config.epochs))
    crop = crop_size(config, shape, config.data.name)
    shape, ema = (*crop, shape[2]), config.optim.ema > 0
    init = make_init(model, tx, shape, mesh, ema=ema)
    return model, jax.eval_shape(init, jax.random.key(config.seed))


def build(
    config: Config, *, split: str = "", progress: bool = False, training: bool = True
) -> Experiment:
    """Loads the data and makes the model and the optimiser; no result is written.

    Whatever is wrong with the options, the images or the weights ends here, before a run begins.

    Args:
      split: what evaluation sees: "test", or "validation", the images that `data.holdout` takes
        from training; by default "validation" where there are such images. What is trained on, and
        the constants by which pixels are normalised, do not depend on it.
      progress: show a bar on a terminal while images are decoded.
      training: False for the evaluation of a finished run, which needs no `model.pretrained`.

    Raises:
      ValueError: an option is unknown or does not fit the others; the line says which.
      OSError: a file of the data set or of the weights cannot be read.
    """
    if training:
        refuse_conflicts(config)
    devices = jax.device_count()
    for name in ("batch_size", "eval_batch_size"):
        if getattr(config, name) % devices:
            raise ValueError(
                f"{name} must be a multiple of the {devices} devices, found {getattr(config, name)}"
            )
    pretrained = _pretrained(config) if training else None
    parent = read_parent(config.init_from) if training and config.init_from else None
    split = split or ("validation" if config.data.holdout else "test")
    dataset, source = _dataset(config, split, progress)
    if training:
        refuse_conflicts_with_tree(config, dataset.hierarchy)
    model = _model(config, dataset.hierarchy)
    make_regularizer(model.head, dataset.hierarchy, config.reg)  # refuses unknown metrics
    steps = _steps(config, len(dataset.train_labels))
    schedule = optim.learning_rate(config.optim, steps, config.epochs)
    tx = _optimizer(config, schedule)
    scored, calibration = _halved(config, dataset, split)
    experiment = Experiment(
        config, scored, source, split, model, tx, schedule, _mesh(), pretrained, calibration
    )
    if parent:
        experiment = _begun_with(experiment, parent)
    check_sizes(dataset.train_images, experiment.crop, config.data.pad)
    check_sizes(dataset.test_images, experiment.crop)
    if training:
        _check_pad(config.data.pad, min(experiment.crop))
        if not isinstance(model, Network):
            shape = (*experiment.crop, dataset.image_shape[2])
            check_own_network(model, shape, config.model.name)
        # Refuses images or weights that do not fit the network, and rules that do not.
        state = experiment.init(abstract=True)
        if config.reg.rules:
            energy_plan(state.params, config.reg)
    return experiment


def _begun_with(experiment: Experiment, parent: Parent) -> Experiment:
    """The experiment whose first state has the weights of another."""
    load = weights_for(parent, experiment.config, experiment.dataset.hierarchy)
    state = experiment.init(abstract=True)
    _, taken = load({"params": state.params, "batch_stats": state.batch_stats})
    about = {**parent.about, "head": "taken" if taken else "anew"}
    return dataclasses.replace(experiment, pretrained=lambda v: load(v)[0], parent=about)


def _mesh() -> jax.sharding.Mesh:
    # Auto axes: explicit ones, the default of newer JAX, refuse the gather by a sharded index.
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)


def _steps(config: Config, images: int) -> int:
    """Steps of an epoch; refuses a batch that no epoch fills, and more steps than int32 counts."""
    if config.batch_size > images:
        raise ValueError(
            f"batch_size must be at most the {images} training images, found {config.batch_size}"
        )
    steps = images // config.batch_size
    if steps * config.epochs > LAST_STEP:
        raise ValueError(
            f"epochs must be at most {LAST_STEP // steps}, {LAST_STEP} steps, found {config.epochs}"
        )
    if config.optim.accumulate > steps * config.epochs:
        raise ValueError(
            f"optim.accumulate must be at most the {steps * config.epochs} steps of the run, found "
            f"{config.optim.accumulate}"
        )
    return steps


def _check_pad(pad: int, side: int) -> None:
    """Refuses random crops that may hold nothing of their image."""
    if pad >= side:
        raise ValueError(f"data.pad must be below the side of the crop, {side}, found {pad}")


def _pretrained(config: Config) -> Callable[[Any], Any] | None:
    """The weights to start from, read once."""
    if not config.model.pretrained:
        return None
    # Imported late: only this needs the reader of weights.
    from dh2l_jax.models.weights import read_pretrained

    return read_pretrained(config.model.pretrained)


def _dataset(config: Config, split: str, progress: bool) -> tuple[Dataset, Dataset]:
    """The data with the evaluation split in the place of the test part; and as they were loaded."""
    data = config.data
    source = whole = catalog.load(
        data.name,
        data_dir=data.data_dir or None,
        csv=data.csv or None,
        tree=data.tree,
        resize=data.resize,
        background=data.background,
        on_bad_image=data.on_bad_image,
        inner=data.inner,
        cache_dir=data.cache_dir or None,
        progress=progress,
    )
    if data.fraction < 1:
        whole = datasets.subsample(whole, data.fraction)
    dataset = whole
    if data.holdout:
        dataset = _held_out(whole, config)
        if split == "test":
            names = {"train": dataset.name_of, "test": whole.name_of}
            dataset = dataclasses.replace(
                dataset,
                test_images=whole.test_images,
                test_labels=whole.test_labels,
                name_of=lambda split, i: names[split](split, i),
            )
    if config.model.pretrained:
        dataset = dataclasses.replace(dataset, normalization=IMAGENET)
    return dataset, source


def _held_out(whole: Dataset, config: Config) -> Dataset:
    try:
        return datasets.hold_out(whole, config.data.holdout, config.seed)
    except ValueError as error:
        raise ValueError(f"data.holdout: {error}") from error


def _halved(config: Config, dataset: Dataset, split: str) -> tuple[Dataset, Split | None]:
    """What evaluation scores and, where a temperature is fitted, the images for that."""
    if config.eval.decision == "argmax" or split == "test":
        return dataset, None
    try:
        return datasets.halve_test(dataset)
    except ValueError as error:
        raise ValueError(f"data.holdout is too small for eval.decision=crm: {error}") from error


def _optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optim.optimizer(config.optim, schedule, on_spheres=config.model.head == "sphere")


def _model(config: Config, tree: Hierarchy) -> Network:
    options = config.model
    common = {"shortcut": options.shortcut, "dtype": jnp.dtype(options.dtype)}
    head = config.loss.name if config.loss.name in NODE_LOSSES else options.head
    if head == "plain":
        return create(options.name, num_classes=tree.num_classes, **common)
    return create(
        options.name,
        hierarchy=tree,
        head=head,
        gamma=options.gamma or None,
        radius=options.radius,
        center=options.center,
        epsilon=options.epsilon,
        logits=options.logits,
        inner_surfaces=config.reg.parent_ce_weight > 0,
        **common,
    )

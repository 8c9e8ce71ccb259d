"""From a config to an experiment: strings become callables here, once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dh2l_jax.data import catalog, datasets
from dh2l_jax.data.batches.feed import CropOptions, Feed, check_sizes, make_feed
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.models import Network, create
from dh2l_jax.training.config import Config
from dh2l_jax.training.config.conflicts import refuse_conflicts, refuse_conflicts_with_tree
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import energy_plan, make_regularizer
from dh2l_jax.training.step.state import TrainState, init_state

__all__ = ["Experiment", "build"]

# The mean and deviation of pixels that torchvision's ImageNet weights were trained with.
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# The highest step that the int32 of a state can count.
LAST_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with everything that its strings stand for.

    Attributes:
      dataset: its test part is what evaluation sees, see `split`.
      split: "test", or "validation" if images are held out of training.
      tx: the optimiser.
      schedule: the learning rate of each step.
      mesh: all devices, axis "data".
      pretrained: replaces random weights by those of `model.pretrained`; None keeps them.
    """

    config: Config
    dataset: Dataset
    split: str
    model: Network
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: jax.sharding.Mesh
    pretrained: Callable[[Any], Any] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return len(self.dataset.train_labels) // self.config.batch_size

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        height, width, _ = self.dataset.image_shape
        side = self.config.data.crop
        if side:
            return side, side
        if height is None or width is None:
            raise ValueError(
                f"the images of {self.dataset.name} differ in size: set data.crop, the side of the "
                "square that the network sees, and data.resize, the shorter side of the images"
            )
        return height, width

    def init(self, *, abstract: bool = False) -> TrainState:
        """The state before the first step; if `abstract`, its shapes for `checkpoint.restore`."""
        shape = (*self.crop, self.dataset.image_shape[2])
        state = init_state(
            self.model, self.tx, shape, self.config.seed, self.mesh, abstract=abstract
        )
        if not self.pretrained:
            return state
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return dataclasses.replace(state, **self.pretrained(variables))

    def feeds(self) -> tuple[Feed, Feed]:
        """The feeds of training and of evaluation."""
        data = self.config.data
        options = CropOptions(self.crop, data.pad, data.flip, self.config.batch_size)
        make = functools.partial(
            make_feed, options=options, mesh=self.mesh, device_gb=data.device_gb
        )
        train = make(self.dataset.train_images, self.dataset.train_labels)
        return train, make(self.dataset.test_images, self.dataset.test_labels)


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
    split = split or ("validation" if config.data.holdout else "test")
    dataset = _dataset(config, split, progress)
    if training:
        refuse_conflicts_with_tree(config, dataset.hierarchy)
    model = _model(config, dataset)
    make_regularizer(model.head, dataset.hierarchy, config.reg)  # refuses unknown metrics
    steps = _steps(config, len(dataset.train_labels))
    schedule = optim.learning_rate(config.optim, steps, config.epochs)
    tx = optim.optimizer(config.optim, schedule)
    # Auto axes: explicit ones, the default of newer JAX, refuse the gather by a sharded index.
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    experiment = Experiment(config, dataset, split, model, tx, schedule, mesh, pretrained)
    check_sizes(dataset.train_images, experiment.crop, config.data.pad)
    check_sizes(dataset.test_images, experiment.crop)
    if training:
        _check_pad(config.data.pad, min(experiment.crop))
        # Refuses images or weights that do not fit the network, and rules that do not.
        state = experiment.init(abstract=True)
        if config.reg.rules:
            energy_plan(state.params, config.reg)
    return experiment


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


def _dataset(config: Config, split: str, progress: bool) -> Dataset:
    """The data with the evaluation split in the place of the test part."""
    data = config.data
    whole = catalog.load(
        data.name,
        data_dir=data.data_dir or None,
        csv=data.csv or None,
        tree=data.tree,
        resize=data.resize,
        background=data.background,
        on_bad_image=data.on_bad_image,
        cache_dir=data.cache_dir or None,
        progress=progress,
    )
    if data.fraction < 1:
        whole = datasets.subsample(whole, data.fraction)
    dataset = whole
    if data.holdout:
        dataset = _held_out(whole, config)
        if split == "test":
            test = {name: getattr(whole, name) for name in ("test_images", "test_labels")}
            dataset = dataclasses.replace(dataset, **test)
    if config.model.pretrained:
        dataset = dataclasses.replace(dataset, normalization=IMAGENET)
    return dataset


def _held_out(whole: Dataset, config: Config) -> Dataset:
    try:
        return datasets.hold_out(whole, config.data.holdout, config.seed)
    except ValueError as error:
        raise ValueError(f"data.holdout: {error}") from error


def _model(config: Config, dataset: Dataset) -> Network:
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

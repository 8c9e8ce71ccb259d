"""What a cell of a table trains: a setting, the weights λ that it chooses from, and its configs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.facts import FACTS, DatasetFacts
from dh2l_jax.training.config import Config, override, recipes

__all__ = [
    "LAMBDA_E",
    "LAMBDA_L",
    "WEIGHT_FILES",
    "Options",
    "Setting",
    "Weights",
    "config_of",
    "recipe",
    "validation_images",
]

LAMBDA_E, LAMBDA_L = (0.1, 1.0), (0.1, 0.5)
WEIGHT_FILES = {"resnet18": "resnet18-5c106cde.pth", "resnet50": "resnet50-19c8e357.pth"}
# Options that a table sets itself; everything else of a config may be replaced.
OWN_KEYS = (
    "seed",
    "eval_every",
    "data.name",
    "data.data_dir",
    "data.fraction",
    "data.holdout",
    "model.name",
    "model.head",
    "model.pretrained",
    "reg.conv_metric",
    "reg.fc_metric",
    "reg.lambda_e",
    "reg.lambda_l",
)


class Weights(NamedTuple):
    """λ_e and λ_l; 0 where a variant has no such term. Ordered: the smaller wins a tie."""

    lambda_e: float
    lambda_l: float

    def __str__(self) -> str:
        named = {"λ_e": self.lambda_e, "λ_l": self.lambda_l}
        return " ".join(f"{symbol} {value:g}" for symbol, value in named.items() if value)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, but for the weights λ and the seed; cells that agree in it share their runs.

    Attributes:
      data: key of `FACTS`.
      model: network.
      variant: one of `recipes.VARIANTS`.
      conv_metric: metric of E on the convolutions; empty where there is none.
      fc_metric: metric of the head; empty where there is none.
      decay: whether l2 takes part, where the variant has it.
    """

    data: str
    model: str
    variant: str
    conv_metric: str = ""
    fc_metric: str = ""
    decay: bool = True

    @property
    def candidates(self) -> tuple[Weights, ...]:
        """The weights to choose from, of the terms that the variant has; DH²L, §5."""
        lambda_e = LAMBDA_E if self.variant in ("E", "factored", "E+H") else (0.0,)
        lambda_l = LAMBDA_L if self.variant == "E+H" else (0.0,)
        return tuple(Weights(*pair) for pair in itertools.product(lambda_e, lambda_l))

    def __str__(self) -> str:
        metrics = [m for m in dict.fromkeys((self.conv_metric, self.fc_metric)) if m]
        no_decay = [] if self.decay else ["no l2"]
        return " ".join([self.model, self.variant, *no_decay, *metrics])


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose for all runs of a table.

    Attributes:
      data_dir: of the data set; empty for the embedded one.
      pretrained: folder of the ImageNet weights; empty for random weights.
      budget: in (0, 1], multiplies epochs and images.
      overrides: texts "section.key=value" for all configs.
    """

    data_dir: str = ""
    pretrained: str = ""
    budget: float = 1.0
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must lie in (0, 1], found {self.budget}")
        for text in self.overrides:
            key = text.partition("=")[0].strip()
            if key in OWN_KEYS:
                raise ValueError(f"{key} is set by the table itself, found --set {text}")


def config_of(setting: Setting, weights: Weights, seed: int, options: Options) -> Config:
    """The config of one run: it trains on what a validation split leaves of the training images.

    Args:
      setting: of the cell.
      weights: one of its candidates.
      seed: of initial weights, order, augmentation and validation split.
      options: of the table.

    Raises:
      ValueError: an override is no option of a config, or has a wrong type or range.

    >>> config = config_of(Setting("cub200", "resnet18", "l2"), Weights(0, 0), 3, Options())
    >>> config.data.holdout, config.optim.weight_decay, config.reg.lambda_e, config.model.head
    (600, 0.0005, 0.0, 'plain')
    """
    if setting.data not in FACTS:
        raise ValueError(unknown_name("data set", setting.data, FACTS))
    facts = FACTS[setting.data]
    config = recipe(setting.data, setting.model)
    for text in options.overrides:
        config = override(config, text)
    config = _shrunk(config, facts, options.budget)
    decay = config.optim.weight_decay if setting.decay else 0.0
    config = dataclasses.replace(
        config,
        seed=seed,
        eval_every=1,
        data=dataclasses.replace(
            config.data,
            data_dir=options.data_dir,
            holdout=validation_images(facts, config.data.fraction),
        ),
        model=dataclasses.replace(
            config.model,
            name=setting.model,
            pretrained=_weight_file(options.pretrained, setting.model),
        ),
        reg=dataclasses.replace(config.reg, **weights._asdict()),
        optim=dataclasses.replace(config.optim, weight_decay=decay),
    )
    return recipes.with_variant(
        config, setting.variant, conv_metric=setting.conv_metric, fc_metric=setting.fc_metric
    )


def recipe(data: str, model: str) -> Config:
    """The recipe of a data set, before a table changes it."""
    if data == "fashion_mnist_mini":
        return recipes.embedded()
    return (recipes.heavy if FACTS[data].photographs else recipes.light)(data, model)


def validation_images(facts: DatasetFacts, fraction: float) -> int:
    """About a tenth of the training images, the same number of every class.

    >>> validation_images(FACTS["cars196"], 1.0)
    784
    """
    return facts.classes * max(1, round(0.1 * fraction * facts.train / facts.classes))


def _shrunk(config: Config, facts: DatasetFacts, budget: float) -> Config:
    """Fewer epochs and images; every class keeps an image for training and one for validation."""
    if budget == 1:
        return config
    epochs = max(1, round(budget * config.epochs))
    fraction = min(1.0, max(budget, 2.5 / facts.smallest))
    left = int(fraction * facts.smallest) * facts.classes - validation_images(facts, fraction)
    batch_size = config.batch_size
    while batch_size > left:
        batch_size //= 2
    warmup = config.optim.warmup_epochs * epochs / config.epochs
    return dataclasses.replace(
        config,
        epochs=epochs,
        batch_size=batch_size,
        data=dataclasses.replace(config.data, fraction=fraction),
        optim=dataclasses.replace(config.optim, warmup_epochs=warmup),
    )


def _weight_file(folder: str, model: str) -> str:
    return str(Path(folder) / WEIGHT_FILES[model]) if folder and model in WEIGHT_FILES else ""

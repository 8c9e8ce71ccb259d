"""What a cell of a table trains: a setting, the weights that it chooses from, and its configs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.facts import FACTS, DatasetFacts
from dh2l_jax.training.config import Config, override, recipes

__all__ = [
    "CHOSEN",
    "LAMBDA_E",
    "LAMBDA_L",
    "WEIGHT_FILES",
    "Lists",
    "Options",
    "Setting",
    "Weights",
    "config_of",
    "listed",
    "recipe",
    "shown",
    "validation_images",
]

Lists = tuple[tuple[str, tuple[float | str, ...]], ...]
LAMBDA_E, LAMBDA_L = (0.1, 1.0), (0.1, 0.5)
# Options with a symbol among those whose value is chosen on validation.
CHOSEN = {
    "reg.lambda_e": "λ_e",
    "reg.lambda_l": "λ_l",
    "loss.alpha": "α",
    "loss.beta": "β",
    "model.gamma": "γ",
}
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
    "loss.name",
    "eval.decision",
    *CHOSEN,
)


@dataclasses.dataclass(frozen=True, order=True)
class Weights:
    """The chosen options with their values. Ordered: the smaller wins a tie.

    >>> str(Weights((("reg.lambda_e", 0.1), ("reg.lambda_l", 0.5))))
    'λ_e 0.1 λ_l 0.5'
    """

    values: tuple[tuple[str, float | str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.values)

    def __str__(self) -> str:
        return " ".join(f"{CHOSEN.get(key, key)} {shown(value)}" for key, value in self.values)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, but for the weights and the seed; cells that agree in it share their runs.

    Attributes:
      data: key of `FACTS`.
      model: network.
      variant: one of `recipes.VARIANTS`.
      conv_metric: metric of E on the convolutions; empty where there is none.
      fc_metric: metric of the head; empty where there is none.
      decay: whether l2 takes part, where the variant has it.
      method: name of what is more than a variant; empty for a variant alone.
      changes: options of that, "key=value".
      lists: option → values to choose from; None for the λ of the variant.
    """

    data: str
    model: str
    variant: str
    conv_metric: str = ""
    fc_metric: str = ""
    decay: bool = True
    method: str = ""
    changes: tuple[str, ...] = ()
    lists: Lists | None = None

    @property
    def candidates(self) -> tuple[Weights, ...]:
        """The weights to choose from; of a variant those of the terms that it has; DH²L, §5."""
        lists = self.lists
        if lists is None:
            lambda_e = self.variant in ("E", "factored", "E+H")
            lists = (("reg.lambda_e", LAMBDA_E),) * lambda_e
            lists += (("reg.lambda_l", LAMBDA_L),) * (self.variant == "E+H")
        keys = [key for key, _ in lists]
        products = itertools.product(*(values for _, values in lists))
        return tuple(Weights(tuple(zip(keys, values, strict=True))) for values in products)

    def __str__(self) -> str:
        metrics = [m for m in dict.fromkeys((self.conv_metric, self.fc_metric)) if m]
        no_decay = [] if self.decay else ["no l2"]
        words = [self.method] if self.method else [self.variant, *no_decay, *metrics]
        return " ".join([self.model, *words])


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose for all runs of a table.

    Attributes:
      data_dir: of the data set; empty for the embedded one.
      pretrained: folder of the ImageNet weights; empty for random weights.
      budget: in (0, 1], multiplies epochs and images.
      overrides: texts "section.key=value" for all configs.
      base: the config that every method changes, in place of the recipe of a table's data set.
    """

    data_dir: str = ""
    pretrained: str = ""
    budget: float = 1.0
    overrides: tuple[str, ...] = ()
    base: Config | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must lie in (0, 1], found {self.budget}")
        for text in self.overrides if self.base is None else ():
            key = text.partition("=")[0].strip()
            if key in OWN_KEYS:
                raise ValueError(f"{key} is set by the table itself, found --set {text}")


def config_of(setting: Setting, weights: Weights, seed: int, options: Options) -> Config:
    """The config of one run: it trains on what a validation split leaves of the training images.

    Args:
      setting: of the cell.
      weights: one of its candidates.
      seed: of initial weights, order, augmentation and validation split, alike for all methods.
      options: of the table.

    Raises:
      ValueError: an override is no option of a config, or has a wrong type or range.

    >>> config = config_of(Setting("cub200", "resnet18", "l2"), Weights(), 3, Options())
    >>> config.data.holdout, config.optim.weight_decay, config.reg.lambda_e, config.model.head
    (600, 0.0005, 0.0, 'plain')
    """
    config = options.base or _of_a_table(setting, options)
    decay = config.optim.weight_decay if setting.decay else 0.0
    config = dataclasses.replace(
        config,
        seed=seed,
        eval_every=1,
        optim=dataclasses.replace(config.optim, weight_decay=decay),
    )
    for key, value in weights.values:
        config = override(config, f"{key}={value}")
    config = recipes.with_variant(
        config, setting.variant, conv_metric=setting.conv_metric, fc_metric=setting.fc_metric
    )
    for change in setting.changes:
        config = override(config, change)
    return config


def _of_a_table(setting: Setting, options: Options) -> Config:
    """The recipe with the user's options; about a tenth of the training images is held out."""
    if setting.data not in FACTS:
        raise ValueError(unknown_name("data set", setting.data, FACTS))
    facts = FACTS[setting.data]
    config = recipe(setting.data, setting.model)
    for text in options.overrides:
        config = override(config, text)
    config = _shrunk(config, facts, options.budget)
    holdout = validation_images(facts, config.data.fraction)
    pretrained = _weight_file(options.pretrained, setting.model)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_dir=options.data_dir, holdout=holdout),
        model=dataclasses.replace(config.model, name=setting.model, pretrained=pretrained),
    )


def listed(text: str) -> tuple[str, tuple[float | str, ...]]:
    """An option with the values to choose from, of the text "key=value,value".

    Raises:
      ValueError: there is no such option, or a value that it does not take.

    >>> listed("optim.lr=0.01,0.03")
    ('optim.lr', (0.01, 0.03))
    """
    key, _, values = text.partition("=")
    found = tuple(_number(value.strip()) for value in values.split(","))
    if len(set(found)) < max(2, len(found)):
        raise ValueError(f"expected key=value,value with different values, found {text!r}")
    for value in found:
        override(Config(), f"{key}={value}")
    return key.strip(), found


def _number(text: str) -> float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def shown(value: float | str) -> str:
    """A value of a list as reports and folders name it."""
    return value if isinstance(value, str) else f"{value:g}"


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

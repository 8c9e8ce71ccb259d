"""The configuration of a run: frozen dataclasses, files with `get_config()`, typed overrides."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RegConfig",
    "from_dict",
    "load",
    "override",
    "to_dict",
]


# The annotations are texts: evaluating them takes longer than all else that makes a config.
_type_hints = functools.cache(typing.get_type_hints)


class _Checked:
    """Types and ranges are checked when a config is made; integers are taken for floats."""

    def __post_init__(self) -> None:
        hints = _type_hints(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = _typed(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field.name, value, field.metadata)


def _field(default: Any, **rule: Any) -> Any:
    """A field with a rule: `low` and `high` (inclusive), `above`/`below` (exclusive), `choices`."""
    return dataclasses.field(default=default, metadata=rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """The images.

    Attributes:
      name: data set, see `dh2l_jax.data.datasets.DATASETS`.
      data_dir: folder of the data set's files, if it is not embedded.
      csv: file `class,parent[,grandparent]` with the tree of a folder of images.
      tree: another tree of the same classes, see `dh2l_jax.data.taxonomies`, or "flat".
      cache_dir: where decoded images are kept; empty for the user's cache folder.
      resize: shorter side in pixels to which images are scaled; 0 to keep their size.
      crop: side of the square that the network sees, a random one in training and the centre in
        evaluation; 0 for whole images.
      pad: zeros added on each side before the random crop; 0 for none.
      flip: mirror at random.
      fraction: part of the images of each class to use, of training and test alike; for trials.
      holdout: validation images taken from the training images; the test set is then not used.
      device_gb: images of up to so many GB live on the device, more are streamed to it.
    """

    name: str = "fashion_mnist_mini"
    data_dir: str = ""
    csv: str = ""
    tree: str = ""
    cache_dir: str = ""
    resize: int = _field(0, low=0)
    crop: int = _field(0, low=0)
    pad: int = _field(4, low=0)
    flip: bool = True
    fraction: float = _field(1.0, above=0, high=1)
    holdout: int = _field(0, low=0)
    device_gb: float = _field(4.0, low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """The network.

    Attributes:
      name: see `dh2l_jax.models.MODELS`.
      shortcut: "A" or "B".
      head: "hierarchical" (on the data set's tree) or "plain".
      center: centres of the hierarchical head: "free", "mean" or "epsilon".
      epsilon: ε of the "epsilon" centres.
      logits: "relative" or "absolute".
      dtype: compute dtype, "float32" or "bfloat16".
      pretrained: torchvision's `.pth` file with the ImageNet weights of a heavy network.
    """

    name: str = "resnet20"
    shortcut: str = _field("A", choices=("A", "B"))
    head: str = _field("hierarchical", choices=("hierarchical", "plain"))
    center: str = _field("free", choices=("free", "mean", "epsilon"))
    epsilon: float = 0.6
    logits: str = _field("relative", choices=("relative", "absolute"))
    dtype: str = _field("float32", choices=("float32", "bfloat16"))
    pretrained: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegConfig(_Checked):
    """The regularisers and their weights λ.

    Attributes:
      conv_metric: metric of E on the convolutions.
      fc_metric: metric of the head: R of a hierarchical one, E of a plain one.
      clamp: gradient of the arccos beyond ±0.99: "hard" or "straight_through".
      half_space: E and R_p of the vectors together with their opposites, w and −w.
      lambda_e: λ_e of E.
      lambda_l: λ_l of R, all levels.
      lambda_o: λ_o of the orthogonality of the centres.
      lambda_c1: λ of the hinge of C1.
      lambda_c2: λ of the hinge of C2.
      lambda_c3: λ of the hinge of C3.
      outer_radius: r^(0) of the constraints.
      pairs: centres that make pairs: "siblings" or "all".
      presence: classes that take part in R: "batch" (those of the mini-batch) or "global".
      parent_ce_weight: weight of the cross-entropy on the inner levels.
    """

    conv_metric: str = "d_am_cos"
    fc_metric: str = "d_am_cos"
    clamp: str = _field("hard", choices=("hard", "straight_through"))
    half_space: bool = False
    lambda_e: float = _field(0.1, low=0)
    lambda_l: float = _field(0.1, low=0)
    lambda_o: float = _field(1e-4, low=0)
    lambda_c1: float = _field(0.0, low=0)
    lambda_c2: float = _field(0.0, low=0)
    lambda_c3: float = _field(0.0, low=0)
    outer_radius: float = _field(1.0, above=0)
    pairs: str = _field("siblings", choices=("siblings", "all"))
    presence: str = _field("batch", choices=("batch", "global"))
    parent_ce_weight: float = _field(0.0, low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(_Checked):
    """SGD with momentum, and the learning rate's schedule.

    Attributes:
      lr: highest learning rate.
      momentum: of SGD.
      nesterov: Nesterov's form of it.
      weight_decay: λ_f, coupled l2 on kernels and head vectors, before momentum.
      schedule: "step" (× `decay` at each milestone) or "cosine" (to 0).
      milestones: fractions of the run at which "step" decays.
      decay: factor of "step".
      warmup_epochs: the rate first rises linearly from 0 over so many epochs.
    """

    lr: float = _field(0.1, above=0)
    momentum: float = _field(0.9, low=0, below=1)
    nesterov: bool = False
    weight_decay: float = _field(5e-4, low=0)
    schedule: str = _field("step", choices=("step", "cosine"))
    milestones: tuple[float, ...] = _field((0.5, 0.85), low=0, high=1)
    decay: float = _field(0.1, above=0)
    warmup_epochs: float = _field(0.0, low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_Checked):
    """One experiment.

    Attributes:
      seed: of the initial weights, the order of the images and their augmentation.
      epochs: passes over the training images.
      batch_size: of a step, over all devices.
      eval_batch_size: of an evaluation step.
      eval_every: evaluate every so many epochs; 0 for the end only.
    """

    seed: int = _field(0, low=0)
    epochs: int = _field(300, low=1)
    batch_size: int = _field(512, low=1)
    eval_batch_size: int = _field(500, low=1)
    eval_every: int = _field(0, low=0)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    reg: RegConfig = dataclasses.field(default_factory=RegConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)


def load(path: str | Path) -> Config:
    """The config that a Python file's `get_config()` returns.

    Raises:
      ValueError: no such file, or it has no `get_config()`.
      TypeError: `get_config()` returns something else than a `Config`.
    """
    path = Path(path)
    if not path.is_file():
        nearby = sorted(str(file) for file in path.parent.glob("*.py"))
        close = difflib.get_close_matches(str(path), nearby, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"no config file {path}{hint}")
    get_config = runpy.run_path(str(path)).get("get_config")
    if not callable(get_config):
        raise ValueError(f"{path}: expected a function get_config(), found none")
    config = get_config()
    if not isinstance(config, Config):
        raise TypeError(f"{path}: get_config() must return a Config, found {type(config).__name__}")
    return config


def override(config: Config, assignment: str) -> Config:
    """The config with one value replaced, from the text "section.key=value".

    >>> override(Config(), "optim.lr=0.05").optim.lr
    0.05

    Raises:
      ValueError: no such key (the nearest one is named), or the value has a wrong type or range.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"expected key=value, found {assignment!r}")
    return _replace(config, key.strip().split("."), text.strip(), key.strip())


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, for JSON; `from_dict` is the inverse."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The config of nested plain values; keys that are left out keep their defaults.

    Raises:
      ValueError: no such key (the nearest one is named), or the value has a wrong type or range.
    """
    return _from_dict(Config, values, "")


def _from_dict(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = _type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.')}: expected a section of options, found {values!r}")
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(_unknown_key(prefix + str(key)))
        if dataclasses.is_dataclass(hints[key]):
            value = _from_dict(hints[key], value, f"{prefix}{key}.")
        elif typing.get_origin(hints[key]) is tuple and isinstance(value, list):
            value = tuple(value)
        arguments[key] = value
    return cls(**arguments)


def _replace(section: Any, path: list[str], text: str, key: str) -> Any:
    hints = _type_hints(type(section))
    if path[0] not in hints:
        raise ValueError(_unknown_key(key))
    value = getattr(section, path[0])
    if dataclasses.is_dataclass(value) != (len(path) > 1):
        raise ValueError(_unknown_key(key))
    if len(path) > 1:
        value = _replace(value, path[1:], text, key)
    else:
        value = _parsed(key, text, hints[path[0]])
    return dataclasses.replace(section, **{path[0]: value})


def _unknown_key(key: str) -> str:
    valid = list(_keys(Config))
    # Compared by the last part too: a key in the wrong section is the commonest slip.
    close = [name for name in valid if name.split(".")[-1] == key.split(".")[-1]]
    close += difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return f"unknown option {key!r}: did you mean {close[0]!r}?"


def _keys(cls: type, prefix: str = ""):
    for name, hint in _type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield prefix + name


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def _parsed(key: str, text: str, hint: Any) -> Any:
    """The value that a text stands for."""
    try:
        if hint is bool:
            return _BOOLEANS[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        item = typing.get_args(hint)[0]
        return tuple(item(part) for part in text.strip("()[]").split(",") if part.strip())
    except (KeyError, ValueError):
        raise ValueError(f"{key} must be {_type_name(hint)}, found {text!r}") from None


def _typed(name: str, value: Any, hint: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, types.GenericAlias):
        if isinstance(value, tuple):
            return tuple(_typed(name, part, typing.get_args(hint)[0]) for part in value)
    elif isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
        return value
    raise ValueError(f"{name} must be {_type_name(hint)}, found {value!r}")


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(hint) or f"a list of numbers, such as {(0.5, 0.85)}"


def _check_range(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    choices = rule.get("choices")
    if choices and value not in choices:
        close = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
        expected = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {expected}, found {value!r}: did you mean {close!r}?")
    bounds = {
        "low": ("≥", lambda x, bound: x >= bound),
        "high": ("≤", lambda x, bound: x <= bound),
        "above": (">", lambda x, bound: x > bound),
        "below": ("<", lambda x, bound: x < bound),
    }
    parts: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{name} must be finite, found {part}")
        for key, (sign, holds) in bounds.items():
            if key in rule and not holds(part, rule[key]):
                raise ValueError(f"{name} must be {sign} {rule[key]}, found {part}")

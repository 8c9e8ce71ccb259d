"""The configuration of a run: frozen dataclasses, files with `get_config()`, typed overrides."""

from __future__ import annotations

import dataclasses
import difflib
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dh2l_jax.training.config.optim import OptimConfig
from dh2l_jax.training.config.options import Checked, field, flat, make, replace

__all__ = [
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "RegConfig",
    "from_dict",
    "identity",
    "load",
    "makes_another_run",
    "override",
    "same_run",
    "to_dict",
]


# Options that change neither what is trained nor on what: how often a run is saved, what it does
# about NaN, where its images and their tree lie and how they are kept; a checkpoint knows what
# they are. Those of `distributed` are others.
NOT_IDENTITY = (
    "checkpoint_every",
    "on_nan",
    "loggers",
    "data.data_dir",
    "data.csv",
    "data.cache_dir",
    "data.device_gb",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The images.

    Attributes:
      name: data set, see `dh2l_jax.data.catalog.DATASETS`; "folder" for your own images,
        tfds:NAME for what lies prepared, or package.module:function for your own arrays.
      data_dir: folder of the data set's files, if it is not embedded.
      csv: file `class,parent[,grandparent]` with the tree of a folder of images.
      tree: another tree of the same classes, see `dh2l_jax.hierarchy.published`, or "flat".
      cache_dir: where decoded images are kept; empty for the user's cache folder.
      resize: shorter side in pixels to which images are scaled; 0 to keep their size.
      crop: side of the square that the network sees, a random one in training and the centre in
        evaluation; 0 for whole images.
      background: colour behind transparent pixels of own images, a name or #rrggbb.
      on_bad_image: "refuse" own images that cannot be read, or "skip" them and say which.
      pad: zeros added on each side before the random crop; 0 for none.
      flip: mirror at random.
      augment: strength, up to 10, of two operations of RandAugment on each crop; 0 for none.
      mixup: α of mixup; 0 for none.
      cutmix: α of CutMix; 0 for none, with both each batch gets one of them.
      fraction: part of the images of each class to use, of training and test alike; for trials.
      sampling: how often a label with n images is drawn in an epoch: "uniform" (every image once),
        "sqrt" (∝ √n) or "balanced" (all labels alike).
      inner: images beside sub-folders: the node is their "label"; or make them a "class" of their
        own, NODE/·, "skip" or "refuse" them.
      holdout: validation images taken from the training images, their number or a share below 1,
        of each class its part; the test set is then not used.
      device_gb: images of up to so many GB live on the device, more are streamed to it.
    """

    name: str = "fashion_mnist_mini"
    data_dir: str = ""
    csv: str = ""
    tree: str = ""
    cache_dir: str = ""
    resize: int = field(0, low=0, high=2**13)
    crop: int = field(0, low=0, high=2**13)
    background: str = "white"
    on_bad_image: str = field("refuse", choices=("refuse", "skip"))
    pad: int = field(4, low=0, high=2**13)
    flip: bool = True
    augment: float = field(0.0, low=0, high=10)
    mixup: float = field(0.0, low=0)
    cutmix: float = field(0.0, low=0)
    fraction: float = field(1.0, above=0, high=1)
    sampling: str = field("uniform", choices=("uniform", "sqrt", "balanced"))
    inner: str = field("label", choices=("label", "class", "skip", "refuse"))
    holdout: float = field(0, low=0)
    device_gb: float = field(4.0, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holdout == int(self.holdout):
            object.__setattr__(self, "holdout", int(self.holdout))
        elif self.holdout > 1:
            raise ValueError(
                f"holdout must be a whole number or a share below 1, found {self.holdout}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """The network.

    Attributes:
      name: see `dh2l_jax.models.MODELS`; or package.module:function, see `models.create`.
      shortcut: "A" or "B".
      head: "hierarchical" (on the data set's tree), "plain", "haframe" or "etf" (fixed vectors,
        which bring their own loss), or "sphere".
      center: centres of the hierarchical head: "free", "mean" or "epsilon".
      epsilon: ε of the "epsilon" centres.
      logits: "relative" or "absolute".
      gamma: γ of a haframe or sphere head; 0 for the published 2 and 0.5.
      radius: R₀ of a sphere head.
      dtype: compute dtype, "float32" or "bfloat16".
      pretrained: ImageNet weights of a heavy network, as torchvision and timm name them:
        FILE.safetensors, FILE.pth or hf://OWNER/NAME, such as hf://timm/resnet50.tv_in1k.
    """

    name: str = "resnet20"
    shortcut: str = field("A", choices=("A", "B"))
    head: str = field("hierarchical", choices=("hierarchical", "plain", "haframe", "etf", "sphere"))
    center: str = field("free", choices=("free", "mean", "epsilon"))
    epsilon: float = 0.6
    logits: str = field("relative", choices=("relative", "absolute"))
    gamma: float = field(0.0, low=0)
    radius: float = field(2.0, above=0)
    dtype: str = field("float32", choices=("float32", "bfloat16"))
    pretrained: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """The loss L of the classes.

    A haframe head brings its own, β times the cross-entropy and α times the cosine loss with
    β = 1 − α or, where α > 1, β = 1; an etf head brings ½ (cos − 1)².

    Attributes:
      name: "ce", "hxe" or "soft_labels"; "conditional" or "hrn", with a logit of every node.
      alpha: α of hxe, and of a haframe head.
      beta: β of soft_labels.
      label_smoothing: ε of ce: so much of a label belongs to all classes alike.
      class_weights: "none", or "balanced": every class counts alike, however many images it has.
      logit_adjustment: τ; logits + τ log(share of the class in training) are trained on, and the
        logits alone answer (Menon et al. 2021); 0 for none.
    """

    name: str = field("ce", choices=("ce", "hxe", "soft_labels", "conditional", "hrn"))
    alpha: float = field(0.4, low=0)
    beta: float = field(10.0, above=0)
    label_smoothing: float = field(0.0, low=0, below=1)
    class_weights: str = field("none", choices=("none", "balanced"))
    logit_adjustment: float = field(0.0, low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(Checked):
    """How classes are answered.

    Attributes:
      decision: "argmax", or "crm", the class of the lowest expected height; its temperature is
        fitted on half of the images of data.holdout, and the other half gives the scores.
    """

    decision: str = field("argmax", choices=("argmax", "crm"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegConfig(Checked):
    """The regularisers and their weights λ.

    Attributes:
      conv_metric: regulariser of E on the convolutions: a metric, or a name of `REGULARIZERS`.
      fc_metric: of the head: metric of R of a hierarchical one, regulariser of E of a plain one;
        others have none.
      clamp: gradient of the arccos beyond ±0.99: "hard" or "straight_through".
      half_space: E and R_p of the vectors together with their opposites, w and −w.
      lambda_e: λ_e of E.
      rules: in place of E, "PATTERN => REGULARIZER * WEIGHT [@ AXES]; ...": the first that is found
        in a weight's path counts.
      lambda_l: λ_l of R, all levels.
      lambda_o: λ_o of the orthogonality of the centres.
      lambda_c1: λ of the hinge of C1.
      lambda_c2: λ of the hinge of C2.
      lambda_c3: λ of the hinge of C3.
      schedule: factor of E, `rules` and R over the run: "constant", "linear" or "cosine" (1 to 0),
        "warmup" (0 to 1 in the first tenth).
      outer_radius: r^(0) of the constraints.
      pairs: centres that make pairs: "siblings" or "all".
      presence: classes that take part in R: "batch" (those of the mini-batch) or "global".
      parent_ce_weight: weight of the cross-entropy on the inner levels.
    """

    conv_metric: str = "d_am_cos"
    fc_metric: str = "d_am_cos"
    clamp: str = field("hard", choices=("hard", "straight_through"))
    half_space: bool = False
    lambda_e: float = field(0.1, low=0)
    rules: tuple[str, ...] = ()
    lambda_l: float = field(0.1, low=0)
    lambda_o: float = field(1e-4, low=0)
    lambda_c1: float = field(0.0, low=0)
    lambda_c2: float = field(0.0, low=0)
    lambda_c3: float = field(0.0, low=0)
    schedule: str = field("constant", choices=("constant", "linear", "cosine", "warmup"))
    outer_radius: float = field(1.0, above=0)
    pairs: str = field("siblings", choices=("siblings", "all"))
    presence: str = field("batch", choices=("batch", "global"))
    parent_ce_weight: float = field(0.0, low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig(Checked):
    """The processes that train together; where a run runs, not what it is.

    Either `auto`, or `coordinator`, `processes` and `process`, or none of them for one process.

    Attributes:
      auto: the cluster (SLURM, Open MPI, TPU) tells each process the other three.
      coordinator: address and port of process 0, such as "node1:1234".
      processes: how many there are.
      process: which of them this is, counted from 0.
      timeout: seconds to wait for the others at the start.
      heartbeat: seconds after which a process that is silent counts as lost.
    """

    auto: bool = False
    coordinator: str = ""
    processes: int = field(0, low=0, high=2**16)
    process: int = field(-1, low=-1)
    timeout: int = field(60, low=1)
    heartbeat: int = field(20, low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """One experiment.

    Attributes:
      seed: of the initial weights, the order of the images and their augmentation.
      epochs: passes over the training images.
      batch_size: of a step, over all devices.
      eval_batch_size: of an evaluation step.
      eval_every: evaluate every so many epochs; 0 for the end only.
      on_nan: what follows a number that is not finite: "stop", or "rollback" to the last checkpoint
        with half the learning rate.
      checkpoint_every: steps between checkpoints; 0 for the ends of epochs, where there always is
        one.
      init_from: whose weights to begin with: the folder of a run, or FILE.safetensors.
      loggers: where else records go: "csv", "tensorboard", package.module:function; "; " between.
    """

    seed: int = field(0, low=0, high=2**32 - 1)
    epochs: int = field(300, low=1)
    batch_size: int = field(512, low=1)
    eval_batch_size: int = field(500, low=1, high=2**16)
    eval_every: int = field(0, low=0)
    on_nan: str = field("stop", choices=("stop", "rollback"))
    checkpoint_every: int = field(0, low=0)
    init_from: str = ""
    loggers: tuple[str, ...] = ()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    reg: RegConfig = dataclasses.field(default_factory=RegConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


def load(path: str | Path) -> Config:
    """The config that a Python file's `get_config()` returns.

    Raises:
      ValueError: no such file, it cannot be run, or it has no `get_config()`.
      TypeError: `get_config()` returns something else than a `Config`.
    """
    path = Path(path)
    if not path.is_file():
        nearby = sorted(str(file) for file in path.parent.glob("*.py"))
        close = difflib.get_close_matches(str(path), nearby, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"no config file {path}{hint}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:  # whatever the user's own code may raise
        raise ValueError(_reason(path, error)) from error
    if not callable(get_config):
        raise ValueError(f"{path}: expected a function get_config(), found none")
    if not isinstance(config, Config):
        raise TypeError(f"{path}: get_config() must return a Config, found {type(config).__name__}")
    return config


def _reason(path: Path, error: BaseException) -> str:
    """What stopped a config file, and in which line of it."""
    if isinstance(error, SyntaxError):
        where, what = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        what = " ".join(str(error).split())
    line = f", line {where}" if where else ""
    return f"{path}{line}: {type(error).__name__}: {what}"


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
    return replace(config, key.strip(), text.strip())


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, for JSON; `from_dict` is the inverse."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The config of nested plain values; keys that are left out keep their defaults.

    Raises:
      ValueError: no such key (the nearest one is named), or the value has a wrong type or range.
    """
    return make(Config, values)


def makes_another_run(key: str) -> bool:
    """Whether a run with another value of this option is another run; `identity` says it of values.

    >>> makes_another_run("optim.lr"), makes_another_run("distributed.processes")
    (True, False)
    """
    return key not in NOT_IDENTITY and not key.startswith("distributed.")


def identity(config: Config) -> dict[str, Any]:
    """The options that make a run what it is, by their dotted names.

    Data are known by their fingerprint and not by their place, weights by the name of their file.
    Options at their defaults are left out, so a run outlives an option that is added later.

    >>> identity(Config(seed=1, on_nan="rollback", data=DataConfig(data_dir="/data")))
    {'seed': 1}
    """
    defaults = dict(flat(Config()))
    values = {key: value for key, value in flat(config) if makes_another_run(key)}
    for key in ("init_from", "model.pretrained"):
        values[key] = Path(values[key]).name
    return {key: value for key, value in values.items() if value != defaults[key]}


def same_run(saved: Config, given: Config) -> str | None:
    """None if both are configs of one run, else the first option that differs, with both values.

    >>> same_run(Config(), Config(distributed=DistributedConfig(auto=True)))
    >>> same_run(Config(), Config(seed=1, epochs=5))
    'seed is 0 in the saved config, 1 in the given one'
    """
    old, new, defaults = identity(saved), identity(given), dict(flat(Config()))
    for key in defaults:
        before, now = (values.get(key, defaults[key]) for values in (old, new))
        if before != now:
            return f"{key} is {before!r} in the saved config, {now!r} in the given one"
    return None

"""Options that contradict each other, and names that do not exist, before any data is read.

Defaults never contradict. Refused is what was set and could have no effect, or never work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dh2l_jax.checks import unknown_name
from dh2l_jax.data.facts import FACTS
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.published import TAXONOMIES
from dh2l_jax.metrics import get_metric
from dh2l_jax.models import TORCHVISION, create
from dh2l_jax.regularizers import rules
from dh2l_jax.regularizers.params.rules import as_regularizer
from dh2l_jax.regularizers.table import KERNEL, mean_of
from dh2l_jax.training.config.optim import OptimConfig
from dh2l_jax.training.config.options import flat, text_of
from dh2l_jax.training.config.rule_texts import rules_of
from dh2l_jax.training.config.sections import (
    Config,
    DataConfig,
    DistributedConfig,
    RegConfig,
)
from dh2l_jax.training.host.loggers import check_loggers

__all__ = ["refuse_conflicts", "refuse_conflicts_with_tree"]

# Terms of a hierarchical head, and those of them that a tree of one level has not.
TREE_TERMS = ("lambda_l", "lambda_o", "lambda_c1", "lambda_c2", "lambda_c3", "parent_ce_weight")
CONSTRAINTS = ("lambda_c1", "lambda_c2", "lambda_c3")
INNER_TERMS = ("lambda_o", "lambda_c2", "lambda_c3", "parent_ce_weight")

# Heads that bring their own loss, and losses of a head with a logit a node.
OWN_LOSS = ("haframe", "etf")
NODE_LOSSES = ("conditional", "hrn")


def refuse_conflicts(config: Config) -> None:
    """Raises a `ValueError` of one line if options contradict; needs no data.

    Call it once all options are set: half of them, one by one, may contradict.

    >>> from dh2l_jax.training.config.sections import ModelConfig
    >>> refuse_conflicts(Config(model=ModelConfig(name="resnet110")))
    >>> refuse_conflicts(Config(optim=OptimConfig(nesterov=True, momentum=0.0)))
    Traceback (most recent call last):
    ValueError: optim.nesterov=true has no effect without momentum: set optim.momentum > 0
    """
    # A name is refused by what resolves it, and by nothing else; the data set's by its loader.
    for name in _names_of_energy(config):
        as_regularizer(getattr(config.reg, name))
    if config.model.head != "plain":  # R takes pairs of vectors
        get_metric(config.reg.fc_metric)
    create(config.model.name, num_classes=1, shortcut=config.model.shortcut)
    check_loggers(config.loggers)
    for problem in (
        *_network(config),
        *_tree(config),
        *_loss(config),
        *_regularizers(config),
        *_data(config.data),
        *_mixed(config),
        *_optim(config),
        *_processes(config.distributed),
    ):
        raise ValueError(problem)


def refuse_conflicts_with_tree(config: Config, tree: Hierarchy) -> None:
    """Raises a `ValueError` if the data set's tree has not the levels that an option needs."""
    if tree.num_levels > 1:
        return
    for choice in _choices_of_trees(config):
        if choice != "model.head=hierarchical":
            raise ValueError(_needs_tree(choice, config.data.name))
    if config.model.head != "hierarchical":
        return
    for term in _set_terms(config.reg, INNER_TERMS):
        raise ValueError(
            f"reg.{term} needs a tree of two levels or more, {config.data.name} has one: set it to "
            "0, or data.csv or data.tree"
        )
    if config.model.center != "free":
        raise ValueError(
            f"model.center={config.model.center} needs a tree of two levels or more, "
            f"{config.data.name} has one: leave it out, or set data.csv or data.tree"
        )


def _network(config: Config) -> Iterator[str]:
    model = config.model
    if model.name not in TORCHVISION and model.pretrained:
        yield (
            f"{model.name} takes no model.pretrained, found {model.pretrained!r}; networks that "
            f"do: {', '.join(TORCHVISION)}"
        )
    if config.init_from and model.pretrained:
        yield (
            f"init_from and model.pretrained are both weights to begin with, found "
            f"{config.init_from!r} and {model.pretrained!r}: set one of them"
        )
    if model.center != "epsilon" and model.epsilon != type(model).epsilon:
        yield (
            f"model.epsilon={model.epsilon:g} has no effect on the centres {model.center!r}: set "
            "model.center=epsilon too"
        )


def _tree(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    if data.tree not in ("", "flat", *TAXONOMIES):
        yield unknown_name("data.tree", data.tree, ("flat", *TAXONOMIES))
    if model.head != "hierarchical":
        for term in _set_terms(config.reg, TREE_TERMS):
            yield (
                f"reg.{term}={getattr(config.reg, term):g} has no effect on model.head={model.head}"
                ": set it to 0, or model.head=hierarchical"
            )
    if data.tree == "flat" or not (data.tree or _has_tree(data.name)):
        what = "data.tree=flat" if data.tree else data.name
        yield from (_needs_tree(choice, what) for choice in _choices_of_trees(config))


def _choices_of_trees(config: Config) -> Iterator[str]:
    """What only means something on a tree of two levels or more."""
    if config.model.head in ("hierarchical", "haframe", "sphere"):
        yield f"model.head={config.model.head}"
    if config.loss.name != "ce":
        yield f"loss.name={config.loss.name}"
    if config.eval.decision == "crm":
        yield "eval.decision=crm"


def _needs_tree(choice: str, what: str) -> str:
    key = choice.partition("=")[0]
    other = {"model.head": "plain", "loss.name": "ce", "eval.decision": "argmax"}[key]
    return (
        f"{choice} needs a tree of two levels or more, {what} has one: set {key}={other}, or "
        "another data.tree"
    )


def _loss(config: Config) -> Iterator[str]:
    loss, head = config.loss, config.model.head
    if head in OWN_LOSS and loss.name != "ce":
        yield f"model.head={head} brings its own loss: leave out loss.name, found {loss.name}"
    if loss.name in NODE_LOSSES and head != "plain":
        yield (
            f"loss.name={loss.name} needs a logit of every node: set model.head=plain, found {head}"
        )
    if config.eval.decision == "crm" and not config.data.holdout:
        yield (
            "eval.decision=crm needs images on which to fit the temperature of its probabilities: "
            "set data.holdout"
        )
    yield from _long_tail(config)
    defaults = dict(flat(Config()))
    uses = {
        "loss.alpha": (loss.name == "hxe" or head == "haframe", "loss.name=hxe"),
        "loss.label_smoothing": (
            head not in OWN_LOSS and loss.name == "ce",
            "a head whose loss is loss.name=ce",
        ),
        "loss.class_weights": (head not in OWN_LOSS, "a head whose loss is loss.name"),
        "loss.logit_adjustment": (
            head not in OWN_LOSS and loss.name not in NODE_LOSSES,
            "a soft-max over the classes",
        ),
        "loss.beta": (loss.name == "soft_labels", "loss.name=soft_labels"),
        "model.gamma": (head in ("haframe", "sphere"), "model.head=haframe or sphere"),
        "model.radius": (head == "sphere", "model.head=sphere"),
        "reg.fc_metric": (head in ("hierarchical", "plain"), "model.head=hierarchical or plain"),
    }
    for key, value in flat(config):
        used, needed = uses.get(key, (True, ""))
        if not used and value != defaults[key]:
            yield f"{key}={value} has no effect without {needed}: leave it out, or set that too"


def _long_tail(config: Config) -> Iterator[str]:
    """Two of the ways to level classes would level them twice."""
    loss, found = config.loss, []
    if config.data.sampling != "uniform":
        found.append(f"data.sampling={config.data.sampling}")
    if loss.class_weights != "none":
        found.append(f"loss.class_weights={loss.class_weights}")
    if loss.logit_adjustment:
        found.append(f"loss.logit_adjustment={loss.logit_adjustment:g}")
    if len(found) > 1:
        yield f"{' and '.join(found)} make up for rare classes twice: set one of them"


def _regularizers(config: Config) -> Iterator[str]:
    reg = config.reg
    if reg.rules:
        rules(rules_of(reg.rules))
        for term in _set_terms(reg, ("lambda_e",)):
            yield f"reg.rules stand in place of E: leave out reg.{term}, found {reg.lambda_e:g}"
        for name in _names_of_energy(config):
            if getattr(reg, name) != getattr(type(reg), name):
                yield (
                    f"reg.{name} has no effect on reg.rules, which name their own, found "
                    f"{getattr(reg, name)}: leave it out"
                )
    for name in _names_of_energy(config):
        given = as_regularizer(getattr(reg, name))
        if reg.half_space and not mean_of(given):
            yield (
                f"reg.half_space has no effect on reg.{name}={given.name}, which is no mean over "
                "pairs: leave it out"
            )
        if name == "fc_metric" and given.row.looks_at == KERNEL:
            yield f"reg.fc_metric={given.name} looks at convolutions, and the head is none"
    weights = (getattr(reg, name) for name in ("lambda_e", "lambda_l", *CONSTRAINTS))
    if reg.schedule != "constant" and not (reg.rules or any(weights)):
        yield (
            f"reg.schedule={reg.schedule} has no effect where E and R have no weight: leave it "
            "out, or set reg.lambda_e, reg.lambda_l or reg.rules"
        )


def _names_of_energy(config: Config) -> tuple[str, ...]:
    """The options that name the regularisers of E."""
    return ("conv_metric", "fc_metric") if config.model.head == "plain" else ("conv_metric",)


def _has_tree(name: str) -> bool:
    """Whether the data set brings a tree; that of own images is known once they are read."""
    return name not in FACTS or bool(FACTS[name].tree)


def _set_terms(reg: RegConfig, terms: tuple[str, ...]) -> Iterator[str]:
    """The terms that have a weight, and not that of the defaults."""
    for term in terms:
        weight = getattr(reg, term)
        if weight and weight != getattr(type(reg), term):
            yield term


def _data(data: DataConfig) -> Iterator[str]:
    if data.csv and data.tree not in ("", "flat"):
        yield (
            f"data.csv and data.tree are both a tree, found {data.csv!r} and {data.tree!r}: set "
            "one of them"
        )
    if data.resize and data.crop > data.resize:
        yield (
            f"data.crop must be at most data.resize, {data.resize}, found {data.crop}: set "
            "data.resize to the crop's side or more"
        )


def _mixed(config: Config) -> Iterator[str]:
    for name in ("mixup", "cutmix"):
        if getattr(config.data, name) and config.batch_size < 2:
            yield f"data.{name} mixes the images of a batch: set batch_size=2 or more"


def _optim(config: Config) -> Iterator[str]:
    optim = config.optim
    if optim.schedule != "step":
        yield from _without_effect(optim, ("milestones", "decay"), "schedule", "step")
    if optim.name != "sgd":
        yield from _without_effect(optim, ("momentum", "nesterov"), "name", "sgd")
    if optim.head_rate != 1 and config.model.head in OWN_LOSS:
        yield (
            f"optim.head_rate={optim.head_rate:g} has no effect on model.head={config.model.head}, "
            "which is not trained: leave it out"
        )
    for pattern in optim.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"optim.freeze: {pattern!r} is no regular expression: {error}"
    if list(optim.milestones) != sorted(set(optim.milestones)):
        yield f"optim.milestones must ascend, found {optim.milestones}"
    if optim.nesterov and not optim.momentum:
        yield "optim.nesterov=true has no effect without momentum: set optim.momentum > 0"
    if optim.warmup_epochs > config.epochs:
        yield (
            f"optim.warmup_epochs must be at most the {config.epochs} epochs, found "
            f"{optim.warmup_epochs:g}: the learning rate would never be reached"
        )


def _without_effect(
    optim: OptimConfig, names: tuple[str, ...], key: str, needed: str
) -> Iterator[str]:
    """Options that mean nothing unless another has the value that they need."""
    for name in names:
        if getattr(optim, name) != getattr(type(optim), name):
            yield (
                f"optim.{name} has no effect on optim.{key}={getattr(optim, key)}, found "
                f"{text_of(getattr(optim, name))}: leave it out, or set optim.{key}={needed}"
            )


def _processes(where: DistributedConfig) -> Iterator[str]:
    given = {
        "distributed.coordinator": bool(where.coordinator),
        "distributed.processes": where.processes > 0,
        "distributed.process": where.process >= 0,
    }
    if where.auto and any(given.values()):
        name = next(name for name, is_set in given.items() if is_set)
        yield f"distributed.auto finds the processes by itself: leave out {name}"
    elif any(given.values()) and not all(given.values()):
        name = next(name for name, is_set in given.items() if not is_set)
        yield f"{', '.join(given)} come together: set {name} too, or distributed.auto=true"
    elif all(given.values()) and where.process >= where.processes:
        yield (
            f"distributed.process must be below the {where.processes} processes, found "
            f"{where.process}: they are counted from 0"
        )
    _, colon, port = where.coordinator.rpartition(":")
    if where.coordinator and not (colon and port.isascii() and port.isdigit()):
        yield f"distributed.coordinator must be ADDRESS:PORT, found {where.coordinator!r}"

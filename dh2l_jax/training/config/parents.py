"""What a run begins with, `init_from`: the last state of another run, or a file of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dh2l_jax.checks import one_line
from dh2l_jax.files import read_plain
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models.weights import read_metadata, read_weights, start_from
from dh2l_jax.regularizers.params.leaves import named
from dh2l_jax.training.config.origins import read_origins
from dh2l_jax.training.config.sections import Config
from dh2l_jax.training.run import checkpoint, manifest
from dh2l_jax.training.run.facts import read_facts

__all__ = ["Parent", "line_on", "read_parent", "weights_for"]

# Options that a head's numbers mean nothing without.
HEAD_OPTIONS = ("head", "center", "epsilon", "logits", "gamma", "radius")

# Variables → those that begin, and whether the numbers of the head are the parent's.
Load = Callable[[Any], tuple[Any, bool]]


class Parent(NamedTuple):
    """Weights that are read, and what is known of them.

    Attributes:
      tensors: path of a variable → array.
      classes: for each class the names from the root's child down to it; None if nobody knows.
      head: the options of its head and the name of its loss, as `_head` gives them.
      about: what `origin.json` says of it.
    """

    tensors: Mapping[str, np.ndarray]
    classes: list[list[str]] | None
    head: tuple[Any, ...]
    about: dict[str, Any]


def read_parent(source: str) -> Parent:
    """The newest intact state of the run in a folder, or what a file of weights holds.

    Raises:
      ValueError: neither, or something of it is damaged.
      OSError: it cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(
            f"init_from={one_line(source)}: expected the folder of a run, or FILE.safetensors; "
            "there is nothing of this name"
        )
    about: dict[str, Any] = {"name": source, "file": str(path.absolute())}
    if path.is_dir():
        facts = read_facts(path)
        state = checkpoint.read_state(path)
        step = int(state["step"])
        listed = read_plain(path / checkpoint.LAST / str(step) / manifest.NAME)
        about |= {"step": step, "sha256": hashlib.sha256(listed).hexdigest()}
        if "init_from" in (known := read_origins(path)):
            about["parent"] = known["init_from"]
        best = state.get("ema") or state  # the means are what a run with `optim.ema` is judged by
        variables = {key: best.get(key) or {} for key in ("params", "batch_stats")}
        return Parent(dict(named(variables)), _classes(facts.tree), _head(facts.config), about)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"init_from={one_line(source)}: expected the folder of a run, or FILE.safetensors"
        )
    metadata = read_metadata(path)
    about["sha256"] = hashlib.sha256(read_plain(path)).hexdigest()
    plain = ("plain",) if metadata.get("head") else ()
    return Parent(read_weights(path), metadata.get("tree"), plain, about)


def weights_for(parent: Parent, config: Config, tree: Hierarchy) -> Load:
    """A function of the variables of a new run; its head is the parent's if classes are the same.

    The function raises a `ValueError` if the parent is another network.
    """
    head = _head(config)
    same = parent.classes == _classes(tree) and parent.head in (head, head[:1])

    def load(variables: Any) -> tuple[Any, bool]:
        try:
            return start_from(parent.tensors, variables, same_classes=same)
        except ValueError as error:
            raise ValueError(f"init_from={one_line(config.init_from)}: {error}") from None

    return load


def line_on(about: Mapping[str, Any]) -> str:
    """What a run says of its beginning."""
    step = f" after step {about['step']:,}" if "step" in about else ""
    head = "with the head" if about["head"] == "taken" else "the head anew"
    return f"begins with the weights of {about['name']}{step}, {head}"


def _head(config: Config) -> tuple[Any, ...]:
    model = config.model
    if model.head == "plain":
        kind = config.loss.name if config.loss.name in ("conditional", "hrn") else "plain"
        return (kind,)
    return (*(getattr(model, option) for option in HEAD_OPTIONS), config.reg.parent_ce_weight > 0)


def _classes(tree: Hierarchy) -> list[list[str]]:
    return [list(path) for path in tree.node_paths()[: tree.num_classes]]

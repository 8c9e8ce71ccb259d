"""Answers of a run for new pictures, as deep as they are sure; no training image is needed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.data.batches.placement import place
from dh2l_jax.data.store.pictures import Picture, Sight, seen
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn.decoding import answer, crm, log_probs, threshold_for
from dh2l_jax.models import Network
from dh2l_jax.training.config.origins import tell_where_parts_were
from dh2l_jax.training.experiment import without_data
from dh2l_jax.training.finished.certainty import Certainty, certainty_of
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.checkpoint import CheckpointError
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.facts import RunFacts, read_facts
from dh2l_jax.training.run.folder import is_finished

__all__ = ["DECISIONS", "Prediction", "Predictor", "Unreadable"]

DECISIONS = ("argmax", "crm")
BATCH_BYTES = 2**24  # of pixels: 5,461 images of 32 × 32, 111 of 224 × 224
LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says of a picture.

    Attributes:
      path: of the file; None for an array.
      answer: name of the node, see `Hierarchy.unique_names`; "" for the root: nothing is sure.
      level: of the answer, 0 for the root.
      probability: of the answer, 1 for the root.
      levels: (name, probability) at levels 1, 2, … on the way through the answer down to a class.
      best: (name, probability) of the most probable classes.
    """

    path: str | None
    answer: str
    level: int
    probability: float
    levels: tuple[tuple[str, float], ...] = dataclasses.field(repr=False)
    best: tuple[tuple[str, float], ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A picture that can't be used, and why."""

    path: str | None
    reason: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A run that answers: `Predictor.load(run)(pictures)`.

    Attributes:
      facts: of the run.
      network: without its weights.
      variables: its weights, on the devices.
      decision: without a threshold, the class of the highest probability, "argmax", or of the least
        risk, "crm".
    """

    facts: RunFacts
    network: Network
    variables: Any
    decision: str

    @classmethod
    def load(
        cls, run: str | Path, *, decision: str | None = None, print_line: PrintLine | None = None
    ) -> Predictor:
        """The last state of a run; of its folder alone, its images may be elsewhere.

        Args:
          decision: None for that of the run.
          print_line: told of a run that is not finished, or whose probabilities nothing calibrates.

        Raises:
          ValueError: the folder holds no run, a file is damaged, or the decision needs a
            temperature, and the run has held no images out to fit it on.
          OSError: a file cannot be read.
        """
        facts = read_facts(Path(run))
        decision = decision or facts.config.eval.decision
        if decision not in DECISIONS:
            raise ValueError(f"expected a decision of {' or '.join(DECISIONS)}, found {decision!r}")
        with tell_where_parts_were(facts.workdir):
            network, like = without_data(facts.config, facts.data)
        state = checkpoint.restore(facts.workdir, like, print_line=print_line).state
        finished = is_finished(facts.workdir)
        if finished and state.step != facts.result["steps"]:
            raise CheckpointError(
                f"the result of {facts.workdir} is of step {facts.result['steps']}, its newest "
                f"intact checkpoint of step {state.step}"
            )
        if print_line and not finished:
            print_line(f"the run is not finished: the weights are those after step {state.step}")
        predictor = cls(facts, network, state.variables, decision)
        try:
            _ = predictor.certainty
        except ValueError as error:
            if decision == "crm":
                raise
            if print_line:
                print_line(f"probabilities are those of the bare logits: {error}")
        return predictor

    def __repr__(self) -> str:
        height, width, channels = self.facts.size
        return (
            f"Predictor({str(self.facts.workdir)!r}: {self.facts.config.model.name}, "
            f"{height} × {width} × {channels} → {self.facts.tree})"
        )

    @functools.cached_property
    def certainty(self) -> Certainty:
        """The temperature, and what thresholds are chosen on; see `certainty_of`."""
        return certainty_of(self.facts)

    @property
    def temperature(self) -> float:
        """What logits are divided by: 1 where no validation images say it."""
        try:
            return self.certainty.temperature
        except ValueError:
            return 1.0

    def threshold_for(self, accuracy: float, delta: float = 0.05) -> float:
        """The threshold at which answers are right that often, with probability 1 − δ.

        It is chosen on the validation images of the run that are labelled at classes, and holds for
        new pictures of the same kind; see `hierarchy.decoding.threshold_for`.

        Raises:
          ValueError: the run has none, or a share is not in (0, 1).
        """
        certainty, tree = self.certainty, self.facts.tree
        return threshold_for(certainty.logits, certainty.labels, tree, accuracy, delta)

    def __call__(
        self,
        pictures: Picture | Iterable[Picture],
        threshold: float | None = None,
        *,
        best: int = 5,
    ) -> list[Prediction]:
        """The answers, in the order of the pictures.

        Args:
          pictures: paths of files; arrays (h, w), (h, w, 1) or (h, w, 3), uint8 or floats in 0..1;
            one array (n, h, w, c); or one path.
          threshold: answers go only as deep as their probability is at least this; None for classes
            by `decision`.
          best: how many of the most probable classes each prediction has.

        Raises:
          ValueError: a picture can't be used; its name or number is in the line.
        """
        found = []
        for number, told in enumerate(self.stream(_several(pictures), threshold, best=best)):
            if isinstance(told, Unreadable):
                raise ValueError(f"{told.path or f'picture {number}'}: {told.reason}")
            found.append(told)
        return found

    def stream(
        self, pictures: Iterable[Picture], threshold: float | None = None, *, best: int = 5
    ) -> Iterator[Prediction | Unreadable]:
        """One after another, for more pictures than memory holds; some may be unreadable.

        Others are decoded meanwhile, and no more than a few batches of them wait.

        Raises:
          FloatingPointError: the network gives NaN.
        """
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, found {threshold}")
        if best < 0:
            raise ValueError(f"best must be at least 0, found {best}")
        before, size = None, self._batch
        ready = seen(pictures, self.sight, ahead=size)
        while chunk := list(itertools.islice(ready, size)):
            crops = [pixels for _, pixels in chunk if not isinstance(pixels, str)]
            sent = chunk, self._send(crops, threshold, best)
            if before:
                yield from self._told(*before)
            before = sent
        if before:
            yield from self._told(*before)

    @functools.cached_property
    def sight(self) -> Sight:
        """How a picture becomes what the network sees."""
        data, (*size, channels) = self.facts.config.data, self.facts.size
        return Sight((size[0], size[1]), channels, data.resize, data.crop > 0, data.background)

    @functools.cached_property
    def _over_devices(self) -> NamedSharding:
        mesh = jax.tree.leaves(self.variables)[0].sharding.mesh
        return NamedSharding(mesh, PartitionSpec("data"))

    @property
    def _batch(self) -> int:
        devices = self._over_devices.num_devices
        size = min(BATCH_BYTES // int(np.prod(self.facts.size)), LARGEST_BATCH)
        return max(size // devices, 1) * devices

    def _send(self, crops: list[np.ndarray], threshold: float | None, best: int) -> Any:
        """What the device makes of a batch, ready or not; None of an empty one."""
        if not crops:
            return None
        devices = self._over_devices.num_devices
        # A power of two for few pictures, so that there are few programs.
        rows = min(-(-(1 << (len(crops) - 1).bit_length()) // devices) * devices, self._batch)
        pixels = np.zeros((rows, *self.facts.size), np.uint8)
        np.stack(crops, out=pixels[: len(crops)])
        best = min(best, self.facts.tree.num_classes)
        scale = self.facts.mean, self.facts.std, np.float32(self.temperature)
        limit = None if threshold is None else np.float32(threshold)
        pixels = place(pixels, self._over_devices)
        static = self.network, self.facts.tree, self.decision, best
        return _answers(*static, self.variables, pixels, scale, limit)

    def _told(self, chunk: list[Any], sent: Any) -> Iterator[Prediction | Unreadable]:
        rows = zip(*jax.device_get(sent), strict=True) if sent else iter(())
        names, depths = self._names
        for picture, pixels in chunk:
            path = os.fspath(picture) if isinstance(picture, str | os.PathLike) else None
            if isinstance(pixels, str):
                yield Unreadable(path, pixels)
                continue
            node, P, way, P_way, classes, P_classes = next(rows)
            if np.isnan(P):
                raise FloatingPointError(f"the network gives NaN for {path or 'an array'}")
            deep = depths[way[-1]]
            yield Prediction(
                path,
                names[node],
                int(depths[node]),
                float(P),
                tuple((names[n], float(p)) for n, p in zip(way[:deep], P_way, strict=False)),
                tuple((names[n], float(p)) for n, p in zip(classes, P_classes, strict=True)),
            )

    @functools.cached_property
    def _names(self) -> tuple[tuple[str, ...], np.ndarray]:
        return self.facts.tree.unique_names(), self.facts.tree.node_depths()


def _several(pictures: Any) -> Iterable[Picture]:
    """The pictures of what may be one path, or one array of all."""
    if isinstance(pictures, str | os.PathLike):
        return [pictures]
    if hasattr(pictures, "ndim") and pictures.ndim != 4:
        raise ValueError(
            f"expected an array of images (n, h, w, c), or a list of them, found one of shape "
            f"{pictures.shape}"
        )
    return np.asarray(pictures) if hasattr(pictures, "ndim") else pictures


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _answers(
    network: Network,
    tree: Hierarchy,
    decision: str,
    best: int,
    variables: Any,
    pixels: jax.Array,
    scale: tuple[Any, Any, Any],
    threshold: Any,
) -> tuple[jax.Array, ...]:
    """Answers (b,) and their P; the nodes (b, L) on their way and their P; best classes (b, k)."""
    mean, std, temperature = scale
    logits: Any = network.apply(variables, normalize(pixels, mean, std), train=False)
    logits = logits.astype(jnp.float32)
    # XLA may divide twice and not alike: the highest is 0 in both, where large ones would differ.
    z = (logits - jnp.max(logits, axis=1, keepdims=True)) / temperature
    if threshold is None:
        node = classes = crm(z, tree) if decision == "crm" else jnp.argmax(z, axis=1)
    else:
        node, classes = (answer(z, tree, limit)[0] for limit in (threshold, 0.0))
    p = jnp.minimum(jnp.exp(log_probs(z, tree)), 1)
    way = jnp.asarray(tree.ancestor_nodes()).T[classes]
    P, P_way = (jnp.take_along_axis(p, nodes, axis=1) for nodes in (node[:, None], way))
    P_best, found = jax.lax.top_k(p[:, : tree.num_classes], best)
    return node, P[:, 0], way, P_way, found, P_best

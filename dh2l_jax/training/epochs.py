"""The epochs of a run: what sends the steps, and what looks at their results a step later."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.data.batches.feed import Feed
from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.data.batches.placement import place
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.scores import Tally, summarize
from dh2l_jax.training.config import Config
from dh2l_jax.training.experiment import Experiment
from dh2l_jax.training.host.processes import flags, several
from dh2l_jax.training.host.profiling import Step
from dh2l_jax.training.host.signals import Stop
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.console import Log
from dh2l_jax.training.run.folder import METRICS
from dh2l_jax.training.run.records import append_record
from dh2l_jax.training.step.finite import check_finite
from dh2l_jax.training.step.state import TrainState
from dh2l_jax.training.step.steps import MAX_CONFUSION, make_eval_step

__all__ = ["Epochs", "Evaluator", "Progress", "keep_better", "make_evaluator"]

T = TypeVar("T")

_copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A function state → scores, on what a feed evaluates; `send` and `scores` are its halves.

    Attributes:
      experiment: of the states.
      feed: of its test part.
    """

    experiment: Experiment
    feed: Feed

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """The scores; the host waits for them."""
        return self.scores(last(one_late(self.send(state))))

    def __len__(self) -> int:
        """Number of steps of an evaluation."""
        return -(-len(self.feed) // self.experiment.config.eval_batch_size)

    def send(self, state: TrainState) -> Iterator[Tally]:
        """Sends a step for each tally so far that is taken; the last is that of all images."""
        tree, size = self.experiment.dataset.hierarchy, self.experiment.config.eval_batch_size
        return tallies(self._step, state, self.feed, tree, size)

    def scores(self, total: Tally) -> dict[str, Any]:
        """What `evaluation.summarize` makes of a tally, with the name of the split."""
        tree = self.experiment.dataset.hierarchy
        nodes = [tree.size(level) for level in range(1, tree.num_levels + 1)]
        return {"split": self.experiment.split, "nodes": nodes, **summarize(total, tree)}

    @functools.cached_property
    def _step(self):
        return make_eval_step(self.experiment.model, self.experiment.dataset, self.feed)


@dataclasses.dataclass
class Progress:
    """What a run remembers besides its state, as JSON values: every checkpoint holds it.

    Attributes:
      history: the terms of each step of the epoch under way.
      last_epoch: means of the last epoch that has ended.
      best: the best evaluation so far, where images are held out.
      rate: factor of the schedule's learning rate, that of the state.
      rollbacks: from which step to which each roll-back went, and why.
    """

    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    last_epoch: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Sent(NamedTuple):
    """What the device has been sent, ready or not.

    Attributes:
      result: of a training step, or the tally so far of an evaluation; None where the run stops.
      state: after the step, where it has to be kept.
    """

    result: Any
    state: Any = None


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The epochs of a run.

    Nothing here waits for the newest step: a step is looked at when the next one, or the first one
    of an evaluation, has been sent.

    Attributes:
      experiment: what to train.
      feed: of training.
      evaluator: scores the epochs that `eval_every` names, but the last.
      step: the train step.
      workdir: of the run.
      log: of the run.
      stop: whether to stop early.
    """

    experiment: Experiment
    feed: Feed
    evaluator: Evaluator
    step: Step
    workdir: Path
    log: Log
    stop: Stop

    def __call__(self, state: TrainState, progress: Progress) -> TrainState:
        """The last state. Every epoch ends with a line in metrics.jsonl and a checkpoint.

        Args:
          state: after so many steps; used up.
          progress: up to that step; goes on with it.

        Raises:
          NotFiniteError: a step gave NaN or ±∞; nothing of it is saved.
          Stopped: a signal asked for it; the state is saved.
          OSError: something cannot be written.
        """
        config, number = self.experiment.config, int(state.step)
        ready = one_late(self._send(state, number))
        self.log.start(number)
        for epoch in range(number // self.experiment.steps_per_epoch + 1, config.epochs + 1):
            del state  # a copy of the last epoch's, and large
            state = self._epoch(epoch, ready, progress)
        return state

    def _epoch(self, epoch: int, ready: Iterator[Sent], progress: Progress) -> TrainState:
        """One epoch, or what is left of it, and its evaluation; the state at its end."""
        config, step = self.experiment.config, epoch * self.experiment.steps_per_epoch
        # Asked for before the steps are sent: later it would have to wait for them.
        rate, begin, before = self._rate(step, progress), time.perf_counter(), len(progress.history)
        state = self._steps(epoch, ready, progress)
        images = (len(progress.history) - before) * config.batch_size
        speed = round(images / (time.perf_counter() - begin), 1)
        progress.last_epoch = _means(progress.history, config.batch_size)
        progress.history = []
        record = {"epoch": epoch, "step": step, **progress.last_epoch, "lr": rate}
        record["images_per_second"] = speed
        if _evaluated(epoch, config):
            tally = last(itertools.islice(ready, len(self.evaluator))).result
            scores = self.evaluator.scores(tally)
            record |= {k: v for k, v in scores.items() if not k.startswith("confusion")}
            if self.experiment.split == "validation":
                progress.best = keep_better(self.workdir, state, epoch, scores, progress.best)
        with checkpoint.tell_what_is_kept(self.workdir):
            append_record(self.workdir / METRICS, record)
        self.log.epoch(record, config.epochs)
        self._save(state, progress)
        if self.stop.agreed:
            raise self.stop.stopped(step)
        return state

    def _steps(self, epoch: int, ready: Iterator[Sent], progress: Progress) -> TrainState:
        """Looks at the steps that are left of an epoch; the state after them."""
        end = epoch * self.experiment.steps_per_epoch
        number = end - self.experiment.steps_per_epoch + len(progress.history)
        while True:
            result, state = next(ready)
            if result is None:
                self._save(state, progress)
                raise self.stop.stopped(number)
            number += 1
            stepped = jax.device_get(result)
            rate_of = functools.partial(self._rate, progress=progress)
            check_finite(number, stepped.terms, stepped.finite, rate_of)
            progress.history.append({name: v.item() for name, v in stepped.terms.items()})
            self.stop.agreed |= bool(self.stop.signal if stepped.stop is None else stepped.stop)
            self.log.step(epoch)
            if number == end:
                return state
            if state is not None:
                self._save(state, progress)

    def _send(self, state: TrainState, number: int) -> Iterator[Sent]:
        """Sends a step for each item that is taken: of training, and of evaluations between."""
        config, steps = self.experiment.config, self.experiment.steps_per_epoch
        # Copied: the state is donated to the first step.
        key = jax.random.wrap_key_data(state.key.copy())
        asked = flags(self.experiment.mesh) if several() else None
        start, first = number, number // steps + 1
        if any(_evaluated(epoch, config) for epoch in range(first, config.epochs)):
            # Compiled now: later, the end of an epoch would have to wait for it to be noticed.
            next(self.evaluator.send(state))

        def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
            order = epoch_order(config.seed, epoch - 1, len(self.feed))
            begin = max(start, (epoch - 1) * steps)
            return self.feed.training(key, order, begin, epoch * steps - begin)

        # Order and plan of an epoch are sent an epoch ahead, so they are there when its turn comes.
        feedings = ahead(map(batches, range(first, config.epochs + 1)))
        for epoch, feeding in enumerate(feedings, first):
            for batch in feeding:
                number += 1
                asks = asked(self.stop.signal is not None) if asked else None
                state, stepped = self.step(number, state, *batch, stop=asks)
                yield Sent(stepped, _copy(state) if self._kept(number) else None)
                if self.stop.agreed and number % steps:
                    yield Sent(None, state)
                    return
            if _evaluated(epoch, config):
                yield from map(Sent, self.evaluator.send(state))

    def _kept(self, number: int) -> bool:
        """Whether a checkpoint follows the step."""
        every = self.experiment.config.checkpoint_every
        return number % self.experiment.steps_per_epoch == 0 or bool(every and number % every == 0)

    def _rate(self, number: int, progress: Progress) -> float:
        """The learning rate of a step, counted from 1."""
        return np.asarray(self.experiment.schedule(number - 1)).item() * progress.rate

    def _save(self, state: TrainState, progress: Progress) -> None:
        checkpoint.save(self.workdir, state, dataclasses.asdict(progress))


def keep_better(
    workdir: Path, state: TrainState, epoch: int, scores: dict[str, Any], best: dict[str, Any]
) -> dict[str, Any]:
    """Saves the state if its accuracy on the classes is the highest so far; returns the best."""
    if best and scores["accuracy"][-1] <= best["accuracy"][-1]:
        return best
    checkpoint.save(workdir, state, folder=checkpoint.BEST, keep=2)
    return {"epoch": epoch, "accuracy": scores["accuracy"]}


def _evaluated(epoch: int, config: Config) -> bool:
    """Whether the epoch is followed by an evaluation; the last one's belongs to the result."""
    return bool(config.eval_every) and epoch % config.eval_every == 0 and epoch < config.epochs


def _means(history: list[dict[str, float]], batch_size: int) -> dict[str, float]:
    """Means over the steps of an epoch; the hits become the accuracy in training."""
    means = {name: float(np.mean([terms[name] for terms in history])) for name in history[0]}
    means["train_accuracy"] = means.pop("hits") / batch_size
    return means


def tallies(
    eval_step: Callable, state: TrainState, feed: Feed, hierarchy: Hierarchy, batch_size: int
) -> Iterator[Tally]:
    """The tally so far after each batch; every image counts once. Taking one sends a step."""
    zero = Tally.zero(hierarchy, confusion=hierarchy.num_classes <= MAX_CONFUSION)
    # Placed as every later total is: another placement would compile the step twice.
    total = place(zero, feed.replicated)
    for batch, where in feed.evaluation(batch_size):
        total = eval_step(state, total, where, *batch)
        yield total


def one_late(sent: Iterable[T]) -> Iterator[T]:
    """Each item once its arrays are ready, and not before the next one has been taken.

    Where taking an item sends a step, the device always has a step to do while the host looks at
    the results of the one before, and the host is never further ahead than that.

    >>> sent = (print(f"sent {step}") or step for step in range(3))
    >>> for step in one_late(sent):
    ...     print(f"looked at {step}")
    sent 0
    sent 1
    looked at 0
    sent 2
    looked at 1
    looked at 2
    """
    return map(jax.block_until_ready, ahead(sent))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Each item, but not before the next one has been taken."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def last(items: Iterable[T]) -> T:
    """The last of at least one item; the others are let go."""
    return collections.deque(items, maxlen=1).pop()


def make_evaluator(experiment: Experiment, feed: Feed | None = None) -> Evaluator:
    """A function state → scores, on the test images or on those held out for validation."""
    return Evaluator(experiment, feed or experiment.feeds()[1])

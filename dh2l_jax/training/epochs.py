"""The epochs of a run: what sends the steps, and what looks at their results a step later.

Two generators work hand in hand. `Epochs._send` sends the steps of training and of the evaluations
between, in order, one for each item that is taken; `Epochs._epoch` takes the items through
`look_one_step_behind`. So the device always has a step to do, and the host never looks at the
newest one: to wait for it would leave the device idle while the host thinks.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.data.batches.feed import Feed
from dh2l_jax.data.batches.order import drawn_order
from dh2l_jax.data.batches.placement import place
from dh2l_jax.data.store.images import thumbnails
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.hierarchy.learn.decoding import crm_risk
from dh2l_jax.hierarchy.learn.decoding import temperature as fitted_temperature
from dh2l_jax.hierarchy.scores import Counts, summarize
from dh2l_jax.training.config import Config
from dh2l_jax.training.experiment import Experiment
from dh2l_jax.training.host.processes import flags, several
from dh2l_jax.training.host.profiling import Step
from dh2l_jax.training.host.signals import Stop
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.console import Log
from dh2l_jax.training.run.facts import Outputs, gravest
from dh2l_jax.training.run.folder import METRICS
from dh2l_jax.training.run.records import append_record
from dh2l_jax.training.step.finite import check_finite
from dh2l_jax.training.step.state import TrainState
from dh2l_jax.training.step.steps import MAX_CONFUSION, make_eval_step, make_logits_step

__all__ = ["Epochs", "Evaluator", "Progress", "keep_better", "make_evaluator"]

T = TypeVar("T")

_copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))


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


class Pending(NamedTuple):
    """A step that the device has been sent, ready or not.

    Attributes:
      result: a `StepResult`, or an `Evaluation` so far; None where the run stops.
      state: after the step, where it has to be kept.
    """

    result: Any
    state: Any = None


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The epochs of a run: (state, progress) → the last state.

    Attributes:
      feed: of training.
      evaluator: scores the epochs that `eval_every` names, but the last.
      step: the train step.
    """

    experiment: Experiment
    feed: Feed
    evaluator: Evaluator
    step: Step
    workdir: Path
    log: Log
    stop: Stop

    def __call__(self, state: TrainState, progress: Progress) -> TrainState:
        """The last state; the first one is used up, and the progress goes on.

        Every epoch ends with a line in metrics.jsonl and a checkpoint.

        Raises:
          NotFiniteError: a step gave NaN or ±∞; nothing of it is saved.
          Stopped: a signal asked for it; the state is saved.
          OSError: something cannot be written.
        """
        config, number = self.experiment.config, int(state.step)
        ready = look_one_step_behind(self._send(state, number))
        self.log.start(number)
        for epoch in range(number // self.experiment.steps_per_epoch + 1, config.epochs + 1):
            del state  # the copy from the epoch before is large
            state = self._epoch(epoch, ready, progress)
        return state

    def _epoch(self, epoch: int, ready: Iterator[Pending], progress: Progress) -> TrainState:
        """One epoch, or what is left of it, and its evaluation; the state at its end."""
        config, step = self.experiment.config, epoch * self.experiment.steps_per_epoch
        # The learning rate is asked for before the steps are sent: later it would wait for them.
        rate, begin, before = self._rate(step, progress), time.perf_counter(), len(progress.history)
        state = self._steps(epoch, ready, progress)
        images = (len(progress.history) - before) * config.batch_size
        speed = round(images / (time.perf_counter() - begin), 1)
        progress.last_epoch = _means(progress.history, config.batch_size)
        progress.history = []
        record = {"epoch": epoch, "step": step, **progress.last_epoch, "lr": rate}
        record["images_per_second"] = speed
        if _evaluated(epoch, config):
            evaluation = last_item(itertools.islice(ready, len(self.evaluator))).result
            scores = self.evaluator.scores(evaluation)
            record |= {k: v for k, v in scores.items() if not k.startswith("confusion")}
            if self.experiment.split == "validation":
                data, best = self.experiment.data_record, progress.best
                progress.best = keep_better(self.workdir, state, epoch, scores, best, data)
        with checkpoint.tell_what_is_kept(self.workdir):
            append_record(self.workdir / METRICS, record)
        self.log.epoch(record, config.epochs)
        self._save(state, progress)
        if self.stop.agreed:
            raise self.stop.stopped(step)
        return state

    def _steps(self, epoch: int, ready: Iterator[Pending], progress: Progress) -> TrainState:
        """Looks at the steps that are left of an epoch; the state after them."""
        end = epoch * self.experiment.steps_per_epoch
        number = end - self.experiment.steps_per_epoch + len(progress.history)
        rate_of = functools.partial(self._rate, progress=progress)
        while True:
            pending, state = next(ready)
            if pending is None:
                self._save(state, progress)
                raise self.stop.stopped(number)
            number += 1
            result = jax.device_get(pending)
            check_finite(number, result.terms, result.finite, rate_of)
            progress.history.append({name: v.item() for name, v in result.terms.items()})
            self.stop.agreed |= bool(self.stop.signal if result.stop is None else result.stop)
            self.log.step(epoch)
            if number == end:
                return state
            if state is not None:
                self._save(state, progress)

    def _send(self, state: TrainState, number: int) -> Iterator[Pending]:
        """Sends a step for each item that is taken: of training, and of evaluations between."""
        config, steps = self.experiment.config, self.experiment.steps_per_epoch
        labels, sampling = self.experiment.dataset.train_labels, config.data.sampling
        # The key is copied: the state's own is used up by the first step.
        key = jax.random.wrap_key_data(state.key.copy())
        asked = flags(self.experiment.mesh) if several() else None
        start, first = number, number // steps + 1
        if any(_evaluated(epoch, config) for epoch in range(first, config.epochs)):
            # The evaluation is compiled before the first step: at the end of an epoch, the host
            # would be late to look at its last steps.
            next(self.evaluator.send(state))

        def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
            order = drawn_order(config.seed, epoch - 1, labels, sampling)
            begin = max(start, (epoch - 1) * steps)
            return self.feed.training(key, order, begin, epoch * steps - begin)

        # Order and plan of an epoch are sent an epoch ahead, so they are there when its turn comes.
        feedings = one_ahead(map(batches, range(first, config.epochs + 1)))
        for epoch, feeding in enumerate(feedings, first):
            for batch in feeding:
                number += 1
                asks = asked(self.stop.signal is not None) if asked else None
                state, result = self.step(number, state, *batch, stop=asks)
                yield Pending(result, _copy(state) if self._kept(number) else None)
                if self.stop.agreed and number % steps:
                    yield Pending(None, state)
                    return
            if _evaluated(epoch, config):
                yield from map(Pending, self.evaluator.send(state))

    def _kept(self, number: int) -> bool:
        """Whether a checkpoint follows the step."""
        every = self.experiment.config.checkpoint_every
        return number % self.experiment.steps_per_epoch == 0 or bool(every and number % every == 0)

    def _rate(self, number: int, progress: Progress) -> float:
        """The learning rate of a step, counted from 1."""
        return np.asarray(self.experiment.schedule(number - 1)).item() * progress.rate

    def _save(self, state: TrainState, progress: Progress) -> None:
        data = self.experiment.data_record
        checkpoint.save(self.workdir, state, dataclasses.asdict(progress), data=data)


class Evaluation(NamedTuple):
    """What an evaluation has come to so far, and what its last step saw.

    Attributes:
      counts: of the images so far; None while a temperature is fitted.
      temperature: of CRM; None where classes are answered by their logits.
      logits: (b, C).
      where: (b,) bool, the images that count.
    """

    counts: Counts | None
    temperature: jax.Array | None
    logits: jax.Array
    where: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A function state → scores, on what a feed evaluates; `send` and `scores` are its halves.

    Attributes:
      feed: of the images that are scored.
      calibration: of those on which the temperature of CRM is fitted, if it is.
    """

    experiment: Experiment
    feed: Feed
    calibration: Feed | None = None

    def __call__(self, state: TrainState, temperature: float | None = None) -> dict[str, Any]:
        """The scores; the host waits for them. A temperature that is given is not fitted."""
        return self.scores(last_item(look_one_step_behind(self.send(state, temperature))))

    def __len__(self) -> int:
        """Number of steps of an evaluation that fits its own temperature."""
        images = [len(feed) for feed in (self.calibration, self.feed) if feed is not None]
        return sum(-(-n // self.experiment.config.eval_batch_size) for n in images)

    def send(self, state: TrainState, temperature: float | None = None) -> Iterator[Evaluation]:
        """Sends a step for each item that is taken; the last one counts all images."""
        tree, size = self.experiment.dataset.hierarchy, self.experiment.config.eval_batch_size
        step, T = self._step, None
        if self.calibration is not None and temperature is None:
            temperature = yield from self._fitted_temperature(state, self.calibration)
        if temperature is not None:
            T = place(np.float32(temperature), self.feed.replicated)
            step = functools.partial(step, temperature=T)
        for counts, logits, where in evaluated(step, state, self.feed, tree, size):
            yield Evaluation(counts, T, logits, where)

    def outputs(
        self, state: TrainState, temperature: float | None = None
    ) -> tuple[dict[str, Any], Outputs]:
        """The scores, and the logits that they are of with the gravest mistakes."""
        data, rows = self.experiment.dataset, []

        def seen() -> Iterator[Evaluation]:
            for item in look_one_step_behind(self.send(state, temperature)):
                if item.counts is not None:
                    rows.append(np.asarray(item.logits, np.float32)[item.where])
                yield item

        last, labels = last_item(seen()), data.test_labels
        logits, T = np.concatenate(rows), last.temperature
        ranking = logits if T is None else -np.asarray(crm_risk(logits / T, data.hierarchy))
        worst = gravest(ranking, labels, data.hierarchy)
        pixels = thumbnails(data.test_images, worst, self.experiment.crop)
        names = [data.name_of("test", row) for row in worst.tolist()]
        return self.scores(last), Outputs(logits, labels, worst, names, pixels)

    def scores(self, evaluation: Evaluation) -> dict[str, Any]:
        """What `summarize` makes of the counts, with the name of the split."""
        tree, (counts, temperature, *_) = self.experiment.dataset.hierarchy, evaluation
        assert counts is not None
        nodes = [tree.size(level) for level in range(1, tree.num_levels + 1)]
        known = {} if temperature is None else {"temperature": float(temperature)}
        head = {"split": self.experiment.split, "nodes": nodes, **known}
        return {**head, **summarize(counts, tree)}

    def _fitted_temperature(
        self, state: TrainState, feed: Feed
    ) -> Generator[Evaluation, None, float]:
        """Sends a step for each item that is taken; returns the temperature."""
        sent = []
        for batch, where in feed.evaluation(self.experiment.config.eval_batch_size):
            sent.append((*self._logits(state, *batch), where))
            yield Evaluation(None, None, sent[-1][0], where)
        # The host waits for all of them: no image can be scored before the temperature is known.
        logits, labels, where = map(np.concatenate, zip(*jax.device_get(sent), strict=True))
        where &= labels < self.experiment.dataset.hierarchy.num_classes
        return float(fitted_temperature(logits, labels, where=where))

    @functools.cached_property
    def _step(self):
        return make_eval_step(self.experiment.model, self.experiment.dataset, self.feed)

    @functools.cached_property
    def _logits(self):
        assert self.calibration is not None
        return make_logits_step(self.experiment.model, self.experiment.dataset, self.calibration)


def make_evaluator(experiment: Experiment, feed: Feed | None = None) -> Evaluator:
    """A function state → scores, on the test images or on those held out for validation."""
    feed = feed or experiment.feeds()[1]
    return Evaluator(experiment, feed, experiment.calibration_feed())


def keep_better(
    workdir: Path,
    state: TrainState,
    epoch: int,
    scores: dict[str, Any],
    best: dict[str, Any],
    data: bytes | None = None,
) -> dict[str, Any]:
    """Saves the state if its accuracy on the classes is the highest so far; returns the best."""
    if best and scores["accuracy"][-1] <= best["accuracy"][-1]:
        return best
    checkpoint.save(workdir, state, folder=checkpoint.BEST, keep=2, data=data)
    kept = ("accuracy", "temperature")
    return {"epoch": epoch, **{name: scores[name] for name in kept if name in scores}}


def _evaluated(epoch: int, config: Config) -> bool:
    """Whether the epoch is followed by an evaluation; the last one's belongs to the result."""
    return bool(config.eval_every) and epoch % config.eval_every == 0 and epoch < config.epochs


def _means(history: list[dict[str, float]], batch_size: int) -> dict[str, float]:
    """Means over the steps of an epoch; the hits become the accuracy in training."""
    means = {name: float(np.mean([terms[name] for terms in history])) for name in history[0]}
    means["train_accuracy"] = means.pop("hits") / batch_size
    return means


def counts_so_far(*evaluation: Any) -> Iterator[Counts]:
    """The counts of `evaluated` alone."""
    return (total for total, *_ in evaluated(*evaluation))


def evaluated(
    eval_step: Callable, state: TrainState, feed: Feed, hierarchy: Hierarchy, batch_size: int
) -> Iterator[tuple[Counts, jax.Array, np.ndarray]]:
    """The counts after each batch, its logits and its mask; every image counts once.

    Taking an item sends a step.
    """
    zero = Counts.zero(hierarchy, confusion=hierarchy.num_classes <= MAX_CONFUSION)
    # The zeros are placed as every later total is: otherwise the step would be compiled twice.
    total = place(zero, feed.replicated)
    for batch, where in feed.evaluation(batch_size):
        total, logits = eval_step(state, total, where, *batch)
        yield total, logits, where


def look_one_step_behind(sent: Iterable[T]) -> Iterator[T]:
    """Each item once its arrays are ready, and not before the next one has been taken.

    Where taking an item sends a step, the device always has a step to do while the host looks at
    the results of the one before, and the host is never further ahead than that.

    >>> sent = (print(f"sent {step}") or step for step in range(3))
    >>> for step in look_one_step_behind(sent):
    ...     print(f"looked at {step}")
    sent 0
    sent 1
    looked at 0
    sent 2
    looked at 1
    looked at 2
    """
    return map(jax.block_until_ready, one_ahead(sent))


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Each item, but not before the next one has been taken."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def last_item(items: Iterable[T]) -> T:
    """The last of at least one item; the others are let go."""
    return collections.deque(items, maxlen=1).pop()

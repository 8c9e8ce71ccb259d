"""The epochs of a run: what sends the steps, and what looks at their results a step later."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dh2l_jax.data.pipeline import epoch_order
from dh2l_jax.evaluation import Tally, summarize
from dh2l_jax.training import checkpoint
from dh2l_jax.training.config import Config
from dh2l_jax.training.experiment import Experiment
from dh2l_jax.training.feeding import Feed
from dh2l_jax.training.logging import Log, append_json
from dh2l_jax.training.objective import Terms
from dh2l_jax.training.profiling import Step
from dh2l_jax.training.steps import TrainState, ahead, last, make_eval_step, one_late, tallies

__all__ = ["METRICS", "Evaluator", "keep_better", "run_epochs"]

METRICS = "metrics.jsonl"

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


class Sent(NamedTuple):
    """What the device has been sent, ready or not.

    Attributes:
      result: the terms of a training step, or the tally so far of an evaluation.
      state: the state at the end of an epoch, where it may have to be kept.
    """

    result: Any
    state: Any = None


def run_epochs(
    experiment: Experiment, feed: Feed, evaluator: Evaluator, step: Step, workdir: Path, log: Log
) -> tuple[TrainState, dict[str, float], dict[str, Any]]:
    """All epochs; one line of metrics.jsonl each.

    Nothing here waits for the newest step: an epoch is looked at when the next one, or its
    evaluation, has been sent its first step.

    Args:
      experiment: what to train.
      feed: of training.
      evaluator: scores the epochs that `eval_every` names, but the last.
      step: the train step.
      workdir: of the run.
      log: of the run.

    Returns:
      The state, the last epoch's means, and the best evaluation before the last epoch.
    """
    config, steps = experiment.config, experiment.steps_per_epoch
    ready = one_late(_send(experiment, experiment.init(), feed, evaluator, step))
    sent, means, best, begin = Sent(None), {}, {}, time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        history, rate = [], experiment.schedule(epoch * steps - 1)
        for sent in itertools.islice(ready, steps):
            history.append(sent.result)
            log.step(epoch)
        begin, speed = _speed(begin, steps * config.batch_size)
        means = _means(history, config.batch_size)
        record = {"epoch": epoch, "step": epoch * steps, **means, "lr": np.asarray(rate).item()}
        record["images_per_second"] = speed
        if _evaluated(epoch, config):
            sent = last(itertools.islice(ready, len(evaluator)))
            begin = time.perf_counter()
            scores = evaluator.scores(sent.result)
            record |= {k: v for k, v in scores.items() if not k.startswith("confusion")}
            if experiment.split == "validation":
                best = keep_better(workdir, sent.state, epoch, scores, best)
        append_json(workdir / METRICS, record)
        log.epoch(record, config.epochs)
    return sent.state, means, best


def _send(
    experiment: Experiment, state: TrainState, feed: Feed, evaluator: Evaluator, step: Step
) -> Iterator[Sent]:
    """Sends a step for each item that is taken: those of training, and of evaluations between."""
    config, steps = experiment.config, experiment.steps_per_epoch
    # Copied: the state is donated to the first step.
    key = jax.random.wrap_key_data(state.key.copy())
    if 0 < config.eval_every < config.epochs:
        # Compiled now: later, the end of an epoch would have to wait for it to be noticed.
        next(evaluator.send(state))

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        order = epoch_order(config.seed, epoch - 1, len(feed))
        return feed.training(key, order, (epoch - 1) * steps, steps)

    # Order and plan of an epoch are sent an epoch ahead, so they are there when its turn comes.
    for epoch, feeding in enumerate(ahead(map(batches, range(1, config.epochs + 1))), 1):
        for number, batch in enumerate(feeding, (epoch - 1) * steps + 1):
            state, terms = step(number, state, *batch)
            yield Sent(terms, state if number == config.epochs * steps else None)
        if _evaluated(epoch, config):
            # Copied: the next step takes the state's memory before its score is known.
            kept = _copy(state) if experiment.split == "validation" else None
            yield from map(Sent, evaluator.send(state), itertools.repeat(kept))
            del kept


def keep_better(
    workdir: Path, state: TrainState, epoch: int, scores: dict[str, Any], best: dict[str, Any]
) -> dict[str, Any]:
    """Saves the state if its accuracy on the classes is the highest so far; returns the best."""
    if best and scores["accuracy"][-1] <= best["accuracy"][-1]:
        return best
    checkpoint.save(workdir, state, checkpoint.BEST)
    return {"epoch": epoch, "accuracy": scores["accuracy"]}


def _evaluated(epoch: int, config: Config) -> bool:
    """Whether the epoch is followed by an evaluation; the last one's belongs to the result."""
    return bool(config.eval_every) and epoch % config.eval_every == 0 and epoch < config.epochs


def _speed(begin: float, images: int) -> tuple[float, float]:
    """The time now, and the images per second since `begin`."""
    now = time.perf_counter()
    return now, round(images / (now - begin), 1)


def _means(history: list[Terms], batch_size: int) -> dict[str, float]:
    """Means over the steps of an epoch; the hits become the accuracy in training."""
    values = jax.device_get(history)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    means["train_accuracy"] = means.pop("hits") / batch_size
    return means

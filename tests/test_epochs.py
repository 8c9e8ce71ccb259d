"""The order of what a run sends and looks at: never at the newest, and at all of it once."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dh2l_jax.training import epochs, steps
from dh2l_jax.training.config import Config
from dh2l_jax.training.epochs import run_epochs
from dh2l_jax.training.steps import TrainState, one_late, tallies

STEPS = 3


class Tape:
    """What was sent to a device that counts, and what was looked at, in order."""

    def __init__(self):
        self.events, self.sent = [], 0

    def send(self, value=0.0):
        """One more step."""
        self.sent += 1
        self.events.append(("sent", self.sent))
        return Result(self, self.sent, value)


@dataclasses.dataclass
class Result:
    """A leaf that says when somebody waits for it or reads it."""

    tape: Tape
    number: int
    value: float

    def block_until_ready(self):
        """Somebody waits."""
        self.tape.events.append(("seen", self.number))
        return self

    def __array__(self, dtype=None, copy=None):
        self.tape.events.append(("seen", self.number))
        return np.asarray(self.value, dtype)


def check_order(events, total):
    """One step is always waiting for the device, and never more than one beside it."""
    newest, seen = 0, set()
    for what, number in events:
        if what == "sent":
            newest = number
            assert newest - len(seen) <= 2, "too far ahead"
        else:
            assert number < newest or newest == total, f"waited for step {number}, the newest"
            seen.add(number)
    assert seen == set(range(1, total + 1))


class Feed:
    """Batches that are numbers, and a note of when an epoch's were asked for."""

    replicated = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def __init__(self, tape):
        self.tape = tape

    def __len__(self):
        return 10

    def training(self, key, order, first_step, steps):
        """Asked for an epoch."""
        self.tape.events.append(("planned", first_step))
        return iter([(first_step + i,) for i in range(steps)])

    def evaluation(self, batch_size):
        """Ten images."""
        for start in range(0, 10, batch_size):
            yield (start,), np.arange(start, start + batch_size) < 10


@dataclasses.dataclass
class Evaluator:
    """Five steps; the score is the number of the state's step, or its negative."""

    tape: Tape
    sign: int

    def __len__(self):
        return 5

    def send(self, state):
        """One evaluation."""
        for _ in range(len(self)):
            yield self.tape.send(state.step + 0)

    def scores(self, total):
        """Of the last tally."""
        return {"split": "validation", "accuracy": [self.sign * int(np.asarray(total))]}


def state_of(step=0):
    params, key = jnp.arange(2.0), jax.random.key_data(jax.random.key(0)).copy()
    return TrainState(jnp.asarray(step), params, {}, (), key)


@jax.jit
def advance(state):
    return dataclasses.replace(state, step=state.step + 1, params=state.params + 1)


donating = jax.jit(advance, donate_argnums=0)


@pytest.mark.parametrize(("num_epochs", "eval_every"), [(4, 0), (4, 1), (5, 2), (1, 1)])
@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("num_steps", [1, STEPS])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_run(tmp_path, monkeypatch, num_epochs, eval_every, split, num_steps, sign):
    tape, shown, saved = Tape(), [], []
    feed, evaluator = Feed(tape), Evaluator(tape, sign)
    experiment = types.SimpleNamespace(
        config=Config(epochs=num_epochs, eval_every=eval_every, batch_size=2),
        steps_per_epoch=num_steps,
        schedule=lambda step: jnp.asarray(step, jnp.float32) / 8,
        split=split,
        init=state_of,
    )
    log = types.SimpleNamespace(
        step=lambda epoch: shown.append(epoch), epoch=lambda record, _: shown.append(record)
    )
    monkeypatch.setattr(
        epochs.checkpoint, "save", lambda _, state, folder: saved.append(jax.device_get(state))
    )

    def step(number, state, batch):
        assert batch == number - 1 == int(state.step)
        return donating(state), {"J": tape.send(number), "hits": np.float32(1)}

    state, means, best = run_epochs(experiment, feed, evaluator, step, tmp_path, log)

    evaluated = [e for e in range(1, num_epochs) if eval_every and e % eval_every == 0]
    warm = bool(evaluated)  # the first evaluation step is sent once before all others
    total = num_epochs * num_steps + len(evaluator) * len(evaluated)
    events = [(what, n - warm) for what, n in tape.events if what != "planned"]
    check_order(events[warm:], total)
    # The next epoch's plan is there before an epoch's first step is sent.
    plans = [tape.events.index(("planned", e * num_steps)) for e in range(num_epochs)]
    for epoch in range(1, num_epochs - 1):
        steps_before = epoch * num_steps + len(evaluator) * sum(e <= epoch for e in evaluated)
        assert plans[epoch + 1] < tape.events.index(("sent", steps_before + warm + 1))

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    numbers = np.arange(1, num_epochs * num_steps + 1).reshape(num_epochs, num_steps)
    assert [line["J"] for line in lines] == numbers.mean(axis=1).tolist()
    assert [line["lr"] for line in lines] == [(n - 1) / 8 for n in numbers[:, -1].tolist()]
    assert [line["step"] for line in lines] == numbers[:, -1].tolist()
    scores = {line["epoch"]: line["accuracy"] for line in lines if "accuracy" in line}
    assert scores == {e: [sign * e * num_steps] for e in evaluated}
    assert {line["train_accuracy"] for line in lines} == {0.5}
    assert shown == [x for line in lines for x in [*[line["epoch"]] * num_steps, line]]

    assert int(state.step) == num_epochs * num_steps
    assert means == {"J": lines[-1]["J"], "train_accuracy": 0.5}
    better = evaluated if sign > 0 else evaluated[:1]
    better = better if split == "validation" else []
    assert [int(s.step) for s in saved] == [e * num_steps for e in better]
    # What is saved is the state of its epoch, whatever has been sent since.
    assert [s.params[0] for s in saved] == [e * num_steps for e in better]
    assert best == (
        {"epoch": better[-1], "accuracy": [sign * better[-1] * num_steps]} if better else {}
    )


def test_an_evaluation_is_one_step_ahead(monkeypatch):
    tape = Tape()
    monkeypatch.setattr(steps.Tally, "zero", lambda *args, **kwargs: jnp.zeros(()))

    def eval_step(state, total, where, batch):
        return tape.send(getattr(total, "value", 0.0) + where.sum())

    hierarchy = types.SimpleNamespace(num_classes=3)
    totals = list(one_late(tallies(eval_step, None, Feed(tape), hierarchy, 4)))
    check_order(tape.events, 3)
    assert [total.value for total in totals] == [4, 8, 10]

"""The order of what a run sends and looks at: never at the newest, and at all of it once."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.states import state_of

from dh2l_jax.training import epochs
from dh2l_jax.training.config import Config
from dh2l_jax.training.epochs import Epochs, Progress, counts_so_far, look_one_step_behind
from dh2l_jax.training.host.signals import Stop, Stopped
from dh2l_jax.training.step import steps
from dh2l_jax.training.step.finite import NotFiniteError
from dh2l_jax.training.step.steps import StepResult

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
        """Of the last counts."""
        return {"split": "validation", "accuracy": [self.sign * int(np.asarray(total))]}


@jax.jit
def advance(state):
    return dataclasses.replace(state, step=state.step + 1, params=state.params + 1)


donating = jax.jit(advance, donate_argnums=0)


class Bench:
    """A run on a tape: what it shows, and what it saves."""

    def __init__(self, folder, monkeypatch, num_steps=STEPS, *, split="test", sign=1, **options):
        self.tape, self.shown, self.saved, self.best = Tape(), [], [], []
        self.feed, self.evaluator = Feed(self.tape), Evaluator(self.tape, sign)
        self.stop, self.folder = Stop(), folder
        self.experiment = types.SimpleNamespace(
            config=Config(batch_size=2, **options),
            steps_per_epoch=num_steps,
            schedule=lambda step: jnp.asarray(step, jnp.float32) / 8,
            split=split,
            data_record=b"data",
        )
        monkeypatch.setattr(epochs.checkpoint, "save", self.save)

    def save(self, _, state, progress=None, folder=epochs.checkpoint.LAST, *, keep=3, data=b""):
        """Keeps what a checkpoint would."""
        state = jax.device_get(state)
        if folder == epochs.checkpoint.BEST:
            self.best.append(state)
        else:
            self.saved.append((state, json.loads(json.dumps(progress))))

    def step(self, number, state, batch, *, stop):
        """Counts."""
        assert batch == number - 1 == int(state.step)
        terms = {"J": self.tape.send(float(number)), "hits": np.int32(1)}
        return donating(state), StepResult(terms, {"weights": True}, None)

    def run(self, state, progress):
        """Goes on from there."""
        log = types.SimpleNamespace(
            start=lambda step: None,
            step=lambda epoch: self.shown.append(epoch),
            epoch=lambda record, _: self.shown.append(record),
        )
        run = Epochs(
            self.experiment, self.feed, self.evaluator, self.step, self.folder, log, self.stop
        )
        return run(state, progress)

    def lines(self):
        """The records on disk."""
        text = (self.folder / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("num_epochs", "eval_every"), [(4, 0), (4, 1), (5, 2), (1, 1)])
@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("num_steps", [1, STEPS])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_run(tmp_path, monkeypatch, num_epochs, eval_every, split, num_steps, sign):
    options = {"epochs": num_epochs, "eval_every": eval_every, "split": split, "sign": sign}
    bench, progress = Bench(tmp_path, monkeypatch, num_steps, **options), Progress()
    tape, evaluator = bench.tape, bench.evaluator
    state = bench.run(state_of(), progress)

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

    lines = bench.lines()
    numbers = np.arange(1, num_epochs * num_steps + 1).reshape(num_epochs, num_steps)
    assert [line["J"] for line in lines] == numbers.mean(axis=1).tolist()
    assert [line["lr"] for line in lines] == [(n - 1) / 8 for n in numbers[:, -1].tolist()]
    assert [line["step"] for line in lines] == numbers[:, -1].tolist()
    scores = {line["epoch"]: line["accuracy"] for line in lines if "accuracy" in line}
    assert scores == {e: [sign * e * num_steps] for e in evaluated}
    assert {line["train_accuracy"] for line in lines} == {0.5}
    assert bench.shown == [x for line in lines for x in [*[line["epoch"]] * num_steps, line]]

    assert int(state.step) == num_epochs * num_steps
    assert progress.last_epoch == {"J": lines[-1]["J"], "train_accuracy": 0.5}
    better = evaluated if sign > 0 else evaluated[:1]
    better = better if split == "validation" else []
    assert [int(s.step) for s in bench.best] == [e * num_steps for e in better]
    # What is saved is the state of its epoch, whatever has been sent since.
    assert [s.params[0] for s in bench.best] == [e * num_steps for e in better]
    assert [int(s.step) for s, _ in bench.saved] == numbers[:, -1].tolist()
    assert [s.params[0] for s, _ in bench.saved] == numbers[:, -1].tolist()
    assert progress.best == (
        {"epoch": better[-1], "accuracy": [sign * better[-1] * num_steps]} if better else {}
    )


@pytest.mark.parametrize("every", [0, 1, 2, 5])
def test_goes_on_from_every_checkpoint(tmp_path, monkeypatch, every):
    """From each of them the rest of the run is the same, steps, evaluations and records."""
    options = {"epochs": 4, "eval_every": 2, "split": "validation", "checkpoint_every": every}
    (tmp_path / "whole").mkdir()
    whole = Bench(tmp_path / "whole", monkeypatch, **options)
    end = whole.run(state_of(), Progress())
    numbers = [n for n in range(1, 13) if n % STEPS == 0 or (every and n % every == 0)]
    assert [int(state.step) for state, _ in whole.saved] == numbers
    for state, progress in whole.saved:
        assert len(progress["history"]) == state.step % STEPS
        folder = tmp_path / str(state.step)
        folder.mkdir()
        rest = Bench(folder, monkeypatch, **options)
        again = rest.run(jax.device_put(state), Progress(**progress))
        jax.tree.map(np.testing.assert_array_equal, again, end)
        assert [p for _, p in rest.saved] == [p for s, p in whole.saved if s.step > state.step]
        known = [{**line, "images_per_second": 0} for line in whole.lines()]
        lines = [{**line, "images_per_second": 0} for line in rest.lines()] if rest.shown else []
        assert lines == [line for line in known if line["step"] > state.step]


@pytest.mark.parametrize("asked", range(1, 12))
@pytest.mark.parametrize("eval_every", [0, 1])
def test_stops_soon_with_all_saved(tmp_path, monkeypatch, asked, eval_every):
    """Whenever a signal comes, at most two more steps are done, and the last of them is saved."""
    bench = Bench(tmp_path, monkeypatch, epochs=4, eval_every=eval_every)
    step = bench.step

    def interrupted(number, *arguments, **options):
        if number == asked:
            bench.stop.signal = 15
        return step(number, *arguments, **options)

    bench.step = interrupted
    with pytest.raises(Stopped, match="stopped by SIGTERM after step") as stopped:
        bench.run(state_of(), Progress())
    assert stopped.value.signal == 15
    state, progress = bench.saved[-1]
    assert state.step == stopped.value.step
    assert asked - 1 <= state.step <= asked + 2  # what is looked at is a step late
    assert len(progress["history"]) == state.step % STEPS


@pytest.mark.parametrize("bad", [1, 2, 3, 7])
def test_nothing_is_saved_of_a_step_that_blows_up(tmp_path, monkeypatch, bad):
    bench = Bench(tmp_path, monkeypatch, epochs=4, checkpoint_every=1)
    step = bench.step

    def exploding(number, *arguments, **options):
        state, stepped = step(number, *arguments, **options)
        if number == bad:
            stepped = stepped._replace(terms={**stepped.terms, "J": np.float32("nan")})
        return state, stepped

    bench.step = exploding
    with pytest.raises(NotFiniteError, match=f"^step {bad}: J is nan$"):
        bench.run(state_of(), Progress())
    assert [int(state.step) for state, _ in bench.saved] == list(range(1, bad))


def test_an_evaluation_is_one_step_ahead(monkeypatch):
    tape = Tape()
    monkeypatch.setattr(steps.Counts, "zero", lambda *args, **kwargs: jnp.zeros(()))

    def eval_step(state, total, where, batch):
        return tape.send(getattr(total, "value", 0.0) + where.sum()), None

    hierarchy = types.SimpleNamespace(num_classes=3)
    totals = list(look_one_step_behind(counts_so_far(eval_step, None, Feed(tape), hierarchy, 4)))
    check_order(tape.events, 3)
    assert [total.value for total in totals] == [4, 8, 10]

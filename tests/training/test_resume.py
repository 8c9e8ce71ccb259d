"""Interrupted runs end as those that were left alone, in every bit; what stops a run says so."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import pytest
from support import kills
from support import resume as resume_checks
from support.states import state_of

import train
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config
from dh2l_jax.training.epochs import Progress
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.folder import read_config
from dh2l_jax.training.run.records import read_records
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.finite import NotFiniteError

CHILD = Path(resume_checks.__file__)


@pytest.mark.parametrize(
    ("number", "signals"),
    [
        (1, (signal.SIGTERM,)),
        pytest.param(2, (signal.SIGTERM, signal.SIGINT), marks=pytest.mark.slow),
    ],
)
def test_killed_runs_go_on_in_every_bit(tmp_path, monkeypatch, number, signals):
    """A few of what `python -m support.kills --kills 100` does."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # to compile faster
    monkeypatch.setitem(kills.OPTIONS, "reg.lambda_e", 0)  # to trace faster, six times
    places = kills.run(tmp_path, kills=number, epochs=3, seed=number - 1, signals=signals)
    assert sum(places.values()) == number


OPTIONS = ["model.name=resnet8", "model.head=plain", "data.fraction=0.05"]
OPTIONS += ["batch_size=50", "eval_batch_size=50"]


def test_numbers_that_blow_up(tmp_path, kept, capsys, monkeypatch):
    """Step 8 blows up at the first learning rate: the run stops or, asked to, goes back to 6."""
    workdir = tmp_path / "run"
    make = loop.make_train_step

    def exploding(*arguments, **options):
        step = make(*arguments, **options)

        def poisoned(state, *batch, stop):
            bad = int(state.step) == 7 and float(state.rate) == 1
            state, stepped = step(state, *batch, stop=stop)
            terms = stepped.terms | ({"R_E": jnp.float32(jnp.nan)} if bad else {})
            return state, stepped._replace(terms=terms)

        return poisoned

    monkeypatch.setattr(loop, "make_train_step", exploding)
    arguments = ["--workdir", str(workdir), "--set", "epochs=2"]
    for option in OPTIONS:
        arguments += ["--set", option]
    assert train.main(arguments) == 3
    line = capsys.readouterr().err
    assert line == (
        "train.py: error: step 8: R_E is nan; the state after step 6 is kept: "
        "lower optim.lr in another run, or go on with --set on_nan=rollback\n"
    )
    assert checkpoint.steps(workdir) == [6]
    assert train.main([*arguments, "--set", "on_nan=rollback"]) == 0
    shown = capsys.readouterr().out
    assert "goes on after step 6" in shown
    assert "step 8: R_E is nan; back to step 6, now with 0.5 × the learning rate" in shown
    result = json.loads((workdir / "result.json").read_text("utf-8"))
    assert result["rollbacks"] == [{"from": 8, "to": 6, "why": "R_E is nan"}]
    assert result["steps"] == 12
    first, second = read_records(workdir / "metrics.jsonl")
    rates = optim.learning_rate(read_config(workdir).optim, 6, 2)
    assert first["lr"] == float(rates(5))
    assert second["lr"] == 0.5 * float(rates(11))
    saved = checkpoint.restore(workdir, loop.build(read_config(workdir)).init(abstract=True))
    assert float(saved.state.rate) == saved.progress["rate"] == 0.5


def test_rolls_back_so_often_and_no_more(tmp_path, monkeypatch):
    """Each time with half the learning rate, from the first state where nothing was saved."""
    rates = []

    class Failing:
        experiment = types.SimpleNamespace(
            config=Config(on_nan="rollback"),
            init=lambda abstract=False: state_of(0),
        )
        workdir = tmp_path

        def __call__(self, state, progress):
            assert float(state.rate) == progress.rate
            rates.append(progress.rate)
            raise NotFiniteError(3, "L is inf")

    monkeypatch.setattr(loop, "refuse_other_data", lambda *_: True)
    lines = []
    with pytest.raises(NotFiniteError):
        loop._run(Failing(), state_of(0), Progress(), lines.append)
    assert rates == [0.5**k for k in range(loop.MAX_ROLLBACKS + 1)]
    assert len(lines) == loop.MAX_ROLLBACKS


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["resident", "streamed"])
@pytest.mark.parametrize("devices", [1, 8])
def test_goes_on_in_all_settings(tmp_path, devices, kind, dtype):
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, CHILD, tmp_path, kind, dtype]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert child.returncode == 0, child.stderr
    assert child.stdout.endswith("equal\n")

"""Runs side by side: the same table as one after another, and what a signal leaves."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from oracle.tables import Fake

from dh2l_jax.commands import compare as command
from dh2l_jax.experiments import job, trainers
from dh2l_jax.training.host.programs import cores
from dh2l_jax.training.run.folder import RESULT

WORDS = ("--methods", "l2", "hxe", "factored", "--seeds", "4")
# Small runs: a network of one layer on twelve images.
SMALL = [
    "support.own:arrays",
    *("--methods", "l2", "slow: --set optim.lr=0.01"),
    *(
        word
        for text in (
            "model.name=support.own:normed",
            "data.pad=0",
            "data.holdout=3",
            "batch_size=3",
            "eval_batch_size=3",
        )
        for word in ("--set", text)
    ),
]


class Slow(Fake):
    """Takes its time, and notes how many runs there are at once."""

    def __init__(self, jobs):
        super().__init__()
        self.jobs, self.running, self.most = jobs, 0, 0

    def train(self, config, workdir):
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.02)
        result = super().train(config, workdir)
        self.running -= 1
        return result


def test_side_by_side_makes_the_same_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job.TableJob, "_draw", lambda self: None)
    texts, told = [], []
    for jobs in (1, 3):
        trainer, out = Slow(jobs), tmp_path / str(jobs)
        assert command.main([*WORDS, "--out", str(out)], trainer) == 0
        assert trainer.most == jobs
        texts.append((out / "comparison.csv").read_text())
        told.append(capsys.readouterr().out.splitlines())
    assert texts[0] == texts[1]
    assert (told[0][0], told[1][0]) == (
        "14 runs, 0 done, about 14 min",
        "14 runs, 0 done, about 5 min",
    )
    assert [line.split("]")[0] for line in told[1][1:15]] == [f"[{n}/14" for n in range(1, 15)]


@pytest.mark.parametrize("jobs", ["0", "-1", "100000"])
def test_as_many_as_there_are_devices(tmp_path, capsys, jobs):
    assert command.main(["--jobs", jobs, "--out", str(tmp_path / "out")]) == 2
    assert f", found {jobs}\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("named", "gpus"), [("2,GPU-ab", ["2", "GPU-ab"]), ("", [])])
def test_gpus_are_those_that_the_process_may_use(monkeypatch, named, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert trainers._gpus() == gpus


def prepare(folder):
    """Notes the cores of a process."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    (folder / f"{os.getpid()}.json").write_text(json.dumps(cores))


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")
def test_processes_share_the_cores_and_end_with_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(job.TableJob, "_draw", lambda self: None)
    side = trainers.SideBySide(2, functools.partial(prepare, tmp_path))
    arguments = [*SMALL, "--seeds", "2", "--set", "epochs=1", "--out", str(tmp_path / "out")]
    assert command.main(arguments, side) == 0, capsys.readouterr()
    assert len(list(tmp_path.glob("out/runs/*/test.json"))) == 4
    shares = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(shares) > 2  # new processes for each method
    assert sorted({core for cores in shares.values() for core in cores}) == cores()
    for pid in shares:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_command_saves_its_runs(tmp_path, number):
    """The command ends, its processes save and end, and the same command goes on from there."""
    words = [*SMALL, "--seeds", "1", "--set", "epochs=100000", "--jobs", "2"]
    start = [sys.executable, "-m", "dh2l_jax", "compare", *words, "--out", str(tmp_path / "out")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(start, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("out/runs/*/metrics.jsonl")):
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted: the same command goes on" in errors
    (run,) = tmp_path.glob("out/runs/*")
    for _ in range(300):
        if list(run.glob("checkpoints/*/*")):
            break
        time.sleep(0.1)
    assert list(run.glob("checkpoints/*"))
    assert not (run / RESULT).exists()

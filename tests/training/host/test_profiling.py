"""The trace of one step: which step, what it holds, where it is refused."""

import gzip
import json
import os

import jax
import jax.numpy as jnp
import pytest

import train
from dh2l_jax.training.host import profiling


@jax.jit
def double(x):
    with jax.named_scope("twofold"):
        return 2 * x


def events(folder):
    """The events of the only trace in a folder, those that take time."""
    (file,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    found = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [event for event in found if event.get("ph") == "X"]


def test_one_step_is_recorded_and_all_are_done(tmp_path):
    told, folder = [], tmp_path / "ein Ordner" / "ü"
    step = profiling.record(double, 3, folder, told.append)
    x = jnp.ones(())
    for number in range(1, 6):
        x = step(number, x)
        assert any(folder.rglob("*.gz")) == (number >= 3)
    assert x == 32
    found = events(folder)
    (span,) = (event for event in found if event["name"] == "train")
    assert span["args"]["step_num"] == "3"
    operations = [event for event in found if "hlo_op" in event.get("args", {})]
    assert {event["name"] for event in operations} == {"twofold/mul"}
    for event in operations:
        assert span["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= span["ts"] + span["dur"]
    assert {file.name.split(".", 1)[1] for file in folder.rglob("*.*") if file.is_file()} == {
        "xplane.pb",
        "trace.json.gz",
        "json.gz",
    }
    (line,) = told
    assert str(folder) in line
    assert "profile of step 3" in line


def test_an_error_in_the_step_ends_the_trace(tmp_path):
    @jax.jit
    def fail(x):
        jax.debug.callback(lambda: 1 / 0)
        return x

    step = profiling.record(fail, 1, tmp_path, print)
    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError"):
        step(1, jnp.ones(()))
    again = profiling.record(double, 1, tmp_path / "again", lambda line: None)
    assert again(1, jnp.ones(())) == 2


def test_a_folder_that_can_not_be_written_to(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        arguments = ["--profile", str(folder), "--workdir", str(tmp_path / "run")]
        assert train.main(arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert line == f"train.py: error: profile folder {folder}: {file} is no folder\n"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # root may write everywhere
        with pytest.raises(PermissionError, match="can't be written to"):
            profiling.check_folder(closed / "below")
    profiling.check_folder(tmp_path / "new" / "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file"]

"""The lock of a workdir: refuses a second holder by name, and never outlives its process."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from dh2l_jax.training.run import lock
from dh2l_jax.training.run.lock import Lock

# The module is run by its path: importing it by name would import JAX, which takes a second.
HOLD = """
import pathlib, runpy, sys, time
with runpy.run_path(sys.argv[1])["Lock"](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["run", "ein Lauf ü 走"])
def path(tmp_path, request):
    folder = tmp_path / request.param
    folder.mkdir()
    return folder / ".lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, lock.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_by_whom(path, holder):
    with pytest.raises(ValueError) as error, Lock(path):
        raise AssertionError("two processes hold one lock")
    assert str(error.value) == (
        f"{path.parent} is in use by process {holder.pid} on {socket.gethostname()}: wait for it "
        "or choose another folder"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(path, holder, number):
    holder.send_signal(number)
    assert holder.wait() == -number
    with Lock(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_one_process_cannot_hold_it_twice(path):
    with Lock(path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "), Lock(path):
            raise AssertionError("one process holds one lock twice")
        with pytest.raises(ValueError, match="in use"), Lock(path):
            raise AssertionError("a refused attempt has let go of the lock of another")
    with Lock(path):
        pass


def test_an_error_inside_lets_go(path):
    with pytest.raises(KeyError), Lock(path):
        raise KeyError
    with Lock(path):
        pass


def test_a_child_that_is_left_behind_holds_nothing(path):
    """A program that the holder started, and that outlives it."""
    with Lock(path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Lock(path):
        assert child.poll() is None
    child.communicate(b"\n")


@pytest.mark.parametrize("text", [b"", b"\xff\n\n" + b"x" * 1000])
def test_what_the_file_held_before_is_no_matter(path, text):
    path.write_bytes(text)
    with Lock(path):
        assert path.read_bytes().startswith(f"process {os.getpid()} ".encode())


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OSError, match=r"none/\.lock"), Lock(tmp_path / "none" / ".lock"):
        raise AssertionError

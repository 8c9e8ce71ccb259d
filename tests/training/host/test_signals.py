"""Signals: the first is noted, even while Python does not run; the second ends the process."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from dh2l_jax.training.host.signals import Stop, Stopped, stop_requests

CHILD = """
import sys, time
from dh2l_jax.training.host.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("noted", stop.signal, flush=True)
    # C code that Python's own handlers would wait for; it lets other threads run.
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_noted_and_the_second_ends(first, second):
    command = [sys.executable, "-c", CHILD]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == f"noted {first:d}\n"
        child.send_signal(second)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 128 + second
    assert errors == f"{first.name}: saving after this step; a second signal ends at once\n"


@pytest.fixture
def interruptible():
    """As at a terminal: a shell's jobs in the background are started to ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_handlers_are_put_back(interruptible):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        limit = time.monotonic() + 20
        while stop.signal is None:
            assert time.monotonic() < limit
        assert stop.signal == signal.SIGINT
        assert not stop.agreed
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_requests() as stop:
            found.append((stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(Stop(), before)]


def test_what_is_raised_is_an_interrupt():
    """So nothing that catches errors swallows it."""
    stopped = Stop(signal.SIGINT).stopped(7)
    assert isinstance(stopped, KeyboardInterrupt)
    assert not isinstance(stopped, Exception)
    assert str(stopped) == "stopped by SIGINT after step 7"
    assert Stop().stopped(3).signal == signal.SIGTERM
    assert isinstance(stopped, Stopped)

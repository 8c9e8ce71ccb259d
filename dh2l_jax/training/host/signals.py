"""SIGTERM and SIGINT: the first asks a run to stop between steps, a second ends it at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

__all__ = ["Stop", "Stopped", "stop_requests"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal ended the run after a step whose state is saved.

    Attributes:
      signal: its number; a program ended by it exits with 128 + number.
      step: number of steps done.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.signal, self.step = signal_number, step


@dataclasses.dataclass
class Stop:
    """Whether a run has been asked to stop.

    Attributes:
      signal: number of the signal that came to this process.
      agreed: whether all processes of the run stop after the same step.
    """

    signal: int | None = None
    agreed: bool = False

    def stopped(self, step: int) -> Stopped:
        """What to raise; where the signal went to another process, SIGTERM is assumed."""
        return Stopped(self.signal or signal.SIGTERM, step)


@contextlib.contextmanager
def stop_requests() -> Iterator[Stop]:
    """Notes the first SIGTERM or SIGINT while it is open; a second ends the process.

    A thread waits for the signals: Python's own handlers would wait for the compiler or the device.
    Outside of the main thread signals stay what they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader, stop), daemon=True)
    handlers = {number: signal.signal(number, _leave_to_the_thread) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


def _leave_to_the_thread(*_: object) -> None:
    """A handler; without one, a signal would not wake the thread."""


def _watch(reader: socket.socket, stop: Stop) -> None:
    """Reads the numbers of signals until the other end is closed."""
    while received := reader.recv(1):
        number = received[0]
        if number not in SIGNALS:
            continue
        if stop.signal is not None:
            os._exit(128 + number)
        stop.signal = number
        name = signal.Signals(number).name
        print(f"{name}: saving after this step; a second signal ends at once", file=sys.stderr)

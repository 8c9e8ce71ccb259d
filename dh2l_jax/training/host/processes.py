"""Several processes that train as one: how they start, agree on a stop, and end.

JAX's coordination service, in process 0, watches over all of them. One that is lost shows in the
others as an error of the collective operation that waits for it (`lost`), or, `heartbeat` seconds
later, as an abort of the runtime that no exception precedes: its signal is turned into a line and
an exit code here.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dh2l_jax.checks import one_line
from dh2l_jax.training.config import DistributedConfig

__all__ = [
    "LOST",
    "LOST_LINE",
    "abandon",
    "arrays_of_first",
    "flags",
    "is_main",
    "lost",
    "on_first",
    "several",
    "start",
]

T = TypeVar("T")

BAD_INPUT, LOST = 2, 5  # the exit codes of an abort, where no exception can reach a command
# Seconds that process 0 waits before it ends: the others, which cannot outlive it, may be about to
# end for the same reason with a line of their own.
GRACE = 2
LOST_LINE = (
    "another process of the run was lost: start all of them again, and they go on from the last "
    "checkpoint"
)

# What XLA and its communication libraries call the loss of a process.
_LOST = re.compile(r"gloo|nccl|coordination|heartbeat|unavailable|deadline.exceeded", re.IGNORECASE)


def start(config: DistributedConfig) -> None:
    """Finds the other processes of the run, if there are any; call it before JAX is used.

    If somebody does not come in time, the process ends with a line and exit code 2.

    Raises:
      ValueError: JAX knows no such cluster, or the address cannot be used.
    """
    if not config.auto and not config.coordinator:
        return
    if config.process == 0:
        _check_port(config.coordinator)
    where = config.coordinator or "the cluster's first process"
    known: tuple[Any, ...] = (config.coordinator, config.processes, config.process)
    _on_abort(
        f"distributed: not all processes have come to {where} within {config.timeout} s: has each "
        "one been started, and does the address lead to process 0?",
        BAD_INPUT,
    )
    try:
        jax.distributed.initialize(
            *(() if config.auto else known),
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=config.heartbeat,
        )
    except ValueError as error:
        raise ValueError(
            "distributed.auto: JAX finds no cluster (SLURM, Open MPI, Kubernetes, TPU): set "
            "distributed.coordinator, .processes and .process"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"distributed: cannot start at {where}: {reason}") from error
    _on_abort(LOST_LINE, LOST)


def _check_port(coordinator: str) -> None:
    """Refuses a port of this host that is taken: JAX may crash there, or share it."""
    port = coordinator.rpartition(":")[2]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"distributed.coordinator: process 0 cannot listen at port {port}: {error}"
        ) from error


def abandon(code: int) -> NoReturn:
    """Ends this process where the others may not end with it: they notice that it is lost.

    An ordinary exit would wait for them.
    """
    if several():
        _on_abort(
            "", code
        )  # the line has been said, and an abort may come while others are awaited
    if is_main():
        time.sleep(GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def several() -> bool:
    """Whether the run has other processes than this one."""
    # The order matters: `process_count` alone would start the devices before `start` was called.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes what all processes know."""
    return jax.process_index() == 0


def lost(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return several() and bool(_LOST.search(str(error)))


def on_first(act: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
    """What `act` returns in the first process, a JSON value, or raises; the others wait for it.

    Args:
      act: called in the first process alone.
      errors: what it may raise, subclasses first; all processes raise the same, with its text.
    """
    if jax.process_count() == 1:
        return act()
    answer = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": act()}
        except errors as error:
            kind = next(i for i, kind in enumerate(errors) if isinstance(error, kind))
            answer = {"error": kind, "line": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(text.size))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, int(size)))
    answer = json.loads(text.tobytes())
    if "error" in answer:
        raise errors[answer["error"]](answer["line"])
    return answer["value"]


def arrays_of_first(tree: Any) -> Any:
    """The arrays of the first process, sent as bytes: sums, JAX's way to send, lose a −0."""
    if jax.process_count() == 1:
        return tree
    sent = jax.tree.map(lambda array: np.frombuffer(array.tobytes(), np.uint8), tree)
    sent = multihost_utils.broadcast_one_to_all(sent)
    return jax.tree.map(
        lambda array, data: np.frombuffer(data.tobytes(), array.dtype).reshape(array.shape),
        tree,
        sent,
    )


def flags(mesh: Mesh) -> Callable[[bool], jax.Array]:
    """A function from this process' flag to the (devices,) flags, each that of its process.

    Both arrays are made here, over the mesh's axis "data": a call costs nothing.

    >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    >>> flags(mesh)(True).tolist()
    [True]
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def filled(flag: bool) -> jax.Array:
        values = np.full(mesh.size, flag)
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    both = filled(False), filled(True)
    return lambda flag: both[flag]


def _on_abort(line: str, code: int) -> None:
    """From now on an abort of the runtime ends the process with this line, if any, and exit code.

    JAX aborts in a thread of its own, where no exception can be raised and none of Python's signal
    handlers is called in time.
    """
    said = one_line(f"{Path(sys.argv[0]).name}: error: {line}").encode() + b"\n" if line else b""

    def end(_: int) -> None:
        os.write(2, said)
        os._exit(code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    _handlers.append(handler)


_handlers: list[Callable] = []  # kept here, since C holds no more than their addresses

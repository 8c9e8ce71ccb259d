"""Programs that run beside a test, each in a process of its own that ends with the test."""

import contextlib
import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(programs, folder, *, devices=2, **env):
    """A Python process for each list of arguments; its output goes to files of the folder."""
    folder.mkdir(exist_ok=True)
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **env,
    }
    with contextlib.ExitStack() as stack:
        processes = []
        for number, program in enumerate(programs):
            names = (folder / f"{number}.{end}" for end in ("out", "err"))
            out, err = (stack.enter_context(name.open("w")) for name in names)
            command = [sys.executable, "-W", "error", *program]
            process = subprocess.Popen(command, env=env, stdout=out, stderr=err)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def finish(processes, folder, limit):
    """Waits for the processes, which must succeed; the last line that each of them printed."""
    codes = [process.wait(limit) for process in processes]
    assert not any(codes), [(folder / f"{n}.err").read_text() for n in range(len(codes))]
    return [(folder / f"{n}.out").read_text().splitlines()[-1] for n in range(len(codes))]

"""The lock of a folder of runs: one process at a time, and none that has died."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

__all__ = ["Lock"]


class Lock:
    """Keeps a folder for this process while the `with` block runs.

    The kernel holds it and lets go when the process ends, however it ends. The file stays: to
    remove it would let two processes lock two files of one name. Windows has no such locks.

    Args:
      path: the file, in the folder that it keeps; it is made if it does not exist.

    Raises:
      ValueError: another process, or this one, keeps the folder already.
      OSError: the file cannot be made or locked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Lock(Path(folder) / ".lock"):
    ...     print(os.listdir(folder))
    ['.lock']
    """

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Lock:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _acquire(file, self._path)
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)


def _acquire(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 300).decode("utf-8", "replace").strip()
        raise ValueError(
            f"{path.parent} is in use by {holder or 'another process'}: wait for it or choose "
            "another folder"
        ) from None
    except OSError as error:
        raise OSError(f"{path} cannot be locked: {error.strerror}") from error

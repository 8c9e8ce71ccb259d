"""The lock of a folder of runs: one process at a time, and none that has died."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import filelock

__all__ = ["Lock"]

# Windows lets nobody else read the byte that is locked, the first one: the name stands behind it.
_BEGIN = 1


class Lock:
    """Keeps a folder for this process while the `with` block runs.

    The kernel holds the lock and lets go when the process ends, however it ends. The file stays: to
    remove it would let two processes lock two files of one name.

    Args:
      path: the file, in the folder that it keeps; it is made if it does not exist.

    Raises:
      ValueError: another process, or this one, keeps the folder already.
      OSError: the file cannot be made or locked, or is a link, which is never followed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Lock(Path(folder) / ".lock"):
    ...     print(os.listdir(folder))
    ['.lock']
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = filelock.FileLock(
            path, fallback_to_soft=False, preserve_lock_file=True, on_acquired=_write_holder
        )

    def __enter__(self) -> Lock:
        if not self._path.parent.is_dir():  # filelock would make it
            raise FileNotFoundError(f"{self._path} cannot be locked: its folder does not exist")
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise ValueError(
                f"{self._path.parent} is in use by {_holder(self._path)}: wait for it or choose "
                "another folder"
            ) from None
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise OSError(f"{self._path} cannot be locked: {reason}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    text = f"{' ' * _BEGIN}process {os.getpid()} on {socket.gethostname()}\n"
    os.write(descriptor, text.encode())


def _holder(path: Path) -> str:
    """What the holder wrote; another process that has just come may not have done so yet."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(_BEGIN)
            return file.read(300).decode("utf-8", "replace").strip() or "another process"
    except OSError:
        return "another process"

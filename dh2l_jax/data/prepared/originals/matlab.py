"""A table in a MATLAB file, read by a child process.

SciPy's reader recurses as deeply as a file tells it to: 50,000 nested cells crash the interpreter.
A file that is not trusted is therefore read by another one, which runs this module as a script.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["read_table"]

# The largest original, of 8,144 rows, has less than 0.4 MB.
MAX_BYTES = 2**24
MAX_MEMORY = 2**32
TIMEOUT_SECONDS = 60.0

Cell = float | str


def read_table(data: bytes, variable: str, fields: Sequence[str], what: str) -> list[list[Cell]]:
    """The wanted fields, one number or text each, of each element of a struct array.

    Args:
      data: a MATLAB 5 (or 6, 7) file, untrusted.
      variable: name of the struct array.
      fields: the columns of the result.
      what: what a message calls the file.

    Raises:
      ValueError: the file holds no such table.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{what}: expected at most {MAX_BYTES} bytes, found {len(data)}")
    if not data.startswith(b"MATLAB 5.0 MAT-file"):
        raise ValueError(f"{what}: expected a MATLAB 5 file, found {data[:20]!r}")
    command = [sys.executable, "-P", __file__, variable, *fields]
    # BLAS gets one thread: the memory of each would count against the limit.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            command, input=data, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{what}: not read within {TIMEOUT_SECONDS:g} s") from error
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        crash = [f"what ends SciPy's reader with status {child.returncode}"]
        reason = (said if child.returncode == 1 and said else crash)[0]
        raise ValueError(f"{what}: expected a whole MATLAB file, found: {reason}")
    return json.loads(child.stdout)


def _rows(data: bytes, variable: str, fields: Sequence[str]) -> list[list[Cell]]:
    import scipy.io

    variables = scipy.io.loadmat(io.BytesIO(data), variable_names=[variable])
    if variable not in variables:
        raise ValueError(f"no variable {variable!r}")
    table = variables[variable]
    if lacking := [field for field in fields if field not in (table.dtype.names or ())]:
        raise ValueError(f"{variable!r} without the fields {', '.join(lacking)}")
    return [[_cell(row[field], field) for field in fields] for row in table.ravel()]


def _cell(cell: Any, field: str) -> Cell:
    if getattr(cell, "size", 0) != 1 or not isinstance(cell.item(), float | int | str):
        raise ValueError(f"a field {field!r} that is not one number or text")
    return cell.item()


def _limit_memory() -> None:
    # Some systems know no such limit.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _main() -> int:
    """Reads a file from stdin; prints the rows, or one line about what is wrong with it."""
    _limit_memory()
    try:
        variable, *fields = sys.argv[1:]
        print(json.dumps(_rows(sys.stdin.buffer.read(), variable, fields)))
    except Exception as error:  # SciPy raises whatever a damaged file leads it to.
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())

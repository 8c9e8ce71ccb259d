"""The trace of one step of a run, for Perfetto and XProf."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

__all__ = ["PROFILED", "Step", "annotate", "check_folder", "compiled", "record"]

PROFILED = 10
"""The step that is recorded: by then a run has compiled, and its buffers go round."""

Step = Callable[..., Any]  # (number of the step, counted from 1, *arguments, **options) → results

# An operation of a compiled program, and the place in the code that it comes from.
_OPERATION = re.compile(
    r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="(?:jit\(\w+\)/)?([^";]+)', re.MULTILINE
)


def check_folder(folder: Path) -> None:
    """Raises an `OSError` if no trace can be written to the folder; nothing is made yet."""
    path = folder.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"profile folder {folder}: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"profile folder {folder}: {existing} can't be written to")


def annotate(step: Callable[..., Any]) -> Step:
    """The step, which then stands under its number in whatever trace is being recorded."""

    def annotated(number: int, *arguments: Any, **options: Any) -> Any:
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            return step(*arguments, **options)

    return annotated


def record(
    step: Callable[..., Any], recorded: int, folder: Path, print_line: Callable[[str], object]
) -> Step:
    """The step as `annotate` gives it, but call `recorded` leaves a trace of itself alone.

    The trace goes below `plugins/profile` in the folder, as TensorBoard expects it; `print_line`
    gets a line on how to look at it. The step is a jitted function, or a partial one of it.
    """
    folder.mkdir(parents=True, exist_ok=True)  # the profiler would fail at the step, with pages
    usual = annotate(step)

    def wrapped(number: int, *arguments: Any, **options: Any) -> Any:
        if number != recorded:
            return usual(number, *arguments, **options)
        program = compiled(functools.partial(step, *arguments, **options)).as_text()
        jax.block_until_ready(arguments)  # so that earlier steps have no part in the trace
        how = jax.profiler.ProfileOptions()
        how.python_tracer_level = 0  # Python's own calls here are those of this module
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=how):
            results = jax.block_until_ready(usual(number, *arguments, **options))
        _name_operations(folder, program)
        print_line(
            f"profile of step {number}: open {folder}/plugins/profile/*/perfetto_trace.json.gz in "
            f"https://ui.perfetto.dev, or pip install xprof and xprof --logdir {folder}"
        )
        return results

    return wrapped


def compiled(bound: functools.partial) -> Any:
    """The program of a jitted function's call; what is compiled here a call compiles no more."""
    return bound.func.lower(*bound.args, **bound.keywords).compile()


def _name_operations(folder: Path, program: str) -> None:
    """Names the operations of the newest Perfetto trace by the code, as XProf does by itself.

    On CPU the profiler knows them as `fusion.12`; here they become `jvp(forward)/stem/conv/...`.
    """
    files = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    file = max(files, key=lambda path: path.stat().st_mtime)
    trace, names = json.loads(gzip.decompress(file.read_bytes())), dict(_OPERATION.findall(program))
    for event in trace["traceEvents"]:
        operation = event.get("args", {}).get("hlo_op")
        if operation in names and event["name"] == operation:
            event["name"] = names[operation]
    file.write_bytes(gzip.compress(json.dumps(trace).encode()))

"""Measures all that the documentation says about speed and memory.

python benchmarks/run.py                          all but the heads that take minutes a pass
python benchmarks/run.py --only dense closed      some of it
python benchmarks/run.py --only huge --rounds 1   the heads of 21,841 and 100,000 classes
python benchmarks/run.py --only field             the field's regularisers beside their papers'
python benchmarks/run.py --only sampled           what a sample misses the mean by, and its time
python benchmarks/run.py --json figures.json      as JSON too

PyTorch is the other side of the comparisons (`pip install torch==2.13.0`); without it they are left
out. Every ratio is of times measured in turn in one process; a quiet machine is assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import field
import jax
import pairs
import training
from rich.console import Console
from rows import Ceilings, Row, ceilings, show

from dh2l_jax.training.host.allocator import keep_freed_memory

BENCHMARKS = {
    "dense": pairs.dense,
    "closed": pairs.closed,
    "tiled": pairs.tiled,
    "grouped": pairs.grouped,
    "sampled": pairs.sampled,
    "field": field.field,
    "regularizer": training.regularizer,
    "pipeline": training.pipeline,
    "steps": training.steps,
    "compile": training.compilation,
    "huge": pairs.huge,
}
LONG = ("field", "huge", "sampled")


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    console = Console(highlight=False, width=150)
    top = ceilings()
    facts = _machine(top)
    console.print(facts)
    rows: list[Row] = []
    for name in options.only or [name for name in BENCHMARKS if name not in LONG]:
        new = list(BENCHMARKS[name](top, options.rounds))
        show(new, console)
        rows += new
        if options.json:
            figures = [{**dataclasses.asdict(row), "met": row.met} for row in rows]
            text = json.dumps({"machine": facts, "rows": figures}, indent=1, ensure_ascii=False)
            options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _machine(top: Ceilings) -> dict[str, Any]:
    versions = {}
    for name in ("jax", "jaxlib", "flax", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "matrix product, GFLOP/s": round(top.flops / 1e9, 1),
        "memory, GB/s": round(top.bytes / 1e9, 1),
    }


if __name__ == "__main__":
    sys.exit(main())

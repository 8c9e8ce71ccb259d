"""Compiles the library for accelerators that need not be there, and counts what would run.

python benchmarks/accelerator.py --platform h100                       the cases that are watched
python benchmarks/accelerator.py --platform v5e --only 'sum/ring/*'    others by name, * fits all
python benchmarks/accelerator.py --platform cpu --json figures.json    as JSON too

A case is step/NETWORK/BATCH/none|E|R|E+R/DEVICES or sum/WAY/METRIC/ROWSxWIDTH/DEVICES; --only none
of them prints all names. Nothing is run: launches, temporaries, FLOPs, bytes and collectives are
counted in the compiled program, those of one device with loops unrolled; both times are estimates,
by public peak rates and an assumed 3 µs a launch. A platform needs its compiler: for h100 `pip
install 'dh2l-jax[accelerator]'`, for v5e `pip install dh2l-jax 'jax[tpu]'` in another environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
import time
from pathlib import Path
from typing import Any

from platforms import PLATFORMS, Platform
from programs import count

STEPS = ("step/resnet20/512/*/[14]", "step/resnet110/512/*/1")
SUMS = (
    "sum/dense/*/512x4608/1",
    "sum/closed/d_h_bin/21841x2048/*",
    "sum/tiled/d_cos_hm/*/1",
    "sum/tiled/angular2/100000x512/1",
    "sum/ring/d_cos_hm/21841x2048/*",
)
# Some minutes of CPU time each; a step takes libtpu one and a half.
WATCHED = {
    "h100": (*STEPS, *SUMS),
    "v5e": (
        "step/resnet20/512/none/1",
        "step/resnet20/512/E+R/*",
        "sum/closed/d_h_bin/21841x2048/*",
        "sum/tiled/d_cos_hm/10000x512/1",
        "sum/ring/d_cos_hm/21841x2048/*",
    ),
    "cpu": SUMS,
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a case costs on one of its devices; `roofline_ms` and `launch_ms` are estimates."""

    case: str
    devices: int
    launches: int
    temporaries_mb: float
    gflop: float
    traffic_mb: float
    collectives: dict[str, tuple[int, int]]
    compile_s: float
    roofline_ms: float
    launch_ms: float
    unknown_loops: int


def figures(name: str, devices: int, lower: Any, platform: Platform) -> Figures:
    """Compiles a case; seconds are those of the process, which waiting does not count for."""
    start = time.process_time()
    compiled = lower(platform.mesh(devices)).compile()
    seconds = time.process_time() - start
    found = count(compiled.as_text())
    return Figures(
        case=name,
        devices=devices,
        launches=found.launches,
        temporaries_mb=compiled.memory_analysis().temp_size_in_bytes / 1e6,
        gflop=found.flops.total() / 1e9,
        traffic_mb=found.bytes / 1e6,
        collectives=found.collectives,
        compile_s=seconds,
        roofline_ms=1e3 * platform.roofline_seconds(found.flops, found.bytes),
        launch_ms=1e3 * platform.launch * found.launches,
        unknown_loops=found.unknown_loops,
    )


COLUMNS = (
    "case", "launches", "temporaries, MB", "GFLOP", "traffic, MB", "collectives (MB)",
    "compile, CPU s", "roofline, ms (estimate)", "launches, ms (estimate)",
)  # fmt: skip


def row(found: Figures) -> str:
    """A row of the table in Markdown."""
    collectives = ", ".join(
        f"{n:,} {kind} ({size / 1e6:,.3g})" for kind, (n, size) in sorted(found.collectives.items())
    )
    cells = (
        found.case,
        f"{found.launches:,}" + ("+" if found.unknown_loops else ""),
        f"{found.temporaries_mb:,.1f}",
        f"{found.gflop:,.1f}",
        f"{found.traffic_mb:,.0f}",
        collectives,
        f"{found.compile_s:.1f}",
        f"{found.roofline_ms:.3g}",
        f"{found.launch_ms:.3g}" if found.launch_ms else "",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Compiles the cases that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--platform", choices=PLATFORMS, default="h100", help="compile for it (default: h100)")
    add("--only", nargs="+", metavar="CASE", help="these cases instead of those that are watched")
    add("--json", type=Path, metavar="FILE", help="write the figures there too, case by case")
    options = parser.parse_args(arguments)
    platform = PLATFORMS[options.platform]
    if missing := platform.missing():
        print(missing, file=sys.stderr)
        return 1
    platform.prepare()
    # Imported late: jax reads its environment when it is imported.
    from cases import CASES
    from jax.errors import JaxRuntimeError

    patterns = options.only or WATCHED[options.platform]
    chosen = [name for name in CASES if any(fnmatch.fnmatch(name, p) for p in patterns)]
    if not chosen:
        parser.error("\n  ".join([f"no case is named {' '.join(patterns)}; there are", *CASES]))
    print(f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1), sep="\n")
    rows = []
    for name in chosen:
        try:
            found = figures(name, *CASES[name], platform)
        except JaxRuntimeError as error:  # such as a program that does not fit
            reason = str(error).splitlines()[0]
            rows.append({"case": name, "error": reason})
            print(f"| {name} | {reason[:100]} |", flush=True)
        else:
            rows.append(dataclasses.asdict(found))
            print(row(found), flush=True)
        if options.json:
            text = json.dumps({"platform": options.platform, "rows": rows}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

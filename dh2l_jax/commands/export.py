"""Writes the network of a run for others; no image of its data set is needed.

  dh2l export runs/mine mine.safetensors    weights; torchvision's names where it has the network
  dh2l export runs/mine mine.stablehlo      a program for JAX alone: pixels to probabilities

Classes, tree, size, normalisation and temperature travel in the metadata of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dh2l_jax.commands import BAD, Exit, Parser, fail, refuse_small_limits

PROGRAM = "dh2l export"


def main(arguments: list[str] | None = None) -> int:
    """Writes the file; the exit code."""
    try:
        options = parse_arguments(arguments)
        refuse_small_limits()
        # Imported late: help and a wrong option need no JAX.
        from dh2l_jax.training.finished import export
        from dh2l_jax.training.run.console import line_printer

        print_line = line_printer(Console(highlight=False))
        path = export(options.run, options.file, print_line)
    except BAD as error:
        return fail(PROGRAM, error)
    print_line(f"written: {path}")
    return Exit.FINISHED


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, taken apart; a `ValueError` says what is wrong with it."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="NAME.safetensors or NAME.stablehlo"
    )
    return parser.parse_args(arguments)

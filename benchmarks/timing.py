"""Times of several ways to do one thing, measured side by side: what counts is their ratio."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

__all__ = ["Times", "interleaved", "seconds"]

ENOUGH = 0.05  # seconds: an arm is repeated within a round until it takes so long


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of every arm in every round.

    Attributes:
      seconds: arm → one time a round.
    """

    seconds: Mapping[str, list[float]]

    def median(self, arm: str) -> float:
        """Seconds of an arm, the median over the rounds."""
        return statistics.median(self.seconds[arm])

    def ratio(self, arm: str, other: str) -> tuple[float, float, float]:
        """Time of an arm over that of another in the same round: median, least, greatest."""
        pairs = zip(self.seconds[arm], self.seconds[other], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Runs all arms in turn, `rounds` times, after one round that does not count.

    Args:
      arms: name → function without arguments; what it returns is waited for.
      rounds: number of rounds that count.
    """
    repeats = {}
    for name, arm in arms.items():
        seconds(arm, 1)  # compiles, and fills the caches
        repeats[name] = max(1, round(ENOUGH / seconds(arm, 1)))
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            taken[name].append(seconds(arm, repeats[name]))
    return Times(taken)


def seconds(arm: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call, the mean of some in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(arm())
    return (time.perf_counter() - start) / repeats

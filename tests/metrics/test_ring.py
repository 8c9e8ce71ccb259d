"""Rows split over devices: the sum and its gradient are the dense ones, the memory is divided."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import rings as ring_checks

pytestmark = [pytest.mark.xdist_group("ring"), pytest.mark.slow]


@pytest.fixture(scope="module")
def measured():
    """What `ring_checks` measures on eight fake devices, which need a process of their own."""
    script = Path(ring_checks.__file__)
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", ring_checks.CASES)
def test_value_and_gradient_are_the_dense_ones(measured, case):
    value, gradient = measured["errors"][case]
    assert value <= 1e-5
    assert gradient <= 1e-5


def test_rows_may_lie_on_one_axis_of_a_larger_mesh(measured):
    assert max(measured["sharded"]["errors"]) <= 1e-5
    assert measured["sharded"]["stays"]


def test_memory_is_divided(measured):
    """Temporaries of a device for 20,000 × 512 rows: on eight at most half of those on one."""
    one, eight = (measured["compiled"][devices]["bytes"] for devices in "18")
    assert 2 * eight <= one


def test_no_device_gathers_the_rows(measured):
    """They go round the ring; only the value is summed over all devices."""
    assert measured["compiled"]["8"]["collectives"] == ["all-reduce", "collective-permute"]

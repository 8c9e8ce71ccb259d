"""The setting of the C library's allocator."""

import ctypes
import platform
import subprocess
import sys

import pytest

from dh2l_jax.training.host import allocator


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_takes_every_setting():
    """In a process of its own, which it changes for good; by its path, so that JAX stays out."""
    script = "import runpy, sys; print(runpy.run_path(sys.argv[1])['keep_freed_memory']())"
    command = [sys.executable, "-c", script, allocator.__file__]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_another_library_is_left_alone(monkeypatch, error):
    def missing(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not allocator.keep_freed_memory()

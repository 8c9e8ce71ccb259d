"""The allocator of the process, for training on CPU."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# From malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_OPTIONS = ((-8, 1), (-4, 0), (-1, -1), (-2, 256 << 20))


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed buffers instead of returning them to the system.

    A train step on CPU allocates the same large buffers again and again; returned to the system,
    each costs a page fault per 4 KiB at the next step. The settings are those of the whole process,
    so a command calls this, and no library. False where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    accepted = [mallopt(option, value) == 1 for option, value in _OPTIONS]
    return all(accepted)

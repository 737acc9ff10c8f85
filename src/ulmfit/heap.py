"""The memory of the process: kept from step to step while it learns, one heap for all threads. By settings of glibc."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""of free memory given back to the system, of blocks that come from there one by one, and the most heaps that threads
have apart: from glibc's malloc.h"""


def share_heap() -> None:
    """Let threads to come use the heaps that there are: called when a program begins, there is one.

    glibc gives each thread a heap of its own. Which thread does a layer's work changes from step to step, so in time
    each heap would grow to the most that any layer asks for. Where there is another C library nothing changes.
    """
    change = _of_glibc("mallopt")
    if change is not None:
        change(_ARENA_MAX, 1)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, what is freed stays with the process, to be used again: training asks for the same sizes in every step.

    glibc would give large blocks back to the system, which clears each page anew. Where there is another C library
    nothing changes. Afterwards all that is free is given back.
    """
    change, give_back = _of_glibc("mallopt"), _of_glibc("malloc_trim")
    if change is None or give_back is None:
        yield
        return
    change(_MMAP_THRESHOLD, 2**30)
    change(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        # The most that glibc's own, moving thresholds come to; once set they stand still.
        change(_MMAP_THRESHOLD, 2**25)
        change(_TRIM_THRESHOLD, 2**26)
        give_back(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """One of its functions; None with another library, or on a system that has no such names."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None

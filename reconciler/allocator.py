"""The C library's memory, for a process that lives for months.

glibc gives threads arenas of their own, eight for each processor, and each keeps what its busiest
moment needed. A daemon starts threads anew in every pass, so it would creep towards the sum of all:
it doubled in 500 passes that fetched layers, and stays where it was with one arena for all. The
threads are few and mostly wait for the network or hold the interpreter's lock, so none waits long
for another. Called by `verbs.watch` before there are threads.
"""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> None:
    """Let threads to come share the arena of the first; where that is no glibc, nothing happens."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return


def give_back() -> None:
    """Let go of what a pass has left: errors and their frames in cycles, and free pages."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return

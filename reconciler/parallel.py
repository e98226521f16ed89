"""Work in threads while the calling thread stays awake for signals.

Python runs signal handlers in the main thread, between two of its instructions. A signal that
arrives just before that thread goes to sleep waiting for others is handled when they are done:
minutes later, when they were what the signal was to stop. So the wait here is many short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

_NAP = 0.2
"""Seconds within which a signal is noticed."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, name: str
) -> list[_Result]:
    """`work` on every item, at most `threads` at a time; results in the order of the items.

    name: a prefix for the threads' names. Raises what the first failing item raised, when all
    have ended.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        futures = [pool.submit(work, item) for item in items]
        pending = set(futures)
        while pending:
            pending = wait(pending, timeout=_NAP).not_done
        return [future.result() for future in futures]

"""Work in threads while the calling thread stays awake for signals.

Python runs signal handlers in the main thread, between two of its instructions. A signal that
arrives just before that thread goes to sleep waiting for others is handled when they are done:
minutes later, when they were what the signal was to stop. So the wait here is many short ones.
"""

from __future__ import annotations

from collections import deque
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
    queue = deque(enumerate(items))
    done: dict[int, _Result] = {}
    failed: dict[int, BaseException] = {}

    def worker() -> None:  # takes one after the other: a task for each of thousands costs more
        while queue:
            try:
                number, item = queue.popleft()
            except IndexError:  # another was faster
                return
            try:
                done[number] = work(item)
            except BaseException as error:
                failed[number] = error

    count = min(threads, len(queue))
    with ThreadPoolExecutor(max(count, 1), thread_name_prefix=name) as pool:
        pending = {pool.submit(worker) for _ in range(count)}
        while pending:
            pending = wait(pending, timeout=_NAP).not_done
    if failed:
        raise failed[min(failed)]
    return [done[number] for number in sorted(done)]

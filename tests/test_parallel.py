"""Work in threads: order, errors, and a calling thread that still hears signals."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from reconciler.parallel import in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item * 10

    assert in_threads(slow_first, range(5), 3, "t") == [0, 10, 20, 30, 40]


def test_an_error_comes_when_all_have_ended() -> None:
    ended: list[int] = []

    def fail_first(item: int) -> None:
        if item == 0:
            raise KeyError("first")
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(KeyError, match="first"):
        in_threads(fail_first, range(3), 3, "t")
    assert sorted(ended) == [1, 2]


def test_a_handler_runs_while_the_work_goes_on() -> None:
    """The signal is raised in a thread: it never interrupts the main thread's sleep by itself."""
    heard = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.set())
    try:

        def work(_: int) -> bool:
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            return heard.wait(30)

        assert in_threads(work, [0], 1, "t") == [True]
    finally:
        signal.signal(signal.SIGUSR1, before)

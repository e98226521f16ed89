"""What systemd is told, and that it is told when the process can open nothing any more."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import Manager

from reconciler.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def test_the_watchdog_is_fed_without_a_free_descriptor(manager: Manager) -> None:
    notifier = Notifier(str(manager.path), 1.0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        notifier.alive()
        notifier.status("well")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert manager.next("WATCHDOG")
    assert manager.next("STATUS") == {"STATUS": "well"}


def test_a_status_is_one_line_whatever_is_in_it(manager: Manager) -> None:
    Notifier(str(manager.path), None).status("bad\nREADY=1\x1b[31m")
    assert manager.next("STATUS") == {"STATUS": "bad\\nREADY=1\\x1b[31m"}


def test_a_manager_that_reads_nothing_holds_nobody_up_for_long(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.notify._PATIENCE", 0.01)
    notifier = Notifier(str(manager.path), 1.0)
    for _ in range(1000):  # far more than its queue takes: unix(7), max_dgram_qlen
        notifier.alive()


def test_a_manager_that_is_gone_is_no_reason_to_stop(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody"), 1.0).alive()


def test_the_environment_is_cleaned_for_children(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "5000000", "PATH": "/"}
    assert Notifier.from_environment(environment).watchdog == 5.0
    assert environment == {"PATH": "/"}

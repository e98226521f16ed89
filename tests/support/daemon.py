"""The daemon as systemd runs it: a process, its log as events, a socket that it reports to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.program import Program

PATIENCE = 120.0
"""Seconds after which a test gives up; far beyond what any of it takes, on any machine."""

Event = dict[str, Any]


class Daemon:
    """A running `--watch`. Its events are kept; `wait` looks at those that were not waited for."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.events: list[Event] = []
        self.noise: list[str] = []
        self._seen = 0
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.noise.append(line)
                self._news.notify_all()

    def wait(self, name: str, accept: Callable[[Event], bool] = lambda event: True) -> Event:
        """The next event of this name that is accepted, after those waited for before."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while True:
                for position in range(self._seen, len(self.events)):
                    event = self.events[position]
                    if event["event"] == name and accept(event):
                        self._seen = position + 1
                        return event
                left = deadline - time.monotonic()
                over = self.process.poll() is not None and not self._reader.is_alive()
                if left <= 0 or over or not self._news.wait(min(left, 1.0)):
                    assert left > 0 and not over, f"no {name}: {self.noise} {self.events[-15:]}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; the exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


@contextmanager
def watching(
    program: Program,
    config: Path,
    *words: str | Path,
    before: Sequence[str] = (),
    **environment: str,
) -> Iterator[Daemon]:
    """Run the daemon until the block ends. before: words in front of the command."""
    argv = [*before, *program.argv("--watch", *words, config)]
    daemon = Daemon(argv, {**program.environment, "PYTHONUNBUFFERED": "1", **environment})
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait()


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(PATIENCE)
        self.told: list[dict[str, str]] = []

    def next(self, key: str) -> dict[str, str]:
        """The next message that says this, as a table."""
        while True:
            text = self._socket.recv(65536).decode()
            message = dict(line.split("=", 1) for line in text.splitlines())
            self.told.append(message)
            if key in message:
                return message

    def close(self) -> None:
        self._socket.close()

"""What the daemon tells systemd: ready, reloading, alive, stopping. See sd_notify(3).

Datagrams on a socket that the environment names; without one every call does nothing, so that the
daemon is the same in a terminal. The name is taken out of the environment: no child speaks for us.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

from reconciler.text import printable

_PATIENCE = 2.0
"""Seconds that a manager with a full queue may hold up the loop; what it misses is said again."""
_KIND = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC


class Notifier:
    """Sends state to the service manager.

    watchdog: seconds without a sign of life after which it restarts us, or None.
    """

    def __init__(self, address: str, watchdog: float | None) -> None:
        self._address = address
        self.watchdog = watchdog if address else None
        # made once: a daemon that has run out of descriptors must still feed its watchdog
        self._channel = socket.socket(socket.AF_UNIX, _KIND) if address else None
        if self._channel:
            self._channel.settimeout(_PATIENCE)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say; they are removed from it."""
        address = environment.pop("NOTIFY_SOCKET", "")
        usec = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "")
        ours = usec.isdigit() and int(usec) > 0 and meant in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if ours else None)

    def ready(self, status: str) -> None:
        """The watcher is armed, or a reload is over."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time stamp is what Type=notify-reload demands."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        if self.watchdog:
            self._send("WATCHDOG=1")

    def stopping(self, seconds: float, status: str) -> None:
        """The daemon goes, and wants this much time for it."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", _status(status))

    def _send(self, *lines: str) -> None:
        if not self._channel:
            return
        # a leading @ stands for the NUL of an abstract socket: unix(7)
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError):  # a manager that does not listen is no reason to stop working
            self._channel.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return f"STATUS={printable(text)}"

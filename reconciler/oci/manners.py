"""How long a server may keep us waiting, and how long it may make us wait.

`oci.web` uses it: a `Deadline` ends what no timeout of a single read can end, such as headers that
trickle in byte by byte; `Pauses` is what a pass knows of hosts that asked to be left alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from reconciler.errors import RemoteError

_POLL_SECONDS = 1.0


class Deadline:
    """Calls `end` in a thread of its own when the time is over before the block ends.

    seconds: from now. `renew` starts the clock again, `stop` stops it until the next `renew`.
    """

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self.expired = False
        self._at = time.monotonic() + seconds
        self._end = end
        self._over = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def __enter__(self) -> Deadline:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._over = True
            self._condition.notify()

    def renew(self, seconds: float) -> None:
        """Seconds from now."""
        self._at = time.monotonic() + seconds

    def stop(self) -> None:
        """Nothing is waited for now."""
        self._at = math.inf

    def _watch(self) -> None:
        with self._condition:
            while not self._over:
                left = self._at - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._end()
                    return
                self._condition.wait(min(left, _POLL_SECONDS))


class Pauses:
    """Until when hosts want no request. Safe to share between threads."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def ask(self, host: str, seconds: float) -> None:
        """The host wants to be left alone; the longest wish counts."""
        self._until[host] = max(self._until.get(host, 0.0), time.monotonic() + seconds)

    def check(self, host: str) -> None:
        """Raise RemoteError with the seconds left as `retry_after` while the host is paused."""
        left = self._until.get(host, 0.0) - time.monotonic()
        if left > 0:
            brief = f"{host} has asked for a pause, of which {left:.1f} s are left"
            raise RemoteError(brief, retry_after=left)

"""The other side of `direct.tables.main`: inodes of files written by a process of their own.

`direct.image` starts one for large images. Records wait here while the process has no time for
them, so that whoever reads layers never waits for it; only `finish` does.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import select
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from reconciler.direct import tables
from reconciler.direct.tables import DONE, HEAD, Record
from reconciler.errors import Code, HostError
from reconciler.processes import Checkpoint, Companion

_PIPE = 1 << 20
"""Bytes that the pipe holds: as much as everybody may ask for."""
_NAP_MS = 200


class Scribe:
    """Writes inodes like `direct.tables.Tables`, later. Use it in a `with`: its end ends it."""

    def __init__(self, image: Path) -> None:
        """Raises HostError."""
        come, self._give = os.pipe()
        self._told, tell = os.pipe()
        os.set_blocking(self._give, False)
        with suppress(OSError):  # what an unprivileged user has in pipes is limited
            fcntl.fcntl(self._give, fcntl.F_SETPIPE_SZ, _PIPE)
        self._waiting: deque[memoryview] = deque()
        try:
            words = [str(image), str(come), str(tell)]
            self._child = Companion(tables.__name__, words, [come, tell])
        except BaseException:
            self._close()
            raise
        finally:
            os.close(come)
            os.close(tell)

    def __enter__(self) -> Scribe:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._give, self._told):
            if descriptor >= 0:
                os.close(descriptor)
        self._give = self._told = -1

    def write(self, records: Iterable[Record]) -> None:
        """Have inodes written. Raises nothing: `finish` tells."""
        raw = marshal.dumps(list(records))
        self._waiting.append(memoryview(HEAD.pack(len(raw)) + raw))
        self._push()

    def _push(self) -> None:
        """Hand over what the pipe takes."""
        waiting = self._waiting
        try:
            while waiting:
                done = os.write(self._give, waiting[0])
                if done < len(waiting[0]):
                    waiting[0] = waiting[0][done:]
                else:
                    waiting.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            waiting.clear()  # it has ended: `finish` asks how

    def finish(self, checkpoint: Checkpoint) -> None:
        """Wait until all is written. Raises HostError: what the process had to say, or its end."""
        while self._waiting:
            _wait(self._give, select.POLLOUT, checkpoint)
            self._push()
        os.close(self._give)
        self._give = -1
        _wait(self._told, select.POLLIN, checkpoint)
        told = os.read(self._told, _PIPE)
        if told == DONE:
            return
        code, _, brief = told.decode().partition("\0")
        if not code:
            raise HostError(
                f"the process that writes inodes {self._child.end()}", code=Code.TOOL_FAILED
            )
        raise HostError(brief, code=Code(code))


def _wait(descriptor: int, what: int, checkpoint: Checkpoint) -> None:
    poll = select.poll()
    poll.register(descriptor, what)
    while not poll.poll(_NAP_MS):
        checkpoint()

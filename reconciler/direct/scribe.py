"""The other side of `direct.tables.main`: inodes of files written by a process of their own.

`direct.image` starts one for large images. While layers are unpacked all processors have enough to
do; after that, one would be idle while directories are written. So records wait in memory that both
share, until somebody says `begin`.
"""

from __future__ import annotations

import marshal
import os
import select
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from reconciler.direct import tables
from reconciler.direct.tables import DONE, HEAD, SEPARATOR, Record
from reconciler.errors import Code, HostError
from reconciler.processes import Checkpoint, Companion

_NAP_MS = 200
_LONGEST = 1 << 16
"""Bytes of the longest message of the process."""


class Scribe:
    """Writes inodes like `direct.tables.Tables`, later. Use it in a `with`: its end ends it."""

    def __init__(self, image: Path) -> None:
        """Raises HostError."""
        self._has_begun = False
        self._heads = b""
        with ExitStack() as theirs, ExitStack() as ours:
            self._memory = os.memfd_create("inodes")
            ours.callback(os.close, self._memory)
            come, give = os.pipe()
            theirs.callback(os.close, come)
            self._give = os.fdopen(give, "wb", buffering=0)
            ours.callback(self._give.close)
            self._told, tell = os.pipe()
            theirs.callback(os.close, tell)
            ours.callback(os.close, self._told)
            words = [str(image), *map(str, (self._memory, come, tell))]
            self._child = Companion(tables.__name__, words, [self._memory, come, tell])
            self._open = ours.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        self._open.close()

    def write(self, records: Iterable[Record]) -> None:
        """Have inodes written: `finish` tells what came of it."""
        raw = memoryview(marshal.dumps(list(records)))
        self._heads += HEAD.pack(len(raw))
        while raw:
            raw = raw[os.write(self._memory, raw) :]
        if self._has_begun:
            self.begin()

    def begin(self) -> None:
        """The time has come."""
        self._has_begun = True
        heads, self._heads = self._heads, b""
        with suppress(BrokenPipeError):  # it has ended: `finish` asks how
            self._give.write(heads)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Wait until all is written. Raises HostError: what the process had to say, or its end."""
        self.begin()
        self._give.close()
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        while not poll.poll(_NAP_MS):
            checkpoint()
        told = os.read(self._told, _LONGEST)
        if told == DONE:
            return
        if not told:
            brief = f"the process that writes inodes {self._child.end()}"
            raise HostError(brief, code=Code.TOOL_FAILED)
        code, brief, resolution, again = told.decode().split(SEPARATOR)
        raise HostError(brief, code=Code(code), resolution=resolution, retryable=bool(again))

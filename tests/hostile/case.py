"""What a case is: how its image is made, and what must become of it. The words of the table.

    Case("15-to-outside", stack([h("x", "../../etc/passwd")]), rejects="hardlink")
    Case("12-verbatim", stack([s("l", "/nowhere")]), holds={"l": "-> /nowhere"})

An id begins with the numbers of its rows in docs/images.md. Everything is accepted unless `rejects`
says otherwise, and then `holds` is the whole tree of the filesystem that came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from support.images import LayerBytes, make_layout
from support.tarball import entry, tar

from reconciler.errors import Code

T = 1_700_000_000
"""Seconds: the time of every entry that does not say another."""

Held = bytes | str | int | tuple[Any, ...]
"""A file's content, `-> target`, a directory's mode, ("char", 1, 3), ("block", 8, 0), ("fifo",)."""

Make = Callable[[Path, str], None]
"""Writes an OCI layout to the path; the second argument is an absolute directory of canaries."""

Entries = Sequence[bytes]


@dataclass(frozen=True)
class Case:
    """One image.

    rejects: a pattern in the error's line; code: of that error. holds: the whole tree, without
    lost+found. has: some attributes of some paths. lists: a word for each line of `not_carried`.
    peer: why umoci does not unpack this one as the specification says; empty when it does.
    retryable: of the error: only bytes that do not match are asked for again.
    """

    id: str
    make: Make
    rejects: str = ""
    code: Code = Code.IMAGE_INVALID
    holds: Mapping[str | bytes, Held] = field(default_factory=dict)
    has: Mapping[str | bytes, Mapping[str, Any]] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    peer: str = ""
    size: str = "16MiB"
    retryable: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows of docs/images.md that this proves."""
        leading = takewhile(lambda word: word.isdigit() and len(word) == 2, self.id.split("-"))
        return tuple(map(int, leading))


def stack(*layers: Entries | bytes | LayerBytes, **options: Any) -> Make:
    """An image of layers, oldest first: lists of entries, whole tar streams, or as they travel."""

    def make(layout: Path, outside: str) -> None:
        raw = [layer if isinstance(layer, bytes | LayerBytes) else tar(*layer) for layer in layers]
        make_layout(layout, raw, **{"compression": "none"} | options)

    return make


def aimed(entries: Callable[[str], Sequence[Entries]]) -> Make:
    """An image whose entries know where the canaries are."""

    def make(layout: Path, outside: str) -> None:
        stack(*entries(outside))(layout, outside)

    return make


def f(path: str | bytes, data: bytes = b"", **fields: Any) -> bytes:
    """A regular file."""
    return entry(path, "file", data, **{"mtime": T} | fields)


def d(path: str | bytes, mode: int = 0o755, **fields: Any) -> bytes:
    """A directory."""
    return entry(path, "dir", mode=mode, **{"mtime": T} | fields)


def s(path: str | bytes, target: str | bytes, **fields: Any) -> bytes:
    """A symbolic link."""
    return entry(path, "symlink", target=target, **{"mode": 0o777, "mtime": T} | fields)


def h(path: str | bytes, target: str | bytes, **fields: Any) -> bytes:
    """A hardlink."""
    return entry(path, "hardlink", target=target, **{"mtime": T} | fields)


def n(path: str | bytes, kind: str, major: int = 0, minor: int = 0, **fields: Any) -> bytes:
    """A device or a FIFO."""
    return entry(path, kind, rdev=(major, minor), **{"mtime": T} | fields)

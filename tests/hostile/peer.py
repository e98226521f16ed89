"""Every accepted image beside what umoci unpacks of it: the same tree, entry by entry.

Owners and attributes are not compared: without root umoci can set none, and the cases have them
from their own headers. Where the peer differs from the specification, the case says how.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from hostile.bench import Seen


def unpacked(layout: Path, top: Path) -> dict[bytes, tuple[Any, ...]]:
    """What umoci makes of the image: kind and content, mode, names of one inode, time."""
    command = ["umoci", "raw", "unpack", "--rootless", "--image", f"{layout}:latest", str(top)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[int, bytes] = {}
    for path in _below(top):
        full = top / os.fsdecode(path)
        info = full.lstat()
        kind = stat.S_IFMT(info.st_mode)
        mode = stat.S_IMODE(info.st_mode)
        held: object = mode
        if kind == stat.S_IFLNK:
            held, mode = f"-> {os.readlink(full)}", 0  # noqa: PTH115 (a Path is normalised)
        elif kind == stat.S_IFREG:
            held = full.read_bytes() if os.access(full, os.R_OK) else None
        elif kind != stat.S_IFDIR:
            held = b""  # a FIFO is really made, and would be waited on for ever
        first = path if kind == stat.S_IFDIR else groups.setdefault(info.st_ino, path)
        found[path] = (held, mode, first, info.st_mtime_ns)
    return found


def _below(top: Path) -> list[bytes]:
    found = [b""]
    for directory, directories, files in os.walk(os.fsencode(top)):
        names = [directory + b"/" + name for name in directories + files]
        found += [os.path.relpath(name, os.fsencode(top)) for name in names]
    return sorted(found)


def ours(found: dict[bytes, Seen]) -> dict[bytes, tuple[Any, ...]]:
    """The same of a finished filesystem; a device is an empty file, as it is there without root."""
    told: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[int, bytes] = {}
    for path, seen in sorted(found.items()):
        first = path if isinstance(seen.held, int) else groups.setdefault(seen.inode, path)
        held = b"" if isinstance(seen.held, tuple) else seen.held
        mode = 0 if isinstance(held, str) else seen.mode
        told[path] = (held, mode, first, seen.mtime_ns)
    return told


def compare(layout: Path, found: dict[bytes, Seen], top: Path) -> None:
    """Unpack the image at `layout` into `top` with umoci; compare with a finished filesystem."""
    mine, theirs = ours(found), unpacked(layout, top)
    if b"lost+found" not in theirs:
        mine.pop(b"lost+found")
    assert mine.keys() == theirs.keys()
    for path, (held, mode, first, mtime) in theirs.items():
        wanted = (mine[path][0] if held is None else held, mode, first)
        assert mine[path][:3] == wanted, path
        # what no header describes has the epoch here and the time of unpacking there
        assert mine[path][3] in (0, mtime), path

"""The configuration file, watched: tells the daemon what stands there whenever that changed.

Watching the file itself dies after one atomic save, and filtering its directory by file name misses
every swap of a linked directory, which is how ConfigMaps and git-sync publish. So: watch, without
recursion and without filter, the directory of every hop of the path's symlinks and its parent; an
event only means "look again", and the sha256 of the bytes decides. Where events cannot be had, the
bytes are hashed every few seconds. Owns watchfiles; runs in a thread of its own, because settling
takes seconds that the daemon's loop does not have.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from reconciler.config.file import read_bytes
from reconciler.config.load import Config, parse
from reconciler.config.lock import lock_path, read_lock, under_lock
from reconciler.errors import ConfigError
from reconciler.model import Emit
from reconciler.text import printable

POLL_SECONDS = 5.0
"""Between two looks where no events come."""
CAREFUL_SECONDS = 60.0
"""Between two looks where events come: what the kernel forgot to tell is found this late."""
LONGEST_SETTLE = 5.0
"""Seconds for which a file that never rests is waited for."""
AGREE_SECONDS = 0.05
"""Between the two readings that have to agree."""
_MOST_LINKS = 40  # as the kernel: path_resolution(7)
_STEP_MS = 50
_MUTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "vboxsf", "fuse")

Places = dict[Path, tuple[int, int]]
"""Directories to watch -> (device, inode)."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What stood at the path when it had settled: its bytes, or why there are none."""

    data: bytes | None
    problem: ConfigError | None = None
    stamp: tuple[int, int, int] = (0, 0, 0)
    """Inode, size in bytes, mtime in nanoseconds."""
    lock: bytes | None = None
    """The lock file beside it; None without one."""

    @property
    def digest(self) -> str:
        """What tells one sight from another: the bytes, or the problem."""
        told = self.data if self.data is not None else f"\0{self.problem}".encode()
        beside = b"" if self.lock is None else b"\0" + self.lock
        return hashlib.sha256(told + beside).hexdigest()


def glance(path: Path) -> Sight:
    """Read the file once, settled or not."""
    try:
        data = read_bytes(path)
        info = path.stat()
        lock = read_lock(path)
    except ConfigError as error:
        return Sight(None, error)
    except OSError:
        return Sight(None, ConfigError(f"{path} changed while it was read"))
    return Sight(data, stamp=(info.st_ino, info.st_size, info.st_mtime_ns), lock=lock)


def settled(path: Path) -> Sight:
    """Read the file until two readings agree in bytes, inode, size and mtime; at most 5 s."""
    deadline = time.monotonic() + LONGEST_SETTLE
    before = glance(path)
    while True:
        time.sleep(AGREE_SECONDS)
        sight = glance(path)
        if (sight.digest, sight.stamp) == (before.digest, before.stamp):
            return sight
        if time.monotonic() > deadline:
            return Sight(None, ConfigError(f"{path} does not stop changing"))
        before = sight


def accept(
    sight: Sight, path: Path, interval: float | None = None, *, locked: bool = False
) -> Config:
    """The configuration that a sight holds. Raises ConfigError when it is none to work by.

    An empty file is none: it is what a file looks like while somebody writes it. interval: seconds,
    in place of the configuration's. locked: the lock file has to fit.
    """
    if sight.data is None:
        raise sight.problem or ConfigError(f"{path} cannot be read")
    if not sight.data.strip():
        raise ConfigError(f"{path} is empty", resolution="Remove images by removing their entries.")
    config = parse(sight.data, path.absolute().parent, path)
    config = under_lock(config, sight.lock, demanded=locked)
    if interval is None:
        return config
    return replace(config, reconcile=replace(config.reconcile, interval=interval))


def hops(path: Path) -> list[Path]:
    """The directories in which the parts of this path are looked up that are links, or the file."""
    pending, current, found = deque(path.absolute().parts[1:]), Path("/"), []
    links = 0
    while pending:
        part = pending.popleft()
        if part == "..":
            current = current.parent
            continue
        entry = current / part
        try:
            target = entry.readlink() if entry.is_symlink() else None
        except OSError:  # swapped this very moment: the next look sees what it became
            target = None
        if target is not None and links < _MOST_LINKS:
            links += 1
            found.append(current)
            pending.extendleft(reversed([p for p in target.parts if p != "/"]))
            current = Path("/") if target.is_absolute() else current
        else:
            current = entry
    return [*found, current.parent]


def places(path: Path) -> Places:
    """What to watch: each hop's directory and its parent, or the nearest that exists."""
    found: Places = {}
    for directory in hops(path):
        existing = directory
        while not _is_directory(existing) and existing != existing.parent:
            existing = existing.parent
        for place in (existing, existing.parent):
            try:
                info = place.stat()
            except OSError:
                continue
            found[place] = (info.st_dev, info.st_ino)
    return found


def _both(path: Path) -> Places:
    """What to watch for a configuration and its lock file."""
    return places(path) | places(lock_path(path))


def blind_spot(watched: Places, mounts: str) -> str:
    """Why events from these places cannot be trusted; empty when they can.

    mounts: the text of /proc/self/mountinfo (proc(5)): filesystems whose changes may be made by
    another machine or another process without this kernel's knowledge deliver no events.
    """
    kinds = {}
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split()
        if len(fields) > 4 and tail:
            kinds[Path(fields[4].encode().decode("unicode_escape"))] = tail.split()[0]
    for place in watched:
        mount = max((m for m in kinds if place.is_relative_to(m)), key=_depth, default=None)
        kind = kinds[mount] if mount else ""
        if kind.partition(".")[0] in _MUTE:
            return f"{place} lies on {kind}, which tells of no change"
        if not os.access(place, os.R_OK):
            return f"{place} may not be read, so it cannot be watched"
    return ""


def _depth(path: Path) -> int:
    return len(path.parts)


class Watch:
    """The watching thread: tells `True` once it is armed, and then every new sight."""

    def __init__(
        self,
        path: Path,
        first: Sight,
        settle: float,
        tell: Callable[[Sight | bool], None],
        emit: Emit,
    ) -> None:
        self.settle = settle
        """Seconds of quiet before a changed file is read; may be set at any time."""
        self._path = path
        self._tell = tell
        self._emit = emit
        self._told = first.digest
        self._stopped = threading.Event()
        self._wake = threading.Event()
        """Somebody wants a look, or the end; watchfiles looks at it every few milliseconds."""
        self._asked = False
        self._armed = False
        self._degraded = ""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch. What changes after `first` was seen is told, events or not."""
        self._thread.start()

    def look(self) -> None:
        """Read the file and tell what is there: an event or a reading that was lost is made up for.

        Returns at once.
        """
        self._asked = True
        self._wake.set()

    def stop(self) -> None:
        """End the thread; returns when it has ended, or hangs in a filesystem that does not answer.

        It dies with the process then: it is a daemon thread.
        """
        self._stopped.set()
        self._wake.set()
        self._thread.join(LONGEST_SETTLE)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._watch()
            except Exception as error:  # without this thread no edit would ever be seen again
                problem = printable(f"{type(error).__name__}: {error}")
                self._say({}, f"the file cannot be watched: {problem}")
                self._stopped.wait(POLL_SECONDS)

    def _watch(self) -> None:
        """Arm, and follow until the places are others."""
        self._look()  # also when what follows cannot be done
        watched = _both(self._path)
        reason = blind_spot(watched, _mounts())
        try:
            notify = RustNotify([str(p) for p in watched], False, False, 0, False, True)
        except (WatchfilesRustInternalError, OSError) as error:
            # no instance or no watch is left, or a directory went away this moment
            self._follow(watched, None, f"no events: {error}")
            return
        try:
            self._follow(watched, notify, reason)
        finally:
            notify.close()

    def _follow(self, watched: Places, notify: RustNotify | None, reason: str) -> None:
        """Look after every event, until the places are others than those watched."""
        self._say(watched, reason)
        self._look()  # what happened while this was being armed
        if not self._armed:
            self._armed = True
            self._tell(True)
        wait = POLL_SECONDS if reason else CAREFUL_SECONDS
        while not self._stopped.is_set() and _both(self._path) == watched:
            told = _changes(notify, wait, self._wake) if notify else _nothing(self._wake, wait)
            self._wake.clear()
            if told or glance(self._path).digest != self._told:
                self._until_quiet(notify)
            self._look()
            if notify is None:
                return  # events may be had again by now

    def _until_quiet(self, notify: RustNotify | None) -> None:
        if notify is None:
            self._stopped.wait(self.settle)
            return
        deadline = time.monotonic() + LONGEST_SETTLE
        while time.monotonic() < deadline and _changes(notify, self.settle, self._stopped):
            pass

    def _look(self) -> None:
        asked, self._asked = self._asked, False
        sight = settled(self._path)
        if (asked or sight.digest != self._told) and not self._stopped.is_set():
            self._told = sight.digest
            self._tell(sight)

    def _say(self, watched: Places, reason: str) -> None:
        if reason and reason != self._degraded:
            self._emit("watch.degraded", message=reason, poll_seconds=POLL_SECONDS)
        elif not reason:
            self._emit("watch.armed", places=len(watched))
        self._degraded = reason


def _changes(notify: RustNotify, seconds: float, until: threading.Event) -> bool:
    """Wait for events, at most this long; False when none came."""
    milliseconds = max(1, round(seconds * 1000))
    return isinstance(notify.watch(_STEP_MS, _STEP_MS, milliseconds, until), set)


def _nothing(until: threading.Event, seconds: float) -> bool:
    """Wait where nothing tells of changes."""
    until.wait(seconds)
    return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # behind a directory that may not be searched
        return False


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""

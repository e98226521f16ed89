"""The bench: a host with a published image, canaries all around it, and the program in one process.

Every case runs the program's own pass (`reconcile`), from banger.toml to record. Before it, files
are laid where an image that breaks out would hit first; afterwards they must be as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.images import make_layout
from support.tarball import entry, tar

from hostile.case import Case, Held
from reconciler.apply import Outcome
from reconciler.config.load import parse
from reconciler.ext4.reader import Filesystem
from reconciler.reconcile import Host, Pass, preview, reconcile
from reconciler.store import Store

NAME = "web"
_KINDS = {stat.S_IFCHR: "char", stat.S_IFBLK: "block", stat.S_IFIFO: "fifo"}


@dataclass
class Bench:
    """One host below `root`; what the program takes from its environment is set by the fixture."""

    root: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "cwd", "tmp", "outside"):
            (self.root / name).mkdir(parents=True)
        self.layout = self.root / "layout"
        self.store = Store(self.root / "state", self.root / "cache", self.root / "tmp")

    @property
    def rootfs(self) -> Path:
        """The published filesystem."""
        return self.store.by_name / NAME / "rootfs.ext4"

    def publish(self) -> None:
        """Let a good image be there: what a hostile one must not touch."""
        self.renew_layout()
        make_layout(self.layout, [tar(entry("good", data=b"good\n"))])
        outcome = self.run().outcomes[0]
        assert outcome.error is None, outcome.error

    def renew_layout(self) -> None:
        """An empty place for the next image: the tag moves to it."""
        shutil.rmtree(self.layout, ignore_errors=True)

    def run(self, size: str = "16MiB", **options: Any) -> Pass:
        """One pass."""
        return reconcile(self._config(size, options), self.host())

    def places(self, builder: str) -> list[Path]:
        """Where staging and scratch of the next image will be; nothing when it does not resolve."""
        [image] = preview(self._config("16MiB", {"builder": builder}), self.host()).plan.images
        if image.desired is None:
            return []
        return [
            self.store.staging(image.desired.id),
            self.store.scratch_for(image.desired.keys.flatten),
        ]

    def _config(self, size: str, options: Mapping[str, Any]) -> Any:
        pairs = {"name": NAME, "ref": f"oci:{self.layout}", "size": size, "guest": False, **options}
        rows = [f"{key} = {json.dumps(value)}" for key, value in pairs.items()]
        return parse("\n".join(["version = 1", "[[image]]", *rows]).encode(), self.root)

    def host(self) -> Host:
        """Where a pass works; its events are kept."""
        self.events.clear()

        def emit(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields})

        return Host(self.store.state, self.store.cache, emit, threading.Event())

    def artifact(self) -> dict[str, tuple[int, ...]]:
        """The published artifact, file by file: equal = untouched."""
        top = (self.store.by_name / NAME).resolve()
        return {str(path): _identity(path) for path in sorted([top, *top.rglob("*")])}

    def leftovers(self) -> list[str]:
        """What a failed build should have taken away: staging directories, scratch."""
        staging = [p.name for p in self.store.images.iterdir() if p.name.endswith(".staging")]
        return staging + [str(path) for path in self.store.scratch.rglob("*") if path.is_file()]


class Canaries:
    """Sentinel files around a host: laid when made, compared by `check`, taken away by `remove`."""

    def __init__(self, bench: Bench, tmp: Path, builder: str = "auto") -> None:
        self._made: list[Path] = []
        self._watched = [bench.root / name for name in ("home", "cwd", "outside")]
        spots = [*self._watched, bench.root, bench.store.images, bench.root / "tmp", tmp]
        for place in bench.places(builder):
            sibling = place.with_name(place.name + "2")
            spots.append(sibling)
        for spot in spots:
            self._lay(spot)
        self._before = {path: _identity(path) for path in self._files()}
        self._names = {spot: sorted(spot.iterdir()) for spot in self._watched}

    def _lay(self, spot: Path) -> None:
        if not spot.exists():
            spot.mkdir(parents=True)
            self._made.append(spot)
        file = spot / "canary"
        file.write_bytes(b"sentinel\n")
        self._made.append(file)

    def _files(self) -> list[Path]:
        return [path for path in self._made if path.name == "canary"]

    def check(self) -> None:
        """Fail when a sentinel has changed, or something new lies beside one."""
        for path, before in self._before.items():
            assert _identity(path) == before, f"{path} was touched"
            assert path.read_bytes() == b"sentinel\n", f"{path} was written to"
        for spot, names in self._names.items():
            assert sorted(spot.iterdir()) == names, f"something new in {spot}"

    def remove(self) -> None:
        """Take them away again."""
        for path in self._files():
            path.unlink()
        for path in reversed(self._made):
            if path.is_dir():
                path.rmdir()


def _identity(path: Path) -> tuple[int, ...]:
    info = path.lstat()
    return (info.st_ino, info.st_mode, info.st_nlink, info.st_size, info.st_ctime_ns)


@dataclass(frozen=True)
class Seen:
    """One path of a finished filesystem."""

    held: Held
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    xattrs: dict[bytes, bytes]
    inode: int
    size: int


def read_back(rootfs: Path) -> dict[bytes, Seen]:
    """Every path but lost+found, after e2fsck has found nothing."""
    done = subprocess.run(["e2fsck", "-fn", rootfs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    with Filesystem(rootfs) as filesystem:
        found = {}
        for path, inode in filesystem.walk():
            found[path] = Seen(
                _held(filesystem, inode),
                stat.S_IMODE(inode.mode),
                inode.uid,
                inode.gid,
                inode.mtime_ns,
                inode.links,
                filesystem.xattrs(inode),
                inode.number,
                inode.size,
            )
    return found


def _held(filesystem: Filesystem, inode: Any) -> Held:
    kind = stat.S_IFMT(inode.mode)
    if kind == stat.S_IFDIR:
        return stat.S_IMODE(inode.mode)
    if kind == stat.S_IFLNK:
        return "-> " + filesystem.target(inode).decode("utf-8", "surrogateescape")
    if kind == stat.S_IFREG:
        large = inode.size > 8 << 20  # the files of the holes cases
        return _digest(filesystem, inode) if large else filesystem.read(inode)
    return (_KINDS[kind],) if kind == stat.S_IFIFO else (_KINDS[kind], *inode.rdev)


def _digest(filesystem: Filesystem, inode: Any) -> bytes:
    """Of a large file, its stored bytes only."""
    digest = hashlib.sha256()
    for _, data in filesystem.chunks(inode):
        digest.update(data)
    return digest.digest()


def failure(outcome: Outcome) -> str:
    """The one line of a failed outcome."""
    assert outcome.error is not None, "it was accepted"
    return outcome.error.brief


def compare(case: Case, found: dict[bytes, Seen]) -> None:
    """A finished filesystem against what the case says of it."""
    if case.holds:
        wanted = {os.fsencode(path): held for path, held in case.holds.items()}
        held = {path: seen.held for path, seen in found.items()}
        if b"lost+found" not in wanted:
            held.pop(b"lost+found")
        assert held == wanted
    for path, attributes in case.has.items():
        seen = found[os.fsencode(path)]
        assert {key: getattr(seen, key) for key in attributes} == attributes, path

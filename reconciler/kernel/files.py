"""Copies of kernels, initrds and modules trees that are known by their digests.

`parts` brings sources into the store with these, and the store's files beside a rootfs. The
digest is always that of the copy: whatever happens to a source meanwhile, it tells the truth about
the bytes that were kept (docs/architecture.md, F19).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import Code, HostError, ImageError
from reconciler.files import clone_file, file_digest, sync_directory, sync_file
from reconciler.text import printable

MOST_ENTRIES = 200_000
"""Entries of a modules tree; a distribution's has about 5,000."""

RELEASE = re.compile(r"[0-9]+\.[0-9]+[A-Za-z0-9.+~_-]*")
"""What `uname -r` may say."""
_CHUNK = 1 << 20
_SYNCS = 16


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One entry of a modules tree: kind is d, f or l, path relative and with its release."""

    path: bytes
    kind: str
    mode: int
    target: bytes
    stamp: tuple[int, int, int]
    """Size, mtime in nanoseconds and inode of a file; zeros for the others."""
    source: Path


@dataclass(frozen=True, slots=True)
class Modules:
    """A modules tree, as a scan found it. release is None where no directory is named like one."""

    root: Path
    release: str | None
    entries: tuple[TreeEntry, ...]

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints: nothing was touched. Costs no reading."""
        seen = hashlib.sha256()
        for entry in self.entries:
            words = (entry.kind, f"{entry.mode:o}", *map(str, entry.stamp))
            seen.update(b"\0".join((entry.path, entry.target, *map(str.encode, words), b"\n")))
        return f"tree:{seen.hexdigest()}"


def file_fingerprint(path: Path) -> str:
    """Size, mtime and inode of a regular file, links followed. OSError passes through.

    Raises ImageError (kernel-invalid) when it is no regular file.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise _invalid(f"{printable(str(path))} is no regular file", "Give the path of a file.")
    return f"{info.st_size}:{info.st_mtime_ns}:{info.st_ino}"


def copy_file(source: Path, destination: Path) -> str:
    """Copy a regular file, by reflink or in the kernel where possible; gives the copy's digest.

    The copy is new, 0644 and fsynced. OSError passes through.
    """
    clone_file(source, destination)
    return file_digest(destination)


def scan_modules(path: Path) -> Modules:
    """Look at a modules tree without reading files: `/lib/modules/<release>`, or what holds one.

    Links are not followed, except for `path` itself. OSError passes through. Raises ImageError
    (kernel-invalid): several releases, a device or socket, or too much to be a modules tree.
    """
    root = path.resolve(strict=True)
    is_release = RELEASE.fullmatch(root.name) is not None
    top = os.fsencode(root.name) if is_release else b""
    start = (_entry(top, root),) if is_release else ()
    entries = sorted((*start, *_below(root, top)), key=lambda entry: entry.path)
    return Modules(root, modules_release(root), tuple(entries))


def modules_release(path: Path) -> str | None:
    """The release that a modules directory is for, by its own name or its one subdirectory's.

    None when neither is named like a release. Raises as `scan_modules` does.
    """
    root = path.resolve(strict=True)
    if RELEASE.fullmatch(root.name):
        return root.name
    with os.scandir(root) as found:
        inside = (entry for entry in found if entry.is_dir(follow_symlinks=False))
        names = sorted(entry.name for entry in inside if RELEASE.fullmatch(entry.name))
    if len(names) > 1:
        listed = ", ".join(names[:8])
        advice = "Give the directory of one release."
        raise _invalid(f"{printable(str(root))} holds several releases: {listed}", advice)
    return names[0] if names else None


def _below(root: Path, top: bytes) -> Iterator[TreeEntry]:
    pending = [(root, top)]
    count = 0
    while pending:
        directory, prefix = pending.pop()
        for child in directory.iterdir():
            entry = _entry(os.path.join(prefix, os.fsencode(child.name)), child)  # noqa: PTH118 - bytes
            count += 1
            if count > MOST_ENTRIES:
                where = printable(str(root))
                raise _invalid(f"{where} has more than {MOST_ENTRIES} entries", _TREE_ADVICE)
            if entry.kind == "d":
                pending.append((child, entry.path))
            yield entry


def _entry(path: bytes, source: Path) -> TreeEntry:
    """Modes keep their permission bits, and the owner can always read: no host's umask shows."""
    info = source.lstat()
    mode = stat.S_IMODE(info.st_mode) & 0o777
    if stat.S_ISDIR(info.st_mode):
        return TreeEntry(path, "d", mode | 0o700, b"", (0, 0, 0), source)
    if stat.S_ISLNK(info.st_mode):
        return TreeEntry(path, "l", 0o777, os.fsencode(source.readlink()), (0, 0, 0), source)
    if not stat.S_ISREG(info.st_mode):
        kind = "a device, socket or FIFO"
        raise _invalid(f"{printable(str(source))} is {kind}, among kernel modules", _TREE_ADVICE)
    stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
    return TreeEntry(path, "f", mode | 0o600, b"", stamp, source)


def modules_digest(modules: Modules) -> str:
    """`sha256:<hex>` over paths, kinds, modes, link targets and contents, in the order of paths."""
    return _digest(modules, None)


def copy_modules(modules: Modules, destination: Path) -> str:
    """Copy a scanned tree into the new directory `destination`, fsynced; gives its digest.

    OSError passes through. Raises HostError (retryable) when the tree changed meanwhile.
    """
    destination.mkdir()
    digest = _digest(modules, destination)
    if scan_modules(modules.root).fingerprint != modules.fingerprint:
        raise changed(modules.root)
    _sync_tree(destination)
    return digest


def _digest(modules: Modules, destination: Path | None) -> str:
    tree = hashlib.sha256()
    for entry in modules.entries:
        copy = None if destination is None else destination / os.fsdecode(entry.path)
        content = _content(entry, copy)
        # none of the fields can hold a NUL, so the joint is unambiguous
        tree.update(
            b"\0".join((entry.kind.encode(), b"%o" % entry.mode, entry.path, content, b"\n"))
        )
    return f"sha256:{tree.hexdigest()}"


def _content(entry: TreeEntry, copy: Path | None) -> bytes:
    """What an entry contributes besides its name and mode; makes the copy on the way."""
    if entry.kind == "d":
        if copy is not None:
            copy.mkdir()
            copy.chmod(entry.mode)
        return b""
    if entry.kind == "l":
        if copy is not None:
            copy.symlink_to(os.fsdecode(entry.target))
        return entry.target
    if copy is None:
        return _read(entry, None)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    writer = os.open(copy, flags, 0o600)
    try:
        os.fchmod(writer, entry.mode)
        return _read(entry, writer)
    finally:
        os.close(writer)


def _read(entry: TreeEntry, writer: int | None) -> bytes:
    """The sha256 of a file's bytes as they were read, and written to `writer`."""
    seen = hashlib.sha256()
    reader = os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            seen.update(chunk)
            if writer is not None:
                _write(writer, chunk)
    return seen.hexdigest().encode()


def _write(writer: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(writer, rest) :]


def _sync_tree(root: Path) -> None:
    """fsync every file, then every directory from the deepest up.

    Several at a time, so that they share the commits of the filesystem's journal.
    """
    files: list[Path] = []
    directories: list[Path] = []
    for directory, _, names in os.walk(root):
        directories.append(Path(directory))
        paths = (Path(directory, name) for name in names)
        files += [path for path in paths if not path.is_symlink()]
    with ThreadPoolExecutor(_SYNCS) as pool:
        deque(pool.map(sync_file, files), maxlen=0)
    for path in reversed(directories):
        sync_directory(path)


def changed(source: Path) -> HostError:
    """The error for a source that did not hold still; the next pass finds it at rest."""
    return HostError(
        f"{printable(str(source))} changed while it was copied",
        resolution="Nothing to do, unless it says so again.",
    )


_TREE_ADVICE = "Give a directory such as /lib/modules/6.1.0-18-amd64."


def _invalid(what: str, advice: str) -> ImageError:
    return ImageError(what, code=Code.KERNEL_INVALID, resolution=advice)

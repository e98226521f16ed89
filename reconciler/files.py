"""File operations that survive a crash: write once, rename last, and never guess.

The store, the blob cache and the kernel store are built from these. Linux only: `renameat2`, leases
and reflinks are what make "old or new, never neither" true.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import Code, HostError

CHUNK = 4 << 20
"""Bytes copied at a time where the kernel cannot do it alone."""

_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_FICLONE = 0x40049409
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_SYNC_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def host_errors(what: str) -> Iterator[None]:
    """Turn an OSError into the HostError that says what to do. `what` names the work."""
    try:
        yield
    except OSError as error:
        raise host_error(what, error) from error


def host_error(what: str, error: OSError) -> HostError:
    """The HostError for an OSError: a full disk, a missing permission, or plain trouble."""
    where = f" ({error.filename})" if error.filename else ""
    brief = f"{what}: {error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(brief, code=Code.DISK_FULL, resolution="Free space there, then run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Make it writable for this user, or choose another directory."
        return HostError(brief, code=Code.NOT_PERMITTED, resolution=advice, retryable=False)
    return HostError(brief)


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """fsync a file's bytes and attributes. The first error is final: an fsync is never retried."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`: a temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def switch_link(link: Path, target: str) -> None:
    """Point the symlink `link` at `target` atomically and durably; a no-op when it does already."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
    sync_directory(link.parent)


def rename_new(source: Path, destination: Path) -> None:
    """Rename to a free name. Raises FileExistsError: even an empty directory counts."""
    _renameat2(source, destination, _RENAME_NOREPLACE)


def rename_exchange(one: Path, other: Path) -> None:
    """Swap two names atomically, so that neither is ever missing."""
    _renameat2(one, other, _RENAME_EXCHANGE)


def _renameat2(source: Path, destination: Path, flags: int) -> None:
    old, new = os.fsencode(source), os.fsencode(destination)
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(destination))


def clone_file(source: Path, destination: Path) -> None:
    """Copy a file by reflink where the filesystem can, else in the kernel, keeping holes; fsynced.

    `destination` must not exist; it gets mode 0644 and fresh times. It may lie on another
    filesystem, which costs a copy through this process where the kernel has none.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with (
        source.open("rb", buffering=0) as reader,
        os.fdopen(os.open(destination, flags, 0o644), "wb", buffering=0) as writer,
    ):
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            size = os.fstat(reader.fileno()).st_size
            os.truncate(writer.fileno(), size)
            for start, end in data_ranges(reader.fileno(), size):
                copy_range(reader.fileno(), writer.fileno(), start, end)
        os.fsync(writer.fileno())


def copy_range(reader: int, writer: int, start: int, end: int, shift: int = 0) -> None:
    """Copy the bytes [start, end) of one file into another, `shift` bytes further on, in-kernel."""
    while start < end:
        place = start + shift
        try:
            copied = os.copy_file_range(reader, writer, end - start, start, place)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            copied = os.pwrite(writer, os.pread(reader, min(CHUNK, end - start), start), place)
        if copied == 0:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        start += copied


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a part of a file read as zeros and, where the filesystem can, take no space."""
    mode = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
    where = ctypes.c_int64(offset), ctypes.c_int64(length)
    if _libc.fallocate(descriptor, mode, *where) == 0:
        return
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    for at in range(offset, offset + length, CHUNK):
        os.pwrite(descriptor, bytes(min(CHUNK, offset + length - at)), at)


def start_writeback(descriptor: int) -> None:
    """Ask the kernel to begin writing a file's dirty pages out, as far as the disk takes them.

    The sync that counts comes later and finds less to do. Errors are left for it to report.
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_RANGE_WRITE)


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The byte ranges [start, end) of a file that are not holes, in order."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, position


def file_digest(path: Path) -> str:
    """The plain `sha256:<hex>` of a file."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def is_open_elsewhere(path: Path) -> bool:
    """True when any process holds this file open, a guest's virtual machine for one.

    The kernel grants a write lease only when nobody has the file open, other users' processes and
    loop devices included (fcntl(2), "Leases"). Where leases do not work, /proc is asked instead.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # nothing there, a link, or not ours to open
        return _is_open_by_name(path)
    try:
        # whoever opens the file in this moment breaks the lease: SIGIO would end this process
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return _is_open_by_proc(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    return False


def _is_open_by_name(path: Path) -> bool:
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and _is_open_by_proc(info)


def _is_open_by_proc(wanted: os.stat_result) -> bool:
    own = str(os.getpid())
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != own and _holds(process / "fd", wanted):
            return True
    return False


def _holds(descriptors: Path, wanted: os.stat_result) -> bool:
    try:
        for entry in descriptors.iterdir():
            found = entry.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except OSError:
        return False  # another user's process, or one that just ended
    return False


def allocated(path: Path) -> int:
    """Bytes that a file or a tree occupies on disk; links are not followed."""
    total = 0
    pending = [path]
    while pending:
        current = pending.pop()
        try:
            info = current.lstat()
            total += info.st_blocks * 512
            if stat.S_ISDIR(info.st_mode):
                pending.extend(current.iterdir())
        except OSError:
            continue  # gone, or not ours to read: it frees nothing either
    return total


def remove_tree(path: Path) -> None:
    """Remove a file or a directory tree of our own, modes of 0000 and all, however long its paths.

    Links are never followed. Raises OSError EBUSY, before anything is removed, when a filesystem
    is mounted there or in it: what lies in that is not ours.
    """
    refuse_mounts(path)
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(path.name, parent)
    finally:
        os.close(parent)


def _remove(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return  # another was faster
    except (IsADirectoryError, PermissionError):  # POSIX has the second for a directory
        _remove_directory(name, parent)


def _remove_directory(name: str, parent: int) -> None:
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if stat.S_IMODE(info.st_mode) & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=parent)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(name, flags, dir_fd=parent)
    try:
        for inner in os.listdir(directory):  # noqa: PTH208 - of a descriptor
            _remove(inner, directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def refuse_mounts(path: Path) -> None:
    """Raise OSError EBUSY when a filesystem is mounted at or below a path."""
    if mount := _mount_in(path):
        raise OSError(errno.EBUSY, "a filesystem is mounted there", mount)


def _mount_in(path: Path) -> str | None:
    """The first mount point at or below a path; bind mounts of the same filesystem count."""
    whole = os.fsencode(path.parent.resolve() / path.name)
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        # blanks and the like are octal escapes there: proc_pid_mountinfo(5)
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split()[4])
        if point == whole or point.startswith(whole + b"/"):
            return os.fsdecode(point)
    return None

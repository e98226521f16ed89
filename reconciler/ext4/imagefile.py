"""The file that holds a filesystem, while tools write it: held open, synced, judged on failure.

`tools` and the stages that change a `rootfs.ext4` share these. Disk trouble can leave e2fsprogs
with status 0, so the file's own descriptor and the disk below it are asked instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from reconciler.errors import Code, HostError
from reconciler.files import host_errors
from reconciler.text import printable


@contextlib.contextmanager
def durable(image: Path, *, create: int | None = None) -> Iterator[int]:
    """Hold a descriptor of `image` while tools write it, and sync by it when they are done.

    A sync that fails inside a tool goes unseen; the kernel reports it to a descriptor that was open
    before. create: make the file anew, sparse, with that many bytes. The first error is final: a
    second fsync would succeed without the lost pages. Raises HostError DISK_FULL or HOST_IO.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    what = f"cannot write {printable(str(image))}"
    with host_errors(what), contextlib.ExitStack() as stack:
        if create is not None:
            image.unlink(missing_ok=True)
            flags |= os.O_CREAT | os.O_EXCL
        descriptor = os.open(image, flags, 0o644)
        stack.callback(os.close, descriptor)
        if create is not None:
            os.ftruncate(descriptor, create)
        yield descriptor
        os.fsync(descriptor)


def plain_path(image: Path) -> str:
    """An absolute path as the tools take it: libext2fs reads options behind a `?` in a name."""
    if "?" in str(image) or not image.is_absolute():
        raise HostError(
            f"the tools cannot open {printable(str(image))}",
            code=Code.STATE_INVALID,
            resolution="Choose an absolute state directory without '?' in its path.",
            retryable=False,
        )
    return str(image)


def failure(image: Path, brief: str) -> HostError:
    """The error for a tool that failed on `image`: DISK_FULL when that is why, else TOOL_FAILED."""
    if disk_is_full(image):
        return HostError(
            f"no space left beside {printable(str(image))} ({brief})",
            code=Code.DISK_FULL,
            resolution="Free space there, then run again.",
        )
    return HostError(brief, code=Code.TOOL_FAILED)


def disk_is_full(path: Path) -> bool:
    """Whether less than 1 MiB is left for us on the filesystem that holds the file `path`."""
    with contextlib.suppress(OSError):
        status = os.statvfs(path.parent)
        return status.f_bavail * status.f_frsize < 1 << 20
    return False

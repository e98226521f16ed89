"""mkfs.ext4, debugfs and e2fsck: finding them, running them, and what their success looks like.

The stages `ext4`, `ownership` and `guest` and the direct builder use `Tools`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.errors import Code, HostError
from reconciler.ext4.debugfs import Script, complaints
from reconciler.ext4.imagefile import failure, plain_path
from reconciler.ext4.inode import MADE_AT
from reconciler.processes import (
    SYSTEM_DIRECTORIES,
    Checkpoint,
    Completed,
    never,
    quoted,
    run,
)

MINIMUM_VERSION = (1, 43)
"""The first e2fsprogs whose mkfs.ext4 has what a build needs: `-d` and `-E root_owner=`."""

_NO_COPY_XATTRS = (1, 47)

_FAKE_TIME = str(MADE_AT)
"""What the tools take for the present."""


class Tools:
    """The e2fsprogs of this host, looked up when first needed and then remembered."""

    def __init__(self) -> None:
        self._found: dict[str, Path] = {}
        self._version = (0, 0)
        self._lock = threading.Lock()

    def require(self) -> None:
        """Find all tools and check their version. Raises HostError TOOL_MISSING or TOOL_TOO_OLD."""
        with self._lock:
            if not self._found:
                found = {name: find(*names) for name, names in _PROGRAMS.items()}
                self._version = _checked_version(found["mkfs"])
                self._found = found

    def can_leave_xattrs(self) -> bool:
        """Whether mkfs.ext4 has `-E no_copy_xattrs`."""
        self.require()
        return self._version >= _NO_COPY_XATTRS

    def mkfs(
        self,
        image: Path,
        arguments: Sequence[str | Path],
        config: Path,
        *,
        timeout: float = 3600,
        checkpoint: Checkpoint = never,
    ) -> None:
        """Run mke2fs on `image`, which has its final size. config: the mke2fs.conf that counts."""
        completed = self._run(
            "mkfs",
            ["-t", "ext4", *arguments, plain_path(image)],
            timeout=timeout,
            checkpoint=checkpoint,
            environment={"MKE2FS_CONFIG": str(config)},
        )
        if completed.status != 0:
            raise failure(image, f"mkfs.ext4 failed{quoted(completed.stderr)}")

    def debugfs_write(
        self,
        image: Path,
        script: Script,
        directory: Path,
        *,
        timeout: float = 1800,
        checkpoint: Checkpoint = never,
    ) -> None:
        """Run a script against `image`. directory: holds the files that it calls by number.

        Success here means that debugfs did not complain. That proves little: the caller syncs,
        checks the filesystem and reads back what it asked for. Two writers destroy an image.
        """
        text = script.text()
        path = directory / "script"
        path.write_text(text, encoding="ascii")
        completed = self._run(
            "debugfs",
            ["-w", "-f", path, plain_path(image)],
            timeout=timeout,
            checkpoint=checkpoint,
            directory=directory,
            keep_stdout=False,  # it echoes the script
        )
        complaint = complaints(completed.stderr)
        if complaint or completed.status != 0:
            raise failure(image, f"debugfs failed: {complaint or completed.status}")

    def e2fsck(self, image: Path, *, timeout: float = 1800, checkpoint: Checkpoint = never) -> None:
        """Check `image` without changing it. Raises HostError TOOL_FAILED on any finding."""
        completed = self._run(
            "e2fsck", ["-fn", plain_path(image)], timeout=timeout, checkpoint=checkpoint
        )
        if completed.status != 0:
            findings = b" ".join(_FINDING.findall(completed.stdout)[:3])[:180]
            said = findings or completed.stderr
            raise failure(image, f"e2fsck found errors in the new filesystem{quoted(said)}")

    def _run(
        self,
        program: str,
        arguments: Sequence[str | Path],
        *,
        timeout: float,
        checkpoint: Checkpoint,
        environment: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
        keep_stdout: bool = True,
    ) -> Completed:
        self.require()
        return run(
            [self._found[program], *arguments],
            timeout=timeout,
            checkpoint=checkpoint,
            environment=_PINNED | dict(environment or {}),
            directory=directory,
            keep_stdout=keep_stdout,
        )


_PROGRAMS = {"mkfs": ("mkfs.ext4", "mke2fs"), "debugfs": ("debugfs",), "e2fsck": ("e2fsck",)}
_PINNED = {
    "E2FSPROGS_FAKE_TIME": _FAKE_TIME,
    "SOURCE_DATE_EPOCH": _FAKE_TIME,
    "E2FSCK_TIME": _FAKE_TIME,
    "MKE2FS_SKIP_PROGRESS": "1",
    "E2FSPROGS_UNDO_DIR": "none",
}
_FINDING = re.compile(rb"^(?!Pass [0-9]|\s*$|.*: \*\*\*\*).+", re.MULTILINE)
_INSTALL = "Install e2fsprogs >= 1.43."


def find(*names: str, resolution: str = "") -> Path:
    """The first of these programs on PATH, or where a user's PATH often does not look."""
    where = os.pathsep.join(filter(None, (os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES)))
    for name in names:
        found = shutil.which(name, path=where)
        if found:
            return Path(found).absolute()
    raise HostError(
        f"{names[0]} was not found", code=Code.TOOL_MISSING, resolution=resolution or _INSTALL
    )


def _checked_version(mkfs: Path) -> tuple[int, int]:
    said = run([mkfs, "-V"], timeout=30).stderr
    match = re.search(rb"mke2fs ([0-9]+)\.([0-9]+)", said)
    if match is None:
        raise HostError(
            f"{mkfs} does not tell its version{quoted(said)}",
            code=Code.TOOL_TOO_OLD,
            resolution=_INSTALL,
        )
    version = (int(match[1]), int(match[2]))
    if version < MINIMUM_VERSION:
        raise HostError(
            f"{mkfs} is version {match[1].decode()}.{match[2].decode()}, which is too old",
            code=Code.TOOL_TOO_OLD,
            resolution=_INSTALL,
        )
    return version

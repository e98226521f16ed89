"""The state directory: every path in it, the writer's lock, publish, switch and remove.

    <state>/
      lock                     flock by the one writer; its holder is found in /proc/locks
      records.db               what each name stands for (records.py)
      suspended.json, orphans.json    what a pass leaves alone, and what may soon go (notes.py)
      images/
        <id>/                  an artifact: rootfs.ext4, kernel, initrd.img, modules/ and
                               manifest.json; published by one rename, never changed after
        <id>.staging/          the same artifact while it is being made, and journal.json
        by-name/<name>         link to ../<id>, switched atomically: what a launcher opens
      kernels/<name>/          the local kernel store (kernel.py)
    <cache>/oci/               blobs (oci/blobs.py)
    $TMPDIR/banger-<uid>/<state>/<flatten key>/
                               scratch of flatten: the staging tree and its metadata map

Nothing else knows these names. A file is written once and not modified after its publication.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from reconciler.errors import Busy, Code, HostError
from reconciler.files import (
    host_errors,
    is_open_elsewhere,
    refuse_mounts,
    remove_tree,
    rename_exchange,
    rename_new,
    switch_link,
    sync_directory,
    sync_file,
    write_durably,
)
from reconciler.manifest import INITRD, KERNEL, MANIFEST, MODULES, ROOTFS, Manifest
from reconciler.model import Fingerprint

JOURNAL, STAGING_SUFFIX = "journal.json", ".staging"
_LOCK_STEP = 0.2
"""Seconds between two tries to take the lock."""
_ID = re.compile(r"[0-9a-f]{32}")
_CONTENTS = (ROOTFS, KERNEL, INITRD, MODULES, MANIFEST, JOURNAL)


class Store:
    """Paths and durable operations on one state directory. Build it once, pass it down.

    state, cache: the directories of the contract; scratch_base: `$TMPDIR`.
    """

    def __init__(self, state: Path, cache: Path, scratch_base: Path | None = None) -> None:
        self.state = state.absolute()
        self.cache = cache.absolute()
        # not tempfile.gettempdir(): that writes a file to see whether it can
        base = (scratch_base or Path(os.environ.get("TMPDIR") or "/tmp")).absolute()  # noqa: S108
        label = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:12]
        self.scratch_owner = base / f"banger-{os.getuid()}"
        self.scratch = self.scratch_owner / label
        self.images = self.state / "images"
        self.by_name = self.images / "by-name"
        self.kernels = self.state / "kernels"
        self.database = self.state / "records.db"
        self.oci = self.cache / "oci"

    # -- preparing and locking ------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories. Raises HostError when this user may not write there."""
        with host_errors("the state and cache directories cannot be used"):
            for directory in (self.by_name, self.kernels, self.oci):
                directory.mkdir(parents=True, exist_ok=True)
            for directory in (self.state, self.images, self.cache):
                if not os.access(directory, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "Permission denied", str(directory))

    def prepare_scratch(self) -> None:
        """Make the scratch directory: private, ours, and no one else's trap in a shared /tmp."""
        with host_errors("TMPDIR cannot be used"):
            self.scratch_owner.mkdir(mode=0o700, exist_ok=True)
            if not self.owns_scratch():
                raise HostError(
                    f"{self.scratch_owner} belongs to somebody else or is open to others",
                    code=Code.NOT_PERMITTED,
                    resolution="Remove it, or set TMPDIR to a directory of your own.",
                    retryable=False,
                )
            self.scratch.mkdir(mode=0o700, exist_ok=True)

    def owns_scratch(self) -> bool:
        """True when the scratch directory is there and nobody else could have put things in it."""
        try:
            info = self.scratch_owner.lstat()
        except OSError:
            return False
        private = not info.st_mode & 0o077
        return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and private

    @contextmanager
    def writer(
        self,
        patience: float = 0.0,
        waiting: Callable[[str], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Be the one writer. Raises Busy, naming the holder, when another process is.

        patience: seconds to wait for it; waiting: told once, in words, that we do; checkpoint:
        called again and again while we do, may raise to give up.
        """
        with host_errors("the lock cannot be taken"):
            lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        until = time.monotonic() + patience
        try:
            while not _locked(lock):
                said = f"another banger-reconcile works on {self.state}: {_holder(lock)}"
                if time.monotonic() >= until:
                    raise Busy(said, resolution="Wait for it, or raise --lock-timeout.")
                if waiting:
                    waiting(said)
                    waiting = None
                if checkpoint:
                    checkpoint()
                time.sleep(_LOCK_STEP)
            yield
        finally:
            os.close(lock)

    # -- paths ----------------------------------------------------------------------------------

    def artifact(self, image_id: str) -> Path:
        """The published directory of an id."""
        return self.images / image_id

    def staging(self, image_id: str) -> Path:
        """Where the artifact of an id is made."""
        return self.images / f"{image_id}{STAGING_SUFFIX}"

    def scratch_for(self, flatten_key: str) -> Path:
        """The scratch directory of one flatten key."""
        return self.scratch / flatten_key[:32]

    def artifact_ids(self) -> list[str]:
        """The ids that have a published directory, whole or not."""
        return [name for name in self._image_entries() if not name.endswith(STAGING_SUFFIX)]

    def staging_ids(self) -> list[str]:
        """The ids that have a staging directory."""
        found = (name for name in self._image_entries() if name.endswith(STAGING_SUFFIX))
        return [name.removesuffix(STAGING_SUFFIX) for name in found]

    def _image_entries(self) -> list[str]:
        return [name for name in self._listed() if _is_id(name.removesuffix(STAGING_SUFFIX))]

    def _listed(self) -> list[str]:
        with host_errors("the state directory cannot be read"):
            try:
                return sorted(os.listdir(self.images))  # noqa: PTH208 - no Path for each of thousands
            except FileNotFoundError:
                return []

    def strangers(self) -> list[Path]:
        """What lies in images/ and is nothing of ours: nobody reads or removes it."""
        ours = {self.by_name.name, "lost+found"}
        named = (name for name in self._listed() if not _is_id(name.removesuffix(STAGING_SUFFIX)))
        return [self.images / name for name in named if name not in ours]

    def half_made(self) -> list[Path]:
        """What unfinished work left outside images/: trees in scratch, kernels on their way."""
        trees = (
            list(self.scratch.iterdir()) if self.owns_scratch() and self.scratch.is_dir() else []
        )
        kernels = self.kernels.glob(".*.staging") if self.kernels.is_dir() else ()
        return sorted([*trees, *kernels])

    def names(self) -> dict[str, str]:
        """name -> id, as the by-name links say it."""
        found = {}
        with host_errors("the links of the names cannot be read"), suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.by_name)):  # noqa: PTH208
                with suppress(OSError):  # no link, or gone meanwhile
                    target = os.readlink(f"{self.by_name}/{name}")  # noqa: PTH115
                    found[name] = target.rpartition("/")[2]
        return {name: target for name, target in found.items() if _is_id(target)}

    # -- artifacts ------------------------------------------------------------------------------

    def manifest(self, directory: Path) -> Manifest | None:
        """The manifest in an artifact or staging directory; None when absent or damaged."""
        try:
            return Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            return None

    def fingerprints(self, directory: Path) -> dict[str, Fingerprint]:
        """What a cheap look can tell of an artifact's files: nothing is read."""
        found: dict[str, Fingerprint] = {}
        for name in (ROOTFS, KERNEL, INITRD, MODULES, MANIFEST):
            try:
                info = os.lstat(f"{directory}/{name}")  # cheaper than a Path each
            except OSError:
                continue
            size = 0 if name == MODULES else info.st_size
            found[name] = (size, info.st_mtime_ns, info.st_ino)
        return found

    def in_use(self, image_id: str) -> bool:
        """True when a process has a file of this artifact open."""
        return is_open(self.artifact(image_id))

    def publish(self, image_id: str, manifest: Manifest) -> None:
        """Turn staging into the artifact: sync, one rename, sync. An older one is swapped out.

        The order is the promise: the image's bytes, the manifest, the staging directory, the
        rename, the parent directory. What was there before ends in staging, to be discarded.
        """
        staging, final = self.staging(image_id), self.artifact(image_id)
        with host_errors(f"publishing {final} failed"):
            for path in set(staging.iterdir()) - {staging / name for name in _CONTENTS}:
                remove_tree(path)  # what a killed writer left
            for name in (ROOTFS, KERNEL, INITRD):
                if (staging / name).exists():
                    (staging / name).chmod(0o444)
                    sync_file(staging / name)
            document = manifest.model_dump(mode="json")
            text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
            write_durably(staging / MANIFEST, text.encode(), 0o444)
            (staging / JOURNAL).unlink(missing_ok=True)
            sync_directory(staging)
            try:
                rename_new(staging, final)
            except FileExistsError:
                rename_exchange(staging, final)
            sync_directory(self.images)

    def switch(self, name: str, image_id: str) -> None:
        """Let `images/by-name/<name>` point at an artifact."""
        with host_errors(f"the link of {name} cannot be switched"):
            switch_link(self.by_name / name, f"../{image_id}")

    def unname(self, name: str) -> None:
        """Remove the by-name link of a name that is no more."""
        with host_errors(f"the link of {name} cannot be removed"):
            (self.by_name / name).unlink(missing_ok=True)
            sync_directory(self.by_name)

    def retire(self, image_id: str) -> None:
        """Remove an artifact so that its name never stands for half of one.

        Raises HostError, BUSY when somebody has opened it since it was looked at.
        """
        staging, final = self.staging(image_id), self.artifact(image_id)
        if is_open(staging) or is_open(final):
            raise HostError(f"{final} is kept: it was opened just now", code=Code.BUSY)
        self.remove(staging)
        with host_errors(f"{final} cannot be removed"):
            refuse_mounts(final)
            rename_new(final, staging)
            sync_directory(self.images)
        self.remove(staging)

    def prepare_staging(self, image_id: str) -> None:
        """Make the staging directory of an id; what is there and is none gives way."""
        staging = self.staging(image_id)
        if staging.is_symlink() or not staging.is_dir():
            self.remove(staging)
        with host_errors("the staging directory cannot be made"):
            staging.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove one object of ours below images/, scratch or the cache."""
        with host_errors(f"{path} cannot be removed"):
            remove_tree(path)

    # -- the journal of a staging directory -----------------------------------------------------

    def read_journal(self, image_id: str) -> dict[str, str]:
        """stage -> proof, as far as an interrupted build came; {} when nothing can be trusted."""
        try:
            document = json.loads((self.staging(image_id) / JOURNAL).read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(document, dict):
            return {}
        return {k: v for k, v in document.items() if isinstance(k, str) and isinstance(v, str)}

    def write_journal(self, image_id: str, journal: dict[str, str]) -> None:
        """Note which outputs in staging are whole, each with the digest that proves it."""
        with host_errors("the journal of the build cannot be written"):
            text = json.dumps(journal, indent=2, sort_keys=True)
            write_durably(self.staging(image_id) / JOURNAL, text.encode())


def is_open(directory: Path) -> bool:
    """True when a process has a file of this artifact or staging directory open."""
    return any(is_open_elsewhere(directory / name) for name in (ROOTFS, KERNEL, INITRD))


def _is_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    """The process that holds a flock, from /proc/locks: nothing is written into the lock file."""
    lock = os.fstat(descriptor)
    wanted = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and "->" not in fields and wanted in fields:
                pid = fields[4]
                command = Path(f"/proc/{pid}/comm").read_text().strip()
                return f"process {pid} ({command})"
    except (OSError, IndexError):
        pass
    return "a process that cannot be named from here"

"""The blob cache: verified bytes by digest, shared by all images and by processes side by side.

`<root>/blobs/<algorithm>/<hex>` holds whole blobs only: one appears by a rename after its bytes
were counted, hashed and synced. What is on its way lies in `<root>/ingest/`, locked by whoever
writes it; a partial file of a dead writer is continued or started again. `oci.source` fills the
cache, the flatten stage reads it, the collector lists it. Nothing here follows a symbolic link.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from reconciler.errors import BangerError, Code, ImageError
from reconciler.files import host_errors, sync_directory
from reconciler.model import Descriptor
from reconciler.oci.reference import check_digest

CHUNK = 1 << 18
_WORK = "the blob cache"
_LOCK_POLL_SECONDS = 0.05
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Claim:
    """The right to write one blob, held while its partial file is locked.

    `offset` bytes are there already, from an earlier try; `write` appends, `restart` begins again.
    """

    def __init__(self, descriptor: Descriptor, handle: BinaryIO) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self._handle = handle
        self._hash = _hasher(descriptor.digest)
        self._load()

    def write(self, chunk: bytes) -> None:
        """Append. Raises ImageError (digest-mismatch) beyond the announced size."""
        if self.offset + len(chunk) > self.descriptor.size:
            raise _mismatch(self.descriptor, f"holds more than its {self.descriptor.size} bytes")
        self._handle.write(chunk)
        self._hash.update(chunk)
        self.offset += len(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self._handle.seek(0)
        self._handle.truncate()
        self._hash = _hasher(self.descriptor.digest)
        self.offset = 0

    def finish(self) -> None:
        """Check size and digest, and sync. Raises ImageError (digest-mismatch)."""
        size = self.descriptor.size
        if self.offset != size:
            raise _mismatch(self.descriptor, f"ended after {self.offset} of {size} bytes")
        if self._hash.hexdigest() != self.descriptor.digest.partition(":")[2]:
            raise _mismatch(self.descriptor, "has other bytes than its digest says")
        self._handle.flush()
        os.fchmod(self._handle.fileno(), 0o644)
        os.fsync(self._handle.fileno())

    def _load(self) -> None:
        while chunk := self._handle.read(CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)
        if self.offset > self.descriptor.size:
            self.restart()


class BlobCache:
    """Blobs under `root` (`<cache>/oci`). Safe to share between threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def memory(self) -> Path:
        """Where `oci.memory` keeps what was resolved before."""
        return self.root / "resolved"

    def path(self, digest: str) -> Path:
        """Where the blob lies or would lie. Raises ImageError for what is no digest."""
        algorithm, _, encoded = check_digest(digest).partition(":")
        return self.root / "blobs" / algorithm / encoded

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a regular file of the right size is there; who reads it checks its bytes."""
        found = self.known(descriptor.digest)
        return found is not None and found.size == descriptor.size

    def known(self, digest: str) -> Descriptor | None:
        """The descriptor of a blob of which only the digest is known; None when it is not there."""
        try:
            status = self.path(digest).lstat()
        except FileNotFoundError:
            return None
        return Descriptor("", digest, status.st_size) if stat.S_ISREG(status.st_mode) else None

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, verified. Raises ImageError: limit-exceeded, or digest-mismatch.

        A damaged blob is quarantined before the error, so that the next fetch gets a clean one.
        """
        if descriptor.size > limit:
            brief = f"{descriptor.digest} is {descriptor.size} bytes long, the limit is {limit}"
            raise ImageError(brief, code=Code.LIMIT_EXCEEDED)
        with host_errors(_WORK):
            raw = _read_regular(self.path(descriptor.digest), limit)
        if raw is None or not _matches(descriptor, raw):
            self.quarantine(descriptor.digest)
            raise _mismatch(descriptor, "is damaged in the cache")
        return raw

    def ingest(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> Path:
        """Store a blob from its first byte on. Raises ImageError (digest-mismatch), HostError.

        When someone else stores the same blob, waits for them and takes theirs.
        """
        with self.claim(descriptor) as claim:
            if claim is not None:
                claim.restart()
                for chunk in chunks:
                    claim.write(chunk)
        return self.path(descriptor.digest)

    def add(self, raw: bytes, media_type: str) -> Descriptor:
        """Store a small document under its sha256."""
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        descriptor = Descriptor(media_type, digest, len(raw))
        self.ingest(descriptor, iter([raw]))
        return descriptor

    @contextmanager
    def claim(
        self, descriptor: Descriptor, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[Claim | None]:
        """The right to store one blob: None when it is there already, else a Claim to fill.

        A body that ends well publishes the blob. After a digest mismatch or on a full disk the
        partial file goes; after any other failure it stays for the next try. `waiting` is called
        now and then while another writer has the claim, and may raise.
        """
        final = self.path(descriptor.digest)
        part = self.root / "ingest" / (descriptor.digest.replace(":", "-") + ".part")
        with host_errors(_WORK):
            if self.has(descriptor):
                yield None
                return
            for directory in (final.parent, part.parent):
                directory.mkdir(parents=True, exist_ok=True)
            with _locked(part, waiting) as handle:
                if self.has(descriptor):
                    part.unlink()
                    yield None
                    return
                with _removed_when_useless(part):
                    claim = Claim(descriptor, handle)
                    yield claim
                    claim.finish()
                    self.quarantine(descriptor.digest)
                    part.rename(final)
                    sync_directory(final.parent)

    def verify(self, descriptor: Descriptor, checkpoint: Callable[[], None]) -> None:
        """Read a blob back, if it is there; a damaged one is quarantined. checkpoint may raise."""
        digest, path = _hasher(descriptor.digest), self.path(descriptor.digest)
        if not self.has(descriptor):
            return
        with host_errors(_WORK), os.fdopen(os.open(path, _READ_FLAGS), "rb") as handle:
            while chunk := handle.read(CHUNK):
                checkpoint()
                digest.update(chunk)
        if digest.hexdigest() != descriptor.digest.partition(":")[2]:
            self.quarantine(descriptor.digest)

    def quarantine(self, digest: str) -> None:
        """Move whatever stands at a blob's path out of the way; the collector removes it."""
        aside = self.root / "quarantine" / f"{digest.replace(':', '-')}.{time.time_ns()}"
        with host_errors(_WORK), suppress(FileNotFoundError):
            self.path(digest).lstat()
            aside.parent.mkdir(parents=True, exist_ok=True)
            self.path(digest).rename(aside)

    def listing(self, but: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path, int, int]]:
        """For the collector: (digest, path, allocated bytes, mtime in ns) of each blob.

        but: digests of blobs that stay, and are not looked at.
        """
        for algorithm in ("sha256", "sha512"):
            for entry in _scan(self.root / "blobs" / algorithm):
                digest = f"{algorithm}:{entry.name}"
                if digest in but:
                    continue
                with suppress(ImageError):
                    yield check_digest(digest), Path(entry.path), *_allocated(entry)

    def leftovers(self) -> Iterator[tuple[Path, int, int]]:
        """For the collector: (path, allocated bytes, mtime in ns) of partial and quarantined files.

        Partial files that somebody is writing are left out.
        """
        for directory in ("ingest", "quarantine"):
            for entry in _scan(self.root / directory):
                if directory == "quarantine" or not _in_use(Path(entry.path)):
                    yield Path(entry.path), *_allocated(entry)


class BorrowedBlobs(BlobCache):
    """A cache for looking only: reads what `lender` has, and keeps what is new under `root`.

    The `plan` verb resolves through one of these, so that the real cache stays as it was.
    """

    def __init__(self, lender: BlobCache, root: Path) -> None:
        super().__init__(root)
        self._lender = lender

    @property
    def memory(self) -> Path:
        """The lender's memory."""
        return self._lender.memory

    def path(self, digest: str) -> Path:
        """Where the lender has the blob; else where it lies, or would lie, under `root`."""
        theirs = self._lender.path(digest)
        return theirs if theirs.is_file() else super().path(digest)

    def quarantine(self, digest: str) -> None:
        """Nothing of the lender's is moved: a damaged blob is the next pass's to find."""
        if self.path(digest).is_relative_to(self.root):
            super().quarantine(digest)

    def listing(self, but: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path, int, int]]:
        """The lender's blobs."""
        return self._lender.listing(but)

    def leftovers(self) -> Iterator[tuple[Path, int, int]]:
        """The lender's partial and quarantined files."""
        return self._lender.leftovers()


@contextmanager
def _locked(part: Path, waiting: Callable[[], None]) -> Iterator[BinaryIO]:
    """The partial file, open, positioned at its start, and ours alone.

    The lock is on the file, which the writer before us may have renamed or removed: then it is no
    longer the one at the path, and the next one is tried.
    """
    while True:
        with os.fdopen(os.open(part, _WRITE_FLAGS, 0o644), "r+b") as handle:
            while not _try_lock(handle):
                waiting()
                time.sleep(_LOCK_POLL_SECONDS)
            if _is_at(part, handle):
                yield handle
                return


def _try_lock(handle: BinaryIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _in_use(part: Path) -> bool:
    try:
        with os.fdopen(os.open(part, _READ_FLAGS), "rb") as handle:
            return not _try_lock(handle)
    except OSError:
        return False


@contextmanager
def _removed_when_useless(part: Path) -> Iterator[None]:
    """Bytes that are wrong, or that fill the disk, are no start for another try."""
    try:
        yield
    except (BangerError, OSError) as error:
        wrong = isinstance(error, BangerError) and error.code is Code.DIGEST_MISMATCH
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if wrong or full:
            part.unlink(missing_ok=True)
        raise


def _read_regular(path: Path, limit: int) -> bytes | None:
    """At most limit + 1 bytes of a regular file; None when something else stands there."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    with os.fdopen(os.open(path, _READ_FLAGS), "rb") as handle:
        return handle.read(limit + 1)


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _allocated(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat(follow_symlinks=False)
    return status.st_blocks * 512, status.st_mtime_ns


def _matches(descriptor: Descriptor, raw: bytes) -> bool:
    digest = _hasher(descriptor.digest)
    digest.update(raw)
    return digest.hexdigest() == descriptor.digest.partition(":")[2] and len(raw) == descriptor.size


def _hasher(digest: str) -> hashlib._Hash:
    return hashlib.new(digest.partition(":")[0])


def _mismatch(descriptor: Descriptor, what: str) -> ImageError:
    return ImageError(f"blob {descriptor.digest} {what}", code=Code.DIGEST_MISMATCH)

"""One layer from its blob in the cache to headers and payloads, with both digests verified.

The builders (`stages.flatten`, `direct.builder`) read layers through it, oldest first.
Decompression and hashing run in a thread each beside the parser, which is where a build's time
goes; both release the interpreter's lock. Nothing that comes out may be relied upon before the
`with` block has ended; only then is it known that blob and tar stream are the bytes that the
manifest names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.errors import Code, ImageError
from reconciler.oci.compression import decompress
from reconciler.oci.tar import Payload, read_tar

if TYPE_CHECKING:
    from reconciler.model import Layer
    from reconciler.oci.limits import Limits
    from reconciler.oci.merge import Header

_CHUNK = 128 << 10
"""Bytes read from the blob at a time."""

_BATCH = 256 << 10
"""Decoded bytes handed to the parser at a time, at least: a layer may be thousands of frames."""

_AHEAD = 8
"""Batches that wait for the parser, at most."""


class LayerMismatch(ImageError):
    """The bytes are not those that the manifest names. `blob` is the digest of the cached file: it
    should be quarantined and fetched once more before the error is believed."""

    default_code = Code.DIGEST_MISMATCH

    def __init__(self, brief: str, blob: str) -> None:
        super().__init__(brief)
        self.blob = blob


def layer_name(index: int, total: int, layer: Layer) -> str:
    """What errors call a layer; `index` counts from 1, the oldest."""
    return f"layer {index} of {total} ({layer.blob.digest[:19]})"


class LayerReader:
    """The entries of one layer. Made by `read_layer`."""

    def __init__(self, pump: _Pump, limits: Limits, serials: Iterator[int]) -> None:
        self._pump = pump
        self.entries: Iterator[tuple[Header, Payload]] = read_tar(pump.batches(), limits, serials)

    @property
    def position(self) -> int:
        """Bytes of the blob that have been read so far."""
        return self._pump.position


@contextmanager
def read_layer(
    path: Path, layer: Layer, name: str, limits: Limits, serials: Iterator[int]
) -> Iterator[LayerReader]:
    """Read a layer; at the end of the block the rest of it is read, and the digests are compared.

    path: the blob in the cache. name: what errors call the layer. serials: numbers for payloads.
    Raises LayerMismatch when blob or stream are not what `layer` says, also when another
    ImageError, from in here or from the body of the `with`, turns out to come of a damaged blob;
    ImageError when the layer is as the manifest says and wrong all the same.
    """
    with _open(path, layer, name) as descriptor:
        pump = _Pump(descriptor, layer, limits)
        pump.start()
        try:
            reader = LayerReader(pump, limits, serials)
            yield reader
            for _ in reader.entries:
                pass
        except ImageError as exc:
            pump.stop()
            pump.verify_blob(name)
            if exc.brief.startswith(name):
                raise
            brief = f"{name}: {exc.brief}"
            raise ImageError(brief, code=exc.code, resolution=exc.resolution) from exc
        finally:
            pump.stop()
        pump.verify_blob(name)
        pump.verify_stream(name)


@contextmanager
def _open(path: Path, layer: Layer, name: str) -> Iterator[int]:
    """Open a cached blob, which must be a regular file of the right size and no link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        raise LayerMismatch(f"{name}: the cached blob is no file", layer.blob.digest) from exc
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != layer.blob.size:
            brief = f"{name}: the cached blob is no file of {layer.blob.size} bytes"
            raise LayerMismatch(brief, layer.blob.digest)
        yield descriptor
    finally:
        os.close(descriptor)


class _Hasher(threading.Thread):
    """Hashes what it is given, a little later."""

    def __init__(self) -> None:
        super().__init__(name="layer-hasher", daemon=True)
        self._queue: queue.Queue[tuple[hashlib._Hash, bytes] | None] = queue.Queue(_AHEAD)

    def run(self) -> None:
        """Until `finish`."""
        while item := self._queue.get():
            item[0].update(item[1])

    def add(self, total: hashlib._Hash, data: bytes) -> None:
        """These bytes come next in that hash."""
        self._queue.put((total, data))

    def finish(self) -> None:
        """Wait until all is hashed."""
        self._queue.put(None)
        self.join()


class _Pump(threading.Thread):
    """Reads, hashes and decodes a blob, a few batches ahead of the parser."""

    def __init__(self, descriptor: int, layer: Layer, limits: Limits) -> None:
        super().__init__(name="layer-pump", daemon=True)
        self.position = 0
        self._descriptor = descriptor
        self._layer = layer
        self._limits = limits
        self._blob_hash = hashlib.new(layer.blob.digest.partition(":")[0])
        self._stream_hash = hashlib.new(layer.diff_id.partition(":")[0])
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._hasher = _Hasher()
        self._stopped = threading.Event()
        self._ended = False

    def run(self) -> None:
        """Fill the queue; its last item is None, or what went wrong."""
        end: BaseException | None = None
        self._hasher.start()
        try:
            batch: list[bytes] = []
            waiting = 0
            for piece in decompress(self._chunks(), self._limits):
                self._hasher.add(self._stream_hash, piece)
                batch.append(piece)
                waiting += len(piece)
                if waiting >= _BATCH:
                    self._queue.put(b"".join(batch))
                    batch.clear()
                    waiting = 0
            self._queue.put(b"".join(batch))
        except BaseException as exc:
            end = exc
        self._hasher.finish()
        self._queue.put(end)

    def _chunks(self) -> Iterator[bytes]:
        while not self._stopped.is_set() and (chunk := os.read(self._descriptor, _CHUNK)):
            self._hasher.add(self._blob_hash, chunk)
            self.position += len(chunk)
            yield chunk

    def batches(self) -> Iterator[bytes]:
        """The decoded stream; raises here what went wrong in the thread."""
        while not self._ended:
            item = self._queue.get()
            if isinstance(item, bytes):
                yield item
                continue
            self._ended = True
            if item is not None:
                raise item

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopped.set()
        while not self._ended:
            self._ended = not isinstance(self._queue.get(), bytes)
        self.join()

    def verify_blob(self, name: str) -> None:
        """Compare the blob's digest, after hashing what has not been read. Call it when stopped."""
        while chunk := os.read(self._descriptor, _CHUNK):
            self._blob_hash.update(chunk)
        self._compare(self._blob_hash.hexdigest(), self._layer.blob.digest, f"{name}: blob")

    def verify_stream(self, name: str) -> None:
        """Compare the digest of the decoded stream with `diff_id`. Call it after a whole read."""
        found = self._stream_hash.hexdigest()
        self._compare(found, self._layer.diff_id, f"{name}: tar stream (diff_id)")

    def _compare(self, found: str, digest: str, what: str) -> None:
        algorithm, _, wanted = digest.partition(":")
        if found != wanted:
            brief = f"{what} has the digest {algorithm}:{found}, not {digest}"
            raise LayerMismatch(brief, self._layer.blob.digest)

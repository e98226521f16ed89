"""One layer from its blob in the cache to headers and payloads, with both digests verified.

The builders (`stages.flatten`, `direct.builder`) read layers through it, newest first.
Decompression and hashing run beside the parser (`oci.pump`), since that is where a build's time
goes. Nothing that comes out may be relied upon before the
`with` block has ended; only then is it known that blob and tar stream are the bytes that the
manifest names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.errors import Code, ImageError
from reconciler.oci.beside import ProcessPump
from reconciler.oci.pump import Pump, ThreadPump
from reconciler.oci.tar import Payload, read_tar
from reconciler.processes import can_start

if TYPE_CHECKING:
    from reconciler.model import Layer
    from reconciler.oci.limits import Limits
    from reconciler.oci.merge import Header

_LARGE = 16 << 20
"""Bytes of a blob from which on starting a process for it is worth its price."""


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


Turn = Callable[[int], None]
"""Called when a batch of the stream is used up, with the bytes of the blob that have been read.

What was handed out of that batch is not there any more when it returns. It may raise.
"""


class OpenLayer:
    """A layer that is being unpacked already, as far ahead as there is memory for it."""

    def __init__(self, path: Path, layer: Layer, name: str, limits: Limits) -> None:
        """path: the blob in the cache. name: what errors call the layer. Raises LayerMismatch."""
        self._layer = layer
        self._name = name
        self._limits = limits
        self._descriptor = _open(path, layer, name)
        try:
            self._pump = _pump(self._descriptor, layer, limits)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """End the unpacking, wherever it is."""
        self._pump.stop()
        os.close(self._descriptor)

    @contextmanager
    def read(
        self, serials: Iterator[int], *, turn: Turn
    ) -> Iterator[Iterator[tuple[Header, Payload]]]:
        """See `read_layer`. Can be done once."""
        pump, layer, name = self._pump, self._layer, self._name
        try:
            entries = read_tar(_turning(pump, turn), self._limits, serials)
            yield entries
            for _ in entries:
                pass
        except ImageError as exc:
            pump.stop()
            _compare(pump.blob_digest(), layer.blob.digest, f"{name}: blob", layer)
            if exc.brief.startswith(name):
                raise
            brief = f"{name}: {exc.brief}"
            raise ImageError(brief, code=exc.code, resolution=exc.resolution) from exc
        pump.stop()
        _compare(pump.blob_digest(), layer.blob.digest, f"{name}: blob", layer)
        stream = f"{name}: tar stream (diff_id)"
        _compare(pump.stream_digest(), layer.diff_id, stream, layer)


@contextmanager
def read_layer(
    path: Path, layer: Layer, name: str, limits: Limits, serials: Iterator[int], *, turn: Turn
) -> Iterator[Iterator[tuple[Header, Payload]]]:
    """Read a layer; at the end of the block the rest of it is read, and the digests are compared.

    path: the blob in the cache. name: what errors call the layer. serials: numbers for payloads.
    Raises LayerMismatch when blob or stream are not what `layer` says, also when another
    ImageError, from in here or from the body of the `with`, turns out to come of a damaged blob;
    ImageError when the layer is as the manifest says and wrong all the same.
    """
    with (
        closing(OpenLayer(path, layer, name, limits)) as opened,
        opened.read(serials, turn=turn) as entries,
    ):
        yield entries


def _pump(descriptor: int, layer: Layer, limits: Limits) -> Pump:
    algorithms = (layer.blob.digest.partition(":")[0], layer.diff_id.partition(":")[0])
    if layer.blob.size < _LARGE or not can_start():
        return ThreadPump(descriptor, algorithms, limits)
    return ProcessPump(descriptor, algorithms, limits)


def _turning(pump: Pump, turn: Turn) -> Iterator[memoryview]:
    for batch in pump.batches(turn):
        yield batch
        turn(pump.position)


def _open(path: Path, layer: Layer, name: str) -> int:
    """Open a cached blob, which must be a regular file of the right size and no link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        raise LayerMismatch(f"{name}: the cached blob is no file", layer.blob.digest) from exc
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != layer.blob.size:
        os.close(descriptor)
        brief = f"{name}: the cached blob is no file of {layer.blob.size} bytes"
        raise LayerMismatch(brief, layer.blob.digest)
    return descriptor


def _compare(found: str, digest: str, what: str, layer: Layer) -> None:
    algorithm, _, wanted = digest.partition(":")
    if found != wanted:
        brief = f"{what} has the digest {algorithm}:{found}, not {digest}"
        raise LayerMismatch(brief, layer.blob.digest)

"""The digest of a filesystem image: a file that is large, mostly holes, and read whole each time.

`pipeline` takes it of a finished rootfs, `manifest` compares it when an artifact is verified or an
interrupted build is taken up again. It tells damage, not malice: whoever can change the file can
change the manifest beside it. So each chunk is summed by CRC-32, at ten times the speed of sha256,
which would be a quarter of a large build. What comes from elsewhere is never trusted on it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isal.isal_zlib import crc32

from reconciler.files import data_ranges

_Sum = Callable[[bytes | bytearray | memoryview], bytes]
_THREADS = 2
"""Both ways of summing let go of the interpreter's lock: two threads are two cores."""


def _crc(data: bytes | bytearray | memoryview) -> bytes:
    return crc32(data).to_bytes(4, "big")


def _sha(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


_FORMS: dict[str, tuple[int, _Sum]] = {"crc32-1m": (1 << 20, _crc), "sha256-4m": (4 << 20, _sha)}
"""Bytes of a chunk, and what it is summed by. The second is what earlier versions wrote."""
_FORM = "crc32-1m"


def is_sparse_digest(digest: str) -> bool:
    """Whether a digest is of a form that `sparse_digest` knows."""
    return digest.partition(":")[0] in _FORMS


def sparse_digest(path: Path, form: str = _FORM) -> str:
    """`<form>:<hex>`: the sha256 over the sums of a file's chunks, at the price of its data only.

    A chunk of a hole counts as the zeros that it reads as, so holes filled by a copy change
    nothing. Raises OSError.
    """
    length, add_up = _FORMS[form]
    with path.open("rb", buffering=0) as stream:
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        filled = _filled(descriptor, size, length)
        sums = [add_up(bytes(length))] * (size // length)
        if size % length:
            sums.append(add_up(bytes(size % length)))

        def read_every(first: int) -> list[tuple[int, bytes]]:
            buffer = bytearray(length)
            found = []
            for index in filled[first::_THREADS]:
                got = os.preadv(descriptor, [buffer], index * length)
                found.append((index, add_up(memoryview(buffer)[:got])))
            return found

        with ThreadPoolExecutor(_THREADS) as pool:
            for part in pool.map(read_every, range(_THREADS)):
                for index, value in part:
                    sums[index] = value
    return f"{form}:{hashlib.sha256(b''.join(sums)).hexdigest()}"


def _filled(descriptor: int, size: int, length: int) -> list[int]:
    """The numbers of the chunks in which there is anything but holes, in order."""
    return sorted(set(_chunks(descriptor, size, length)))


def _chunks(descriptor: int, size: int, length: int) -> Iterator[int]:
    for start, end in data_ranges(descriptor, size):
        yield from range(start // length, -(-end // length))

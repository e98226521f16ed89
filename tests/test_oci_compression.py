"""Layer blobs decode to the very bytes that went in, and nothing else gets through."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import sys
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from reconciler.errors import Code, ImageError
from reconciler.oci.compression import PIECE, decompress
from reconciler.oci.limits import Limits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = os.urandom(3000) + b"some layer " * 40_000
SKIPPABLE = b"\x5e\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"chunk-toc"


def chunked(raw: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


def decoded(raw: bytes, chunk: int = 4096, limits: Limits | None = None) -> bytes:
    return b"".join(decompress(chunked(raw, chunk), limits or Limits()))


def estargz_footer() -> bytes:
    """An empty member with an extra field, as eStargz ends in."""
    return b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x04\0SG\0\0\x03\0" + bytes(8)


def wide_window() -> bytes:
    options = {
        int(zstd.CompressionParameter.window_log): 31,
        int(zstd.CompressionParameter.enable_long_distance_matching): 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(os.urandom(1 << 16), compressor.FLUSH_BLOCK) + compressor.flush()


ACCEPTED = {
    "plain": (PLAIN, PLAIN),
    "empty": (b"", b""),
    "shorter than any magic": (b"\x1f", b"\x1f"),
    "gzip": (gzip.compress(PLAIN), PLAIN),
    "gzip of nothing": (gzip.compress(b""), b""),
    "gzip, three members": (b"".join(map(gzip.compress, (PLAIN, b"", b"end"))), PLAIN + b"end"),
    "gzip, padded": (gzip.compress(PLAIN) + bytes(600), PLAIN),
    "gzip, padded between members": (
        gzip.compress(PLAIN) + b"\0" + gzip.compress(b"x"),
        PLAIN + b"x",
    ),
    "gzip, eStargz footer": (gzip.compress(PLAIN) + estargz_footer(), PLAIN),
    "zstd": (zstd.compress(PLAIN), PLAIN),
    "zstd, frames and skippable ones": (
        SKIPPABLE + zstd.compress(PLAIN) + SKIPPABLE + zstd.compress(b"end") + SKIPPABLE,
        PLAIN + b"end",
    ),
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("case", ACCEPTED)
def test_decodes_whatever_the_chunks_are(case: str, chunk: int) -> None:
    raw, wanted = ACCEPTED[case]
    if chunk == 1 and len(raw) > 100_000:
        chunk = 11
    assert decoded(raw, chunk) == wanted


def flipped(raw: bytes, position: int) -> bytes:
    position %= len(raw)
    return raw[:position] + bytes([raw[position] ^ 0x10]) + raw[position + 1 :]


GZIP, ZSTD = gzip.compress(PLAIN), zstd.compress(PLAIN)

REJECTED = {
    "xz": (lzma.compress(PLAIN), "xz"),
    "bzip2": (bz2.compress(PLAIN), "bzip2"),
    "bzip2 of nothing": (bz2.compress(b""), "bzip2"),
    "gzip cut in the data": (GZIP[:2000], "cut short"),
    "gzip cut in the trailer": (GZIP[:-1], "cut short"),
    "gzip cut in a second header": (GZIP + GZIP[:5], "cut short"),
    "gzip with a wrong crc": (flipped(GZIP, -7), "corrupt gzip"),
    "gzip with a wrong length": (flipped(GZIP, -2), "corrupt gzip"),
    "gzip with a flipped bit": (flipped(GZIP, 1000), "corrupt gzip"),
    "gzip, garbage after it": (GZIP + b"garbage, and some more", "gzip"),
    "gzip, a byte after it": (GZIP + b"\1", "gzip"),
    "gzip, the start of a header after it": (GZIP + b"\x1f", "cut short"),
    "gzip, garbage after padding": (GZIP + bytes(99) + b"garbage", "garbage"),
    "gzip with a header of a megabyte": (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (1 << 20), "gzip"),
    "gzip, zstd after it": (GZIP + ZSTD, "gzip"),
    "zstd cut": (ZSTD[:-1], "cut short"),
    "zstd with a flipped bit": (flipped(ZSTD, 5), "zstd"),
    "zstd, garbage after it": (ZSTD + b"garbage, and some more", "corrupt zstd"),
    "zstd, cut skippable frame": (ZSTD + SKIPPABLE[:-1], "cut short"),
}


@pytest.mark.parametrize("chunk", [13, 1 << 20])
@pytest.mark.parametrize("case", REJECTED)
def test_rejects_with_a_reason(case: str, chunk: int) -> None:
    raw, words = REJECTED[case]
    with pytest.raises(ImageError, match=words) as caught:
        decoded(raw, chunk)
    assert caught.value.code is Code.IMAGE_INVALID
    assert not caught.value.retryable


def test_a_window_beyond_the_limit_names_its_key() -> None:
    with pytest.raises(ImageError, match=r"limits\.zstd-window") as caught:
        decoded(wide_window())
    assert caught.value.code is Code.LIMIT_EXCEEDED


def test_a_name_that_looks_like_bzip2_is_not_enough() -> None:
    assert decoded(b"BZh9-notes.txt".ljust(512, b"\0")).startswith(b"BZh9-notes")


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit_with_flat_memory(compress: object) -> None:
    assert callable(compress)
    bomb = compress(bytes(300 << 20))
    tracemalloc.start()
    try:
        seen = 0
        with pytest.raises(ImageError, match=r"limits\.layer-bytes") as caught:
            for piece in decompress(chunked(bomb, 1 << 20), Limits(layer_bytes=100_000_000)):
                seen += len(piece)
                assert len(piece) <= PIECE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code is Code.LIMIT_EXCEEDED
    assert "limits.layer-bytes" in caught.value.resolution
    assert seen <= 100_000_000
    assert peak < 16 << 20


def test_exactly_the_limit_is_allowed() -> None:
    limits = Limits(layer_bytes=len(PLAIN))
    assert decoded(GZIP, limits=limits) == PLAIN


def test_a_deflate_stream_without_gzip_is_taken_for_a_plain_tar() -> None:
    raw = zlib.compress(PLAIN)
    assert decoded(raw) == raw

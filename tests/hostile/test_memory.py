"""Peak memory of reading what expands: the same for a bomb of gigabytes as for a small layer.

Each runs in a process of its own, because only a process has a peak. The limits are the program's
defaults but for the size of a layer, which nobody wants to wait for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.tarball import header, pax_header, record, tar

from hostile.case import f
from hostile.streams import wide_window

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GIB = 1 << 30
_READ = """
import itertools, sys
from reconciler.errors import ImageError
from reconciler.oci.compression import decompress
from reconciler.oci.limits import Limits
from reconciler.oci.merge import Merge
from reconciler.oci.tar import read_tar
limits = Limits(layer_bytes=1 << 30)
merge = Merge(limits)
merge.begin_layer()
with open(sys.argv[1], "rb") as file:
    chunks = decompress(iter(lambda: file.read(128 << 10), b""), limits)
    try:
        for header, payload in read_tar(chunks, limits, itertools.count(1)):
            merge.add(header)
            for _ in payload:
                pass
        print("whole")
    except ImageError as error:
        print(error.brief)
with open("/proc/self/status") as file:  # ru_maxrss would count what the parent had at the fork
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def packed(path: Path, *parts: bytes, zeros: int = 0) -> Path:
    """A zstd stream of these parts and then so many MiB of zeros."""
    packer = zstd.ZstdCompressor()
    with path.open("wb") as file:
        for part in (*parts, *[bytes(1 << 20)] * zeros):
            file.write(packer.compress(part))
        file.write(packer.flush())
    return path


def peak(layer: Path) -> tuple[str, int]:
    """What reading a layer ends with, and the peak of the process in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, layer], capture_output=True, text=True, check=True
    )
    words, kib = done.stdout.splitlines()
    return words, int(kib)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The peak for a layer of nothing much."""
    words, kib = peak(packed(tmp_path_factory.mktemp("small") / "layer", tar(f("x", b"x"))))
    assert words == "whole"
    return kib


def test_a_bomb_of_zeros(tmp_path: Path, small: int) -> None:
    layer = packed(tmp_path / "bomb", header("x", size=3 * GIB), zeros=2048)
    assert 2 * GIB / layer.stat().st_size > 10_000
    words, kib = peak(layer)
    assert "limits.layer-bytes" in words
    assert kib < small + (24 << 10)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_an_extended_header_of_600_mb(flag: bytes, tmp_path: Path, small: int) -> None:
    layer = packed(tmp_path / "pax", header("h", flag, 600 << 20), zeros=600)
    words, kib = peak(layer)
    assert "limits.pax-bytes" in words
    assert kib < small + (24 << 10)


def test_a_window_of_two_gigabytes(tmp_path: Path, small: int) -> None:
    (tmp_path / "window").write_bytes(wide_window())
    words, kib = peak(tmp_path / "window")
    assert "limits.zstd-window" in words
    assert kib < small + (24 << 10)


def test_extended_headers_of_a_megabyte_each(tmp_path: Path, small: int) -> None:
    """Attributes that no inode could hold, at every entry: memory ends at its limit."""
    huge = pax_header(record("SCHILY.xattr.user.x", bytes(1_000_000))) + f("x")
    words, kib = peak(packed(tmp_path / "xattrs", *[huge] * 600))
    assert "limits.metadata-bytes" in words
    assert kib < small + (300 << 10)

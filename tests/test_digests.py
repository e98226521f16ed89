"""The digest of an image is its definition, whatever of the file are holes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.digests import is_sparse_digest, sparse_digest

MIB = 1 << 20


def sparse(path: Path, size: int, at: dict[int, bytes]) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        for position, data in at.items():
            stream.seek(position)
            stream.write(data)
    return path


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("form", "chunk", "add_up"), [("crc32-1m", MIB, crc), ("sha256-4m", 4 * MIB, sha)]
)
@pytest.mark.parametrize(
    ("size", "at"),
    [
        (0, {}),
        (1, {0: b"x"}),
        (4 * MIB, {}),
        (4 * MIB + 4096, {}),
        (4 * MIB + 4096, {4 * MIB + 5: b"x"}),
        (20 * MIB, {4 * MIB - 2: b"over a border", 16 * MIB: b"y"}),
        (12 * MIB, {0: bytes(12 * MIB)}),
    ],
)
def test_it_is_its_definition(
    tmp_path: Path,
    size: int,
    at: dict[int, bytes],
    form: str,
    chunk: int,
    add_up: Callable[[bytes], bytes],
) -> None:
    path = sparse(tmp_path / "f", size, at)
    data = path.read_bytes()
    sums = [add_up(data[i : i + chunk]) for i in range(0, len(data), chunk)]
    found = sparse_digest(path, form)
    assert found == f"{form}:{hashlib.sha256(b''.join(sums)).hexdigest()}"
    assert is_sparse_digest(found)


def test_holes_filled_by_a_copy_do_not_change_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "f", 12 * MIB, {4 * MIB: b"x"})
    (tmp_path / "full").write_bytes(path.read_bytes())
    assert sparse_digest(tmp_path / "full") == sparse_digest(path)


def test_one_changed_bit_changes_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "f", 12 * MIB, {4 * MIB: b"x"})
    before = sparse_digest(path)
    sparse(path, 12 * MIB, {4 * MIB: b"y"})
    assert sparse_digest(path) != before


def test_a_plain_digest_is_another_thing() -> None:
    assert not is_sparse_digest("sha256:" + "0" * 64)

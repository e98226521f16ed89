"""A layer is believed only when blob and tar stream are the bytes that the manifest names."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.children import children
from support.images import compress, digest_of
from support.tarball import entry, tar

from reconciler.errors import Code, HostError, ImageError
from reconciler.model import Descriptor, Layer
from reconciler.oci import layers
from reconciler.oci.layers import LayerMismatch, layer_name, read_layer
from reconciler.oci.limits import Limits

NAME = "layer 1 of 1"
CONTENT = os.urandom(900_000)
TAR = tar(entry("a", data=b"a" * 5000), entry("b", data=CONTENT), entry("c", "dir"))


@pytest.fixture(params=["threads", "process"], autouse=True)
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every layer is small here; half of the tests take them for large ones."""
    if request.param == "process":
        monkeypatch.setattr(layers, "_LARGE", 0)
    return str(request.param)


def stored(path: Path, raw: bytes, **claims: str | int) -> Layer:
    """Put a blob into a file; the layer that describes it, or claims something else."""
    path.write_bytes(raw)
    tar_bytes = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    known: dict[str, str | int] = {"digest": digest_of(raw), "size": len(raw)}
    known.update(claims)
    blob = Descriptor("any", str(known["digest"]), int(known["size"]))
    return Layer(blob, str(known.get("diff_id", digest_of(tar_bytes))))


def ignore(position: int) -> None:
    """Nothing is kept that a batch could take along."""


def read(path: Path, layer: Layer, limits: Limits | None = None) -> dict[bytes, bytes]:
    with read_layer(
        path, layer, NAME, limits or Limits(), itertools.count(1), turn=ignore
    ) as entries:
        return {
            head.path: b"".join(bytes(memoryview(p)) for p in payload if not isinstance(p, int))
            for head, payload in entries
        }


@pytest.mark.parametrize("how", ["gzip", "zstd", "none"])
def test_reads_every_encoding_and_verifies_both_digests(how: str, tmp_path: Path) -> None:
    raw = compress(TAR, how)
    path = tmp_path / "blob"
    path.write_bytes(raw)
    layer = Layer(Descriptor("any", digest_of(raw), len(raw)), digest_of(TAR))
    assert read(path, layer) == {b"a": b"a" * 5000, b"b": CONTENT, b"c": b""}


def test_sha512_is_verified_too(tmp_path: Path) -> None:
    good = "sha512:" + hashlib.sha512(TAR).hexdigest()
    wrong = "sha512:" + hashlib.sha512(b"").hexdigest()
    assert read(tmp_path / "b", stored(tmp_path / "b", TAR, digest=good, diff_id=good))
    with pytest.raises(LayerMismatch, match="sha512"):
        read(tmp_path / "b", stored(tmp_path / "b", TAR, digest=wrong))


def test_a_reader_that_stops_early_still_gets_the_whole_verified(tmp_path: Path) -> None:
    layer = stored(tmp_path / "b", TAR, diff_id=digest_of(b""))
    with (
        pytest.raises(LayerMismatch, match="diff_id"),
        read_layer(
            tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=ignore
        ) as entries,
    ):
        next(entries)


def test_the_position_ends_at_the_size_of_the_blob(tmp_path: Path) -> None:
    layer = stored(tmp_path / "b", gzip.compress(TAR))
    seen: list[int] = []
    with read_layer(tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=seen.append):
        pass
    assert seen == sorted(seen)
    assert seen[-1] == layer.blob.size


@pytest.mark.parametrize("raw", [TAR, gzip.compress(TAR)], ids=["plain", "gzip"])
@pytest.mark.parametrize("position", [0, 3, 150, 700, 5500, -700, -1])
def test_a_flipped_bit_anywhere_is_the_blobs_fault(
    raw: bytes, position: int, tmp_path: Path
) -> None:
    layer = stored(tmp_path / "b", raw)
    damaged = bytearray(raw)
    damaged[position] ^= 4
    (tmp_path / "b").write_bytes(damaged)
    with pytest.raises(LayerMismatch) as caught:
        read(tmp_path / "b", layer)
    assert caught.value.code is Code.DIGEST_MISMATCH
    assert caught.value.blob == layer.blob.digest
    assert caught.value.brief.startswith(NAME)


def test_a_wrong_entry_in_a_damaged_blob_is_the_blobs_fault(tmp_path: Path) -> None:
    """Even when it is the caller who objects, in the middle of the layer."""
    layer = stored(tmp_path / "b", TAR, digest=digest_of(b"other"))
    with (
        pytest.raises(LayerMismatch),
        read_layer(
            tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=ignore
        ) as entries,
    ):
        next(entries)
        raise ImageError("such a name")


def test_a_wrong_entry_in_an_intact_blob_is_the_images_fault(tmp_path: Path) -> None:
    layer = stored(tmp_path / "b", gzip.compress(tar(entry("x", "z"))))
    with pytest.raises(ImageError, match=f"{NAME}: x: unknown tar entry type") as caught:
        read(tmp_path / "b", layer)
    assert caught.value.code is Code.IMAGE_INVALID
    assert not isinstance(caught.value, LayerMismatch)


def test_a_wrong_diff_id_names_the_blob_to_fetch_again(tmp_path: Path) -> None:
    layer = stored(tmp_path / "b", gzip.compress(TAR), diff_id=digest_of(b"other"))
    with pytest.raises(LayerMismatch, match="diff_id") as caught:
        read(tmp_path / "b", layer)
    assert caught.value.blob == layer.blob.digest


def test_bytes_after_the_archive_belong_to_the_diff_id(tmp_path: Path) -> None:
    longer = TAR + bytes(100_000)
    layer = stored(tmp_path / "b", gzip.compress(longer), diff_id=digest_of(TAR))
    with pytest.raises(LayerMismatch, match="diff_id"):
        read(tmp_path / "b", layer)


@pytest.mark.parametrize("kind", ["truncated", "longer", "link", "directory", "missing", "fifo"])
def test_a_cached_blob_that_is_no_such_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "b"
    layer = stored(path, TAR)
    if kind == "truncated":
        path.write_bytes(TAR[:-1])
    elif kind == "longer":
        path.write_bytes(TAR + b"\0")
    else:
        path.rename(tmp_path / "real")
    if kind == "link":
        path.symlink_to("real")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(LayerMismatch) as caught:
        read(path, layer)
    assert caught.value.blob == layer.blob.digest


def test_a_limit_keeps_its_code_and_advice(tmp_path: Path) -> None:
    layer = stored(tmp_path / "b", gzip.compress(TAR))
    with pytest.raises(ImageError, match=f"{NAME}: .*layer-bytes") as caught:
        read(tmp_path / "b", layer, Limits(layer_bytes=10_000))
    assert caught.value.code is Code.LIMIT_EXCEEDED
    assert "layer-bytes" in caught.value.resolution


@pytest.mark.parametrize("how", ["at once", "later", "by another error"])
def test_nothing_outlives_the_block(how: str, tmp_path: Path) -> None:
    before = children()
    layer = stored(tmp_path / "b", gzip.compress(tar(entry("big", data=bytes(50 << 20)))))
    with (
        pytest.raises(KeyError),
        read_layer(
            tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=ignore
        ) as entries,
    ):
        if how != "at once":
            next(entries)
        if how == "later":
            time.sleep(0.2)  # the queue is full by now
        raise KeyError(how)
    assert not [t for t in threading.enumerate() if t.name == "layer-pump"]
    assert children() == before


@pytest.mark.parametrize("pump", ["process"], indirect=True)
class TestProcess:
    """What only a process can do: die, hang, and take its memory back."""

    def test_the_death_of_the_process_is_an_error_of_the_build(self, tmp_path: Path) -> None:
        layer = stored(tmp_path / "b", gzip.compress(tar(entry("big", data=bytes(50 << 20)))))
        before = children()
        with (
            pytest.raises(HostError, match="killed by SIGKILL") as caught,
            read_layer(
                tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=ignore
            ) as entries,
        ):
            _, payload = next(entries)
            [child] = children() - before
            os.kill(int(child), signal.SIGKILL)
            for _ in payload:
                pass
        assert caught.value.code is Code.TOOL_FAILED
        assert caught.value.retryable

    def test_a_process_that_hangs_can_be_interrupted(self, tmp_path: Path) -> None:
        layer = stored(tmp_path / "b", gzip.compress(tar(entry("big", data=bytes(50 << 20)))))
        before = children()
        hanging = threading.Event()

        def turn(position: int) -> None:
            if hanging.is_set():
                raise KeyError(position)

        with (
            pytest.raises(KeyError),
            read_layer(
                tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=turn
            ) as entries,
        ):
            [child] = children() - before
            os.kill(int(child), signal.SIGSTOP)
            hanging.set()
            for _, payload in entries:
                for _ in payload:
                    pass
        assert children() == before

    def test_what_was_handed_out_is_good_until_its_turn(self, tmp_path: Path) -> None:
        data = os.urandom(30 << 20)
        layer = stored(tmp_path / "b", gzip.compress(tar(entry("big", data=data)), 1))
        seen: list[bytes | memoryview] = []
        found = bytearray()

        def turn(position: int) -> None:
            for piece in seen:
                found.extend(piece)
            seen.clear()

        with read_layer(
            tmp_path / "b", layer, NAME, Limits(), itertools.count(1), turn=turn
        ) as entries:
            for _, payload in entries:
                seen.extend(piece for piece in payload if not isinstance(piece, int))
        assert found == data


def test_names_of_layers_count_from_one() -> None:
    layer = Layer(Descriptor("any", "sha256:" + "ab" * 32, 1), "sha256:" + "cd" * 32)
    assert layer_name(2, 5, layer) == "layer 2 of 5 (sha256:abababababab)"

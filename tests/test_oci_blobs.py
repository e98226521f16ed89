import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.images import digest_of

from reconciler.errors import Code, HostError, ImageError, RemoteError
from reconciler.model import Descriptor
from reconciler.oci.blobs import BlobCache
from reconciler.room import Interrupted

DATA = b"some bytes of a layer" * 100
BLOB = Descriptor("", digest_of(DATA), len(DATA))


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "oci")


def files(cache: BlobCache) -> list[str]:
    return sorted(str(p.relative_to(cache.root)) for p in cache.root.rglob("*") if not p.is_dir())


def test_what_goes_in_comes_out(cache: BlobCache) -> None:
    assert not cache.has(BLOB)
    path = cache.ingest(BLOB, iter([DATA[:7], b"", DATA[7:]]))
    assert path == cache.root / "blobs" / "sha256" / BLOB.digest[7:]
    assert path.read_bytes() == DATA
    assert cache.has(BLOB)
    assert cache.read(BLOB, 1 << 20) == DATA
    assert cache.known(BLOB.digest) == BLOB
    assert files(cache) == [f"blobs/sha256/{BLOB.digest[7:]}"]


def test_sha512_too(cache: BlobCache) -> None:
    import hashlib

    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    cache.ingest(Descriptor("", digest, len(DATA)), iter([DATA]))
    assert [entry[0] for entry in cache.listing()] == [digest]


def test_add_computes_the_digest(cache: BlobCache) -> None:
    assert cache.add(DATA, "text/x") == Descriptor("text/x", BLOB.digest, len(DATA))
    assert cache.add(DATA, "text/x").digest == BLOB.digest


@pytest.mark.parametrize(
    "chunks",
    [[DATA[:-1]], [DATA, b"x"], [b"x" * len(DATA)], []],
    ids=["short", "long", "other", "nothing"],
)
def test_wrong_bytes_leave_nothing(cache: BlobCache, chunks: list[bytes]) -> None:
    with pytest.raises(ImageError) as caught:
        cache.ingest(BLOB, iter(chunks))
    assert caught.value.code is Code.DIGEST_MISMATCH
    assert files(cache) == []


def test_an_endless_stream_stops_at_the_announced_size(cache: BlobCache) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b"x" * 1000

    with pytest.raises(ImageError):
        cache.ingest(BLOB, endless())
    assert sent <= len(DATA) + 1000


def test_a_broken_transfer_is_continued(cache: BlobCache) -> None:
    with pytest.raises(RemoteError), cache.claim(BLOB) as claim:
        assert claim is not None
        claim.write(DATA[:100])
        raise_reset()
    with cache.claim(BLOB) as claim:
        assert claim is not None
        assert claim.offset == 100
        claim.write(DATA[100:])
    assert cache.read(BLOB, 1 << 20) == DATA


def raise_reset() -> None:
    raise RemoteError("connection reset")


def test_a_partial_file_of_garbage_heals(cache: BlobCache) -> None:
    part = cache.root / "ingest" / f"sha256-{BLOB.digest[7:]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 50)
    with pytest.raises(ImageError), cache.claim(BLOB) as claim:
        assert claim is not None
        claim.write(DATA[50:])
    assert not part.exists()
    part.write_bytes(b"x" * (len(DATA) + 1))
    cache.ingest(BLOB, iter([DATA]))
    assert cache.has(BLOB)


def test_two_threads_want_one_blob(cache: BlobCache) -> None:
    started, downloads = threading.Barrier(4), []

    def want() -> bytes:
        started.wait()
        with cache.claim(BLOB) as claim:
            if claim:
                downloads.append(1)
                time.sleep(0.1)
                claim.restart()
                claim.write(DATA)
        return cache.read(BLOB, 1 << 20)

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(want) for _ in range(4)]
        assert all(result.result() == DATA for result in results)
    assert downloads == [1]


def test_one_failing_does_not_poison_the_next(cache: BlobCache) -> None:
    first_has_it = threading.Event()

    def fails() -> None:
        with cache.claim(BLOB) as claim:
            assert claim is not None
            claim.write(b"wrong")
            first_has_it.set()
            time.sleep(0.1)
            claim.write(b"x" * len(DATA))

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(fails)
        first_has_it.wait(5)
        cache.ingest(BLOB, iter([DATA]))
        assert isinstance(failing.exception(), ImageError)
    assert cache.read(BLOB, 1 << 20) == DATA


def test_waiting_can_be_given_up(cache: BlobCache) -> None:
    def give_up() -> None:
        raise Interrupted("stop")

    with cache.claim(BLOB) as claim:
        assert claim is not None
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: cache.claim(BLOB, give_up).__enter__())
            assert isinstance(other.exception(), Interrupted)
        claim.write(DATA)


def test_another_process_is_waited_for_and_its_death_too(cache: BlobCache) -> None:
    script = (
        "import sys, time; from pathlib import Path; from reconciler.model import Descriptor\n"
        "from reconciler.oci.blobs import BlobCache\n"
        "blob = Descriptor('', sys.argv[2], int(sys.argv[3]))\n"
        "with BlobCache(Path(sys.argv[1])).claim(blob) as c:\n"
        "    c.write(b'some'); c._handle.flush(); print('there', flush=True); time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", script, str(cache.root), BLOB.digest, str(BLOB.size)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        assert list(cache.leftovers()) == []
        waits = []

        def waiting() -> None:
            waits.append(1)
            other.kill()

        with cache.claim(BLOB, waiting) as claim:
            assert claim is not None
            assert claim.offset == 4
            claim.write(DATA[4:])
    assert waits
    assert cache.read(BLOB, 1 << 20) == DATA


@pytest.mark.parametrize("damage", ["flip", "truncate", "link", "directory"])
def test_a_damaged_blob_is_noticed_and_replaced(
    cache: BlobCache, tmp_path: Path, damage: str
) -> None:
    path = cache.ingest(BLOB, iter([DATA]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(DATA)
    if damage == "flip":
        path.write_bytes(b"S" + DATA[1:])
        assert cache.has(BLOB)
    else:
        path.unlink()
        {
            "truncate": lambda: path.write_bytes(DATA[:-1]),
            "link": lambda: path.symlink_to(elsewhere),
            "directory": lambda: (path / "x").mkdir(parents=True),
        }[damage]()
        assert not cache.has(BLOB)
    with pytest.raises(ImageError) as caught:
        cache.read(BLOB, 1 << 20)
    assert caught.value.code is Code.DIGEST_MISMATCH
    assert not os.path.lexists(path)
    assert len(list(cache.leftovers())) == 1
    cache.ingest(BLOB, iter([DATA]))
    assert cache.read(BLOB, 1 << 20) == DATA
    assert elsewhere.read_bytes() == DATA


def test_a_document_over_its_limit_is_not_read(cache: BlobCache) -> None:
    cache.ingest(BLOB, iter([DATA]))
    with pytest.raises(ImageError) as caught:
        cache.read(BLOB, 100)
    assert caught.value.code is Code.LIMIT_EXCEEDED


def test_no_path_is_made_of_what_is_no_digest(cache: BlobCache) -> None:
    for text in ("sha256:../../../etc/passwd", "", "sha256"):
        with pytest.raises(ImageError):
            cache.path(text)


def test_the_listing_for_the_collector(cache: BlobCache) -> None:
    path = cache.ingest(BLOB, iter([DATA]))
    (path.parent / "stranger").write_text("x")
    (cache.root / "blobs" / "sha512").symlink_to("/etc")
    [(digest, found, size, mtime)] = cache.listing()
    assert (digest, found) == (BLOB.digest, path)
    assert size == path.stat().st_blocks * 512
    assert mtime == path.stat().st_mtime_ns


def test_a_full_disk_is_said_and_cleaned(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False
        ).returncode
    ):
        pytest.skip("needs root to mount a small tmpfs")
    try:
        cache, big = BlobCache(mount / "oci"), b"x" * 200_000
        with pytest.raises(HostError) as caught:
            cache.ingest(Descriptor("", digest_of(big), len(big)), iter([big]))
        assert caught.value.code is Code.DISK_FULL
        assert caught.value.retryable
        assert files(cache) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)

"""The direct builder alone: large, sparse, full and damaged, and what a kernel makes of it."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.builders import build, check, desired, listing, room_for, run
from support.filesystems import ACL, MIB, mounted
from support.tarball import entry, gnu_long, header, tar

from reconciler.direct import selfcheck
from reconciler.direct.builder import DirectBuilder
from reconciler.errors import Code, HostError, ImageError, RemoteError
from reconciler.ext4 import libext2fs
from reconciler.ext4.libext2fs import NoRoom, Writer
from reconciler.ext4.reader import Filesystem
from reconciler.observe import builder_for
from reconciler.oci.layers import LayerMismatch
from reconciler.room import Feed

INDEXED = 0x1000


def find(filesystem: Filesystem, path: bytes) -> int:
    number = 2
    for name in path.split(b"/"):
        number = filesystem.entries(filesystem.inode(number))[name]
    return number


class TestSameBytes:
    def test_equal_layers_give_equal_bytes_in_any_place(self, tmp_path: Path) -> None:
        layers = [tar(entry("a", data=b"a" * 9000)), tar(entry(".wh.a"), entry("b/c", data=b"c"))]
        for size in (32 * MIB, None):
            digests = set()
            for name in ("one", "two"):
                room = build(layers, tmp_path / f"{name}-{size}", "direct", size)
                digests.add(hashlib.sha256(room.rootfs.read_bytes()).hexdigest())
            assert len(digests) == 1

    def test_no_time_of_the_host_is_in_the_superblock(self, tmp_path: Path) -> None:
        room = build([tar(entry("a"))], tmp_path, "direct", 32 * MIB)
        said = subprocess.run(["dumpe2fs", "-h", room.rootfs], capture_output=True, check=True)
        written = next(line for line in said.stdout.splitlines() if b"Last write time" in line)
        assert b"1970" in written

    @pytest.mark.parametrize("size", [32 * MIB, None])
    def test_nothing_is_left_of_what_a_layer_took_away(
        self, size: int | None, tmp_path: Path
    ) -> None:
        secret = b"a secret of the lower layer " * 400
        layers = [
            tar(entry("keep", data=b"k" * 9000), entry("secret", data=secret)),
            tar(entry(".wh.secret"), entry("twice", data=b"1"), entry("twice", data=b"2")),
        ]
        room = build(layers, tmp_path, "direct", size)
        assert secret[:28] not in room.rootfs.read_bytes()
        check(room.rootfs)


class TestRoom:
    def test_layers_that_only_fit_together_when_merged(self, tmp_path: Path) -> None:
        lower = tar(entry("first", data=os.urandom(30 * MIB)))
        upper = tar(entry(".wh.first"), entry("second", data=os.urandom(30 * MIB)))
        room = build([lower, upper], tmp_path, "direct", 48 * MIB)
        check(room.rootfs)
        assert b"second" in listing(room.rootfs)

    def test_more_files_than_the_size_would_give_inodes(self, tmp_path: Path) -> None:
        layer = tar(*(entry(f"d/{n}", data=b"x") for n in range(3000)))
        room = build([layer], tmp_path, "direct", 32 * MIB)
        check(room.rootfs)
        assert len(listing(room.rootfs)) == 3000 + 3

    def test_a_size_that_is_too_small_names_the_one_that_does(self, tmp_path: Path) -> None:
        layer = tar(entry("big", data=os.urandom(20 * MIB)))
        refused = {}
        for name in ("direct", "tools"):
            with pytest.raises(ImageError) as caught:
                build([layer], tmp_path / name, name, 16 * MIB)
            refused[name] = (caught.value.code, caught.value.brief)
        assert refused["direct"][0] is Code.SIZE_TOO_SMALL
        assert refused["direct"] == refused["tools"]
        wanted = int(refused["direct"][1].rpartition(" ")[2].removesuffix("MiB"))
        check(build([layer], tmp_path / "enough", "direct", wanted * MIB).rootfs)

    def test_the_library_says_when_the_last_block_is_taken(self, tmp_path: Path) -> None:
        room = build([tar()], tmp_path, "direct", 16 * MIB)
        with Filesystem(room.rootfs) as filesystem:
            free = filesystem.free_blocks
        with Writer(room.rootfs) as writer:
            position = taken = 0
            while taken < free:
                start, count = writer.find_free(position, free - taken)
                writer.mark(start, count, used=True)
                position, taken = start + count, taken + count
            with pytest.raises(NoRoom):
                writer.find_free(1, 1)


class TestLarge:
    @pytest.mark.parametrize(("names", "length"), [(100_000, 12), (9_000, 250)])
    def test_one_directory_with_very_many_names(
        self, names: int, length: int, tmp_path: Path
    ) -> None:
        wanted = [f"{n:x}".rjust(length, "z") for n in range(names)]
        layer = tar(entry("big/", "dir", mtime=99), *(entry(f"big/{n}") for n in wanted))
        room = build([layer], tmp_path, "direct", None)
        check(room.rootfs)
        with Filesystem(room.rootfs) as filesystem:
            directory = filesystem.inode(find(filesystem, b"big"))
            assert directory.flags & INDEXED
            assert set(filesystem.entries(directory)) == {n.encode() for n in wanted}
        with mounted(room.rootfs, tmp_path / "mnt") as top:
            assert all((top / "big" / n).exists() for n in wanted[:: names // 500])
            assert not (top / "big" / "absent").exists()
            for n in range(1000):
                (top / "big" / f"new-{n}").touch()
            for n in wanted[:1000]:
                (top / "big" / n).unlink()
        check(room.rootfs)

    def test_a_sparse_file_of_5_gib(self, tmp_path: Path) -> None:
        size = 5 << 30
        records = {
            "GNU.sparse.name": "sparse",
            "GNU.sparse.size": str(size),
            "GNU.sparse.map": f"4100,4,{1 << 30},8192,{size - 3},3",
        }
        data = b"head" + b"m" * 8192 + b"end"
        layer = tar(entry("sparse", data=data, pax=records), entry("next", data=b"n"))
        room = build([layer], tmp_path, "direct", 6 << 30)
        check(room.rootfs)
        assert room.rootfs.stat().st_blocks * 512 < 200 * MIB
        with Filesystem(room.rootfs) as filesystem:
            inode = filesystem.inode(find(filesystem, b"sparse"))
            assert inode.size == size
            found = dict(filesystem.chunks(inode))
        assert found[4096][4:8] == b"head"
        assert found[1 << 30] == b"m" * 8192
        assert found[size - 4096][-3:] == b"end"
        assert sum(len(part.strip(b"\0")) for part in found.values()) == len(data)

    def test_a_file_in_a_thousand_pieces_has_a_tree_of_extents(self, tmp_path: Path) -> None:
        pieces = [(index * 3 * 4096, 4096) for index in range(1000)]
        records = {
            "GNU.sparse.name": "pieces",
            "GNU.sparse.size": str(1000 * 3 * 4096),
            "GNU.sparse.map": ",".join(f"{offset},{size}" for offset, size in pieces),
        }
        data = b"".join(index.to_bytes(2, "big") * 2048 for index in range(1, 1001))
        room = build([tar(entry("pieces", data=data, pax=records))], tmp_path, "direct", 32 * MIB)
        check(room.rootfs)
        with Filesystem(room.rootfs) as filesystem:
            inode = filesystem.inode(find(filesystem, b"pieces"))
            found = list(filesystem.chunks(inode))
        assert [offset for offset, _ in found] == [offset for offset, _ in pieces]
        assert b"".join(part for _, part in found) == data

    def test_a_file_longer_than_four_groups(self, tmp_path: Path) -> None:
        size = 700 * MIB
        block = os.urandom(MIB)
        layer = header("long", size=size) + block * 700 + bytes(1024)
        room = build([layer], tmp_path, "direct", 1 << 30)
        check(room.rootfs)
        with Filesystem(room.rootfs) as filesystem:
            inode = filesystem.inode(find(filesystem, b"long"))
            assert len(filesystem.extents(inode)) > 4
            found = hashlib.sha256()
            for _, part in filesystem.chunks(inode):
                found.update(part)
        assert found.digest() == hashlib.sha256(block * 700).digest()


class TestKernel:
    def test_a_guest_writes_to_the_image_and_it_stays_clean(self, tmp_path: Path) -> None:
        layer = tar(
            entry("d/f", data=b"content", uid=1000, pax={"mtime": "5000000000.25"}),
            entry("d/l", "symlink", target="x" * 80),
            entry("acl", pax={"SCHILY.xattr.system.posix_acl_access": ACL}),
            entry("large", pax={"SCHILY.xattr.user.large": b"z" * 3000}),
        )
        room = build([layer], tmp_path, "direct", 64 * MIB)
        with mounted(room.rootfs, tmp_path / "mnt") as top:
            info = (top / "d/f").stat()
            assert (info.st_uid, info.st_mtime_ns) == (1000, 5_000_000_000_250_000_000)
            assert (top / "d/l").readlink() == Path("x" * 80)
            assert os.getxattr(top / "acl", "system.posix_acl_access") == ACL
            assert os.getxattr(top / "large", "user.large") == b"z" * 3000
            (top / "new").write_bytes(os.urandom(5 * MIB))
            (top / "d/f").write_bytes(b"other")
            (top / "d/l").unlink()
            os.removexattr(top / "large", "user.large")
            for n in range(300):
                (top / "d" / f"some-longer-name-{n}").touch()
        check(room.rootfs)

    def test_a_guest_fills_the_image_to_its_last_block(self, tmp_path: Path) -> None:
        room = build([tar(entry("a", data=b"a" * 9000))], tmp_path, "direct", 16 * MIB)
        with mounted(room.rootfs, tmp_path / "mnt") as top, pytest.raises(OSError, match="space"):
            (top / "fill").write_bytes(os.urandom(16 * MIB))
        check(room.rootfs)

    def test_a_guest_fills_the_image_to_its_last_inode(self, tmp_path: Path) -> None:
        room = build([tar(entry("d/a", data=b"a"))], tmp_path, "direct", 16 * MIB)
        with Filesystem(room.rootfs) as filesystem:
            inodes = filesystem.inodes
        with mounted(room.rootfs, tmp_path / "mnt") as top:
            with pytest.raises(OSError, match="space"):
                for number in range(inodes):
                    (top / "d" / f"{number}").touch()
            assert os.statvfs(top).f_ffree == 0
            (top / "d/0").unlink()
            (top / "d/again").touch()
        check(room.rootfs)


class TestOverlap:
    def test_a_layer_is_built_while_the_next_is_fetched(self, tmp_path: Path) -> None:
        layers = [tar(entry("a", data=os.urandom(90_000))), tar(entry("b", data=b"b"))]
        image = desired(layers, tmp_path, "direct", 32 * MIB)
        room = room_for(image, tmp_path)
        second, first = (layer.blob for layer in image.pinned.layers)  # the newest is wanted first
        room.feed = Feed(image.pinned)
        room.feed.put(first.digest, tmp_path / "blobs" / first.digest)
        order: list[str] = []

        def emit(event: str, **fields: object) -> None:
            if fields.get("done") == first.size and not order:
                order.append("first is built")
                room.feed.put(second.digest, tmp_path / "blobs" / second.digest)

        room.emit = emit
        waited_in_vain = HostError("the first layer was not built before the second came")
        timer = threading.Timer(60, room.feed.fail, [waited_in_vain])
        timer.start()
        run(image, room)
        timer.cancel()
        assert order == ["first is built"]
        assert {b"a", b"b"} <= listing(room.rootfs).keys()

    def test_a_fetch_that_fails_ends_the_build(self, tmp_path: Path) -> None:
        image = desired([tar(entry("a")), tar(entry("b"))], tmp_path, "direct", 32 * MIB)
        room = room_for(image, tmp_path)
        first = image.pinned.layers[-1].blob.digest
        room.feed = Feed(image.pinned)
        room.feed.put(first, tmp_path / "blobs" / first)
        room.feed.fail(RemoteError("the registry is gone"))
        with pytest.raises(RemoteError, match="gone"):
            run(image, room)
        assert not room.rootfs.exists() or room.tree is None


class TestTrouble:
    def test_a_damaged_blob_is_found_out(self, tmp_path: Path) -> None:
        image = desired([tar(entry("a", data=os.urandom(50_000)))], tmp_path, "direct", 32 * MIB)
        room = room_for(image, tmp_path)
        blob = tmp_path / "blobs" / image.pinned.layers[0].blob.digest
        raw = bytearray(blob.read_bytes())
        raw[len(raw) // 2] ^= 1
        blob.write_bytes(raw)
        with pytest.raises(LayerMismatch):
            run(image, room)

    def test_a_stream_can_be_taken_again(self, tmp_path: Path) -> None:
        image = desired([tar(entry("a", data=b"x" * 5000))], tmp_path, "direct", 32 * MIB)
        room = room_for(image, tmp_path)
        with DirectBuilder() as direct:
            direct.stream(image, room)
            direct.stream(image, room)
            direct.finish(image, room)
        check(room.rootfs)

    def test_no_file_is_left_when_a_layer_is_refused(self, tmp_path: Path) -> None:
        layers = [tar(entry("a", data=b"x" * 5000)), tar(gnu_long("../b"), entry("b"))]
        with pytest.raises(ImageError):
            build(layers, tmp_path, "direct", None)
        assert list((tmp_path / "staging").iterdir()) == []

    def test_a_library_that_does_something_else_writes_no_image(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(selfcheck, "_passed", threading.Event())
        monkeypatch.setattr(Writer, "set_xattrs", lambda *_: None)
        with pytest.raises(HostError) as caught:
            build([tar()], tmp_path, "direct", 32 * MIB)
        assert "self-check" in caught.value.brief
        assert 'builder = "tools"' in caught.value.resolution
        assert list((tmp_path / "staging").iterdir()) == []

    def test_the_interpreter_gets_its_settings_back(self, tmp_path: Path) -> None:
        before = gc.isenabled(), sys.getswitchinterval()
        with pytest.raises(ImageError):
            build([tar(entry("../b"))], tmp_path, "direct", 32 * MIB)
        assert (gc.isenabled(), sys.getswitchinterval()) == before

    def test_a_host_without_the_library_builds_with_the_tools(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert builder_for("auto") == "direct"
        libext2fs._library.cache_clear()
        monkeypatch.setattr(libext2fs, "_SONAME", "libext2fs-is-not-here.so.2")
        try:
            assert builder_for("auto") == "tools"
            with pytest.raises(HostError) as caught:
                build([tar()], tmp_path, "direct", 32 * MIB)
        finally:
            libext2fs._library.cache_clear()
        assert caught.value.code is Code.TOOL_MISSING
        assert 'builder = "tools"' in caught.value.resolution

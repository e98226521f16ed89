"""ext4: the size is checked before anything is made, and is enough when it says so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.filesystems import (
    MIB,
    build,
    content_of,
    desired,
    directory,
    file,
    link,
    room_for,
    tree_of,
)

from reconciler.errors import Code, HostError, ImageError
from reconciler.ext4.reader import Filesystem
from reconciler.guest.assets import asset_sizes
from reconciler.oci.entries import Node, Tree
from reconciler.room import Interrupted
from reconciler.sizes import parse_size
from reconciler.stages import ext4
from reconciler.stages.ext4 import required_size


def nested(depth: int) -> Node:
    node = directory({b"leaf": file(1)})
    for _ in range(depth):
        node = directory({b"down": node})
    return node


def shape(name: str) -> Tree:
    if name == "many small files":
        return tree_of(
            {
                b"d%02d" % i: directory({b"f%03d" % j: file(1 + j) for j in range(250)})
                for i in range(40)
            }
        )
    if name == "one big file":
        return tree_of({b"big": file(180 * MIB)})
    if name == "deep directories":
        return tree_of({b"t%d" % i: nested(100) for i in range(30)})
    if name == "long links":
        return tree_of({b"l%04d" % i: link(b"x" * (60 + i)) for i in range(2500)})
    if name == "one large directory":
        return tree_of({b"d": directory({b"%0200d" % i: file() for i in range(2500)})})
    if name == "attributes":
        full = ((b"user.a", b"x" * 3000),)
        return tree_of({b"f%04d" % i: file(100, xattrs=full) for i in range(1500)})
    return tree_of(
        {b"%d" % i: directory({b"f%d" % j: file() for j in range(300)}) for i in range(30)}
    )


SHAPES = [
    "many small files",
    "one big file",
    "deep directories",
    "long links",
    "one large directory",
    "attributes",
    "empty files",
]


@pytest.mark.parametrize("name", SHAPES)
def test_a_build_at_exactly_the_named_size_succeeds(tmp_path: Path, name: str) -> None:
    tree = shape(name)
    size = required_size(tree)
    room = build(tree, tmp_path, size)
    assert room.rootfs.stat().st_size == size
    with Filesystem(room.rootfs) as filesystem:
        spare = filesystem.free_blocks * 4096
        assert spare <= 3 * MIB + size // 10 or size == ext4.SMALLEST, "the sum is to be close"


@pytest.mark.parametrize("name", ["many small files", "one big file", "empty files"])
def test_one_mib_less_is_refused_with_that_number(tmp_path: Path, name: str) -> None:
    tree = shape(name)
    size = required_size(tree)
    room = room_for(tree_of({}), tmp_path)
    room.tree = tree
    room.rootfs.write_bytes(b"what was there before")
    with pytest.raises(ImageError) as caught:
        ext4.run(desired(size - MIB), room)
    assert caught.value.code is Code.SIZE_TOO_SMALL
    named = re.search(r"needs ([0-9A-Za-z]+)", caught.value.brief)
    assert named is not None
    assert parse_size(named[1]) == size
    assert room.rootfs.read_bytes() == b"what was there before", "refused before mkfs"


def test_guest_assets_are_part_of_the_sum(tmp_path: Path) -> None:
    tree = shape("one big file")
    with_guest = desired(required_size(tree), guest=True)
    try:
        added = sum(asset_sizes(with_guest, tree))
    except HostError as error:
        assert error.code is Code.GUEST_UNAVAILABLE
        pytest.skip("no guest binary was built")
    assert required_size(tree, asset_sizes(with_guest, tree)) - required_size(tree) <= added + MIB
    assert required_size(tree, [MIB] * 3) >= required_size(tree) + 3 * MIB


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(64 * MIB + 1, "64MiB"), (64 * MIB + 4095, "65540KiB"), (64 * MIB - 1024, "64MiB")],
)
def test_a_size_between_blocks_is_refused_with_the_nearest(
    tmp_path: Path, size: int, nearest: str
) -> None:
    room = room_for(tree_of({}), tmp_path)
    with pytest.raises(ImageError, match="not a multiple of 4KiB") as caught:
        ext4.run(desired(size), room)
    assert f'"{nearest}"' in caught.value.resolution
    assert not room.rootfs.exists()


def test_a_size_beyond_ext4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than 16TiB"):
        ext4.run(desired(1 << 50), room_for(tree_of({}), tmp_path))


@pytest.mark.parametrize("size", [12 * MIB, 12 * MIB + 4096, 300 * MIB - 4096])
def test_the_size_is_honoured_to_the_block(tmp_path: Path, size: int) -> None:
    assert build(tree_of({b"a": file(9)}), tmp_path, size).rootfs.stat().st_size == size


def test_auto_leaves_room(tmp_path: Path) -> None:
    tree = tree_of({b"a": file(30 * MIB)})
    room = build(tree, tmp_path, None)
    size = room.rootfs.stat().st_size
    assert size % (64 * MIB) == 0
    with Filesystem(room.rootfs) as filesystem:
        assert filesystem.free_blocks * 4096 > 60 * MIB


def test_the_features_are_those_that_old_kernels_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "hostile.conf"
    conf.write_text("[fs_types]\n\text4 = {\n\t\tfeatures = orphan_file,metadata_csum_seed\n\t}\n")
    monkeypatch.setenv("MKE2FS_CONFIG", str(conf))
    room = build(tree_of({b"a": file(9)}), tmp_path, 64 * MIB)
    command = ["/usr/sbin/dumpe2fs", "-h", room.rootfs]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    assert set(fields["Filesystem features"].split()) == {
        *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent"),
        *("64bit", "flex_bg", "sparse_super", "large_file", "huge_file", "dir_nlink"),
        *("extra_isize", "metadata_csum"),
    }
    assert fields["Reserved block count"].strip() == "0"
    assert fields["Filesystem volume name"].strip() == "<none>"
    assert fields["Filesystem created"].strip().endswith("1970")


def test_the_file_is_sparse(tmp_path: Path) -> None:
    room = build(tree_of({b"a": file(9)}), tmp_path, 2048 * MIB)
    assert room.rootfs.stat().st_blocks * 512 < 16 * MIB


def test_content_arrives(tmp_path: Path) -> None:
    tree = tree_of({b"a": file(3 * MIB + 5), b"d": directory({b"b": file(1)})})
    room = build(tree, tmp_path, 64 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        for path, inode in filesystem.walk():
            if not inode.is_directory:
                assert filesystem.read(inode) == content_of(path, inode.size)


def test_an_interruption_ends_mkfs(tmp_path: Path) -> None:
    room = room_for(tree_of({b"a": file(30 * MIB)}), tmp_path)
    room.cancelled.set()
    with pytest.raises(Interrupted):
        ext4.run(desired(None), room)


def test_progress_is_reported_in_bytes(tmp_path: Path) -> None:
    events: list[dict[str, object]] = []

    def emit(event: str, **fields: object) -> None:
        assert event == "stage.progress"
        events.append(fields)

    ext4.run(desired(None), room_for(tree_of({b"a": file(MIB)}), tmp_path, emit))
    assert events
    assert all(event["done"] <= event["total"] for event in events)  # type: ignore[operator]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs")
def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    tree = tree_of({b"f%d" % i: file(MIB) for i in range(20)})
    room = room_for(tree, tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", room.staging], check=True)
    try:
        with pytest.raises(HostError) as caught:
            ext4.run(desired(256 * MIB), room)
        assert caught.value.code is Code.DISK_FULL
        assert caught.value.retryable
    finally:
        subprocess.run(["umount", room.staging], check=True)

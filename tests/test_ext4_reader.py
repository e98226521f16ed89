"""The reader against images of the real tools, and against bytes that make no sense."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.filesystems import (
    ACL,
    CAPABILITY,
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

from reconciler.errors import Code, HostError
from reconciler.ext4.reader import ROOT_INODE, Filesystem
from reconciler.oci.entries import Kind, Node
from reconciler.stages import ext4

SBIN = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


def inode_of(filesystem: Filesystem, path: bytes) -> int:
    return next(inode.number for name, inode in filesystem.walk() if name == path)


def test_a_walk_gives_every_name_parents_first(tmp_path: Path) -> None:
    shared = file(1)
    tree = tree_of(
        {
            b"d": directory({b"e": directory({b"\xff\n'": file(3)}), b"one": shared}),
            b"two": shared,
            b"-x y": file(),
        }
    )
    room = build(tree, tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        found = dict(filesystem.walk())
    names = list(found)
    assert sorted(names) == sorted([path for path, _ in tree.walk()] + [b"lost+found"])
    assert all(names.index(name.rpartition(b"/")[0]) < names.index(name) for name in names[1:])
    assert found[b"d/one"].number == found[b"two"].number
    assert found[b"two"].links == 2
    assert found[b""].number == ROOT_INODE


@pytest.mark.parametrize("blocks", [1, 4, 900, 3000])
def test_content_comes_out_of_trees_of_any_depth(tmp_path: Path, blocks: int) -> None:
    tree = tree_of({b"holes": file(0)})
    room = room_for(tree, tmp_path)
    with (room.host_tree / "holes").open("wb") as stream:
        for block in range(blocks):  # every second block is a hole, so each other is an extent
            stream.seek(block * 8192)
            stream.write(b"%4096d" % block)
        size = stream.tell()
    tree.root.children[b"holes"].size = size
    ext4.run(desired(64 * MIB), room)
    with Filesystem(room.rootfs) as filesystem:
        inode = filesystem.inode(inode_of(filesystem, b"holes"))
        assert len(filesystem.extents(inode)) == blocks
        assert filesystem.read(inode) == (room.host_tree / "holes").read_bytes()


def test_a_directory_reads_the_same_with_an_index(tmp_path: Path) -> None:
    names = {b"a-rather-long-name-%05d" % number: file() for number in range(1000)}
    room = build(tree_of({b"d": directory(names)}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        number = inode_of(filesystem, b"d")
        plain = filesystem.entries(filesystem.inode(number))
    command = ["e2fsck", "-fyD", room.rootfs]
    assert subprocess.run(command, env=SBIN, capture_output=True, check=False).returncode <= 1
    with Filesystem(room.rootfs) as filesystem:
        inode = filesystem.inode(number)
        assert inode.flags & 0x1000, "e2fsck was to make an index"
        assert filesystem.entries(inode) == plain
    assert plain.keys() == names.keys()


@pytest.mark.parametrize("length", [1, 59, 60, 61, 4095])
def test_link_targets_inside_and_outside_of_the_inode(tmp_path: Path, length: int) -> None:
    target = content_of(b"target", length)
    room = build(tree_of({b"l": link(target)}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        assert filesystem.target(filesystem.inode(inode_of(filesystem, b"l"))) == target


@pytest.mark.parametrize(
    "rdev", [(0, 0), (1, 3), (255, 255), (256, 0), (0, 256), (259, 1_048_575), (4095, 65_535)]
)
def test_device_numbers_in_both_encodings(tmp_path: Path, rdev: tuple[int, int]) -> None:
    room = build(tree_of({b"n": Node(Kind.BLOCK, 0o600, rdev=rdev)}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        assert filesystem.inode(inode_of(filesystem, b"n")).rdev == rdev


SECOND = 1_000_000_000


@pytest.mark.parametrize(
    "time_ns",
    [
        0,
        1,
        -1,
        -SECOND,
        -(1 << 31) * SECOND,
        ((1 << 31) - 1) * SECOND,
        (1 << 31) * SECOND,
        (1 << 32) * SECOND + 999_999_999,
        ((1 << 34) - (1 << 31) - 1) * SECOND + 999_999_999,
    ],
)
def test_times_to_the_nanosecond_over_all_of_the_range(tmp_path: Path, time_ns: int) -> None:
    room = build(tree_of({b"t": file(mtime_ns=time_ns)}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        inode = filesystem.inode(inode_of(filesystem, b"t"))
    assert (inode.mtime_ns, inode.atime_ns, inode.ctime_ns) == (time_ns,) * 3
    assert inode.crtime_ns == SECOND


def test_attributes_in_the_inode_and_in_a_block(tmp_path: Path) -> None:
    wanted = {
        b"security.capability": CAPABILITY,
        b"system.posix_acl_access": ACL,
        b"user.long": b"x" * 1500,
        b"user.empty": b"",
    }
    tree = tree_of({b"a": file(xattrs=tuple(sorted(wanted.items()))), b"none": file()})
    room = build(tree, tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        inode = filesystem.inode(inode_of(filesystem, b"a"))
        assert inode.xattr_block, "too much for the inode alone"
        assert inode.xattr_offset
        assert filesystem.xattrs(inode) == wanted
        assert filesystem.xattrs(filesystem.inode(inode_of(filesystem, b"none"))) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:1000],
        lambda raw: bytes(len(raw)),
        lambda raw: raw[: 8 * MIB],
        lambda raw: b"hello",
        lambda raw: raw[:1080] + b"\0\0" + raw[1082:],
        lambda raw: raw[:1112] + b"\x80\0" + raw[1114:],
        lambda raw: raw[:1064] + bytes(4) + raw[1068:],
    ],
    ids=["cut", "zeros", "half", "short", "magic", "inode size", "inodes per group"],
)
def test_what_is_no_filesystem_of_ours(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    room = build(tree_of({b"a": file(10)}), tmp_path, 16 * MIB)
    room.rootfs.write_bytes(damage(room.rootfs.read_bytes()))
    with pytest.raises(HostError) as caught, Filesystem(room.rootfs):
        pass
    assert caught.value.code is Code.TOOL_FAILED


def test_damage_anywhere_ends_in_a_typed_error_and_soon(tmp_path: Path) -> None:
    many = {b"f%d" % number: file(5000, xattrs=((b"user.x", b"y" * 200),)) for number in range(40)}
    tree = tree_of({b"d": directory(many), b"l": link(b"x" * 100)})
    room = build(tree, tmp_path, 16 * MIB)
    raw = room.rootfs.read_bytes()
    used = [at for at in range(0, len(raw), 512) if raw[at : at + 512].strip(b"\0")]
    chance = random.Random(7)
    complaints = 0
    begin = time.monotonic()
    for _ in range(150):
        with room.rootfs.open("r+b") as stream:
            places = [chance.choice(used) + chance.randrange(500) for _ in range(20)]
            for at in places:
                stream.seek(at)
                stream.write(chance.choice([b"\0\0\0\0", b"\xff" * 4, b"\x02\0\0\0"]))
        try:
            look_at_everything(room.rootfs)
        except HostError as error:
            assert error.code is Code.TOOL_FAILED
            complaints += 1
        with room.rootfs.open("r+b") as stream:
            for at in places:
                stream.seek(at)
                stream.write(raw[at : at + 4])
    assert complaints > 20, "the damage was to be noticed now and then"
    assert time.monotonic() - begin < 60
    assert look_at_everything(room.rootfs) == 44


def look_at_everything(image: Path) -> int:
    count = 0
    with Filesystem(image) as filesystem:
        for _, inode in filesystem.walk():
            count += 1
            filesystem.xattrs(inode)
            if inode.mode >> 12 == 0xA:
                filesystem.target(inode)
            elif inode.mode >> 12 == 0x8 and inode.size < MIB:
                filesystem.read(inode)
    return count


def test_a_directory_that_contains_itself_is_an_error(tmp_path: Path) -> None:
    room = build(tree_of({b"a": directory({b"bcd": directory()})}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        parent = filesystem.inode(inode_of(filesystem, b"a"))
        number = next(iter(filesystem.directory_blocks(parent)))
        block = filesystem.block(number)
    at = block.index(b"bcd") - 8
    with room.rootfs.open("r+b") as stream:
        stream.seek(number * 4096 + at)
        stream.write(parent.number.to_bytes(4, "little"))
    with (
        Filesystem(room.rootfs) as filesystem,
        pytest.raises(HostError, match="its own ancestor"),
    ):
        list(filesystem.walk())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_the_kernel_agrees(tmp_path: Path) -> None:
    tree = tree_of(
        {
            b"d": directory({b"f": file(9000, uid=70_000, gid=1), b"s": link(b"y" * 80)}, gid=5),
            b"c": Node(Kind.CHARACTER, 0o620, rdev=(300, 70_000), mtime_ns=-5),
            b"t": file(7, mode=0o6750, mtime_ns=5_000_000_000 * SECOND + 7),
        },
        mtime_ns=3,
    )
    room = build(tree, tmp_path, 16 * MIB)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", room.rootfs, mounted], check=True)
    try:
        with Filesystem(room.rootfs) as filesystem:
            for path, inode in filesystem.walk():
                seen = (mounted / os.fsdecode(path)).lstat()
                assert (seen.st_ino, seen.st_mode) == (inode.number, inode.mode)
                assert (seen.st_uid, seen.st_gid) == (inode.uid, inode.gid)
                assert (seen.st_nlink, seen.st_size) == (inode.links, inode.size)
                assert (seen.st_mtime_ns, seen.st_ctime_ns) == (inode.mtime_ns, inode.ctime_ns)
                assert (os.major(seen.st_rdev), os.minor(seen.st_rdev)) == inode.rdev
    finally:
        subprocess.run(["umount", mounted], check=True)

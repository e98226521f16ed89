"""The arithmetic of mke2fs, against mke2fs. Builds at the named size: tests/test_stage_ext4.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.filesystems import MIB, desired, directory, file, link, room_for, tree_of

from reconciler.errors import ImageError
from reconciler.ext4 import size as ext4_size
from reconciler.ext4.reader import Filesystem
from reconciler.ext4.size import Need, inode_count, need_of, required_size, size_for
from reconciler.stages import ext4

CHANCE = random.Random(11)
SIZES = [12, 127, 128, 129, 134, 140, 512, 1024, 2047, 2048, 6000]


@pytest.mark.parametrize(
    "size",
    [mib * MIB for mib in SIZES] + [CHANCE.randrange(4000, 900_000) * 4096 for _ in range(9)],
)
def test_free_blocks_are_those_that_mke2fs_leaves(tmp_path: Path, size: int) -> None:
    tree = tree_of({})
    room = room_for(tree, tmp_path)
    ext4.run(desired(size), room)
    with Filesystem(room.rootfs) as filesystem:
        inodes = inode_count(need_of(tree), size)
        assert filesystem.free_blocks == ext4_size._free_blocks(size, inodes)
        assert filesystem.inodes >= inodes


@pytest.mark.parametrize(
    ("tree", "need"),
    [
        (tree_of({}), Need(1, 1)),
        (tree_of({b"a": file(0), b"b": file(1), b"c": file(4097)}), Need(4, 4)),
        (tree_of({b"a": link(b"x" * 59), b"b": link(b"x" * 60)}), Need(2, 3)),
        (tree_of({b"d": directory({b"x" * 255: file(0)})}), Need(2, 3)),
        (tree_of(dict.fromkeys([b"a", b"b"], file(4096))), Need(2, 2)),
        (tree_of({b"a": file(0, xattrs=((b"user.a", b"x" * 500),))}), Need(2, 2)),
    ],
)
def test_what_a_tree_takes(tree: ext4_size.Tree, need: Need) -> None:
    assert need_of(tree) == need


def test_more_never_needs_less() -> None:
    sizes = [size_for(Need(blocks, blocks // 3)) for blocks in range(0, 3_000_000, 7919)]
    assert sizes == sorted(sizes)
    assert all(size % MIB == 0 for size in sizes)


def test_later_files_are_part_of_the_sum() -> None:
    tree = tree_of({b"a": file(100 * MIB)})
    alone = required_size(tree)
    assert required_size(tree, [50 * MIB]) >= alone + 50 * MIB
    assert required_size(tree, [0] * 50_000) > alone + 50_000 * 4096 * 2


def test_inodes_alone_can_demand_a_size() -> None:
    assert size_for(Need(0, 1_000_000)) >= 1_000_000 * 256
    assert size_for(Need(0, 100), [0] * 400_000) >= 400_000 * 16384


def test_attributes_that_do_not_fit_are_the_images_fault() -> None:
    tree = tree_of({b"big": file(0, xattrs=((b"user.a", b"x" * 5000),))})
    with pytest.raises(ImageError, match="big: its extended attributes exceed"):
        required_size(tree)

"""ext4: the staging tree becomes `rootfs.ext4`, by mkfs.ext4 -d on a file of the wanted size.

Owners, modes, times and devices are those of the staging tree and wrong; `stages.ownership` mends
them. Everything that mke2fs would take from its configuration, its version, the clock or chance is
pinned here, so that equal layers and an equal size give equal bytes on any host.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from reconciler.errors import Code, HostError, ImageError
from reconciler.ext4.imagefile import durable
from reconciler.ext4.size import (
    BLOCK,
    LARGEST,
    MIB,
    SMALLEST,
    Need,
    inode_count,
    journal_mib,
    need_of,
    required_size,
    size_for,
)
from reconciler.files import host_errors
from reconciler.guest.assets import asset_sizes
from reconciler.model import DesiredImage, key
from reconciler.oci.entries import Tree
from reconciler.room import Room
from reconciler.sizes import format_size

__all__ = ["SMALLEST", "automatic_size", "required_size", "run"]

_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
"""What every kernel from 4.14 on mounts and every e2fsprogs from 1.43 on checks: no orphan_file, no
metadata_csum_seed. resize_inode stays, so that a guest can grow its filesystem while it runs."""

_CONFIG = """[defaults]
	base_features = sparse_super
	default_mntopts = acl,user_xattr
	enable_periodic_fsck = 0
[fs_types]
	ext4 = {
		features = has_journal
	}
"""


def run(image: DesiredImage, room: Room) -> None:
    """Make `room.rootfs` from `room.host_tree`, and sync it.

    Raises ImageError SIZE_TOO_SMALL with the size that would do before anything is made, HostError
    when a tool or the disk fails. A file that is there is replaced.
    """
    if room.tree is None:
        raise HostError("the ext4 stage was started before flatten", code=Code.INTERNAL)
    need = need_of(room.tree)
    size = wanted_size(image, room, need)
    with durable(room.rootfs, create=size) as descriptor:
        source: list[str | Path] = ["-d", room.host_tree]
        checkpoint = _reporter(image, room, need.blocks * BLOCK, descriptor)
        # saves a call for each file, to hear that it has none or a label of the host's
        leave_xattrs = room.tools.can_leave_xattrs() and not _has_user_xattrs(room.tree)
        extended = ("no_copy_xattrs",) if leave_xattrs else ()
        inodes = inode_count(need, size)
        make(image, room, size, inodes, arguments=source, extended=extended, checkpoint=checkpoint)


def _has_user_xattrs(tree: Tree) -> bool:
    """Whether anything in the staging tree has attributes that belong to the image."""
    return any(
        name.startswith(b"user.") for node in tree.nodes() if node.xattrs for name, _ in node.xattrs
    )


def make(
    image: DesiredImage,
    room: Room,
    size: int,
    inodes: int,
    *,
    arguments: Sequence[str | Path] = (),
    extended: Sequence[str] = (),
    checkpoint: Callable[[], None] | None = None,
) -> None:
    """Run mkfs.ext4 on `room.rootfs`, which has its `size`, with the parameters of the recipe.

    arguments: more of them. extended: more of its extended options, on which no byte depends.
    """
    config = room.scratch / "mke2fs.conf"
    with host_errors("cannot write the configuration of mke2fs"):
        config.write_text(_CONFIG, encoding="ascii")
    options = [*_options(image.keys.ext4, size, inodes, extended), *arguments]
    room.tools.mkfs(room.rootfs, options, config, checkpoint=checkpoint or room.checkpoint)


def wanted_size(image: DesiredImage, room: Room, need: Need) -> int:
    """The size in bytes that the entry says or, for "auto", that the image needs.

    need: that of `room.tree`; what the guest stage adds to it is counted here.

    Raises ImageError SIZE_TOO_SMALL with the size that would do, CONFIG_INVALID for one that no
    filesystem has.
    """
    if room.tree is None:
        raise HostError("a size was wanted before flatten", code=Code.INTERNAL)
    extra = extra_sizes(image, room)
    size = automatic_size(need, extra) if image.spec.size is None else image.spec.size
    _check_size(size, size_for(need, extra))
    return size


def extra_sizes(image: DesiredImage, room: Room) -> tuple[int, ...]:
    """The sizes in bytes of the files that the guest stage will add to `room.tree`."""
    return asset_sizes(image, room.tree, room.modules) if room.tree else ()


def automatic_size(need: Need, extra: tuple[int, ...] = ()) -> int:
    """The size for "auto": what is required, a quarter of it and 64 MiB, in steps of 64 MiB."""
    required = size_for(need, extra)
    wanted = required + required // 4 + 64 * MIB
    return wanted + -wanted % (64 * MIB)


def _check_size(size: int, required: int) -> None:
    if size < required:
        raise ImageError(
            f"size {format_size(size)} is too small: the image needs {format_size(required)}",
            code=Code.SIZE_TOO_SMALL,
            resolution=f'Set size = "{format_size(required)}" or more, or size = "auto".',
        )
    if size % BLOCK:
        lower, upper = size - size % BLOCK, size + -size % BLOCK
        nearest = upper if lower < required or upper - size <= size - lower else lower
        raise ImageError(
            f"size {format_size(size)} is not a multiple of 4KiB",
            code=Code.CONFIG_INVALID,
            resolution=f'Set size = "{format_size(nearest)}".',
        )
    if size > LARGEST:
        raise ImageError(
            f"size {format_size(size)} is more than {format_size(LARGEST)}",
            code=Code.CONFIG_INVALID,
            resolution=f'Set a size of at most "{format_size(LARGEST)}".',
        )


def _options(stage_key: str, size: int, inodes: int, more: Sequence[str]) -> list[str]:
    """The options of mke2fs, all of those on which the bytes depend.

    No reserved blocks (-m 0): what a guest runs is root, whom the reserve would not stop. Inode
    tables are complete (lazy_itable_init=0): no kernel thread fills them in a guest's first boot.
    Nothing is written for that, because a discarded file is known to be zero (discard), and the
    journal of a new file is zero anyway (lazy_journal_init=1): equal bytes, and a sparse file.
    """
    seed = _uuid("hash-seed", stage_key)
    extended = ["root_owner=0:0", f"hash_seed={seed}", "lazy_itable_init=0"]
    extended += ["lazy_journal_init=1", "discard", *more]
    return (
        f"-q -F -T ext4 -b {BLOCK} -I 256 -N {inodes} -G 16 -m 0 -e continue "
        f"-J size={journal_mib(size)} -O none,{_FEATURES} -U {_uuid('uuid', stage_key)} "
        f"-E {','.join(extended)}"  # the last -E is the only one that counts
    ).split()


def _uuid(purpose: str, stage_key: str) -> uuid.UUID:
    return uuid.UUID(hex=key(purpose, stage_key)[:32], version=4)


def _reporter(image: DesiredImage, room: Room, total: int, descriptor: int) -> Callable[[], None]:
    """The checkpoint of mkfs: stops when told to, and reports how far the file has grown."""

    def checkpoint() -> None:
        room.checkpoint()
        done = min(total, os.fstat(descriptor).st_blocks * 512)
        room.progress("ext4", image, done=done, total=total, unit="bytes")

    return checkpoint

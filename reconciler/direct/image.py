"""An empty filesystem, made by mkfs.ext4 and opened for the library to fill.

`direct.builder` fills one with an image, `direct.selfcheck` one with samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.digests import sparse_digest
from reconciler.direct.files import FileInodes, Recorder
from reconciler.direct.metadata import Empty
from reconciler.direct.scribe import Scribe
from reconciler.direct.space import ImageSpace
from reconciler.direct.tables import Tables
from reconciler.errors import BangerError
from reconciler.ext4.imagefile import durable
from reconciler.ext4.inode import MADE_AT
from reconciler.ext4.libext2fs import Writer
from reconciler.ext4.reader import Filesystem
from reconciler.ext4.superblock import set_write_time
from reconciler.model import DesiredImage
from reconciler.processes import can_start
from reconciler.room import Room
from reconciler.stages import ext4


@dataclass(slots=True)
class NewImage:
    """A filesystem under construction: its file, its library handle, its free blocks, its files.

    digest: of the whole file, once the block of `new_image` has ended.
    """

    descriptor: int
    writer: Writer
    space: ImageSpace
    empty: Empty
    inodes: FileInodes
    digest: str = ""


@contextmanager
def new_image(
    image: DesiredImage, room: Room, size: int, inodes: int, *, beside: bool
) -> Iterator[NewImage]:
    """Make `room.rootfs` anew; the end of the block writes its bitmaps, syncs and checks it.

    size: bytes. beside: a process of its own writes the inodes of files. Raises what mkfs, the
    disk, the library and e2fsck give; then the file is worthless.
    """
    with durable(room.rootfs, create=size) as descriptor:
        ext4.make(image, room, size, inodes)
        empty = Empty.read(room.rootfs)
        with Writer(room.rootfs) as writer, _recorder(room, writer, descriptor, beside) as recorder:
            space = ImageSpace(writer)
            files = FileInodes(recorder, writer, empty.inodes)
            made = NewImage(descriptor, writer, space, empty, files)
            yield made
            space.close()
            files.finish(room.checkpoint)
        # the library notes the host's time when it closes
        set_write_time(descriptor, MADE_AT)
        _finish(made, room)


@contextmanager
def _recorder(room: Room, writer: Writer, descriptor: int, beside: bool) -> Iterator[Recorder]:
    if beside and can_start():
        with Scribe(room.rootfs) as scribe:
            yield scribe
    else:
        with Filesystem(room.rootfs) as filesystem:
            yield Tables(writer, filesystem, descriptor)


def _finish(made: NewImage, room: Room) -> None:
    """Sync, check and sum up the image, side by side. What the disk says counts most."""
    with ThreadPoolExecutor(2, thread_name_prefix="finish") as beside:
        synced = beside.submit(os.fsync, made.descriptor)
        summed = beside.submit(sparse_digest, room.rootfs)
        try:
            room.tools.e2fsck(room.rootfs, checkpoint=room.checkpoint)
        except BangerError:
            synced.result()
            raise
        synced.result()
        made.digest = summed.result()

"""An empty filesystem, made by mkfs.ext4 and opened for the library to fill.

`direct.builder` fills one with an image, `direct.selfcheck` one with samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.direct.metadata import Empty
from reconciler.direct.space import ImageSpace
from reconciler.ext4.imagefile import durable
from reconciler.ext4.libext2fs import Writer
from reconciler.ext4.superblock import set_write_time
from reconciler.model import DesiredImage
from reconciler.room import Room
from reconciler.stages import ext4
from reconciler.tools import FAKE_TIME


@dataclass(frozen=True, slots=True)
class NewImage:
    """A filesystem under construction: its file, its library handle, its free blocks."""

    descriptor: int
    writer: Writer
    space: ImageSpace
    empty: Empty


@contextmanager
def new_image(image: DesiredImage, room: Room, size: int, inodes: int) -> Iterator[NewImage]:
    """Make `room.rootfs` anew; the end of the block writes its bitmaps, and syncs it.

    size: bytes. Raises what mkfs, the disk and the library give; then the file is worthless.
    """
    with durable(room.rootfs, create=size) as descriptor:
        ext4.make(image, room, size, inodes)
        empty = Empty.read(room.rootfs)
        with Writer(room.rootfs) as writer:
            space = ImageSpace(writer)
            yield NewImage(descriptor, writer, space, empty)
            space.close()
        # the library notes the host's time when it closes
        set_write_time(descriptor, int(FAKE_TIME))

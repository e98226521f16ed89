"""The direct builder: one pass over the layers, from their bytes to the blocks of `rootfs.ext4`.

`pipeline` runs `stream` as the stage flatten and `finish` as the stage ext4. With a fixed size the
filesystem is made first, empty, and content goes where it will stay. With size = "auto" nobody
knows the size before the last header; then content waits in a spool file without a name and is
moved by the kernel. The same happens when a first attempt runs out of blocks, since what lower
layers lose to upper ones takes none in the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Self

from reconciler.direct import selfcheck
from reconciler.direct.assets import add_assets
from reconciler.direct.content import Contents
from reconciler.direct.directory import index_blocks
from reconciler.direct.files import FIRST_INODE, Files
from reconciler.direct.image import NewImage, new_image
from reconciler.direct.metadata import Metadata
from reconciler.direct.move import give_back, move
from reconciler.direct.space import SpoolSpace
from reconciler.errors import Code, HostError, ImageError
from reconciler.ext4.libext2fs import NoRoom
from reconciler.ext4.size import BLOCK, LARGEST, SMALLEST, Need, inode_count, need_of, with_extra
from reconciler.files import host_errors
from reconciler.guest.assets import Asset, guest_assets
from reconciler.hot import hot_loop
from reconciler.model import DesiredImage
from reconciler.oci.entries import Tree
from reconciler.room import Room
from reconciler.stages import ext4
from reconciler.stages.replay import replay

_LARGE = 64 << 20
"""Bytes of all blobs from which on a process that writes inodes is worth its price."""


@dataclass(slots=True)
class DirectBuilder:
    """One build. Use it in a `with`: what it has open is closed, whatever happens.

    digest: of the rootfs, once `finish` has ended.
    """

    digest: str = ""
    _open: ExitStack = field(default_factory=ExitStack)
    _image: NewImage | None = None
    _files: Files | None = None
    _spool: int = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Close everything; a filesystem that is not finished stays worthless."""
        self._image = self._files = None
        broken = ImageError("the build was given up")
        self._open.__exit__(ImageError, broken, None)
        self._open = ExitStack()

    def stream(self, image: DesiredImage, room: Room) -> None:
        """Read all layers, place their content, and set `room.tree`.

        Raises what `stages.flatten.run` raises, and SIZE_TOO_SMALL.
        """
        with host_errors("cannot write the content of the image"):
            self._abandon()
            room.scratch.mkdir(mode=0o700, exist_ok=True)
            size = image.spec.size
            if size is not None and size % BLOCK == 0 and SMALLEST <= size <= LARGEST:
                try:
                    self._stream_in_place(image, room, size)
                    return
                except NoRoom:
                    self._abandon()
            self._stream_to_spool(image, room)

    def _stream_in_place(self, image: DesiredImage, room: Room, size: int) -> None:
        inodes = inode_count(Need(0, 0), size)

        def place() -> Files:
            selfcheck.require(image, room)
            # only what is placed where it stays can have its inodes written beside the rest
            beside = sum(layer.blob.size for layer in image.pinned.layers) >= _LARGE
            made = self._make(image, room, size, inodes, beside=beside)
            self._files = Files(Contents(made.descriptor, made.space), made.inodes)
            return self._files

        tree = replay(image, room, place)
        need = _need(tree)
        room.tree = tree
        ext4.wanted_size(image, room, need)
        if inode_count(need, size) != inodes or self._wanted_inodes(image, room, need) > inodes:
            raise NoRoom(f"{inodes} inodes are too few")

    def _wanted_inodes(self, image: DesiredImage, room: Room, need: Need) -> int:
        """With the guest's, and with those that were given to files which are not in the image."""
        whole = with_extra(need, ext4.extra_sizes(image, room))
        made, files = self._image, self._files
        gaps = made.inodes.gaps(files.unused) if made and files else 0
        return FIRST_INODE + whole.inodes + gaps

    def _stream_to_spool(self, image: DesiredImage, room: Room) -> None:
        def place() -> Files:
            selfcheck.require(image, room)
            self._spool = self._open.enter_context(_spool(room.staging))
            self._files = Files(Contents(self._spool, SpoolSpace()), None)
            return self._files

        room.tree = replay(image, room, place)

    def finish(self, image: DesiredImage, room: Room) -> None:
        """Write the tree that `stream` left, guest assets on top, then sync and check.

        Raises ImageError when it does not fit or has something in the way of the guest, HostError
        when the disk, the library or a tool fails.
        """
        tree, files = room.tree, self._files
        if tree is None or files is None:
            raise HostError("the ext4 stage was started before flatten", code=Code.INTERNAL)
        with host_errors("cannot write the filesystem"), hot_loop():
            made, extents = self._image, files.contents.extents
            unused = [extent for serial in files.unused for extent in extents.pop(serial)]
            if made is None:
                made = self._new_for(image, room, tree)
                files.contents = self._moved(files.contents, made)
            else:
                made.inodes.clear(files.unused)
                give_back(unused, made.space, made.descriptor)
            self._write(image, room, made, files, tree)
            self._open.close()  # bitmaps, superblock, sync, check
        self.digest = made.digest

    def _new_for(self, image: DesiredImage, room: Room, tree: Tree) -> NewImage:
        need = _need(tree)
        size = ext4.wanted_size(image, room, need)
        return self._make(image, room, size, inode_count(need, size))

    def _moved(self, spooled: Contents, made: NewImage) -> Contents:
        """The same content in blocks of the image."""
        contents = Contents(made.descriptor, made.space)
        contents.extents = move(spooled.extents, made.space, self._spool, made.descriptor)
        return contents

    def _make(
        self, image: DesiredImage, room: Room, size: int, inodes: int, *, beside: bool = False
    ) -> NewImage:
        made = new_image(image, room, size, inodes, beside=beside)
        self._image = self._open.enter_context(made)
        return self._image

    def _write(
        self, image: DesiredImage, room: Room, made: NewImage, files: Files, tree: Tree
    ) -> None:
        contents = files.contents
        serials = count(files.last + 1)

        def store(asset: Asset) -> int:
            room.checkpoint()
            serial = next(serials)
            contents.add(serial, asset.size, asset.pieces())
            return serial

        try:
            # as long as the tree is the image's own
            room.assets = guest_assets(image, tree, room.modules)
            lost = add_assets(tree, room.assets, store)
            contents.flush()
            made.inodes.clear(lost)
            gone = [extent for serial in lost for extent in contents.extents.pop(serial)]
            give_back(gone, made.space, made.descriptor)
            room.not_carried.extend(tree.not_carried)
            room.checkpoint()
            Metadata(made.writer, made.space, made.empty, contents, made.inodes).write(tree.root)
        except NoRoom as error:
            raise NoRoom(
                f"the filesystem is too small: {error.brief}",
                resolution="Raise the size of the image.",
            ) from error


@contextmanager
def _spool(directory: Path) -> Iterator[int]:
    """A file without a name: whatever ends this process, nothing of it is left."""
    with tempfile.TemporaryFile(dir=directory) as spool:
        yield spool.fileno()


def _need(tree: Tree) -> Need:
    need = need_of(tree)
    return replace(need, blocks=need.blocks + index_blocks(tree))

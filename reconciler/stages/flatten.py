"""Flatten: replay the layers into one tree, and lay it out as a staging tree for mkfs.ext4.

Runs beside pull and takes each layer as soon as its blob is there. Payloads are spooled under
serial numbers while the headers are merged, so that nothing from the image is a host path before
the whole tree is known to be clean. Leaves `scratch/tree`, `scratch/metadata` and a marker.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from reconciler.errors import Code, HostError
from reconciler.files import host_error, remove_tree
from reconciler.hot import hot_loop
from reconciler.model import DesiredImage
from reconciler.oci.entries import Node, Tree
from reconciler.oci.tar import Payload
from reconciler.room import Room
from reconciler.stages import flatten_metadata
from reconciler.stages.flatten_tree import create_file, is_tree_whole, materialise, open_directory
from reconciler.stages.replay import replay


def run(image: DesiredImage, room: Room) -> None:
    """Build the staging tree and the metadata map from scratch; sets `room.tree`.

    Raises ImageError for what no filesystem can or should hold, LayerMismatch for a blob that is
    not what the manifest says, HostError when the scratch directory cannot take it.
    """
    try:
        data = _prepare(room.scratch)
        tree = _merge(image, room, data)
        with hot_loop():
            materialise(tree, data, room.host_tree, room.checkpoint)
        remove_tree(data)
        flatten_metadata.save(tree, room.scratch)
    except OSError as error:
        raise _host_error(error, room.scratch, "the names of the image") from error
    room.tree = tree
    room.not_carried.extend(tree.not_carried)


def load(image: DesiredImage, room: Room) -> bool:
    """Take up what an interrupted build of `image` left; False when it is not proven whole."""
    tree = _proven(room.scratch)
    if tree is None:
        return False
    room.tree = tree
    room.not_carried.extend(tree.not_carried)
    return True


def is_whole(image: DesiredImage, scratch: Path) -> bool:
    """True when `load` would succeed. `scratch` belongs to the flatten key of `image`."""
    return _proven(scratch) is not None


def _proven(scratch: Path) -> Tree | None:
    tree = flatten_metadata.load(scratch)
    return tree if tree is not None and is_tree_whole(tree, scratch / "tree") else None


def _prepare(scratch: Path) -> Path:
    """An empty scratch directory that hands nothing of the host down; returns the spool in it."""
    remove_tree(scratch)
    scratch.mkdir(mode=0o700)
    for name in os.listxattr(scratch, follow_symlinks=False):
        with suppress(OSError):  # a label of the host's security module cannot be taken off
            os.removexattr(scratch, name, follow_symlinks=False)
    scratch.chmod(0o700)
    data = scratch / "data"
    data.mkdir(mode=0o700)
    return data


def _merge(image: DesiredImage, room: Room, data: Path) -> Tree:
    with open_directory(data) as directory:
        return replay(image, room, lambda: _Spool(directory, room.scratch))


class _Spool:
    """Contents as files, by their serial numbers, in an open directory."""

    def __init__(self, directory: int, scratch: Path) -> None:
        self._directory = directory
        self._scratch = scratch

    def add(self, node: Node, payload: Payload) -> None:
        """Write the content of a file; holes stay holes."""
        try:
            descriptor = create_file(str(node.content), self._directory)
            try:
                _fill(descriptor, node.size, payload)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _host_error(error, self._scratch, f"a file of {node.size} bytes") from error

    def flush(self) -> None:
        """All is written at once."""

    def settle(self) -> None:
        """Nothing waits."""

    def finish(self, serials: set[int]) -> None:
        """Files of no use are gone with the spool soon."""


def _fill(descriptor: int, size: int, payload: Payload) -> None:
    hole = False
    for piece in payload:
        hole = isinstance(piece, int)
        if isinstance(piece, int):
            os.lseek(descriptor, piece, os.SEEK_CUR)
        else:
            _write(descriptor, piece)
    if hole:
        os.ftruncate(descriptor, size)


def _write(descriptor: int, piece: bytes | memoryview) -> None:
    written = os.write(descriptor, piece)
    while written < len(piece):
        written += os.write(descriptor, piece[written:])


def _host_error(error: OSError, scratch: Path, what: str) -> HostError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return host_error(f"cannot unpack {what} into {scratch}", error)
    return HostError(
        f"{scratch}: no space left for {what}",
        code=Code.DISK_FULL,
        resolution="Free space there, or set TMPDIR to a directory that has more.",
    )

"""Layers through a builder, and what came out, in a form in which two results can be compared.

one = build(layers, tmp_path / "one", "direct", size=64 * MIB)
assert listing(one.rootfs) == listing(build(layers, tmp_path / "two", "tools").rootfs)
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from reconciler.direct.builder import DirectBuilder
from reconciler.ext4.reader import Filesystem, Inode
from reconciler.model import Descriptor, DesiredImage, ImageSpec, Layer, PinnedImage, Platform
from reconciler.room import Feed, Room
from reconciler.stages import ext4, flatten, guest, ownership
from reconciler.tools import Tools
from support.images import LayerBytes, compress, digest_of

DIGEST = "sha256:" + "ab" * 32
BUILDERS = ("direct", "tools")

Facts = tuple[Any, ...]


def pinned(layers: Sequence[bytes], blobs: Path) -> PinnedImage:
    """An image of these tar streams; its blobs, in gzip, lie in `blobs` by their digest."""
    blobs.mkdir(parents=True, exist_ok=True)
    found = []
    for tar in layers:
        raw = compress(tar, "gzip")
        blob = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest_of(raw), len(raw))
        (blobs / blob.digest).write_bytes(raw)
        found.append(Layer(blob, digest_of(tar)))
    config = Descriptor("application/vnd.oci.image.config.v1+json", DIGEST, 2)
    return PinnedImage(DIGEST, config, tuple(found), Platform("linux", "amd64"))


def desired(
    layers: Sequence[bytes], base: Path, builder: str, size: int | None, *, guest: bool = False
) -> DesiredImage:
    spec = ImageSpec("test", "oci:/nowhere", size, guest=guest)
    digest = "sha256:guest" if guest else None
    return DesiredImage(spec, pinned(layers, base / "blobs"), None, digest, builder=builder)


def room_for(image: DesiredImage, base: Path) -> Room:
    """A room in which pull has just finished."""
    (base / "staging").mkdir()
    unused = {field.name: None for field in fields(Room) if field.default is field.default_factory}
    feed = Feed(image.pinned)
    for layer in image.pinned.layers:
        feed.put(layer.blob.digest, base / "blobs" / layer.blob.digest)
    own = {"tools": Tools(), "emit": lambda *_, **__: None, "feed": feed}
    where = {"staging": base / "staging", "scratch": base / "scratch"}
    return Room(**cast(Any, unused | where | own))


def build(
    layers: Sequence[bytes | LayerBytes],
    base: Path,
    builder: str,
    size: int | None = None,
    *,
    guest: bool = False,
) -> Room:
    """Everything between pull and kernel; the result is at `room.rootfs`."""
    streams = [layer.tar if isinstance(layer, LayerBytes) else layer for layer in layers]
    image = desired(streams, base, builder, size, guest=guest)
    room = room_for(image, base)
    run(image, room)
    return room


def run(image: DesiredImage, room: Room) -> None:
    """The stages that `pipeline` would run."""
    if image.builder == "direct":
        with DirectBuilder() as direct:
            direct.stream(image, room)
            direct.finish(image, room)
        guest.verify(image, room)
        return
    flatten.run(image, room)
    ext4.run(image, room)
    ownership.run(image, room)
    guest.run(image, room)


def listing(rootfs: Path) -> dict[bytes, Facts]:
    """All that a guest could see of every name; names of one inode have the first one's name."""
    with Filesystem(rootfs) as filesystem:
        first: dict[int, bytes] = {}
        return {
            path: (first.setdefault(inode.number, path), *_facts(filesystem, inode))
            for path, inode in filesystem.walk()
        }


def _facts(filesystem: Filesystem, inode: Inode) -> Facts:
    content: Any = None
    if stat.S_ISREG(inode.mode):
        content = (inode.size, _digest(filesystem, inode))
    elif stat.S_ISLNK(inode.mode):
        content = filesystem.target(inode)
    attributes = filesystem.xattrs(inode)
    owner = (inode.mode, inode.uid, inode.gid, inode.links)
    times = (inode.mtime_ns, inode.atime_ns, inode.ctime_ns, inode.crtime_ns)
    return (*owner, times, inode.rdev, attributes, content)


def _digest(filesystem: Filesystem, inode: Inode) -> str:
    """Over what is not zero: one builder may write zeros where the other leaves a hole."""
    total = hashlib.sha256()
    for offset, data in filesystem.chunks(inode):
        for at in range(0, len(data), 4096):
            block = data[at : at + 4096]
            if block.strip(b"\0"):
                total.update(b"%d:" % (offset + at) + block)
    return total.hexdigest()


def check(rootfs: Path) -> None:
    """e2fsck has nothing to say."""
    found = subprocess.run(["e2fsck", "-fn", rootfs], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout

"""guest: the guest assets into `rootfs.ext4`, owned by root, where the image's own links lead.

Called by `pipeline` after ownership; the last stage that writes the filesystem. Paths of ours are
resolved in the image by our own reader, and debugfs gets inode numbers and our own names, no byte
of the image: that is what makes `/lib -> usr/lib` work and hostile names harmless. debugfs says
nothing when it fails, so success is a clean check and a read-back of every asset.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from stat import S_IFDIR, S_IFLNK, S_IFREG

from reconciler.errors import Code, HostError, ImageError
from reconciler.ext4.debugfs import Script
from reconciler.ext4.imagefile import durable
from reconciler.ext4.inode import MADE_AT
from reconciler.ext4.reader import Filesystem, Inode
from reconciler.guest.assets import Asset, asset_sizes, guest_assets
from reconciler.guest.places import Place, in_the_way, locate
from reconciler.model import DesiredImage
from reconciler.room import Room

_TIME_FIELDS = ("atime", "ctime", "mtime", "crtime")
_NEW = (MADE_AT, 0)
"""Every time of every inode made here, as on disk: seconds, and the extra bits."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The image before we touch it."""

    directories: dict[int, Inode]
    """Those that our paths lead through, by inode number: they must stay as they are."""
    occupied: frozenset[str]
    """Paths of assets where the image has a file of its own, which gives way."""


@dataclass(frozen=True, slots=True)
class _Names:
    """Directories of a filesystem that does not change meanwhile, each looked at once."""

    filesystem: Filesystem
    _places: dict[str, Place] = field(default_factory=dict)
    _entries: dict[int, dict[bytes, int]] = field(default_factory=dict)

    def place(self, path: str) -> Place:
        """Where a path of ours leads."""
        if path not in self._places:
            self._places[path] = locate(self.filesystem, path)
        return self._places[path]

    def find(self, directory: int, name: str) -> int | None:
        """The inode of a name in the directory of that inode."""
        if directory not in self._entries:
            inode = self.filesystem.inode(directory)
            self._entries[directory] = self.filesystem.entries(inode)
        return self._entries[directory].get(name.encode())


@dataclass(frozen=True, slots=True)
class Bench:
    """What one run works with: the room, the assets, and their content in files called 0, 1, ..."""

    room: Room
    assets: tuple[Asset, ...]
    scratch: Path

    def debugfs(self, script: Script) -> None:
        """Run a script on the room's filesystem."""
        room = self.room
        room.checkpoint()
        room.tools.debugfs_write(room.rootfs, script, self.scratch, checkpoint=room.checkpoint)


def run(image: DesiredImage, room: Room) -> None:
    """Write the assets of `image`; nothing at all when its entry says `guest = false`.

    Raises ImageError when the image has something in the way or no room, HostError when a tool
    fails or the read-back differs.
    """
    if room.tree is None:
        raise HostError("the guest stage was started before flatten", code=Code.INTERNAL)
    assets = room.assets = guest_assets(image, room.tree, room.modules)
    if not assets:
        return
    sizes = asset_sizes(image, room.tree, room.modules)
    with durable(room.rootfs), _bench(room, assets) as bench:
        with Filesystem(room.rootfs) as filesystem:
            _check_space(filesystem, sizes)
            before = _survey(filesystem, assets)
        places = _make_directories(bench)
        bench.debugfs(_script(bench.assets, places, before))
    room.tools.e2fsck(room.rootfs, checkpoint=room.checkpoint)
    verify(image, room)
    with Filesystem(room.rootfs) as filesystem:
        _verify_directories(filesystem, places, before)


def verify(image: DesiredImage, room: Room) -> None:
    """Read every asset back, as a guest would find it. Raises HostError when one is not there."""
    with Filesystem(room.rootfs) as filesystem:
        names = _Names(filesystem)
        for asset in room.assets:
            room.checkpoint()
            _verify(names, asset)


@contextmanager
def _bench(room: Room, assets: tuple[Asset, ...]) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="guest-", dir=room.scratch) as name:
        for number, asset in enumerate(assets):
            if asset.source is not None:
                Path(name, str(number)).symlink_to(asset.source)
            elif asset.content is not None:
                Path(name, str(number)).write_bytes(asset.content)
        yield Bench(room, assets, Path(name))


def _check_space(filesystem: Filesystem, sizes: tuple[int, ...]) -> None:
    """The ext4 stage made room; a filesystem that came to be otherwise must not fill up halfway."""
    block = filesystem.block_size
    blocks = sum(-(-size // block) for size in sizes) - filesystem.free_blocks
    inodes = len(sizes) - filesystem.free_inodes
    if blocks > 0 or inodes > 0:
        raise ImageError(
            "the filesystem has no room for the guest assets:"
            f" {max(blocks, 0) * block // 1024} KiB and {max(inodes, 0)} inodes are missing",
            code=Code.SIZE_TOO_SMALL,
            resolution="Raise the size of the image, or set guest = false for it.",
        )


def _directories(assets: tuple[Asset, ...]) -> list[str]:
    """Every directory on the way to an asset, parents first; the root is one of them."""
    found = {str(parent) for asset in assets for parent in PurePosixPath(asset.path).parents}
    return sorted(found)


def _split(asset: Asset) -> tuple[str, str]:
    """An asset's directory and its name there."""
    path = PurePosixPath(asset.path)
    return str(path.parent), path.name


def _survey(filesystem: Filesystem, assets: tuple[Asset, ...]) -> Survey:
    places = {path: locate(filesystem, path) for path in _directories(assets)}
    names = _Names(filesystem)
    occupied = set()
    for asset in assets:
        parent, name = _split(asset)
        place = places[parent]
        if place.missing:
            continue
        number = names.find(place.inode, name)
        if number is None:
            continue
        _check_replaceable(asset.path, filesystem.inode(number))
        occupied.add(asset.path)
    numbers = sorted({place.inode for place in places.values()})
    return Survey({n: filesystem.inode(n) for n in numbers}, frozenset(occupied))


def _check_replaceable(path: str, inode: Inode) -> None:
    if inode.is_directory:
        raise in_the_way(path, "is a directory")
    if inode.links == 1 and inode.xattr_block:
        # No command of debugfs 1.47.0 frees that block: not `rm`, and not `ea_rm` before it.
        raise in_the_way(path, "has large extended attributes")


def _make_directories(bench: Bench) -> dict[str, int]:
    """Make what is missing, one level a round; returns the inode of every directory of ours."""
    paths = _directories(bench.assets)
    for _ in range(max(path.count("/") for path in paths) + 1):
        with Filesystem(bench.room.rootfs) as filesystem:
            places = {path: locate(filesystem, path) for path in paths}
        missing = {(place.inode, place.missing[0]) for place in places.values() if place.missing}
        if not missing:
            return {path: place.inode for path, place in places.items()}
        bench.debugfs(_mkdir_script(sorted(missing)))
    raise _differs("a directory", "missing")


def _mkdir_script(missing: list[tuple[int, str]]) -> Script:
    script = Script()
    for parent, name in missing:
        script.cd(parent)
        script.mkdir(name)
        _set_owner_and_mode(script, name, S_IFDIR | 0o755)
    return script


def _script(assets: tuple[Asset, ...], places: dict[str, int], before: Survey) -> Script:
    """Everything but the directories, and the times of those."""
    script = Script()
    taken = set()
    for number, asset in enumerate(assets):
        parent, name = _split(asset)
        if (places[parent], name) in taken:
            raise in_the_way(asset.path, "is the same as another path of ours")
        taken.add((places[parent], name))
        script.cd(places[parent])
        if asset.path in before.occupied:
            script.rm(name)
        _add(script, number, name, asset)
    for inode in sorted(set(places.values())):
        _set_times(script, inode, before.directories.get(inode))
    return script


def _add(script: Script, number: int, name: str, asset: Asset) -> None:
    if asset.target is not None:
        script.symlink(name, asset.target)
    else:
        script.write(number, name)
    _set_owner_and_mode(script, name, _full_mode(asset))
    _set_times(script, name, None)


def _full_mode(asset: Asset) -> int:
    return (S_IFREG if asset.target is None else S_IFLNK) | asset.mode


def _set_owner_and_mode(script: Script, name: str, mode: int) -> None:
    script.set_field(name, "mode", mode)
    script.set_field(name, "uid", 0)
    script.set_field(name, "gid", 0)


def _set_times(script: Script, target: int | str, inode: Inode | None) -> None:
    """All four times of an inode: those that it had, else those of everything new.

    debugfs 1.47.0 leaves a directory alone when a name is added; a version that does not must not
    make other bytes.
    """
    for name, (low, extra) in zip(_TIME_FIELDS, _times(inode), strict=True):
        script.set_time(target, name, low)
        script.set_field(target, f"{name}_extra", extra)  # after it: debugfs writes this one too


def _times(inode: Inode | None) -> tuple[tuple[int, int], ...]:
    if inode is None:
        return (_NEW,) * len(_TIME_FIELDS)
    return (inode.atime, inode.ctime, inode.mtime, inode.crtime)


def _verify(names: _Names, asset: Asset) -> None:
    """Read one asset back as a guest would see it."""
    parent, name = _split(asset)
    filesystem, place = names.filesystem, names.place(parent)
    number = None if place.missing else names.find(place.inode, name)
    if number is None:
        raise _differs(asset.path, "missing")
    inode = filesystem.inode(number)
    found = (inode.mode, inode.uid, inode.gid, inode.links, *_times(inode))
    if found != (_full_mode(asset), 0, 0, 1, *_times(None)) or filesystem.xattrs(inode):
        raise _differs(asset.path, "not what it should be in its attributes")
    if asset.target is not None:
        same = filesystem.target(inode) == asset.target.encode()
    else:
        same = filesystem.read(inode) == b"".join(asset.pieces())
    if not same:
        raise _differs(asset.path, "not what it should be in its content")


def _verify_directories(filesystem: Filesystem, places: dict[str, int], before: Survey) -> None:
    """New directories are root's, 0755; the image's own are as they were but for their names."""
    for path, number in places.items():
        inode, old = filesystem.inode(number), before.directories.get(number)
        mode, uid, gid = (old.mode, old.uid, old.gid) if old else (S_IFDIR | 0o755, 0, 0)
        if (inode.mode, inode.uid, inode.gid, *_times(inode)) != (mode, uid, gid, *_times(old)):
            raise _differs(path, "not what it should be in its attributes")


def _differs(path: str, what: str) -> HostError:
    return HostError(f"the guest assets did not arrive: {path} is {what}", code=Code.TOOL_FAILED)

"""Where a path of ours leads inside an image, whose own symbolic links decide on the way.

`stages.guest` asks before it writes: debugfs follows no link in a path, so an asset for `/lib/x`
would silently be missing in every image with `/lib -> usr/lib`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from stat import S_ISLNK

from reconciler.errors import ImageError
from reconciler.ext4.reader import ROOT_INODE, Filesystem, Inode

_LINKS_FOLLOWED = 40
"""As many symbolic links in one path as Linux follows (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of ours: the last inode on the way to it, and the names that are missing there.

    inode: of the directory itself when nothing is missing.
    """

    inode: int
    missing: tuple[str, ...] = ()


def locate(filesystem: Filesystem, path: str) -> Place:
    """Follow an absolute path of ours inside the image.

    Only names of ours may be missing. Raises ImageError for a link that leads to nothing, a loop,
    and anything on the way that is no directory.
    """
    return _Walk(filesystem, path).run()


def in_the_way(path: str, what: str) -> ImageError:
    """The error for an image that has no place for an asset. path: ours. what: a clause."""
    return ImageError(
        f"the guest assets have no place: {path} in the image {what}",
        resolution="Set guest = false for this image, or change that path in it.",
    )


class _Walk:
    def __init__(self, filesystem: Filesystem, path: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._trail = [ROOT_INODE]
        # What is still to go, next one last: a name, and whether it is ours or out of a link.
        names = PurePosixPath(path).parts[1:]
        self._pending = [(name.encode(), True) for name in reversed(names)]
        self._links = 0

    def run(self) -> Place:
        while self._pending:
            name, ours = self._pending.pop()
            if name == b"..":
                self._trail = self._trail[:-1] or [ROOT_INODE]
                continue
            here = self._filesystem.inode(self._trail[-1])
            number = self._filesystem.entries(here).get(name)
            if number is None:
                return self._missing(name, ours)
            self._step(self._filesystem.inode(number))
        return Place(self._trail[-1])

    def _missing(self, name: bytes, ours: bool) -> Place:
        if not ours:
            raise in_the_way(self._path, "leads through a link to nothing")
        rest = [name, *(name for name, _ in reversed(self._pending))]
        return Place(self._trail[-1], tuple(name.decode("ascii") for name in rest))

    def _step(self, inode: Inode) -> None:
        if inode.is_directory:
            self._trail.append(inode.number)
        elif S_ISLNK(inode.mode):
            self._follow(self._filesystem.target(inode))
        else:
            raise in_the_way(self._path, "leads through something that is no directory")

    def _follow(self, target: bytes) -> None:
        self._links += 1
        if self._links > _LINKS_FOLLOWED:
            raise in_the_way(self._path, "leads through too many links")
        if target.startswith(b"/"):
            self._trail = [ROOT_INODE]
        parts = [part for part in target.split(b"/") if part not in (b"", b".")]
        self._pending += [(part, False) for part in reversed(parts)]

"""libext2fs by ctypes: the few calls that write a filesystem, typed, every return code looked at.

The `direct` package writes images through it. The library belongs to e2fsprogs, so it is there
wherever mkfs.ext4 is; its soname stands for its ABI, and all that is used here has been exported
since 1.43 (lib/ext2fs/ext2fs.h). A wrong pointer would end the process, therefore no structure of
the library is looked into: handles are opaque, inodes and blocks are buffers of our own.

One thread per handle. Short calls keep the interpreter's lock, because giving it away costs more.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_uint64
from functools import cache
from itertools import count, repeat
from pathlib import Path
from typing import Any, Self

from reconciler.errors import BangerError, Code, HostError
from reconciler.ext4.imagefile import plain_path
from reconciler.ext4.inode import Extent
from reconciler.text import printable

BLOCK = 4096
INODE = 256
MINIMUM_VERSION = (1, 43)

_SONAME = "libext2fs.so.2"
_RESOLUTION = 'Install e2fsprogs >= 1.43 with its library, or set builder = "tools".'

_READ_FLAGS = 0x20000
"""EXT2_FLAG_64BITS."""
_WRITE_FLAGS = _READ_FLAGS | 0x1
"""EXT2_FLAG_RW as well."""
_NO_SYNC = 1
"""EXT2_FLAG_FLUSH_NO_SYNC: the file is synced once, by the descriptor that watches it."""
_INSERT_AFTER = 1
"""EXT2_EXTENT_INSERT_AFTER."""
_LARGEST_ERRNO = 4095
_ALLOC_FAILURES = frozenset({2133571400, 2133571401})
"""EXT2_ET_BLOCK_ALLOC_FAIL and EXT2_ET_INODE_ALLOC_FAIL."""

_Handle = ctypes.c_void_p


class NoRoom(BangerError):
    """The filesystem has no free block or inode left: its size is at fault, or the image."""

    default_code = Code.SIZE_TOO_SMALL


class _ExtentRecord(ctypes.Structure):
    """struct ext2fs_extent."""

    _fields_ = (
        ("physical", c_uint64),
        ("logical", c_uint64),
        ("count", c_uint32),
        ("flags", c_uint32),
    )


_QUICK: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ext2fs_new_range": (
        c_long,
        (_Handle, c_int, c_uint64, c_uint64, _Handle, POINTER(c_uint64), POINTER(c_uint64)),
    ),
    "ext2fs_block_alloc_stats_range": (None, (_Handle, c_uint64, c_uint32, c_int)),
    "ext2fs_inode_alloc_stats2": (None, (_Handle, c_uint32, c_int, c_int)),
    "ext2fs_inode_csum_set": (c_long, (_Handle, c_uint32, _Handle)),
    "ext2fs_write_inode_full": (c_long, (_Handle, c_uint32, _Handle, c_int)),
    "ext2fs_dir_block_csum_set": (c_long, (_Handle, c_uint32, _Handle)),
    "ext2fs_dirhash": (
        c_long,
        (c_int, c_char_p, c_int, _Handle, POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "ext2fs_extent_open": (c_long, (_Handle, c_uint32, POINTER(_Handle))),
    "ext2fs_extent_insert": (c_long, (_Handle, c_int, POINTER(_ExtentRecord))),
    "ext2fs_extent_free": (None, (_Handle,)),
    "ext2fs_xattrs_open": (c_long, (_Handle, c_uint32, POINTER(_Handle))),
    "ext2fs_xattrs_read": (c_long, (_Handle,)),
    "ext2fs_xattr_set": (c_long, (_Handle, c_char_p, c_char_p, c_size_t)),
    "ext2fs_xattrs_close": (c_long, (POINTER(_Handle),)),
}
_SLOW: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ext2fs_open": (c_long, (c_char_p, c_int, c_int, c_uint, _Handle, POINTER(_Handle))),
    "ext2fs_read_bitmaps": (c_long, (_Handle,)),
    "ext2fs_close2": (c_long, (_Handle, c_int)),
    "ext2fs_free": (None, (_Handle,)),
    "ext2fs_get_library_version": (c_int, (POINTER(c_char_p), POINTER(c_char_p))),
    "initialize_ext2_error_table": (None, ()),
    "error_message": (c_char_p, (c_long,)),  # of libcom_err, on which the library depends
}


class _Library:
    """The loaded library: its functions by name, and the address of its I/O manager."""

    def __init__(self) -> None:
        slow, quick = ctypes.CDLL(_SONAME), ctypes.PyDLL(_SONAME)
        self._functions = {
            name: _typed(library, name, *signature)
            for library, table in ((slow, _SLOW), (quick, _QUICK))
            for name, signature in table.items()
        }
        self.manager = _Handle.in_dll(slow, "unix_io_manager").value
        self.version = self._read_version()
        self["initialize_ext2_error_table"]()

    def __getitem__(self, name: str) -> Any:
        return self._functions[name]

    def _read_version(self) -> tuple[int, int]:
        text = c_char_p()
        self["ext2fs_get_library_version"](byref(text), None)
        match = re.match(rb"([0-9]+)\.([0-9]+)", text.value or b"")
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def check(self, code: int, what: str) -> None:
        """Raise what a return code means: OSError, NoRoom, or HostError; 0 is success."""
        if code == 0:
            return
        if 0 < code <= _LARGEST_ERRNO:
            raise OSError(code, os.strerror(code))
        if code in _ALLOC_FAILURES:
            raise NoRoom("the filesystem is full")
        said = printable(self["error_message"](code) or b"")
        raise HostError(f"libext2fs cannot {what}: {said} ({code})", code=Code.TOOL_FAILED)


def _typed(library: ctypes.CDLL, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


@cache
def _library() -> _Library:
    """Load it, once. Raises HostError TOOL_MISSING or TOOL_TOO_OLD."""
    try:
        library = _Library()
    except (OSError, AttributeError, ValueError) as error:
        raise HostError(
            f"{_SONAME} cannot be used: {printable(str(error))}",
            code=Code.TOOL_MISSING,
            resolution=_RESOLUTION,
        ) from error
    if library.version < MINIMUM_VERSION or ctypes.sizeof(_ExtentRecord) != 24:
        shown = ".".join(map(str, library.version))
        raise HostError(
            f"{_SONAME} is version {shown}, which is too old",
            code=Code.TOOL_TOO_OLD,
            resolution=_RESOLUTION,
        )
    return library


def is_available() -> bool:
    """Whether the library is on this host, new enough, with all that is used of it."""
    with suppress(HostError):
        return bool(_library())
    return False


class Writer:
    """An image open for writing. Use it in a `with`: its end writes bitmaps and superblock.

    After an exception nothing more is written, and the image is worthless. Every method raises
    NoRoom when the filesystem is full, OSError from the disk, HostError TOOL_FAILED otherwise.
    """

    def __init__(self, image: Path, *, only_sums: bool = False) -> None:
        """only_sums: for `seal_inodes` alone; nothing is written, and another may write the image
        meanwhile."""
        self._library = _library()
        self._only_sums = only_sums
        self._handle = _Handle()
        name = os.fsencode(plain_path(image))
        opening = self._library["ext2fs_open"]
        manager = self._library.manager
        flags = _READ_FLAGS if only_sums else _WRITE_FLAGS
        self._check(opening(name, flags, 0, 0, manager, byref(self._handle)), "open the image")
        self._hash = self._library["ext2fs_dirhash"]
        self._major, self._minor = c_uint32(), c_uint32()
        self._hashes = byref(self._major), byref(self._minor)

    def __enter__(self) -> Self:
        if self._only_sums:
            return self
        try:
            self._check(self._library["ext2fs_read_bitmaps"](self._handle), "read the bitmaps")
        except BaseException:
            self._drop()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None or self._only_sums:
            self._drop()
            return
        handle, self._handle = self._handle, _Handle()
        self._check(self._library["ext2fs_close2"](handle, _NO_SYNC), "close the image")

    def _drop(self) -> None:
        handle, self._handle = self._handle, _Handle()
        if handle:
            self._library["ext2fs_free"](handle)

    def _check(self, code: int, what: str) -> None:
        if code:
            self._library.check(code, what)

    def find_free(self, goal: int, count: int) -> tuple[int, int]:
        """The first free blocks from `goal` on, then from the start: (number, at most `count`)."""
        start, length = c_uint64(), c_uint64()
        new_range = self._library["ext2fs_new_range"]
        code = new_range(self._handle, 0, goal, count, None, byref(start), byref(length))
        self._check(code, "find free blocks")
        return start.value, length.value

    def mark(self, start: int, count: int, *, used: bool) -> None:
        """Account blocks as used or free, in bitmap, descriptors and superblock."""
        mark_range = self._library["ext2fs_block_alloc_stats_range"]
        mark_range(self._handle, start, count, 1 if used else -1)

    def mark_inodes(self, first: int, directories: Iterable[int]) -> None:
        """Account inodes as used: those from `first` on, as many as are told what they are."""
        mark = self._library["ext2fs_inode_alloc_stats2"]
        deque(map(mark, repeat(self._handle), count(first), repeat(1), directories), maxlen=0)

    def free_inode(self, number: int) -> None:
        """Account an inode that is no directory as free."""
        self._library["ext2fs_inode_alloc_stats2"](self._handle, number, -1, 0)

    def seal_inodes(self, first: int, raw: bytearray) -> None:
        """Put the checksums into inodes of 256 bytes each, which are numbered from `first` on."""
        seal, handle = self._library["ext2fs_inode_csum_set"], self._handle
        begin = ctypes.addressof((ctypes.c_char * len(raw)).from_buffer(raw))
        for number, address in zip(count(first), range(begin, begin + len(raw), INODE)):
            if code := seal(handle, number, address):
                self._check(code, "sum up an inode")

    def write_inodes(self, inodes: Iterable[tuple[int, bytes]]) -> None:
        """Write inodes, each as (number, 256 bytes); the library puts the checksums in."""
        write, handle = self._library["ext2fs_write_inode_full"], self._handle
        for number, raw in inodes:
            if code := write(handle, number, raw, len(raw)):
                self._check(code, "write an inode")

    def seal_directory(self, inode: int, raw: bytearray) -> None:
        """Put the checksums into blocks of the directory with this inode number."""
        seal, handle = self._library["ext2fs_dir_block_csum_set"], self._handle
        begin = ctypes.addressof((ctypes.c_char * len(raw)).from_buffer(raw))
        for address in range(begin, begin + len(raw), BLOCK):
            if code := seal(handle, inode, address):
                self._check(code, "sum up a directory")

    def set_extents(self, number: int, extents: Sequence[Extent]) -> None:
        """Give an inode with an empty extent tree these; blocks are taken for the tree."""
        tree = _Handle()
        self._check(
            self._library["ext2fs_extent_open"](self._handle, number, byref(tree)),
            "open an extent tree",
        )
        try:
            insert = self._library["ext2fs_extent_insert"]
            for logical, physical, count in extents:
                record = _ExtentRecord(physical, logical, count, 0)
                self._check(insert(tree, _INSERT_AFTER, byref(record)), "add an extent")
        finally:
            self._library["ext2fs_extent_free"](tree)

    def set_xattrs(self, number: int, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        """Give an inode attributes, ACLs in the form of system calls; a block is taken for them."""
        opened = _Handle()
        self._check(
            self._library["ext2fs_xattrs_open"](self._handle, number, byref(opened)),
            "open attributes",
        )
        try:
            self._check(self._library["ext2fs_xattrs_read"](opened), "read attributes")
            for name, value in attributes:
                code = self._library["ext2fs_xattr_set"](opened, name, value, len(value))
                self._check(code, "set an attribute")
        finally:
            code = self._library["ext2fs_xattrs_close"](byref(opened))
        self._check(code, "write attributes")

    def name_hash(self, version: int, seed: bytes, name: bytes) -> tuple[int, int]:
        """The hash of a name in an indexed directory: (major, minor). seed: 16 bytes."""
        if code := self._hash(version, name, len(name), seed, *self._hashes):
            self._check(code, "hash a name")
        return self._major.value, self._minor.value

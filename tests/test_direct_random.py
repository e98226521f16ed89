"""Random trees through both builders: the same to the last byte, and fit for a kernel to write to.

BANGER_RANDOM_ENTRIES: entries of the largest of ten trees, 100000 for a proof by hand.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.builders import BUILDERS, build, check, listing
from support.filesystems import ACL, mounted
from support.tarball import entry, tar

LARGEST = int(os.environ.get("BANGER_RANDOM_ENTRIES", "1500"))
SIZES = [max(1, round(LARGEST ** (number / 9))) for number in range(10)]
BYTES = bytes(byte for byte in range(1, 256) if byte != ord("/"))


def name(chance: random.Random) -> bytes:
    """Any bytes that a name may have; one in ten is as long as can be."""
    length = 255 if chance.random() < 0.02 else chance.randrange(1, 24)
    found = bytes(chance.choices(BYTES, k=length))
    return b"x" + found[1:] if found[:1] == b"." else found


def content(chance: random.Random) -> bytes:
    """From nothing to 300 KB, some of it zeros."""
    kind = chance.random()
    if kind < 0.2:
        return b""
    if kind < 0.9:
        return chance.randbytes(int(chance.expovariate(1 / 3000)))
    return chance.randbytes(chance.randrange(70_000)) + bytes(chance.randrange(200_000)) + b"end"


def tree(entries: int, chance: random.Random) -> bytes:
    """A layer with so many entries: one directory has half of all names."""
    directories = [b"", b"large"]
    files: list[bytes] = []
    taken = {b"large"}
    found = [entry(b"large/", "dir")]
    while len(found) < entries:
        where = b"large" if chance.random() < 0.5 else chance.choice(directories)
        path = (where + b"/" + name(chance)).lstrip(b"/")
        if path in taken or len(path) > 900 or path.count(b"/") > 100:
            continue
        taken.add(path)
        owner = {"uid": chance.randrange(1 << 20), "mtime": chance.randrange(1 << 33)}
        kind = chance.random()
        if kind < 0.08:
            directories.append(path)
            found.append(entry(path + b"/", "dir", mode=chance.randrange(0o10000), **owner))
        elif kind < 0.16:
            target = chance.randbytes(chance.randrange(1, 300)).replace(b"\0", b"0")
            found.append(entry(path, "symlink", target=target, **owner))
        elif kind < 0.2 and files:
            found.append(entry(path, "hardlink", target=chance.choice(files)))
        elif kind < 0.22:
            found.append(entry(path, "block", rdev=(chance.randrange(4096), 7), **owner))
        else:
            files.append(path)
            pax = {"SCHILY.xattr.system.posix_acl_access": ACL} if kind < 0.25 else {}
            mode = chance.randrange(0o10000)
            found.append(entry(path, data=content(chance), mode=mode, pax=pax, **owner))
    return tar(*found)


@pytest.mark.parametrize("number", range(10))
def test_a_random_tree(number: int, tmp_path: Path) -> None:
    layer = tree(SIZES[number], random.Random(number))
    rooms = [build([layer], tmp_path / builder, builder) for builder in BUILDERS]
    for room in rooms:
        check(room.rootfs)
    assert listing(rooms[0].rootfs) == listing(rooms[1].rootfs)
    with mounted(rooms[0].rootfs, tmp_path / "mnt") as top:
        for count in range(200):
            (top / f"new-{count}").write_bytes(os.urandom(count * 100))
        for count, found in enumerate(sorted((top / "large").iterdir())[:300]):
            found.rename(top / f"moved-{count}")
    check(rooms[0].rootfs)

"""ownership: every inode is what the tree says, whoever built it, or the stage fails by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.filesystems import (
    ACL,
    CAPABILITY,
    MIB,
    build,
    desired,
    directory,
    file,
    link,
    room_for,
    tree_of,
)

from reconciler.errors import Code, HostError
from reconciler.ext4.debugfs import Script
from reconciler.ext4.reader import Filesystem
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.room import Room
from reconciler.stages import ext4, ownership
from reconciler.stages.ownership import match, verify

SECOND = 1_000_000_000
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root may do this to files")


def zoo() -> Tree:
    """One of everything that an inode can be."""
    shared = file(5000, uid=65536, gid=4294967294, mtime_ns=1_700_000_000 * SECOND + 123_456_789)
    return tree_of(
        {
            b"a": file(10, mode=0o6755, uid=1000, mtime_ns=-1, xattrs=((b"user.x", b"v"),)),
            b"acl": file(0, mode=0o674, xattrs=((b"system.posix_acl_access", ACL),)),
            b"cap": file(9, xattrs=((b"security.capability", CAPABILITY),)),
            b"closed": directory({b"s1": shared}, mode=0),
            b"dev": directory(
                {
                    b"null": Node(Kind.CHARACTER, 0o666, rdev=(1, 3)),
                    b"big": Node(Kind.BLOCK, 0o660, gid=6, rdev=(259, 1_048_575)),
                    b"pipe": Node(Kind.FIFO, 0o600, mtime_ns=9_000_000_000 * SECOND),
                    b"zero": Node(Kind.CHARACTER, 0, rdev=(0, 0)),
                },
                mode=0o1777,
                xattrs=((b"system.posix_acl_default", ACL),),
            ),
            b"s2": shared,
            b"long": link(b"x" * 100, uid=5),
            b"short": link(b"/etc/passwd", gid=7),
        },
        mode=0o711,
        uid=3,
        mtime_ns=5 * SECOND,
    )


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def mounted(room: Room) -> Iterator[Path]:
    where = room.staging.parent / "mounted"
    where.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", room.rootfs, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def said(*command: str | Path) -> str:
    environment = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    return done.stdout


def test_every_inode_is_as_the_tree_says(tmp_path: Path) -> None:
    room = build(zoo(), tmp_path, 16 * MIB)
    assert room.not_carried == []
    with Filesystem(room.rootfs) as filesystem:
        found = dict(filesystem.walk())
    assert oct(found[b"a"].mode) == "0o106755"
    assert (found[b"s2"].uid, found[b"s2"].gid) == (65536, 4294967294)
    assert found[b"closed/s1"].number == found[b"s2"].number
    assert oct(found[b"dev/null"].mode) == "0o20666"
    assert oct(found[b"dev/pipe"].mode) == "0o10600"
    assert (found[b""].uid, oct(found[b""].mode), found[b""].mtime_ns) == (3, "0o40711", 5 * SECOND)


@as_root
def test_the_kernel_shows_acls_capabilities_and_devices(tmp_path: Path) -> None:
    room = build(zoo(), tmp_path, 16 * MIB)
    with mounted(room) as top:
        assert "user:1234:rwx\ngroup::r--\ngroup:777:r-x\nmask::rwx\n" in said(
            "getfacl", "-pn", top / "acl"
        )
        assert "default:group:777:r-x" in said("getfacl", "-pn", top / "dev")
        assert "cap_net_bind_service=ep" in said("getcap", top / "cap")
        assert os.getxattr(top / "a", "user.x") == b"v"
        for name, rdev in {"null": (1, 3), "big": (259, 1_048_575), "zero": (0, 0)}.items():
            seen = (top / "dev" / name).lstat().st_rdev
            assert (os.major(seen), os.minor(seen)) == rdev
        kinds = {entry.name: entry.is_file() for entry in os.scandir(top / "dev")}
        assert not any(kinds.values()), "the type in the directory entry counts for find and glob"


@pytest.mark.parametrize(
    "name",
    [
        b"\n!touch PWNED\n",
        b"\r!touch PWNED\r",
        b"!touch PWNED",
        b'"; quit',
        b"<2>",
        b"-f",
        b" ",
        b"\\",
        b"\xff\xfe",
        b"\x1b[31m",
        b"x" * 255,
        b"#",
        b"..\\x",
        b"...",
    ],
)
def test_names_are_exact_and_mean_nothing_to_the_tools(tmp_path: Path, name: bytes) -> None:
    nodes = {
        name: Node(Kind.FIFO, 0o600, uid=7),
        b"d": directory({name: file(3, uid=8, xattrs=((b"security.capability", CAPABILITY),))}),
        b"l": link(name, uid=9),
    }
    room = build(tree_of(nodes), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        found = dict(filesystem.walk())
        assert filesystem.target(found[b"l"]) == name
    assert (found[name].uid, found[b"d/" + name].uid) == (7, 8)
    assert not list(tmp_path.rglob("*PWNED*")) or b"PWNED" in name
    assert not Path("PWNED").exists()
    assert not Path("/PWNED").exists()


def test_the_same_tree_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    first = build(zoo(), tmp_path / "one", 16 * MIB)
    other = room_for(zoo(), tmp_path / "a longer way to go" / "two")
    disturb(other.host_tree)
    ext4.run(desired(16 * MIB, retain=9, pull="always"), other)
    ownership.run(desired(16 * MIB), other)
    assert digest(first.rootfs) == digest(other.rootfs)


def disturb(tree: Path) -> None:
    """Another builder: other owner, times and modes, names made in another order."""
    for path in sorted(tree.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
            os.utime(path, ns=(10**18, 10**18 + 7))
        if ROOT:
            os.lchown(path, 12345, 23456)
        if path.parent == tree:
            path.rename(tree / "aside")
            (tree / "aside").rename(path)
    tree.chmod(0o750)


def test_other_layers_or_another_size_give_another_uuid(tmp_path: Path) -> None:
    uuids = set()
    for number, size in enumerate((16 * MIB, 17 * MIB)):
        room = build(tree_of({}), tmp_path / str(number), size)
        with Filesystem(room.rootfs) as filesystem:
            uuids.add(filesystem.uuid)
    assert len(uuids) == 2


def test_lost_and_found_of_the_image_keeps_its_attributes(tmp_path: Path) -> None:
    tree = tree_of({b"lost+found": directory({b"x": file(1)}, mode=0o755, uid=4)})
    room = build(tree, tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        found = dict(filesystem.walk())
    assert set(found) == {b"", b"lost+found", b"lost+found/x"}
    assert (oct(found[b"lost+found"].mode), found[b"lost+found"].uid) == ("0o40755", 4)


def test_lost_and_found_of_our_own_is_roots(tmp_path: Path) -> None:
    room = build(tree_of({}), tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        inode = dict(filesystem.walk())[b"lost+found"]
    assert (oct(inode.mode), inode.uid, inode.gid, inode.mtime_ns) == ("0o40700", 0, 0, SECOND)


OWN = ((b"user.own", b"of the image"),)
"""With an attribute of its own in the tree, mkfs.ext4 copies all that it finds on files."""


@as_root
@pytest.mark.parametrize("own", [(), OWN], ids=["none", "one"])
def test_attributes_of_the_host_do_not_leak(
    own: tuple[tuple[bytes, bytes], ...], tmp_path: Path
) -> None:
    inner = file(2, xattrs=own)
    room = room_for(tree_of({b"a": file(1), b"d": directory({b"b": inner})}), tmp_path)
    for name, value in own:
        os.setxattr(room.host_tree / "d/b", name, value)
    for path in (room.host_tree / "a", room.host_tree / "d"):
        os.setxattr(path, "system.posix_acl_access", ACL)
        os.setxattr(path, "security.apparmor", b"host")
        os.setxattr(path, "security.capability", CAPABILITY) if path.is_file() else None
    os.setxattr(room.host_tree / "d", "system.posix_acl_default", ACL)
    ext4.run(desired(16 * MIB), room)
    ownership.run(desired(16 * MIB), room)
    with Filesystem(room.rootfs) as filesystem:
        found = {path: filesystem.xattrs(inode) for path, inode in filesystem.walk()}
    assert found.pop(b"d/b") == dict(own)
    assert list(found.values()) == [{}] * 4


def test_an_attribute_that_cannot_be_explained_is_an_error(tmp_path: Path) -> None:
    room = room_for(tree_of({b"a": file(1), b"b": file(2, xattrs=OWN)}), tmp_path)
    os.setxattr(room.host_tree / "a", "user.stranger", b"x")
    os.setxattr(room.host_tree / "b", "user.own", OWN[0][1])
    ext4.run(desired(16 * MIB), room)
    with pytest.raises(HostError, match=r"/a: attributes .*user\.stranger") as caught:
        ownership.run(desired(16 * MIB), room)
    assert caught.value.code is Code.TOOL_FAILED


SPOILERS: dict[str, Callable[[Script, int], None]] = {
    "mode": lambda script, number: script.set_field(number, "mode", 0o100640),
    "uid": lambda script, number: script.set_field(number, "uid", 1),
    "gid": lambda script, number: script.set_field(number, "gid", 70_000),
    "mtime": lambda script, number: script.set_time(number, "mtime", 99),
    "link count": lambda script, number: script.set_field(number, "links_count", 2),
    "attributes": lambda script, number: script.remove_xattr(number, "security.capability"),
    "size": lambda script, number: script.set_field(number, "size", 8),
}


@pytest.mark.parametrize("field", SPOILERS)
def test_the_read_back_names_path_and_field(tmp_path: Path, field: str) -> None:
    tree = tree_of({b"x\n": file(9, xattrs=((b"security.capability", CAPABILITY),))})
    room = build(tree, tmp_path, 16 * MIB)
    with Filesystem(room.rootfs) as filesystem:
        places = match(filesystem, tree)
    verify(room.rootfs, places)
    script = Script()
    SPOILERS[field](script, next(place.inode for place in places if place.path == b"x\n"))
    room.tools.debugfs_write(room.rootfs, script, tmp_path)
    with pytest.raises(HostError, match=rf"/x\\n: {field} ") as caught:
        verify(room.rootfs, places)
    assert caught.value.code is Code.TOOL_FAILED


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (tree_of({b"a": file(1)}), "b is in excess"),
        (tree_of({b"a": file(1), b"b": file(1), b"c": file(1)}), "c is missing"),
        (tree_of(dict.fromkeys([b"a", b"b"], file(1))), "/b: links"),
    ],
)
def test_names_and_links_must_be_those_of_the_tree(
    tmp_path: Path, tree: Tree, complaint: str
) -> None:
    room = build(tree_of({b"a": file(1), b"b": file(1)}), tmp_path, 16 * MIB)
    with (
        Filesystem(room.rootfs) as filesystem,
        pytest.raises(HostError, match=complaint) as caught,
    ):
        match(filesystem, tree)
    assert caught.value.code is Code.TOOL_FAILED


def test_a_half_done_pass_is_not_mistaken_for_a_whole_one(tmp_path: Path) -> None:
    nodes = {b"f%03d" % number: file(1, uid=1000) for number in range(300)}
    tree = tree_of(nodes)
    whole = build(tree, tmp_path / "whole", 16 * MIB)
    half = room_for(tree, tmp_path / "half")
    ext4.run(desired(16 * MIB), half)
    with Filesystem(half.rootfs) as filesystem:
        places = match(filesystem, tree)
    script = Script()
    for place in places[:150]:
        script.set_field(place.inode, "uid", place.node.uid)
    half.tools.debugfs_write(half.rootfs, script, tmp_path)
    half.tools.e2fsck(half.rootfs)  # content: it cannot know
    with pytest.raises(HostError, match="is not what the image says"):
        verify(half.rootfs, places)
    verify(whole.rootfs, places)


def test_many_devices_over_many_directory_blocks(tmp_path: Path) -> None:
    nodes: dict[bytes, Node] = {}
    for number in range(600):
        kind = (Kind.CHARACTER, Kind.BLOCK, Kind.FIFO, Kind.REGULAR)[number % 4]
        nodes[b"%0100d" % number] = Node(kind, 0o600, rdev=(number % 300, number))
        if kind in (Kind.FIFO, Kind.REGULAR):
            nodes[b"%0100d" % number].rdev = (0, 0)
    shared = Node(Kind.FIFO, 0o600)
    tree = tree_of({b"d": directory(nodes), b"e": directory({b"p": shared}), b"q": shared})
    room = build(tree, tmp_path, 16 * MIB)  # e2fsck checks types and checksums
    with Filesystem(room.rootfs) as filesystem:
        assert sum(inode.mode >> 12 == 1 for _, inode in filesystem.walk()) == 152


@as_root
def test_a_full_disk_under_debugfs_is_told_as_such(tmp_path: Path) -> None:
    """debugfs ends with status 0 when it cannot write: the read-back notices."""
    large = ((b"security.capability", CAPABILITY * 20),)  # a block for each
    tree = tree_of({b"f%03d" % number: file(xattrs=large) for number in range(600)})
    room = room_for(tree, tmp_path)
    ext4.run(desired(64 * MIB), room)
    need = room.rootfs.stat().st_blocks * 512
    small = tmp_path / "small"
    small.mkdir()
    options = f"size={need + 256 * 1024}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", small], check=True)
    try:
        subprocess.run(["cp", "--sparse=always", room.rootfs, small], check=True)
        shutil.rmtree(room.staging)
        room.staging = small
        with pytest.raises(HostError) as caught:
            ownership.run(desired(64 * MIB), room)
        assert caught.value.code is Code.DISK_FULL
    finally:
        subprocess.run(["umount", small], check=True)

"""The guest stage on real filesystems of many shapes; the kernel mounts the results."""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import unprivileged
from support.filesystems import MIB, build, desired, directory, file, link, tree_of

from reconciler.errors import Code, HostError, ImageError
from reconciler.ext4.reader import Filesystem
from reconciler.ext4.size import need_of, size_for
from reconciler.guest import assets
from reconciler.guest.assets import guest_assets
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.room import Interrupted, Room
from reconciler.stages import guest
from reconciler.tools import Tools

IMAGE = desired(None, guest=True)
SIZE = 64 * MIB
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
DAY = 86_400 * 10**9
SYSTEM = b"etc/systemd/system/"
UNIT = b"banger-network.service"


def debian(**system: Node) -> Tree:
    """A usr-merged image with systemd. system: more in /etc/systemd/system."""
    units = {name.encode(): node for name, node in system.items()}
    units[b"theirs.service"] = file(300, uid=7, mtime_ns=5 * DAY)
    etc = {
        b"systemd": directory(
            {b"system": directory(units, uid=3, gid=4, mode=0o2775, mtime_ns=3 * DAY + 12345)}
        ),
        b"modules-load.d": directory(mtime_ns=-DAY),
        b"passwd": file(100),
    }
    return tree_of(
        {
            b"usr": directory({b"lib": directory(), b"bin": directory(), b"local": directory()}),
            b"lib": link(b"usr/lib"),
            b"bin": link(b"usr/bin"),
            b"etc": directory(etc),
            b"var": directory({b"lib": directory(mtime_ns=(1 << 33) * 10**9 + 7)}),
        },
        mtime_ns=9 * DAY,
    )


def rerouted() -> Tree:
    """Each directory of ours lies behind links: relative, absolute, by `..`, of hostile names."""
    evil = b"a b\n!touch PWNED\n\"'<2>"
    return tree_of(
        {
            evil: directory({b"units": directory()}),
            b"usr": link(b"./data/../data//usr"),
            b"etc": link(b"/data/etc"),
            b"var": link(b"../../../data/.var"),
            b"data": directory(
                {
                    b"usr": directory({b"local": link(b"/opt")}),
                    b"etc": directory({b"systemd": link(b"../../" + evil)}),
                    b".var": directory(),
                }
            ),
            b"opt": directory({b"lib": link(b"lib64"), b"lib64": directory()}),
        }
    )


def crowded() -> Tree:
    """Directories whose blocks are full, so that they have to grow."""
    names = {f"{number:03}-{'n' * 200}".encode(): file() for number in range(400)}
    return debian(**{name.decode(): node for name, node in names.items()})


TREES = {
    "empty": lambda: tree_of({}),
    "usr-merged": debian,
    "rerouted": rerouted,
    "crowded": crowded,
}

Facts = dict[bytes, tuple[Any, ...]]


def facts(room: Room) -> Facts:
    """Everything about every path but what a new name in a directory changes."""
    found: Facts = {}
    with Filesystem(room.rootfs) as filesystem:
        for path, inode in filesystem.walk():
            whole = inode
            if inode.is_directory:
                whole = inode._replace(links=0, size=0, block=b"")
            content = filesystem.read(inode) if stat.S_ISREG(inode.mode) else b""
            found[path] = (whole, content, filesystem.xattrs(inode))
    return found


def digest(room: Room) -> str:
    return hashlib.sha256(room.rootfs.read_bytes()).hexdigest()


@contextlib.contextmanager
def mounted(room: Room, base: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    point = base / "mnt"
    point.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", room.rootfs, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("shape", TREES)
def test_assets_arrive_and_nothing_else_changes(shape: str, tmp_path: Path) -> None:
    room = build(TREES[shape](), tmp_path, SIZE)
    before = facts(room)
    guest.run(IMAGE, room)
    after = facts(room)
    assert {path: after.get(path) for path in before} == before
    new = [inode for path, (inode, _, _) in after.items() if path not in before]
    assert len([inode for inode in new if not inode.is_directory]) == len(
        guest_assets(IMAGE, TREES[shape]())
    )
    assert {(i.uid, i.gid, i.mtime_ns, i.ctime_ns, i.crtime_ns) for i in new} == {
        (0, 0, *[10**9] * 3)
    }
    assert {oct(i.mode) for i in new if i.is_directory} == {"0o40755"}


@pytest.mark.parametrize("shape", TREES)
def test_a_mounted_guest_sees_each_asset(shape: str, tmp_path: Path) -> None:
    room = build(TREES[shape](), tmp_path, SIZE)
    guest.run(IMAGE, room)
    with mounted(room, tmp_path) as point:
        for asset in guest_assets(IMAGE, TREES[shape]()):
            # Links are followed as in the guest: by the kernel, with this as its root.
            command = ["chroot", point, "/usr/local/lib/banger/banger-guest", "--version"]
            assert subprocess.run(command, check=True, capture_output=True).stdout
            seen = inside(point, asset.path)
            status = seen.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0)
            assert stat.S_IMODE(status.st_mode) == asset.mode
            if asset.target:
                assert str(seen.readlink()) == asset.target
                assert stat.S_ISREG(inside(point, asset.target).lstat().st_mode)
            else:
                assert seen.read_bytes() == asset.content


def inside(root: Path, path: str) -> Path:
    """Resolve the parent of `path` with `root` as the root."""
    reached = root
    pending = path.split("/")[:0:-1]
    while pending:
        name = pending.pop()
        if name == "..":
            reached = reached if reached == root else reached.parent
            continue
        following = reached / name
        if pending and following.is_symlink():
            target = str(following.readlink())
            reached = root if target.startswith("/") else reached
            pending += [part for part in target.split("/")[::-1] if part not in ("", ".")]
        else:
            reached = following
    return reached


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        room = build(debian(**{UNIT.decode(): file(9000)}), tmp_path / str(number), SIZE)
        guest.run(IMAGE, room)
        digests.add(digest(room))
        time.sleep(1.1)
    assert len(digests) == 1


LARGE = ((b"security.capability", CAPABILITY), (b"user.note", b"n" * 3000))
REPLACED = {
    "file": lambda: file(10, uid=1000, mode=0o4711),
    "large file": lambda: file(5 * MIB),
    "empty file": lambda: file(0),
    "link": lambda: link(b"/etc/passwd"),
    "dangling link": lambda: link(b"nowhere"),
    "long link": lambda: link(b"x" * 3000),
    "fifo": lambda: Node(Kind.FIFO, mode=0o600),
    "device": lambda: Node(Kind.CHARACTER, mode=0o600, rdev=(5, 1)),
    "attributes": lambda: file(10, xattrs=((b"user.note", b"n" * 40),)),
}


@pytest.mark.parametrize("kind", REPLACED)
def test_what_the_image_has_at_our_path_gives_way(kind: str, tmp_path: Path) -> None:
    room = build(debian(**{UNIT.decode(): REPLACED[kind]()}), tmp_path, SIZE)
    before = facts(room)
    guest.run(IMAGE, room)
    after = facts(room)
    del before[SYSTEM + UNIT]
    assert {path: after.get(path) for path in before} == before
    inode, content, attributes = after[SYSTEM + UNIT]
    (asset,) = (a for a in guest_assets(IMAGE, debian()) if a.path.encode() == b"/" + SYSTEM + UNIT)
    assert (inode.mode, inode.uid, content, attributes) == (0o100644, 0, asset.content, {})


def test_other_names_of_a_replaced_file_keep_it(tmp_path: Path) -> None:
    shared = file(5000, uid=33, xattrs=LARGE)
    room = build(debian(**{UNIT.decode(): shared, "other-name": shared}), tmp_path, SIZE)
    before = facts(room)
    guest.run(IMAGE, room)
    after = facts(room)
    inode, content, attributes = after[SYSTEM + b"other-name"]
    assert (inode.links, inode.uid) == (1, 33)
    assert (content, attributes) == before[SYSTEM + UNIT][1:]
    assert attributes == dict(LARGE)
    assert after[SYSTEM + UNIT][0].number != inode.number


IN_THE_WAY = {
    "directory": lambda: debian(**{UNIT.decode(): directory({b"precious": file(1)})}),
    "file for a parent": lambda: tree_of({b"usr": file(10)}),
    "device for a parent": lambda: tree_of({b"var": Node(Kind.CHARACTER, rdev=(1, 3))}),
    "attributes in a block": lambda: debian(**{UNIT.decode(): file(1, xattrs=LARGE)}),
    "dangling parent": lambda: tree_of({b"var": link(b"/mnt/state")}),
    "dangling through ours": lambda: tree_of({b"etc": link(b"/usr/local/lib/banger")}),
    "loop": lambda: tree_of({b"etc": link(b"srv"), b"srv": link(b"etc")}),
    "self": lambda: tree_of({b"etc": link(b"etc")}),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_no_place_for_an_asset_is_the_images_fault(case: str, tmp_path: Path) -> None:
    room = build(IN_THE_WAY[case](), tmp_path, SIZE)
    before = digest(room)
    with pytest.raises(ImageError) as caught:
        guest.run(IMAGE, room)
    assert "guest = false" in caught.value.resolution
    assert not caught.value.retryable
    assert digest(room) == before


def test_two_assets_on_one_path_are_refused(tmp_path: Path) -> None:
    room = build(debian(**{"multi-user.target.wants": link(b".")}), tmp_path, SIZE)
    with pytest.raises(ImageError, match="another path of ours"):
        guest.run(IMAGE, room)


def test_no_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = debian(full=file(20 * MIB))
    room = build(tree, tmp_path, size_for(need_of(tree)))
    with Filesystem(room.rootfs) as filesystem:
        free = filesystem.free_blocks * filesystem.block_size
    # What C source may grow into: a binary of one block more than there is room for.
    monkeypatch.setattr(assets, "binary", lambda _: b"x" * (free + 1))
    before = digest(room)
    with pytest.raises(ImageError, match="no room for the guest assets") as caught:
        guest.run(IMAGE, room)
    assert caught.value.code is Code.SIZE_TOO_SMALL
    assert digest(room) == before


def test_guest_false_touches_nothing(tmp_path: Path) -> None:
    room = build(debian(), tmp_path, SIZE)
    before = room.rootfs.stat()
    guest.run(desired(None, guest=False), room)
    after = room.rootfs.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_an_interrupt_stops_it(tmp_path: Path) -> None:
    room = build(debian(), tmp_path, SIZE)
    room.cancelled.set()
    with pytest.raises(Interrupted):
        guest.run(IMAGE, room)


LIAR = """#!{python}
import os, sys
path = sys.argv[sys.argv.index("-f") + 1]
lines = open(path).read().splitlines()
lines = [{rule} for line in lines if {keep}]
open(path, "w").write("".join(line + "\\n" for line in lines))
os.execv({real!r}, sys.argv)
"""


@pytest.mark.parametrize(
    ("rule", "keep", "complaint"),
    [
        ("line", "False", "missing"),
        ("line", "not line.startswith('mkdir')", "debugfs failed"),
        ("line", "'first-boot-pending' not in line", "first-boot-pending is missing"),
        ("line.replace('uid 0', 'uid 5')", "True", "attributes"),
        ("line.replace('sif banger-guest mode 33261', '')", "True", "attributes"),
        ("line.replace('@1', '@2')", "True", "attributes"),
        ("line.replace('write 3 ', 'write 4 ')", "True", "content"),
        ("line.replace('symlink banger-network.service /', 'symlink banger-network.service ')",
         "True", "content"),
    ],
)  # fmt: skip
def test_the_read_back_finds_what_debugfs_did_not_do(
    rule: str, keep: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = build(debian(), tmp_path, SIZE)
    real = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin")
    (tmp_path / "bin").mkdir()
    liar = tmp_path / "bin" / "debugfs"
    liar.write_text(LIAR.format(python=sys.executable, rule=rule, keep=keep, real=real))
    liar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{liar.parent}{os.pathsep}{os.environ['PATH']}")
    room.tools = Tools()
    with pytest.raises(HostError, match=complaint) as caught:
        guest.run(IMAGE, room)
    assert caught.value.code is Code.TOOL_FAILED


AS_USER = """
import sys
from pathlib import Path
import test_stage_guest as tests
tree = tests.debian(**{tests.UNIT.decode(): tests.file(9000)})
room = tests.build(tree, Path("work"), tests.SIZE)
tests.guest.run(tests.IMAGE, room)
print(tests.digest(room))
"""


def test_a_normal_user_makes_the_same_bytes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("is a normal user already")
    room = build(debian(**{UNIT.decode(): file(9000)}), tmp_path, SIZE)
    guest.run(IMAGE, room)
    with unprivileged.home() as home:
        script = AS_USER.replace('Path("work")', f"Path({str(home / 'work')!r})")
        here = Path(__file__).parent
        path = {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
        done = unprivileged.run([sys.executable, "-c", script], home, path)
    assert done.stdout.strip() == digest(room), done.stderr

"""The staging tree holds what the layers add up to, and nothing of the image reaches the host."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.images import digest_of, make_layout
from support.tarball import entry, tar

from reconciler.errors import Code, HostError, ImageError
from reconciler.model import (
    Descriptor,
    DesiredImage,
    ImageSpec,
    Layer,
    PinnedImage,
    Platform,
)
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.oci.layers import LayerMismatch
from reconciler.room import Feed, Interrupted, Room
from reconciler.stages import flatten

ROOT = os.geteuid() == 0
ACL = b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff\4\0\5\0\xff\xff\xff\xff\x20\0\5\0\xff\xff\xff\xff"
CAPABILITY = b"\1\0\0\2\0\x20\0\0" + bytes(12)


def desired(*layers: Layer) -> DesiredImage:
    pinned = PinnedImage(
        digest_of(b"manifest"),
        Descriptor("config", digest_of(b"config"), 2),
        layers,
        Platform("linux", "amd64"),
    )
    return DesiredImage(ImageSpec("x", "oci:x", None), pinned, None, None)


class Build:
    """A room whose feed has all its blobs already."""

    def __init__(self, root: Path, *tars: bytes) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        layers = []
        for raw in tars:
            (root / digest_of(raw)[7:]).write_bytes(raw)
            layers.append(Layer(Descriptor("tar", digest_of(raw), len(raw)), digest_of(raw)))
        self.image = desired(*layers)
        self.events: list[dict[str, Any]] = []
        self.room = self.new_room()

    def new_room(self) -> Room:
        no = cast(Any, SimpleNamespace())
        feed = Feed(self.image.pinned)
        for digest in {layer.blob.digest for layer in self.image.pinned.layers}:
            feed.put(digest, self.root / digest[7:])
        return Room(
            staging=self.root / "staging",
            scratch=self.root / "scratch",
            store=no,
            blobs=no,
            sources=no,
            tools=no,
            kernels=no,
            records=no,
            emit=lambda event, **fields: self.events.append({"event": event, **fields}),
            feed=feed,
        )

    def run(self) -> Tree:
        flatten.run(self.image, self.room)
        assert self.room.tree is not None
        return self.room.tree

    @property
    def top(self) -> Path:
        return self.room.host_tree


def flattened(root: Path, *tars: bytes) -> Build:
    build = Build(root, *tars)
    build.run()
    return build


def names_below(top: Path) -> set[bytes]:
    found = set()
    for directory, dirs, files in os.walk(os.fsencode(top)):
        for name in dirs + files:
            found.add(os.path.relpath(directory + b"/" + name, os.fsencode(top)))
    return found


RICH = tar(
    entry("./", "dir", mode=0o711, uid=3),
    entry("etc/", "dir"),
    entry("etc/motd", data=b"hello\n", mode=0o4755, uid=1000, mtime=5),
    entry("etc/empty"),
    entry("etc/secret", data=b"s" * 5000, mode=0),
    entry("locked/", "dir", mode=0),
    entry("locked/in/x", data=b"x"),
    entry("hard", "hardlink", target="etc/motd"),
    entry("also/hard", "hardlink", target="hard"),
    entry("soft", "symlink", target="/etc/passwd"),
    entry("soft2", "hardlink", target="soft"),
    entry("single", "symlink", target="/etc/passwd"),
    entry("long", "symlink", target="t" * 60),
    entry("long2", "hardlink", target="long"),
    entry("dev/null", "char", rdev=(1, 3), mode=0o666),
    entry("dev/null2", "hardlink", target="dev/null"),
    entry("dev/sda", "block", rdev=(8, 0)),
    entry("run/pipe", "fifo"),
    entry(b"odd/ \"'\\\n\r\t\x1b[31m<2>-!#\xff", data=b"odd"),
    entry("odd/" + "n" * 255, data=b"long"),
    entry("caps", data=b"c", pax={"SCHILY.xattr.security.capability": CAPABILITY}),
    entry("user", data=b"u", pax={"SCHILY.xattr.user.note": b"\0\xff"}),
    entry("noted/", "dir", pax={"SCHILY.xattr.user.note": b"dir"}),
)
UPPER = tar(
    entry("etc/.wh.empty"),
    entry("locked/in/y", data=b"y" * 100),
    entry("locked/in/.wh.x", data=b"not empty"),
    entry("etc/new", data=b"new"),
)


def test_the_tree_on_the_host_has_the_names_and_contents_of_the_image(tmp_path: Path) -> None:
    build = flattened(tmp_path, RICH, UPPER)
    tree = build.room.tree
    assert tree is not None
    assert names_below(build.top) == {path for path, _ in tree.walk() if path}
    assert (build.top / "etc/motd").read_bytes() == b"hello\n"
    assert (build.top / "etc/secret").read_bytes() == b"s" * 5000
    assert (build.top / "locked/in/y").read_bytes() == b"y" * 100
    assert not (build.top / "etc/empty").exists()
    motd, hard = (build.top / name for name in ("etc/motd", "also/hard"))
    assert motd.samefile(hard)
    assert motd.stat().st_nlink == 3
    assert str((build.top / "single").readlink()) == "/etc/passwd"
    assert (build.top / "soft").samefile(build.top / "soft2"), "a file: mke2fs links no symlinks"
    assert (build.top / "soft").stat().st_size == 0
    assert (build.top / "long").read_bytes() == b"t" * 60


def test_nothing_special_is_made_on_the_host(tmp_path: Path) -> None:
    build = flattened(tmp_path, RICH)
    for path in build.top.rglob("*"):
        info = path.lstat()
        assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
        kind, mode = stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode)
        if kind != stat.S_IFLNK:
            assert (kind, mode) in ((stat.S_IFREG, 0o600), (stat.S_IFDIR, 0o700)), path
    assert (build.top / "dev/null").stat().st_size == 0
    assert (build.top / "dev/null").samefile(build.top / "dev/null2")


def test_what_is_hidden_leaves_nothing_in_scratch(tmp_path: Path) -> None:
    build = flattened(tmp_path, tar(entry("big", data=b"b" * 3_000_000)), tar(entry(".wh.big")))
    assert sorted(path.name for path in build.room.scratch.iterdir()) == [
        "complete",
        "metadata",
        "tree",
    ]
    assert names_below(build.top) == set()


def test_user_xattrs_are_set_on_the_host_and_no_others(tmp_path: Path) -> None:
    build = flattened(tmp_path, RICH)
    assert os.getxattr(build.top / "user", "user.note") == b"\0\xff"
    assert os.getxattr(build.top / "noted", "user.note") == b"dir"
    assert "security.capability" not in os.listxattr(build.top / "caps")
    assert build.room.not_carried == []
    node = build.room.tree.lookup(b"caps") if build.room.tree else None
    assert node is not None
    assert node.xattrs == ((b"security.capability", CAPABILITY),)


@contextmanager
def mounted(where: Path, kind: str, options: str = "rw") -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.skipif(not ROOT, reason="mounts a filesystem without xattrs")
def test_user_xattrs_that_the_host_refuses_are_listed(tmp_path: Path) -> None:
    build = Build(tmp_path / "build", RICH)
    with mounted(tmp_path / "ramfs", "ramfs") as mount:
        build.room.scratch = mount / "scratch"
        tree = build.run()
        assert flatten.is_whole(build.image, build.room.scratch)
    [line] = build.room.not_carried
    assert line.startswith("user xattrs")
    assert "2, first on /noted" in line
    for name in (b"user", b"noted"):
        node = tree.lookup(name)
        assert node is not None
        assert node.xattrs == (), "or the ownership stage would look for them in the image"


def test_nothing_of_the_host_is_handed_down(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    tmp_path.chmod(0o2755)
    build = flattened(tmp_path, tar(entry("d/x", data=b"x")))
    for path in (build.room.scratch, build.top, build.top / "d", build.top / "d/x"):
        assert not [name for name in os.listxattr(path) if name.startswith(("system.", "user."))]
        assert not path.stat().st_mode & 0o2077


def test_lost_reasons_reach_the_room(tmp_path: Path) -> None:
    raw = entry("x", pax={"SCHILY.xattr.trusted.x": b"1", "mtime": "-99999999999"})
    build = flattened(tmp_path, tar(raw))
    assert sorted(build.room.not_carried) == [
        "mtime outside of 1901..2446, clamped: 1 entry, first /x",
        "xattr trusted.x: 1 entry, first /x",
    ]


def test_holes_stay_holes(tmp_path: Path) -> None:
    pax = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "holes",
        "GNU.sparse.realsize": str(1 << 30),
    }
    raw = entry("x", data=b"1\n4096\n3\n".ljust(512, b"\0") + b"abc", pax=pax)
    info = (flattened(tmp_path, tar(raw)).top / "holes").stat()
    assert info.st_size == 1 << 30
    assert info.st_blocks * 512 < 1 << 20


def test_deep_and_long_paths_do_not_meet_path_max(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(14):
        deep = deep / ("p" * 240)
    deep.mkdir(parents=True)
    long = "/".join(["n" * 200] * 4) + "/x"
    build = flattened(deep, tar(entry(long, data=b"long"), entry("d/" * 127 + "x", data=b"deep")))
    assert build.room.tree is not None
    assert build.room.tree.lookup(long.encode()) is not None
    assert flatten.load(build.image, build.new_room())


# -- staying inside -------------------------------------------------------------------------------

ESCAPES = {
    "link, then through it": lambda outside: [
        entry("l", "symlink", target="../../../outside"),
        entry("l/canary", data=b"evil"),
    ],
    "absolute link": lambda outside: [
        entry("l", "symlink", target=outside),
        entry("l/canary", data=b"evil"),
        entry("l/new", data=b"evil"),
    ],
    "whiteout through a link": lambda outside: [
        entry("l", "symlink", target=outside),
        entry("l/.wh.canary"),
        entry("l/.wh..wh..opq"),
    ],
    "hardlink through a link": lambda outside: [
        entry("l", "symlink", target=outside),
        entry("x", "hardlink", target="l/canary"),
    ],
    "dots": lambda outside: [entry("../../outside/canary", data=b"evil")],
    "absolute path": lambda outside: [entry(f"{outside}/canary", data=b"evil")],
    "absolute hardlink": lambda outside: [entry("x", "hardlink", target=f"{outside}/canary")],
    "directory replaced by a link": lambda outside: [
        entry("d/x", data=b"1"),
        entry("d", "symlink", target=outside),
        entry("d/canary", data=b"evil"),
    ],
}


@pytest.mark.parametrize("stacked", [True, False], ids=["layers", "one layer"])
@pytest.mark.parametrize("case", ESCAPES)
def test_the_host_outside_stays_as_it_is(case: str, tmp_path: Path, *, stacked: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    canary = outside / "canary"
    canary.write_bytes(b"sentinel")
    before = canary.stat()
    entries = ESCAPES[case](str(outside))
    build = Build(tmp_path / "build", *(map(tar, entries) if stacked else [tar(*entries)]))
    try:
        build.run()
    except ImageError as error:
        assert error.code is Code.IMAGE_INVALID
    after = canary.stat()
    assert canary.read_bytes() == b"sentinel"
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert after.st_nlink == 1
    assert [path.name for path in outside.iterdir()] == ["canary"]


def test_a_link_planted_at_scratch_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    build = Build(tmp_path / "build", RICH)
    build.room.scratch.symlink_to(elsewhere)
    build.run()
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert not build.room.scratch.is_symlink()


# -- failing --------------------------------------------------------------------------------------


def test_a_bad_entry_is_named_with_its_layer(tmp_path: Path) -> None:
    bad = tar(entry("ok"), entry("a/../../b\n", data=b"x"))
    with pytest.raises(ImageError) as caught:
        flattened(tmp_path, RICH, bad)
    digest = digest_of(bad)[:19]
    assert caught.value.brief.startswith(rf"layer 2 of 2 ({digest}): a/../../b\n: ")


def test_a_damaged_blob_is_named_for_fetching_again(tmp_path: Path) -> None:
    build = Build(tmp_path, RICH, UPPER)
    path = tmp_path / digest_of(UPPER)[7:]
    path.write_bytes(UPPER.replace(b"new", b"old"))
    with pytest.raises(LayerMismatch) as caught:
        build.run()
    assert caught.value.blob == digest_of(UPPER)
    assert build.room.tree is None
    path.write_bytes(UPPER)
    build.run()
    assert (build.top / "etc/new").read_bytes() == b"new"


def test_a_failed_pull_is_the_error(tmp_path: Path) -> None:
    build = Build(tmp_path, RICH)
    build.room.feed = Feed(build.image.pinned)
    build.room.feed.fail(HostError("the pull failed"))
    with pytest.raises(HostError, match="the pull failed"):
        build.run()


def test_cancellation_stops_between_chunks(tmp_path: Path) -> None:
    build = Build(tmp_path, tar(entry("big", data=bytes(8 << 20)), entry("next")))
    build.room.emit = lambda *_, **__: build.room.cancelled.set()
    build.room.cancelled.set()
    with pytest.raises(Interrupted):
        build.run()
    assert not flatten.is_whole(build.image, build.room.scratch)


@pytest.mark.skipif(not ROOT, reason="mounts a small tmpfs")
def test_a_full_disk_says_where_and_how_much(tmp_path: Path) -> None:
    build = Build(tmp_path / "build", tar(entry("big", data=os.urandom(3 << 20))))
    with mounted(tmp_path / "small", "tmpfs", "size=1m") as mount:
        build.room.scratch = mount / "scratch"
        with pytest.raises(HostError) as caught:
            build.run()
    assert caught.value.code is Code.DISK_FULL
    assert caught.value.retryable
    assert str(build.room.scratch) in caught.value.brief
    assert str(3 << 20) in caught.value.brief


def test_a_scratch_that_cannot_be_made_is_the_hosts_fault(tmp_path: Path) -> None:
    build = Build(tmp_path, RICH)
    build.room.scratch = tmp_path / "no" / "such" / "parent"
    with pytest.raises(HostError, match="parent"):
        build.run()


# -- progress and resuming ------------------------------------------------------------------------


def test_progress_counts_compressed_bytes_at_a_bounded_rate(tmp_path: Path) -> None:
    many = tar(*(entry(f"d{i % 50}/f{i}", data=b"x" * 100) for i in range(5000)))
    build = flattened(tmp_path, many, UPPER)
    total = len(many) + len(UPPER)
    done = [event["done"] for event in build.events]
    assert done == sorted(done)
    assert done[-1] == total
    assert {(e["event"], e["stage"], e["total"], e["unit"]) for e in build.events} == {
        ("stage.progress", "flatten", total, "bytes")
    }
    assert len(done) < 200


def as_rows(tree: Tree) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    first: dict[Node, bytes] = {}
    for path, node in tree.walk():
        attributes = (node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size)
        rest = (node.target, node.rdev, node.xattrs, node.nlink, first.setdefault(node, path))
        rows.append((path, *attributes, *rest))
    return rows


def test_a_finished_tree_is_taken_up_again(tmp_path: Path) -> None:
    build = flattened(tmp_path, RICH, UPPER, tar(entry("t", pax={"SCHILY.xattr.trusted.x": "1"})))
    room = build.new_room()
    assert flatten.is_whole(build.image, room.scratch)
    assert flatten.load(build.image, room)
    assert room.tree is not None
    assert build.room.tree is not None
    assert as_rows(room.tree) == as_rows(build.room.tree)
    assert room.not_carried == build.room.not_carried != []


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = {
    "a file gone": lambda top: (top / "etc/motd").unlink(),
    "a file too much": lambda top: (top / "etc/extra").touch(),
    "a file shorter": lambda top: os.truncate(top / "etc/secret", 10),
    "a directory gone": lambda top: remove(top / "locked"),
    "a link elsewhere": lambda top: (top / "single").unlink() or (top / "single").symlink_to("x"),
    "a hardlink broken": lambda top: (
        shutil.copy(top / "hard", top / "c") and (top / "c").rename(top / "hard")
    ),
    "another kind": lambda top: (top / "dev/sda").unlink() or (top / "dev/sda").mkdir(),
    "no tree": remove,
    "no marker": lambda top: (top.parent / "complete").unlink(),
    "no metadata": lambda top: (top.parent / "metadata").unlink(),
    "other metadata": lambda top: (top.parent / "metadata").write_text("{}"),
    "marker of another boot": lambda top: (top.parent / "complete").write_text(
        json.dumps({**json.loads((top.parent / "complete").read_text()), "boot": "earlier"})
    ),
    "marker cut short": lambda top: os.truncate(top.parent / "complete", 5),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_not_whole_is_built_again(case: str, tmp_path: Path) -> None:
    build = flattened(tmp_path, RICH)
    DAMAGE[case](build.top)
    room = build.new_room()
    assert not flatten.load(build.image, room)
    assert not flatten.is_whole(build.image, room.scratch)
    assert room.tree is None
    build.room = room
    build.run()
    assert flatten.is_whole(build.image, room.scratch)


def test_no_scratch_is_not_whole(tmp_path: Path) -> None:
    assert not flatten.is_whole(desired(), tmp_path / "none")


# -- against a peer -------------------------------------------------------------------------------

T = 1_600_000_000
PEER_STACKS = {
    "types, links and odd names": [
        [
            entry("./", "dir", mode=0o755, mtime=T),
            entry("bin/", "dir", mtime=T),
            entry("bin/su", data=b"su" * 4000, mode=0o4755, mtime=T + 1),
            entry("bin/su-too", "hardlink", target="bin/su", mtime=T + 1),
            entry("bin/ping", data=b"ping", mtime=T, pax={"mtime": f"{T}.123456789"}),
            entry("usr/lib/", "dir", mode=0o555, uid=1, gid=2, mtime=T),
            entry("lib", "symlink", target="usr/lib", mtime=T),
            entry("lib2", "hardlink", target="lib", mtime=T),
            entry(b"odd/", "dir", mtime=T),
            entry(b'odd/ "\\\n\xff', data=b"odd", uid=70000, gid=65536, mtime=T),
            entry("dev/", "dir", mtime=T),
            entry("dev/full", "char", rdev=(1, 7), mode=0o666, mtime=T),
            entry("dev/loop300", "block", rdev=(7, 300), mode=0o660, gid=6, mtime=T),
            entry("dev/pipe", "fifo", mode=0o600, mtime=T),
            entry("zero", mode=0, mtime=T),
        ],
        [
            entry("lib/n.so", data=b"so", mtime=T + 5),
            entry("bin/su", data=b"replaced", mode=0o755, mtime=T + 5),
            entry("bin/ping2", "hardlink", target="bin/ping", mtime=T),
        ],
    ],
    "whiteouts": [
        [
            entry("a/", "dir", mtime=T),
            entry("a/one", data=b"1", mtime=T),
            entry("a/two", data=b"2", mtime=T),
            entry("b/", "dir", mtime=T),
            entry("b/sub/", "dir", mtime=T),
            entry("b/sub/old", data=b"old", mtime=T),
            entry("c/", "dir", mtime=T),
            entry("c/old", data=b"old", mtime=T),
            entry("kept", "hardlink", target="a/one", mtime=T),
            entry("l", "symlink", target="a", mtime=T),
        ],
        [
            entry("a/.wh.one", mtime=T),
            entry("l/.wh.two", mtime=T),
            entry(".wh.b", "hardlink", target="kept", mtime=T),
            entry("c/", "dir", mode=0o700, mtime=T),
            entry("c/new", data=b"new", mtime=T),
            entry("c/.wh..wh..opq", mtime=T),
        ],
        [entry("b/", "dir", mode=0o711, mtime=T), entry("b/again", data=b"again", mtime=T)],
    ],
    "changes of type": [
        [
            entry("f", data=b"f", mtime=T),
            entry("d/", "dir", mtime=T),
            entry("d/x", data=b"x", mtime=T),
            entry("s", "symlink", target="d", mtime=T),
            entry("e/", "dir", mtime=T),
            entry("e/x", data=b"x", mtime=T),
            entry("p", "fifo", mtime=T),
        ],
        [
            entry("f/", "dir", mtime=T),
            entry("f/x", data=b"fx", mtime=T),
            entry("d", "symlink", target="nowhere", mtime=T),
            entry("s/", "dir", mode=0o700, mtime=T),
            entry("s/y", data=b"y", mtime=T),
            entry("e", data=b"now a file", mtime=T),
            entry("p", data=b"was a pipe", mtime=T),
        ],
    ],
}


def of_disk(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Every name of an unpacked tree with all that the image says of it."""
    found = {}
    inodes: dict[int, bytes] = {}
    for path in sorted([b"", *names_below(top)]):
        full = top / os.fsdecode(path)
        info = full.lstat()
        kind = stat.S_IFMT(info.st_mode)
        directory = kind == stat.S_IFDIR
        first = path if directory else inodes.setdefault(info.st_ino, path)
        mode = None if kind == stat.S_IFLNK else stat.S_IMODE(info.st_mode)
        special = kind in (stat.S_IFCHR, stat.S_IFBLK)
        rdev = (os.major(info.st_rdev), os.minor(info.st_rdev)) if special else None
        links = None if directory else info.st_nlink
        owner = (info.st_uid, info.st_gid)
        target = os.fsencode(full.readlink()) if kind == stat.S_IFLNK else b""
        content = full.read_bytes() if kind == stat.S_IFREG else b""
        found[path] = (kind, mode, owner, info.st_mtime_ns, rdev, links, target, content, first)
    return found


FORMATS = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def of_build(build: Build) -> dict[bytes, tuple[object, ...]]:
    """The same of ours: attributes from the tree, content from the staging tree."""
    assert build.room.tree is not None
    found = {}
    first: dict[Node, bytes] = {}
    for path, node in build.room.tree.walk():
        directory = node.kind is Kind.DIRECTORY
        mode = None if node.kind is Kind.SYMLINK else node.mode
        special = node.kind in (Kind.CHARACTER, Kind.BLOCK)
        on_host = build.top / os.fsdecode(path)
        found[path] = (
            FORMATS[node.kind],
            mode,
            (node.uid, node.gid),
            node.mtime_ns,
            node.rdev if special else None,
            None if directory else node.nlink,
            node.target,
            on_host.read_bytes() if node.kind is Kind.REGULAR else b"",
            path if directory else first.setdefault(node, path),
        )
    return found


@pytest.mark.skipif(not ROOT or not shutil.which("umoci"), reason="needs umoci and root")
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("stack", PEER_STACKS)
def test_equals_what_umoci_unpacks(stack: str, compression: str, tmp_path: Path) -> None:
    tars = [tar(*layer) for layer in PEER_STACKS[stack]]
    make_layout(tmp_path / "layout", tars, compression=compression)
    theirs = tmp_path / "umoci"
    command = ["umoci", "raw", "unpack", "--image", f"{tmp_path / 'layout'}:latest", theirs]
    subprocess.run(command, check=True, capture_output=True)
    wanted = of_disk(theirs)
    ours = of_build(flattened(tmp_path / "build", *tars))
    implied = {path for path, held in ours.items() if held[3] == 0}
    for path in implied | {b""}:  # what no header describes has the time of unpacking there
        for one in (ours, wanted):
            one[path] = (*one[path][:3], None, *one[path][4:])
    assert ours == wanted

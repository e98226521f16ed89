"""The two builders give the same image: for every stack of layers, names and errors included."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.builders import BUILDERS, Facts, build, check, listing
from support.filesystems import ACL, CAPABILITY, MIB
from support.tarball import entry, tar

from reconciler.errors import BangerError

ZOO = tar(
    entry("./", "dir", mode=0o711, uid=3, mtime=5),
    entry("a", data=b"0123456789", mode=0o6755, uid=1000, pax={"SCHILY.xattr.user.x": b"v"}),
    entry("acl", mode=0o674, pax={"SCHILY.xattr.system.posix_acl_access": ACL}),
    entry("cap", data=b"x" * 9, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
    entry("large", data=b"y", pax={"SCHILY.xattr.user.large": b"z" * 3000}),
    entry("both", data=b"y", pax={"SCHILY.xattr.user.a": b"z", "SCHILY.xattr.user.b": b"q" * 900}),
    entry("dev/", "dir", mode=0o1777, pax={"SCHILY.xattr.system.posix_acl_default": ACL}),
    entry("dev/null", "char", mode=0o666, rdev=(1, 3)),
    entry("dev/big", "block", mode=0o660, gid=6, rdev=(259, 1_048_575)),
    entry("dev/zero", "char", mode=0, rdev=(0, 0)),
    entry("dev/pipe", "fifo", mode=0o600, mtime=9_000_000_000),
    entry("closed/", "dir", mode=0),
    entry("closed/s1", data=b"s" * 5000, uid=65536, gid=4294967294, pax={"mtime": "17.123456789"}),
    entry("s2", "hardlink", target="closed/s1"),
    entry("old", data=b"", pax={"mtime": "-1.5"}),
    entry("future", data=b"", mtime=10737418240 + 5),
    entry("long", "symlink", target=b"x" * 100, uid=5),
    entry("just", "symlink", target=b"y" * 60),
    entry("short", "symlink", target=b"z" * 59),
    entry("longest", "symlink", target=b"w" * 4095),
    entry("block", data=b"b" * 4096),
    entry("two", data=b"c" * 4097),
    entry("zeros", data=bytes(300_000) + b"end"),
    entry("mixed", data=b"start" + bytes(200_000) + b"middle" + bytes(70_000)),
)
NAMES = tar(
    *(
        entry(name, data=b"n")
        for name in (
            b"new\nline", b"\r", b'"', b"'", b"!touch x", b"#", b"<2>", b" ", b"\t", b"\\", b"-rf",
            b"\xff\xfe", b"caf\xc3\xa9", b"cafe\xcc\x81", b"x" * 255, b"A", b"..x", b"%s",
            b"\x1b[31m",
        )
    ),
    *(entry(b"/".join([b"d" * 100] * deep) + b"/", "dir") for deep in range(1, 10)),
)  # fmt: skip
UPPER = tar(
    entry(".wh.a"),
    entry("closed/.wh..wh..opq"),
    entry("dev", "symlink", target="elsewhere"),
    entry("large/", "dir"),
    entry("large/inside", data=b"now a directory"),
    entry("s3", "hardlink", target="s2"),
    entry("lost+found/", "dir", mode=0o711, uid=7),
    entry("lost+found/saved", data=b"from a disk"),
)
STACKS = {
    "one of everything": [ZOO],
    "upper layers": [ZOO, UPPER],
    "hostile names": [NAMES],
    "nothing": [tar()],
    "only lost+found": [tar(entry("lost+found/", "dir", mode=0o700))],
}


@pytest.mark.parametrize("size", [64 * MIB, None], ids=["fixed", "auto"])
@pytest.mark.parametrize("stack", STACKS)
def test_both_builders_give_the_same_image(stack: str, size: int | None, tmp_path: Path) -> None:
    rooms = [build(STACKS[stack], tmp_path / name, name, size) for name in BUILDERS]
    for room in rooms:
        check(room.rootfs)
    assert listing(rooms[0].rootfs) == listing(rooms[1].rootfs)
    assert rooms[0].not_carried == rooms[1].not_carried
    assert rooms[0].rootfs.stat().st_size == rooms[1].rootfs.stat().st_size


GUESTS: dict[str, bytes] = {
    "plain": tar(entry("etc/hostname", data=b"guest\n")),
    "links": tar(
        entry("usr/lib/", "dir", mtime=77),
        entry("etc", "symlink", target="usr/lib"),
        entry("var/lib", "symlink", target="../usr/lib"),
    ),
    "replaced": tar(
        entry("etc/banger/image.json", data=b"{}" * 9000),
        entry("copy", "hardlink", target="etc/banger/image.json"),
        entry("etc/systemd/system/banger-network.service", "symlink", target="/dev/null"),
    ),
    "gone": tar(entry("etc/banger/image.json", data=b"{}" * 9000)),
    "loop": tar(entry("etc", "symlink", target="etc")),
    "nowhere": tar(entry("etc", "symlink", target="missing")),
    "file": tar(entry("etc", data=b"no directory")),
    "directory": tar(entry("etc/banger/image.json/", "dir")),
}


def outcome(run: Callable[[], dict[bytes, Facts]]) -> object:
    try:
        return run()
    except BangerError as error:
        return error.code


@pytest.mark.parametrize("name", GUESTS)
def test_guest_assets_go_where_both_builders_put_them(name: str, tmp_path: Path) -> None:
    def made(builder: str) -> dict[bytes, Facts]:
        room = build([GUESTS[name]], tmp_path / builder, builder, 64 * MIB, guest=True)
        check(room.rootfs)
        return listing(room.rootfs)

    assert outcome(lambda: made("direct")) == outcome(lambda: made("tools"))


PATHS = st.lists(st.sampled_from([b"a", b"b", b"c", b"l"]), min_size=1, max_size=3).map(b"/".join)
TARGETS = st.sampled_from([b"a", b"b/c", b"/a", b"../b", b"l", b"c"])


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    path = draw(PATHS)
    kind = draw(
        st.sampled_from(["file", "file", "dir", "dir", "symlink", "hardlink", "gone", "opq"])
    )
    owner = {"uid": draw(st.integers(0, 70_000)), "mtime": draw(st.integers(-5, 1 << 33))}
    if kind == "gone":
        directory, _, name = path.rpartition(b"/")
        return entry(b"/".join(filter(None, [directory, b".wh." + name])))
    if kind == "opq":
        return entry(path + b"/.wh..wh..opq")
    if kind == "file":
        data = draw(st.binary(max_size=20)) * draw(st.sampled_from([0, 1, 300, 5000]))
        return entry(path, data=data, **owner)
    if kind == "dir":
        return entry(path + b"/", "dir", **owner)
    target = draw(PATHS if kind == "hardlink" else TARGETS)
    return entry(path, kind, target=target, **owner)


LAYERS = st.lists(entries(), max_size=8).map(lambda found: tar(*found))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(layers=st.lists(LAYERS, min_size=1, max_size=4), size=st.sampled_from([None, 16 * MIB]))
def test_random_stacks_of_layers_come_out_the_same(layers: list[bytes], size: int | None) -> None:
    with tempfile.TemporaryDirectory() as base:

        def made(builder: str) -> dict[bytes, Facts]:
            return listing(build(layers, Path(base, builder), builder, size).rootfs)

        assert outcome(lambda: made("direct")) == outcome(lambda: made("tools"))

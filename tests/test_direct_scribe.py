"""Inodes of files: written by a process of its own, or at once, they are the same."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.builders import build, check, desired, listing, room_for, run
from support.children import children
from support.filesystems import MIB
from support.tarball import entry, tar

from reconciler.direct import builder, scribe
from reconciler.direct.scribe import Scribe
from reconciler.errors import Code, HostError
from reconciler.ext4.reader import Filesystem
from reconciler.oci import layers as oci_layers

LAYERS = [
    tar(
        *(entry(f"d{n % 7}/old{n}", data=b"%d" % n) for n in range(600)),
        entry("one", data=b"content"),
        entry("two", "hardlink", target="one"),
        entry("three", "hardlink", target="one"),
        entry("usr/lib/x", data=b"old"),
        entry("lib", "symlink", target="usr/lib"),
    ),
    tar(
        *(entry(f"d{n % 5}/new{n}", data=b"%d" % n, mode=0o4755, uid=70_000) for n in range(700)),
        entry(".wh.two"),
        entry("lib/x", data=b"new"),
        entry("future", data=b"f", pax={"mtime": "20000000000"}),
        entry("attributes", data=b"a", pax={"SCHILY.xattr.user.a": b"b"}),
    ),
]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is a large one."""
    monkeypatch.setattr(builder, "_LARGE", 0)


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def digest(rootfs: Path) -> str:
    return hashlib.sha256(rootfs.read_bytes()).hexdigest()


def test_a_process_and_none_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces in which layers come, too: they decide when inodes are written."""
    alone = build(LAYERS, tmp_path / "alone", "direct", 32 * MIB)
    monkeypatch.setattr(builder, "_LARGE", 0)
    monkeypatch.setattr(oci_layers, "_LARGE", 0)
    together = build(LAYERS, tmp_path / "together", "direct", 32 * MIB)
    check(alone.rootfs)
    assert digest(alone.rootfs) == digest(together.rootfs)
    tools = build(LAYERS, tmp_path / "tools", "tools", 32 * MIB)
    assert listing(alone.rootfs) == listing(tools.rootfs)


@pytest.mark.usefixtures("beside")
def test_what_was_written_in_vain_is_free_again(tmp_path: Path) -> None:
    """usr/lib/x of the older layer: only the merge knows that the newer one hides it."""
    room = build(LAYERS, tmp_path, "direct", 32 * MIB)
    check(room.rootfs)
    said = subprocess.run(["dumpe2fs", room.rootfs], capture_output=True, check=True).stdout
    with Filesystem(room.rootfs) as filesystem:
        used = {inode.number for _, inode in filesystem.walk()}
        reserved = set(range(1, 12))
        assert filesystem.free_inodes == filesystem.inodes - len(used | reserved)
    assert b"with errors" not in said


@pytest.mark.usefixtures("beside")
def test_its_death_is_an_error_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Scribe.begin

    def murdered(self: Scribe) -> None:
        for child in children() - before:
            os.kill(int(child), signal.SIGKILL)
        begin(self)

    monkeypatch.setattr(scribe.Scribe, "begin", murdered)
    before = children()
    with pytest.raises(HostError, match="writes inodes was killed by SIGKILL") as caught:
        build(LAYERS, tmp_path, "direct", 32 * MIB)
    assert caught.value.code is Code.TOOL_FAILED
    assert children() == before


@pytest.mark.usefixtures("beside")
def test_it_ends_with_a_build_that_fails(tmp_path: Path) -> None:
    before, descriptors = children(), descriptors_open()
    image = desired([*LAYERS, tar(entry("x", "z"))], tmp_path, "direct", 32 * MIB)
    with pytest.raises(Exception, match="unknown tar entry type"):
        run(image, room_for(image, tmp_path))
    assert children() == before
    assert descriptors_open() == descriptors


def test_it_says_what_was_wrong(tmp_path: Path) -> None:
    with Scribe(tmp_path / "missing") as one, pytest.raises(HostError, match="No such file"):
        one.write([(12, 1, 0o644, 0, 0, 0, 0, ())])
        one.finish(lambda: None)


def test_whoever_waits_for_it_can_be_interrupted(tmp_path: Path) -> None:
    def checkpoint() -> None:
        raise KeyError

    before = children()
    with Scribe(tmp_path / "any") as one:
        [child] = children() - before
        os.kill(int(child), signal.SIGSTOP)
        with pytest.raises(KeyError):
            one.finish(checkpoint)
    assert children() == before


LATE = {
    "the last of two": [
        tar(entry("etc/hostname", data=b"g\n"), entry("z", data=b"x"), entry("z")),
    ],
    "one behind a link": [
        tar(entry("usr/lib/x", data=b"old"), entry("lib", "symlink", target="usr/lib")),
        tar(entry("lib/x")),
    ],
}
"""The content that was numbered last is not in the image."""


@pytest.mark.parametrize("name", LATE)
def test_an_asset_never_takes_what_was_given_back(name: str, tmp_path: Path) -> None:
    rooms = [
        build(LATE[name], tmp_path / builder, builder, 64 * MIB, guest=True)
        for builder in ("direct", "tools")
    ]
    for room in rooms:
        check(room.rootfs)
    assert listing(rooms[0].rootfs) == listing(rooms[1].rootfs)


def test_an_image_that_fits_is_built_however_much_was_written_in_vain(tmp_path: Path) -> None:
    """Numbers that were given to hidden files come to more than the filesystem has to spare."""
    lower = [entry("lib", "symlink", target="usr/lib")]
    lower += [entry(f"usr/lib/f{n}", data=b"1") for n in range(1900)]
    lower += [entry(f"e/f{n}") for n in range(1200)]
    upper = [entry(f"lib/f{n}", data=b"2") for n in range(1900)]
    room = build([tar(*lower), tar(*upper)], tmp_path, "direct", 64 * MIB)
    check(room.rootfs)
    assert len(listing(room.rootfs)) == 1900 + 1200 + 6

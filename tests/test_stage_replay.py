"""Layers are read newest first, and what they hide is not stored, unless the image has it yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import BUILDERS, build, check, desired, listing, room_for
from support.filesystems import MIB
from support.tarball import entry, tar

from reconciler.oci.entries import Node
from reconciler.oci.tar import Payload
from reconciler.stages.replay import replay


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}

    def add(self, node: Node, payload: Payload) -> None:
        whole = b"".join(bytes(memoryview(p)) for p in payload if not isinstance(p, int))
        assert len(whole) == node.size
        self.contents[node.content] = whole

    def flush(self) -> None:
        """All is kept as copies."""

    def settle(self) -> None:
        """Nothing waits."""

    def finish(self, serials: set[int]) -> None:
        assert serials - {0} <= self.contents.keys()


def replayed(layers: list[bytes], base: Path) -> tuple[dict[bytes, bytes], list[bytes]]:
    """The content of each file of the image, and all that was stored for it, in order."""
    base.mkdir()
    image = desired(layers, base, "direct", None)
    sink = Kept()
    tree = replay(image, room_for(image, base), lambda: sink)
    files = {path: sink.contents[node.content] for path, node in tree.walk() if node.content}
    return files, list(sink.contents.values())


STACKS = {
    "replaced, deleted, and a whole directory": (
        [
            tar(entry("a", data=b"old a"), entry("b", data=b"old b"), entry("c", data=b"c")),
            tar(entry("d/e", data=b"old e"), entry("d/f", data=b"old f"), entry("a", data=b"a2")),
            tar(entry("a", data=b"a3"), entry(".wh.b"), entry("d", data=b"no directory")),
        ],
        {b"a": b"a3", b"c": b"c", b"d": b"no directory"},
        [b"a3", b"no directory", b"c"],
    ),
    "an opaque directory": (
        [
            tar(entry("d/x", data=b"old x"), entry("d/s/y", data=b"old y"), entry("z", data=b"z")),
            tar(entry("d/.wh..wh..opq"), entry("d/new", data=b"new")),
        ],
        {b"d/new": b"new", b"z": b"z"},
        [b"new", b"z"],
    ),
    "a name of two goes, the file stays": (
        [
            tar(entry("one", data=b"content"), entry("two", "hardlink", target="one")),
            tar(entry(".wh.one"), entry("late", data=b"late")),
        ],
        {b"two": b"content", b"late": b"late"},
        [b"late", b"content"],
    ),
    "a link of a newer layer keeps what it removes": (
        [
            tar(entry("old", data=b"content")),
            tar(entry("new", "hardlink", target="old"), entry(".wh.old")),
        ],
        {b"new": b"content"},
        [b"content"],
    ),
    "a directory that is reached through a link": (
        [
            tar(entry("usr/lib/x", data=b"old"), entry("lib", "symlink", target="usr/lib")),
            tar(entry("lib/x", data=b"new"), entry("usr/.wh.none")),
        ],
        {b"usr/lib/x": b"new"},
        [b"new", b"old"],  # only the merge knows that these are one
    ),
    "content that is hidden and still there in each of three layers": (
        [
            tar(entry("1", data=b"one"), entry("1b", "hardlink", target="1")),
            tar(entry("2", data=b"two"), entry("2b", "hardlink", target="2"), entry(".wh.1")),
            tar(entry(".wh.2"), entry("3", data=b"three")),
        ],
        {b"1b": b"one", b"2b": b"two", b"3": b"three"},
        [b"three", b"one", b"two"],
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_stored_is_what_the_image_has(name: str, tmp_path: Path) -> None:
    layers, files, stored = STACKS[name]
    assert replayed(layers, tmp_path / "room") == (files, stored)


@pytest.mark.parametrize("size", [None, 32 * MIB])
@pytest.mark.parametrize("name", STACKS)
def test_both_builders_build_it(name: str, size: int | None, tmp_path: Path) -> None:
    layers, _, _ = STACKS[name]
    rooms = [build(layers, tmp_path / builder, builder, size) for builder in BUILDERS]
    for room in rooms:
        check(room.rootfs)
    assert listing(rooms[0].rootfs) == listing(rooms[1].rootfs)


def test_the_same_layer_twice_and_no_layer(tmp_path: Path) -> None:
    layer = tar(entry("a", data=b"a"), entry("b", "hardlink", target="a"))
    assert replayed([layer, layer], tmp_path / "twice")[0] == {b"a": b"a", b"b": b"a"}
    assert replayed([], tmp_path / "none") == ({}, [])

"""What newer layers hide of older ones, by names alone."""

from __future__ import annotations

import pytest

from reconciler.oci.cover import Cover
from reconciler.oci.entries import Header, Kind

FILE, DIRECTORY, SYMLINK, HARDLINK = Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK


def covered(*entries: tuple[bytes, Kind] | tuple[bytes, Kind, bytes]) -> Cover:
    cover = Cover()
    for path, kind, *target in entries:
        cover.add(Header(path, kind, target=b"".join(target)))
    cover.end_layer()
    return cover


@pytest.mark.parametrize(
    ("entry", "hidden", "shown"),
    [
        ((b"a/f", FILE), b"a/f", b"a/g"),
        ((b"./a//f", FILE), b"/a/./f", b"f"),
        ((b"a", SYMLINK), b"a/deep/f", b"ab/f"),
        ((b"a", HARDLINK), b"a", b"b"),
        ((b"a/", DIRECTORY), b"a", b"a/f"),  # a file gives way to it, a directory goes on
        ((b"a/.wh.f", FILE), b"a/f", b"a/ff"),
        ((b"a/.wh.d", FILE), b"a/d/e/f", b"a/e/f"),
        ((b".wh.a", FILE), b"a/f", b"b"),
        ((b"a/.wh..wh..opq", FILE), b"a/d/f", b"b/f"),
        ((b".wh..wh..opq", FILE), b"f", None),
    ],
)
def test_an_entry_hides(entry: tuple[bytes, Kind], hidden: bytes, shown: bytes | None) -> None:
    cover = covered(entry)
    assert cover.hides(hidden)
    assert shown is None or not cover.hides(shown)


def test_nothing_hides_what_is_in_its_own_layer() -> None:
    cover = Cover()
    cover.add(Header(b"a", FILE))
    cover.add(Header(b".wh..wh..opq", FILE))
    assert not cover.hides(b"a")
    assert not cover.hides(b"b")


def test_all_newer_layers_count_and_answers_do_not_outlive_a_layer() -> None:
    cover = covered((b"a/f", FILE))
    assert not cover.hides(b"b/d/f")
    cover.add(Header(b".wh.b", FILE))
    cover.end_layer()
    assert cover.hides(b"b/d/f")
    assert cover.hides(b"a/f")


def test_the_target_of_a_hardlink_may_live_on_under_the_other_name() -> None:
    cover = covered((b"new", HARDLINK, b"./old"), (b".wh.old", FILE))
    assert not cover.hides(b"old")

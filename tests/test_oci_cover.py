"""What newer layers hide of older ones, by names alone."""

from __future__ import annotations

import pytest

from reconciler.oci.cover import Cover
from reconciler.oci.entries import Header, Kind
from reconciler.oci.item import Item, prepare
from reconciler.oci.limits import DEFAULTS, Budget

FILE, DIRECTORY, SYMLINK, HARDLINK = Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK


def item(path: bytes, kind: Kind = FILE, target: bytes = b"target") -> Item:
    return prepare(Header(path, kind, target=target), Budget(DEFAULTS))


def covered(*entries: tuple[bytes, Kind] | tuple[bytes, Kind, bytes]) -> Cover:
    cover = Cover()
    for entry in entries:
        cover.add(item(*entry))
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
    assert cover.hides(item(hidden))
    assert shown is None or not cover.hides(item(shown))


def test_nothing_hides_what_is_in_its_own_layer() -> None:
    cover = Cover()
    cover.add(item(b"a"))
    cover.add(item(b".wh..wh..opq"))
    assert not cover.hides(item(b"a"))
    assert not cover.hides(item(b"b"))


def test_all_newer_layers_count_and_answers_do_not_outlive_a_layer() -> None:
    cover = covered((b"a/f", FILE))
    assert not cover.hides(item(b"b/d/f"))
    cover.add(item(b".wh.b"))
    cover.end_layer()
    assert cover.hides(item(b"b/d/f"))
    assert cover.hides(item(b"a/f"))


def test_the_target_of_a_hardlink_may_live_on_under_the_other_name() -> None:
    cover = covered((b"new", HARDLINK, b"./old"), (b".wh.old", FILE))
    assert not cover.hides(item(b"old"))

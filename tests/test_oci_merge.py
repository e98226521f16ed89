"""Layers add up as the image specification says, and what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import Code, ImageError
from reconciler.oci import carry
from reconciler.oci.entries import Header, Kind, Node, Tree
from reconciler.oci.item import prepare
from reconciler.oci.limits import Limits
from reconciler.oci.merge import Merge

NOW = 1_700_000_000 * 10**9
Layers = list[list[Header]]


def f(path: bytes, content: int = 1, **fields: object) -> Header:
    return replace(
        Header(path, Kind.REGULAR, 0o644, 1, 2, NOW, size=content, content=content), **fields
    )


def d(path: bytes, mode: int = 0o750, **fields: object) -> Header:
    return replace(Header(path, Kind.DIRECTORY, mode, 3, 4, NOW), **fields)


def s(path: bytes, target: bytes) -> Header:
    return Header(path, Kind.SYMLINK, 0o777, 0, 0, NOW, target=target)


def h(path: bytes, target: bytes) -> Header:
    return Header(path, Kind.HARDLINK, 0o600, 9, 9, 0, target=target)


def merged(*layers: list[Header], limits: Limits | None = None) -> Tree:
    merge = Merge(limits or Limits())
    for layer in layers:
        merge.begin_layer()
        for header in layer:
            merge.add(header)
        merge.end_layer()
    return merge.finish()


def shape(tree: Tree) -> dict[str, object]:
    """Names to what they hold: a file's content, a link's target, a directory's mode."""

    def held(node: Node) -> object:
        if node.kind is Kind.SYMLINK:
            return node.target.decode()
        return {Kind.REGULAR: node.content, Kind.DIRECTORY: f"{node.mode:o}"}.get(
            node.kind, node.kind.name
        )

    return {path.decode("latin-1"): held(node) for path, node in tree.walk() if path}


W, OPQ = b".wh.", b".wh..wh..opq"

MERGES: dict[str, tuple[Layers, dict[str, object]]] = {
    "dots and slashes go": (
        [[f(b"./a//b/./c"), f(b"/abs/x", 2)]],
        {"a": "755", "a/b": "755", "a/b/c": 1, "abs": "755", "abs/x": 2},
    ),
    "names are bytes": (
        [[f(b"A"), f(b"a", 2), f(b"..\\x", 3), f(b"C:\\x", 4), f(b"\xff\n", 5), f(b"-", 6)]],
        {"-": 6, "..\\x": 3, "A": 1, "C:\\x": 4, "a": 2, "\xff\n": 5},
    ),
    "a file becomes a directory": ([[f(b"f"), f(b"f/x", 2)]], {"f": "755", "f/x": 2}),
    "a lower file becomes a directory": ([[f(b"f")], [f(b"f/x", 2)]], {"f": "755", "f/x": 2}),
    "an implied parent, then its entry": ([[f(b"p/x"), d(b"p/")]], {"p": "750", "p/x": 1}),
    "an entry, then use": ([[d(b"p")], [f(b"p/x")]], {"p": "750", "p/x": 1}),
    "the last of two wins": ([[f(b"x"), f(b"x", 2)]], {"x": 2}),
    "a directory entry keeps what is in it": (
        [[d(b"p", 0o700), f(b"p/x")], [d(b"p", 0o711)]],
        {"p": "711", "p/x": 1},
    ),
    "lib -> usr/lib, a file lands behind it": (
        [[d(b"usr/lib"), s(b"lib", b"usr/lib")], [f(b"lib/n.so")]],
        {"lib": "usr/lib", "usr": "755", "usr/lib": "750", "usr/lib/n.so": 1},
    ),
    "an absolute link in the way": (
        [[d(b"usr/lib"), s(b"a/lib", b"/usr/./lib/")], [f(b"a/lib/x")]],
        {"a": "755", "a/lib": "/usr/./lib/", "usr": "755", "usr/lib": "750", "usr/lib/x": 1},
    ),
    "a link out of the image stays in": (
        [[s(b"l", b"../../../.."), f(b"l/x")]],
        {"l": "../../../..", "x": 1},
    ),
    "a link to the root": ([[s(b"m", b"/"), f(b"m/y")]], {"m": "/", "y": 1}),
    "a link with dots in its target": (
        [[d(b"a/b"), d(b"c"), s(b"a/b/l", b"../../c/../c"), f(b"a/b/l/x")]],
        {"a": "755", "a/b": "750", "a/b/l": "../../c/../c", "c": "750", "c/x": 1},
    ),
    "a link to what is not there": (
        [[s(b"l", b"new/dir"), f(b"l/x")]],
        {"l": "new/dir", "new": "755", "new/dir": "755", "new/dir/x": 1},
    ),
    "a directory over a link": (
        [[d(b"t"), f(b"t/x"), s(b"l", b"t")], [d(b"l"), f(b"l/y", 2)]],
        {"l": "750", "l/y": 2, "t": "750", "t/x": 1},
    ),
    "a link over a full directory": (
        [[f(b"p/q/x")], [s(b"p", b"t")], [f(b"p/y", 2)]],
        {"p": "t", "t": "755", "t/y": 2},
    ),
    "a file over a full directory": ([[f(b"p/q/x")], [f(b"p", 2)]], {"p": 2}),
    "a hardlink over a full directory": (
        [[f(b"p/q/x"), f(b"y", 2), h(b"p", b"y")]],
        {"p": 2, "y": 2},
    ),
    "a hardlink over what it names": ([[f(b"p/q/x"), h(b"p", b"p/q/x")]], {"p": 1}),
    "a hardlink over itself": ([[f(b"x")], [h(b"x", b"./x")]], {"x": 1}),
    "a directory over a device": (
        [[Header(b"n", Kind.FIFO)], [d(b"n"), Header(b"m", Kind.CHARACTER, rdev=(1, 3))]],
        {"m": "CHARACTER", "n": "750"},
    ),
    "a file and its whiteout": ([[f(b"x")], [f(b"x", 2), f(W + b"x")]], {"x": 2}),
    "a whiteout and its file": ([[f(b"x")], [f(W + b"x"), f(b"x", 2)]], {"x": 2}),
    "a whiteout": ([[f(b"p/x"), f(b"p/y", 2)], [f(b"p/.wh.x")]], {"p": "755", "p/y": 2}),
    "a whiteout of a directory": ([[f(b"p/q/x")], [f(b"p/.wh.q")]], {"p": "755"}),
    "a whiteout in the layer itself": ([[f(b"x"), f(W + b"x")]], {"x": 1}),
    "a whiteout of nothing": ([[f(W + b"x")], [f(b"no/.wh.x"), f(b"y")]], {"y": 1}),
    "a whiteout of a link": (
        [[f(b"t/x"), s(b"l", b"t")], [f(W + b"l")]],
        {"t": "755", "t/x": 1},
    ),
    "a whiteout behind a link": (
        [[f(b"t/x"), f(b"t/y", 2), s(b"l", b"/t")], [f(b"l/.wh.x")]],
        {"l": "/t", "t": "755", "t/y": 2},
    ),
    "a whiteout behind a link out of the image": (
        [[f(b"x"), s(b"l", b"../..")], [f(b"l/.wh.x")]],
        {"l": "../.."},
    ),
    "a whiteout below a file": ([[f(b"x")], [f(b"x/.wh.y")]], {"x": 1}),
    "a whiteout of a directory that this layer fills": (
        [[d(b"p", 0o700), f(b"p/old")], [f(b"p/new", 2), f(W + b"p")]],
        {"p": "755", "p/new": 2},
    ),
    "the same, the other way round": (
        [[d(b"p", 0o700), f(b"p/old")], [f(W + b"p"), f(b"p/new", 2)]],
        {"p": "755", "p/new": 2},
    ),
    "a whiteout of a directory that this layer makes anew": (
        [[d(b"p", 0o700), f(b"p/old")], [d(b"p", 0o711), f(b"p/new", 2), f(W + b"p")]],
        {"p": "711", "p/new": 2},
    ),
    "a whiteout high above": (
        [
            [d(b"a/b/c", 0o700), f(b"a/b/c/old"), f(b"a/b/old"), f(b"a/z/old")],
            [f(b"a/b/c/new", 2), f(W + b"a")],
        ],
        {"a": "755", "a/b": "755", "a/b/c": "755", "a/b/c/new": 2},
    ),
    "opaque before its siblings": (
        [[f(b"p/old")], [f(b"p/" + OPQ), f(b"p/new", 2)]],
        {"p": "755", "p/new": 2},
    ),
    "opaque after its siblings": (
        [[d(b"p"), f(b"p/old")], [f(b"p/new", 2), f(b"p/" + OPQ)]],
        {"p": "750", "p/new": 2},
    ),
    "opaque keeps only this layer's part of a subdirectory": (
        [[d(b"p/q", 0o700), f(b"p/q/old")], [f(b"p/q/new", 2), f(b"p/" + OPQ)]],
        {"p": "755", "p/q": "755", "p/q/new": 2},
    ),
    "opaque in the root": (
        [[f(b"a/x"), f(b"b")], [f(OPQ), f(b"c", 3)]],
        {"c": 3},
    ),
    "opaque of a directory that replaces a link": (
        [[f(b"t/x"), s(b"l", b"t")], [d(b"l"), f(b"l/" + OPQ), f(b"l/y", 2)]],
        {"l": "750", "l/y": 2, "t": "755", "t/x": 1},
    ),
    "opaque of a directory that is new": ([[f(b"p/" + OPQ), f(b"p/x")]], {"p": "755", "p/x": 1}),
    "a whiteout hides what a hardlink of this layer brought from below, not the link": (
        [[f(b"x")], [h(b"y", b"x"), f(W + b"x"), f(W + b"y")]],
        {"y": 1},
    ),
    "whiteouts of every type": (
        [
            [f(b"a"), f(b"b"), f(b"c"), f(b"e"), f(b"g")],
            [
                h(W + b"a", b"nowhere"),
                d(W + b"b/"),
                s(W + b"c", b"/etc"),
                f(W + b"e", 9),
                Header(W + b"g", Kind.CHARACTER),
            ],
        ],
        {},
    ),
    "the bookkeeping of aufs": (
        [[f(b".wh..wh.aufs"), d(b".wh..wh.plnk"), f(b".wh..wh.plnk/1.2"), f(b"x")]],
        {"x": 1},
    ),
    "whiteouts of overlayfs are devices": (
        [[f(b"x")], [Header(b"x", Kind.CHARACTER, rdev=(0, 0))]],
        {"x": "CHARACTER"},
    ),
    "lost+found as a directory": ([[d(b"lost+found", 0o700)]], {"lost+found": "700"}),
    "lost+found elsewhere": ([[f(b"p/lost+found")]], {"p": "755", "p/lost+found": 1}),
    "a name as long as names can be": ([[f(b"n" * 255)]], {"n" * 255: 1}),
}


@pytest.mark.parametrize("case", MERGES)
def test_layers_merge(case: str) -> None:
    layers, wanted = MERGES[case]
    assert shape(merged(*layers)) == wanted


def chain(count: int) -> list[Header]:
    """Links l0 -> l1 -> ... -> the directory `end`."""
    links = [s(b"l%d" % i, b"l%d" % (i + 1)) for i in range(count)]
    return [*links[:-1], s(b"l%d" % (count - 1), b"end"), d(b"end")]


REJECTED: dict[str, tuple[list[Header], str]] = {
    "above the root": ([f(b"../../canary")], "`..`"),
    "through a directory": ([f(b"a/../../x")], "`..`"),
    "a sibling with the same prefix": ([f(b"../id.staging2/x")], "`..`"),
    "ends in dots": ([d(b"a/..")], "`..`"),
    "an empty name that is a file": ([f(b"")], "root"),
    "a dot that is a file": ([f(b"./")], "root"),
    "the root as a link": ([s(b"/", b"x")], "root"),
    "a name of 256 bytes": ([f(b"n" * 256)], "255 bytes"),
    "a directory of 256 bytes": ([f(b"n" * 256 + b"/x")], "255 bytes"),
    "a path of 1025 bytes": ([f(b"/".join([b"n" * 100] * 10) + b"/" + b"n" * 16)], "1024"),
    "a path 129 deep": ([f(b"d/" * 128 + b"x")], "deeper than 128"),
    "a path that links make deep": (
        [d(b"d/" * 100), s(b"l", b"d/" * 100), f(b"l/" + b"e/" * 30 + b"x")],
        "deeper than 128",
    ),
    "a path that links make long": (
        [s(b"l", b"/".join([b"n" * 200] * 5)), f(b"l/" + b"m" * 200)],
        "1024",
    ),
    "NUL in a name": ([f(b"a\0b")], "NUL"),
    "NUL in a directory": ([f(b"a\0b/c")], "NUL"),
    "41 links on the way": ([*chain(41), f(b"l0/x")], "40 symbolic links"),
    "a loop on the way": ([s(b"l", b"l"), f(b"l/x")], "40 symbolic links"),
    "a loop on the way of a whiteout": ([s(b"l", b"m"), s(b"m", b"l"), f(b"l/.wh.x")], "symbolic"),
    "a hardlink to outside": ([h(b"x", b"../etc/passwd")], "hardlink"),
    "a hardlink to a directory": ([d(b"p"), h(b"x", b"p")], "is a directory"),
    "a hardlink to the root": ([h(b"x", b"/")], "hardlink"),
    "a hardlink to nothing": ([h(b"x", b"y")], "does not exist"),
    "a hardlink to no name": ([h(b"x", b"")], "hardlink"),
    "a hardlink below a file": ([f(b"y"), h(b"x", b"y/z")], "does not exist"),
    "a hardlink to a whiteout": ([f(b".wh.y"), h(b"x", b".wh.y")], "does not exist"),
    "a link to nothing": ([s(b"x", b"")], "symbolic link"),
    "a link with a NUL": ([s(b"x", b"a\0b")], "symbolic link"),
    "a link of 4096 bytes": ([s(b"x", b"t" * 4096)], "symbolic link"),
    "a whiteout of no name": ([f(b"p/.wh.")], "whiteout"),
    "a whiteout of a dot": ([f(b".wh..")], "whiteout"),
    "a whiteout of dots": ([f(b"p/.wh...")], "whiteout"),
    "below a whiteout": ([f(b".wh.p/x")], "whiteout"),
    "below a whiteout, by a link": ([s(b"l", b".wh.p"), f(b"l/x")], "whiteout"),
    "below an opaque marker": ([f(b"p/.wh..wh..opq/x")], "whiteout"),
    "lost+found as a file": ([f(b"lost+found")], "lost"),
    "lost+found as a link, by a link": ([s(b"l", b"."), s(b"l/lost+found", b"x")], "lost"),
    "a file that ext4 cannot hold": ([f(b"x", size=1 << 44)], "ext4"),
    "a device that Linux does not have": (
        [Header(b"x", Kind.BLOCK, rdev=(4096, 0))],
        "device number 4096:0",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_what_cannot_be_is_rejected_with_its_layer_and_entry(case: str) -> None:
    entries, words = REJECTED[case]
    merge = Merge(Limits())
    merge.begin_layer()
    merge.begin_layer("layer 2 of 2 (sha256:abc)")
    for entry in entries[:-1]:
        merge.add(entry)
    with pytest.raises(ImageError, match=words) as caught:
        merge.add(entries[-1])
    assert caught.value.brief.startswith("layer 2 of 2 (sha256:abc): ")
    assert caught.value.code is Code.IMAGE_INVALID
    assert not caught.value.retryable
    assert caught.value.brief.isprintable()


ACCEPTED: dict[str, list[Header]] = {
    "a chain of 40 links": [*chain(40), f(b"l0/x")],
    "a chain of 41 links as a leaf": chain(41),
    "a loop as a leaf": [s(b"l", b"l"), h(b"m", b"l")],
    "a path of 1024 bytes": [f(b"/".join([b"n" * 101] * 10) + b"/" + b"n" * 4)],
    "a path 128 deep": [f(b"d/" * 127 + b"x")],
    "a link of 4095 bytes": [s(b"x", b"t" * 4095)],
    "the largest file": [f(b"x", size=(1 << 44) - 4096)],
    "the last device": [Header(b"x", Kind.CHARACTER, rdev=(4095, (1 << 20) - 1))],
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_just_fits_is_accepted(case: str) -> None:
    assert shape(merged(ACCEPTED[case]))


def test_an_escaped_name_stands_in_the_message() -> None:
    with pytest.raises(ImageError) as caught:
        merged([f(b"a\n\x1b[31m/../x")])
    assert r"a\n\x1b[31m/../x" in caught.value.brief


def test_the_root_takes_the_attributes_of_its_entry() -> None:
    assert merged([]).root.mode == 0o755
    root = merged([d(b"./", 0o711, uid=7)], [f(b"x")]).root
    assert (root.mode, root.uid, root.mtime_ns) == (0o711, 7, NOW)


def test_implied_parents_belong_to_root_at_the_epoch() -> None:
    node = merged([f(b"p/x")]).lookup(b"p")
    assert node is not None
    assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o755, 0, 0, 0)


# -- hardlinks ------------------------------------------------------------------------------------


def names(tree: Tree, node: Node | None) -> set[bytes]:
    return {path for path, other in tree.walk() if other is node}


def test_a_hardlink_is_one_inode_with_the_attributes_of_the_first() -> None:
    tree = merged([f(b"a", 5)], [h(b"p/b", b"./a")], [h(b"c", b"/p/b")])
    node = tree.lookup(b"a")
    assert names(tree, node) == {b"a", b"p/b", b"c"}
    assert node is not None
    assert (node.nlink, node.mode, node.uid, node.content) == (3, 0o644, 1, 5)


def test_a_hardlink_to_a_link_links_the_link() -> None:
    tree = merged([f(b"t"), s(b"l", b"t"), h(b"m", b"l")])
    node = tree.lookup(b"m")
    assert names(tree, node) == {b"l", b"m"}
    assert node is not None
    assert (node.kind, node.nlink) == (Kind.SYMLINK, 2)


def test_a_hardlink_is_found_behind_a_linked_directory() -> None:
    tree = merged([f(b"usr/lib/x"), s(b"lib", b"usr/lib"), h(b"y", b"lib/x")])
    assert tree.lookup(b"y") is tree.lookup(b"usr/lib/x")


def test_one_name_of_a_pair_replaced_leaves_the_other_alone() -> None:
    tree = merged([f(b"a", 5), h(b"b", b"a")], [f(b"a", 6)])
    assert shape(tree) == {"a": 6, "b": 5}
    assert {node.nlink for path, node in tree.walk() if path} == {1}


@pytest.mark.parametrize("later", [f(W + b"a"), f(b"a", 6), d(b"a"), f(b"a/x", 7)])
@pytest.mark.parametrize("same_layer", [True, False])
def test_the_surviving_name_keeps_the_content(later: Header, *, same_layer: bool) -> None:
    link = h(b"b", b"a")
    layers = [[link, later]] if same_layer else [[link], [later]]
    node = merged([f(b"a", 5)], *layers).lookup(b"b")
    assert node is not None
    assert (node.content, node.nlink) == (5, 1)


def test_opaque_leaves_the_hardlink_of_its_own_layer() -> None:
    assert shape(merged([f(b"a", 5)], [h(b"b", b"a"), f(OPQ)])) == {"b": 5}


# -- limits of ext4 and of the config --------------------------------------------------------------


def test_more_links_than_an_inode_has_are_rejected() -> None:
    links = [h(b"d%d/l%d" % (i % 9, i), b"f") for i in range(64_999)]
    node = merged([f(b"f"), *links]).lookup(b"f")
    assert node is not None
    assert node.nlink == 65_000
    with pytest.raises(ImageError, match=r"layer 1: .*more than 65000 links"):
        merged([f(b"f"), *links, h(b"one-more", b"f")])
    gone = merged([f(b"f"), *links, h(b"one-more", b"f")], [f(b".wh.d0")])
    assert gone.root.children[b"f"].nlink < 60_000


def test_more_subdirectories_than_a_directory_has_are_rejected() -> None:
    fits = [d(b"p/%d" % i) for i in range(64_998)]
    node = merged(fits).lookup(b"p")
    assert node is not None
    assert node.nlink == 65_000
    with pytest.raises(ImageError, match="p: more than 65000 links"):
        merged([*fits, d(b"p/one-more")])


def test_entries_are_limited_over_all_layers() -> None:
    layers = [[f(b"a"), f(W + b"a")], [f(b"b"), f(b"c")]]
    assert merged(*layers, limits=Limits(entries=4))
    with pytest.raises(ImageError, match=r"layer 2: c: .*more than limits\.entries = 3") as caught:
        merged(*layers, limits=Limits(entries=3))
    assert caught.value.code is Code.LIMIT_EXCEEDED


def test_parents_that_no_entry_describes_are_entries_too() -> None:
    """127 directories each: the entries of a layer of 900,000 would take tens of gigabytes."""
    deep = [f(b"%d/" % i + b"d/" * 126 + b"x") for i in range(100)]
    assert merged(*[deep], limits=Limits(entries=100 * 128))
    with pytest.raises(ImageError, match=r"limits\.entries"):
        merged(*[deep], limits=Limits(entries=100 * 128 - 1))


@pytest.mark.parametrize(
    "wasteful",
    [
        lambda i: f(b"./" * 5000 + b"%d" % i),
        lambda i: s(b"l%d" % i, b"t" * 4000),
        lambda i: h(b"l%d" % i, b"./" * 5000 + b"f"),
        lambda i: f(b"./" * 5000 + W + b"w"),
        lambda i: replace(f(b"x"), xattrs=((b"user.a", bytes(4000)), (b"odd" * 1000, b""))),
    ],
)
def test_names_targets_and_attributes_are_limited_over_all_layers(
    wasteful: Callable[[int], Header],
) -> None:
    layers = [[f(b"f")], *([wasteful(i)] for i in range(100))]
    with pytest.raises(ImageError, match=r"limits\.metadata-bytes"):
        merged(*layers, limits=Limits(metadata_bytes=100_000))


def test_names_in_one_directory_are_limited_as_they_are_in_the_end() -> None:
    many = [f(b"p/%d" % i) for i in range(11)]
    gone = [f(b"p/.wh.%d" % i) for i in range(5)]
    assert merged(many, gone, limits=Limits(directory_entries=10))
    with pytest.raises(ImageError, match=r"layer 1: p: .*limits\.directory-entries = 10"):
        merged(many, limits=Limits(directory_entries=10))


def test_links_cannot_make_the_merge_slow() -> None:
    long = b"/".join([b"a/.."] * 800)

    def hostile() -> list[Header]:
        links = [s(b"l%d" % i, long + b"/l%d" % (i + 1)) for i in range(39)]
        uses = [f(b"l0/d%d/x" % i) for i in range(2000)]
        return [d(b"a"), d(b"l39"), *links, *uses]

    with pytest.raises(ImageError, match="too long to follow"):
        merged(hostile())


# -- what is not carried --------------------------------------------------------------------------

ACL = b"\2\0\0\0" + b"".join(bytes((tag, 0, 7, 0)) + b"\xff" * 4 for tag in (1, 4, 32))


def x(path: bytes, make: Callable[..., Header], *pairs: tuple[bytes, bytes]) -> Header:
    return replace(make(path), xattrs=pairs)


def test_xattrs_that_linux_carries_are_carried() -> None:
    pairs = (
        (b"security.capability", bytes(20)),
        (b"system.posix_acl_access", ACL),
        (b"user.a", b""),
        (b"user.b\xff", b"\0\n"),
    )
    both = (*pairs, (b"system.posix_acl_default", ACL))
    tree = merged([x(b"p", d, *both), x(b"x", f, *pairs)])
    assert tree.not_carried == []
    assert dict(tree.root.children[b"p"].xattrs) == dict(both)
    assert dict(tree.root.children[b"x"].xattrs) == dict(pairs)


def test_other_xattrs_are_dropped_and_listed_once() -> None:
    label = (b"security.selinux", b"system_u")
    tree = merged(
        [
            x(b"gone", f, (b"trusted.gone", b"")),
            x(b"p", d, (b"trusted.overlay.opaque", b"y"), (b"user.keep", b"1")),
            x(b"p/x", f, label),
            x(b"p/y", f, label, (b"system.posix_acl_default", ACL)),
            x(b"z", f, (b"system.posix_acl_access", b"junk"), (b"user.", b""), (b"\n", b"")),
            replace(s(b"l", b"t"), xattrs=((b"user.on-link", b""),)),
        ],
        [f(b".wh.gone")],
    )
    assert sorted(tree.not_carried) == sorted(
        [
            "xattr \\n: 1 entry, first /z",
            "xattr security.selinux: 2 entries, first /p/x",
            "xattr system.posix_acl_access (malformed or misplaced): 1 entry, first /z",
            "xattr system.posix_acl_default (malformed or misplaced): 1 entry, first /p/y",
            "xattr trusted.overlay.opaque: 1 entry, first /p",
            "xattr user.: 1 entry, first /z",
            "xattr user.on-link (only files and directories have them): 1 entry, first /l",
        ]
    )
    assert tree.root.children[b"p"].xattrs == ((b"user.keep", b"1"),)
    assert tree.root.children[b"z"].xattrs == ()


def test_xattrs_beyond_the_room_of_an_inode_are_listed() -> None:
    big = [(b"user.%d" % i, bytes(1500)) for i in range(3)]
    tree = merged([x(b"x", f, *big, (b"security.capability", bytes(20)))])
    kept = [name for name, _ in tree.root.children[b"x"].xattrs]
    assert kept == [b"security.capability", b"user.0", b"user.1"]
    assert tree.not_carried == ["xattr user.2 (no room in the inode's block): 1 entry, first /x"]


def test_the_list_stays_short() -> None:
    tree = merged([x(b"x", f, *((b"odd.%d" % i, b"") for i in range(5000)))])
    assert len(tree.not_carried) <= carry.MAX_LINES + 1
    assert tree.not_carried[-1].startswith(f"other things: {5000 - carry.MAX_LINES} entries")


def test_the_list_stays_small_whatever_the_names_are() -> None:
    long = [x(b"\x1b" * 200 + b"/%d" % i, f, (b"\xff%d" % i * 300, b"")) for i in range(200)]
    assert sum(map(len, merged(long).not_carried)) < 16 << 10


@pytest.mark.parametrize(
    ("seconds", "carried"),
    [
        (-1, -1),
        (-(1 << 31), -(1 << 31)),
        (-(1 << 31) - 1, -(1 << 31)),
        (1 << 31, 1 << 31),
        ((1 << 34) - (1 << 31) - 1, (1 << 34) - (1 << 31) - 1),
        ((1 << 34) - (1 << 31), (1 << 34) - (1 << 31) - 1),
        (10**25, (1 << 34) - (1 << 31) - 1),
        (10_737_418_239, 10_737_418_239),
        (12_884_901_888, 12_884_901_888),
    ],
)
def test_times_are_clamped_to_what_an_inode_holds(seconds: int, carried: int) -> None:
    tree = merged([f(b"x", mtime_ns=seconds * 10**9)])
    assert tree.root.children[b"x"].mtime_ns == carried * 10**9
    wanted = ["mtime outside of 1901..2446, clamped: 1 entry, first /x"]
    assert tree.not_carried == ([] if seconds == carried else wanted)


@pytest.mark.parametrize("seconds", [10_737_418_240, 11_000_000_000, 12_884_901_887])
def test_times_that_fsck_would_change_are_clamped(seconds: int) -> None:
    tree = merged([f(b"x", mtime_ns=seconds * 10**9)])
    assert tree.root.children[b"x"].mtime_ns == 10_737_418_240 * 10**9 - 1
    wanted = "mtime in 2310..2378, which e2fsck would change, clamped: 1 entry, first /x"
    assert tree.not_carried == [wanted]


def test_nanoseconds_stay() -> None:
    assert merged([f(b"x", mtime_ns=-1)]).root.children[b"x"].mtime_ns == -1


# -- reading the tree -----------------------------------------------------------------------------


def test_walk_is_in_byte_order_parents_first() -> None:
    tree = merged([f(b"b/x"), f(b"a/z"), f(b"a/B"), f(b"a-"), f(b"a/\xff")])
    wanted = [b"", b"a", b"a/B", b"a/z", b"a/\xff", b"a-", b"b", b"b/x"]
    assert [path for path, _ in tree.walk()] == wanted


def test_resolve_follows_parents_inside_the_image() -> None:
    tree = merged(
        [
            f(b"usr/lib/x"),
            s(b"lib", b"usr/lib"),
            s(b"up", b"../../usr"),
            s(b"abs", b"/lib"),
            s(b"leaf", b"/nowhere"),
            s(b"loop", b"loop"),
            f(b"file"),
        ]
    )
    node = tree.lookup(b"usr/lib/x")
    assert tree.resolve(b"/lib/x") == (b"usr/lib/x", node)
    assert tree.resolve(b"abs/x") == (b"usr/lib/x", node)
    assert tree.resolve(b"up/lib/x") == (b"usr/lib/x", node)
    assert tree.resolve(b"lib/new/y") == (b"usr/lib/new/y", None)
    assert tree.resolve(b"leaf") == (b"leaf", tree.lookup(b"leaf"))
    assert tree.resolve(b"leaf/x") == (b"nowhere/x", None)
    assert tree.resolve(b"/") == (b"", tree.root)
    for path in (b"loop/x", b"file/x"):
        with pytest.raises(ImageError):
            tree.resolve(path)


def test_lookup_follows_nothing() -> None:
    tree = merged([f(b"usr/lib/x"), s(b"lib", b"usr/lib")])
    assert tree.lookup(b"lib/x") is None
    assert tree.lookup(b"") is tree.root


# -- against a small model ------------------------------------------------------------------------


@dataclass
class Model:
    """The specification said plainly: a dict from path to (identity, attributes)."""

    paths: dict[tuple[str, ...], tuple[str, object, int]] = field(default_factory=dict)
    inodes: int = 0

    def new(self, kind: str, mode: object) -> tuple[str, object, int]:
        self.inodes += 1
        return kind, mode, self.inodes

    def remove(self, path: tuple[str, ...]) -> None:
        for other in [p for p in self.paths if p[: len(path)] == path]:
            del self.paths[other]

    def hide(self, name: tuple[str, ...]) -> None:
        *parents, last = name
        if last == "opaque":
            keep = self.paths.get(tuple(parents))
            self.remove(tuple(parents))
            if keep and parents:
                self.paths[tuple(parents)] = keep
        else:
            self.remove(name)

    def put(self, path: tuple[str, ...], kind: str, value: object) -> None:
        held = None
        if kind == "hardlink":
            held = self.paths.get(tuple(str(value).split("/")))
            if held is None or held[0] == "dir":
                raise ImageError("no target")
        for depth in range(1, len(path)):
            parent = path[:depth]
            if self.paths.get(parent, ("",))[0] != "dir":
                self.remove(parent)
                self.paths[parent] = self.new("dir", 0o755)
        old = self.paths.get(path)
        if kind == "dir" and old and old[0] == "dir":
            self.paths[path] = (kind, value, old[2])
            return
        self.remove(path)
        self.paths[path] = held or self.new(kind, value)


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple)
ENTRIES = st.one_of(
    st.tuples(PATHS, st.just("file"), st.integers(1, 99)),
    st.tuples(PATHS, st.just("dir"), st.sampled_from([0o700, 0o711, 0o555])),
    st.tuples(PATHS, st.just("symlink"), st.just("nowhere")),
    st.tuples(PATHS, st.just("hardlink"), PATHS.map("/".join)),
    st.tuples(PATHS, st.just("whiteout"), st.none()),
    st.tuples(
        st.lists(st.sampled_from("abc"), max_size=2).map(lambda p: (*p, "opaque")),
        st.just("whiteout"),
        st.none(),
    ),
)


def as_header(path: tuple[str, ...], kind: str, value: object) -> Header:
    raw = "/".join(path).encode()
    if kind == "whiteout":
        name = OPQ if path[-1] == "opaque" else W + path[-1].encode()
        return f("/".join((*path[:-1], "")).encode() + name)
    if kind == "file":
        assert isinstance(value, int)
        return f(raw, value)
    if kind == "dir":
        assert isinstance(value, int)
        return d(raw, value)
    return (s if kind == "symlink" else h)(raw, str(value).encode())


def crosses_a_link(model: Model, path: tuple[str, ...]) -> bool:
    """Links on the way are tested by table; the model does not know them."""
    return any(model.paths.get(path[:n], ("",))[0] == "symlink" for n in range(1, len(path)))


@settings(max_examples=600, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=4))
def test_random_stacks_equal_the_model(
    stack: list[list[tuple[tuple[str, ...], str, object]]],
) -> None:
    model = Model()
    merge = Merge(Limits())
    for layer in stack:
        merge.begin_layer()
        hidden = [path for path, kind, _ in layer if kind == "whiteout"]
        # A whiteout acts below its layer, wherever it stands: so the model does it first.
        before = Model(dict(model.paths))
        if any(crosses_a_link(before, path) for path in hidden):
            return
        for path in hidden:
            model.hide(path)
        gone = before.paths.keys() - model.paths.keys()
        for path, kind, value in layer:
            if kind == "whiteout":
                merge.add(as_header(path, kind, value))
                continue
            target = tuple(str(value).split("/"))
            if kind == "hardlink" and target in gone:
                continue  # there or not, by the order in the layer
            if any(crosses_a_link(m, p) for m in (model, before) for p in (path, target)):
                continue
            try:
                model.put(path, kind, value)
            except ImageError:
                with pytest.raises(ImageError):
                    merge.add(as_header(path, kind, value))
                return
            merge.add(as_header(path, kind, value))
        merge.end_layer()
    assert_same(merge.finish(), model)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=12), min_size=1, max_size=4))
def test_many_at_once_are_placed_as_one_by_one(
    stack: list[list[tuple[tuple[str, ...], str, object]]],
) -> None:
    layers = [[as_header(*entry) for entry in layer] for layer in stack]

    def together() -> Tree:
        merge = Merge(Limits())
        for layer in layers:
            merge.begin_layer()
            merge.place_all([prepare(header, merge.budget) for header in layer])
            merge.end_layer()
        return merge.finish()

    def outcome(way: Callable[[], Tree]) -> object:
        try:
            return shape(way())
        except ImageError as error:
            return error.brief

    assert outcome(together) == outcome(lambda: merged(*layers))


@pytest.mark.parametrize("name", [b"d", b"n" * 40, b"n" * 200, b"n" * 255])
def test_limits_of_paths_are_the_same_on_a_way_that_is_known(name: bytes) -> None:
    """Each directory is used before the next one is, so that nothing is walked from the root."""
    for depth in range(1, 131):
        way = [name] * depth
        last = f(b"/".join([*way, b"x"]))
        alone = fails(lambda: merged([last]))  # noqa: B023
        steps = [
            header
            for length in range(1, depth)
            for header in (d(b"/".join(way[:length])), f(b"/".join([*way[:length], b"f"])))
        ]
        known = fails(lambda: merged([*steps, d(b"/".join(way)), last]))  # noqa: B023
        assert known == alone, depth
        if alone:
            return
    pytest.fail("no limit was met")


def fails(way: Callable[[], Tree]) -> bool:
    try:
        way()
    except ImageError as error:
        assert "path deeper than 128 or longer than 1024 bytes" in error.brief
        return True
    return False


def assert_same(tree: Tree, model: Model) -> None:
    found = {}
    for path, node in tree.walk():
        if path:
            kind = {Kind.REGULAR: "file", Kind.DIRECTORY: "dir", Kind.SYMLINK: "symlink"}[node.kind]
            value = {"file": node.content, "dir": node.mode, "symlink": node.target.decode()}[kind]
            found[tuple(path.decode().split("/"))] = (kind, value, id(node))
    assert {p: v[:2] for p, v in found.items()} == {p: v[:2] for p, v in model.paths.items()}
    for one in found:
        for other in found:
            same = model.paths[one][2] == model.paths[other][2]
            assert (found[one][2] == found[other][2]) == same

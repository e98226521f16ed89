"""Rows 1 to 27: how layers add up, and what no path, link or whiteout may do."""

from __future__ import annotations

from hostile.case import Case, aimed, d, f, h, n, s, stack

OPAQUE = ".wh..wh..opq"
_UMOCI_OPAQUE = "umoci lets an opaque marker hide siblings that stand before it"

PATHS = [
    Case(
        "01-above-the-root", stack([f("ok"), f("../../canary", b"x")]), r"\.\./\.\./canary.*`\.\.`"
    ),
    Case("01-through-a-directory", stack([f("a/../../x")]), r"a/\.\./\.\./x.*`\.\.`"),
    Case("01-inside-all-the-same", stack([f("a/../x")]), r"`\.\.`"),
    Case("01-ends-in-dots", stack([d("a/..")]), r"`\.\.`"),
    Case("01-whiteout-above", stack([f("a/../../.wh.canary")]), r"`\.\.`"),
    Case("01-in-a-long-name", stack([f("../" * 40 + "canary")]), r"`\.\.`"),
    Case("01-in-a-later-layer", stack([f("a")], [f("b")], [f("../b")]), r"layer 3 of 3 .*`\.\.`"),
    Case(
        "01-dots-and-slashes",
        stack([f("./a//b/./c", b"1"), f("x/./", b"2"), f("..z/...", b"3")]),
        holds={"": 0o755, "a": 0o755, "a/b": 0o755, "a/b/c": b"1", "x": b"2", "..z": 0o755}
        | {"..z/...": b"3"},
    ),
    Case(
        "02-absolute",
        aimed(lambda out: [[f(f"{out}/canary", b"evil"), f("//x", b"1"), f("/y", b"2")]]),
        peer="the path is longer than what the table can spell",
    ),
    Case("03-empty-name", stack([f("")]), "the root can only be a directory"),
    Case("03-dot-as-a-file", stack([f(".")]), "the root can only be a directory"),
    Case("03-root-as-a-link", stack([s("/", "x")]), "the root can only be a directory"),
    Case(
        "03-root-as-a-hardlink", stack([f("x"), h("./", "x")]), "the root can only be a directory"
    ),
    Case("03-root-as-a-device", stack([n("/", "char", 1, 3)]), "the root can only be a directory"),
    Case(
        "03-root-as-a-directory",
        stack([d("./", 0o711, uid=3, gid=4)], [f("x")]),
        holds={"": 0o711, "x": b""},
        has={"": {"uid": 3, "gid": 4, "mtime_ns": 1_700_000_000 * 10**9}},
    ),
    Case("04-sibling-prefix", stack([f("../0123.staging2/x")]), r"0123\.staging2/x.*`\.\.`"),
    Case(
        "05-file-then-below-it",
        stack([f("f", b"1"), f("f/x", b"2")], [f("g", b"3")], [f("g/y", b"4")]),
        holds={"": 0o755, "f": 0o755, "f/x": b"2", "g": 0o755, "g/y": b"4"},
        peer="umoci makes no directory of a file",
    ),
    Case(
        "06-implied-parents",
        stack([f("p/q/x"), f("late/x"), d("late", 0o700)], [f("p/y")], [d("p", 0o711, uid=9)]),
        holds={"": 0o755, "p": 0o711, "p/q": 0o755, "p/q/x": b"", "p/y": b"", "late": 0o700}
        | {"late/x": b""},
        has={"p/q": {"uid": 0, "gid": 0}, "p": {"uid": 9}},
    ),
    Case("07-component-of-256", stack([f("n" * 256)]), "a name of more than 255 bytes"),
    Case("07-directory-of-256", stack([f("n" * 256 + "/x")]), "a name of more than 255 bytes"),
    Case("07-path-of-1025", stack([f("/".join(["n" * 100] * 10) + "/" + "n" * 16)]), "1024 bytes"),
    Case("07-129-deep", stack([f("d/" * 128 + "x")]), "deeper than 128"),
    Case("07-a-megabyte", stack([f("n/" * 400_000 + "x")]), "128|1024"),
    Case(
        "07-deep-by-links",
        stack([d("d/" * 100), s("l", "d/" * 100), f("l/" + "e/" * 30 + "x")]),
        "deeper than 128",
    ),
    Case(
        "08-twice",
        stack(
            [f("x", b"1", uid=1, mode=0o600), f("x", b"22", uid=2, mode=0o640), f("./x", b"333")]
        ),
        holds={"": 0o755, "x": b"333"},
        has={"x": {"uid": 0, "mode": 0o644}},
    ),
    Case(
        "09-case-and-bytes",
        stack(
            [f("A", b"1"), f("a", b"2"), f("é", b"3"), f("e\u0301", b"4"), f(b"\xff\xfe", b"5")],
            [f("..\\x", b"6"), f("C:\\x", b"7"), f("ß", b"8"), f("SS", b"9")],
        ),
        holds={"": 0o755, "A": b"1", "a": b"2", "é": b"3", "e\u0301": b"4", b"\xff\xfe": b"5"}
        | {"..\\x": b"6", "C:\\x": b"7", "ß": b"8", "SS": b"9"},
    ),
]

LINKS = [
    Case(
        "10-link-to-the-root",
        stack([s("l", "/"), f("l/x", b"1"), s("up", "../../.."), f("up/y", b"2")]),
        holds={"": 0o755, "l": "-> /", "x": b"1", "up": "-> ../../..", "y": b"2"},
    ),
    Case(
        "10-link-to-the-host",
        aimed(lambda out: [[s("l", out), f("l/canary", b"evil"), f("l/new", b"evil")]]),
        peer="the path is longer than what the table can spell",
    ),
    Case(
        "10-up-and-out",
        stack([s("l", "../../../outside")], [f("l/canary", b"evil"), f("l/.wh.other")]),
        holds={"": 0o755, "l": "-> ../../../outside", "outside": 0o755}
        | {"outside/canary": b"evil"},
    ),
    Case(
        "10-directory-made-a-link",
        aimed(lambda out: [[f("d/x")], [s("d", out), f("d/canary", b"evil")]]),
        peer="the path is longer than what the table can spell",
    ),
    Case(
        "10-a-link-in-a-link",
        stack([d("a/b"), s("a/b/l", "../../c/../c"), d("c"), s("m", "a/b/l"), f("m/x", b"1")]),
        holds={"": 0o755, "a": 0o755, "a/b": 0o755, "a/b/l": "-> ../../c/../c", "c": 0o755}
        | {"m": "-> a/b/l", "c/x": b"1"},
    ),
    Case(
        "11-chain-of-41",
        stack(
            [d("end"), *(s(f"l{i}", f"l{i + 1}") for i in range(40)), s("l40", "end"), f("l0/x")]
        ),
        "more than 40 symbolic links",
    ),
    Case("11-loop", stack([s("l", "m"), s("m", "l"), f("l/x")]), "more than 40 symbolic links"),
    Case("11-own-parent", stack([s("l", "l/l"), f("l/x")]), "more than 40 symbolic links"),
    Case("11-whiteout-in-a-loop", stack([s("l", "l"), f("l/.wh.x")]), "symbolic links"),
    Case("11-hardlink-in-a-loop", stack([s("l", "l"), h("x", "l/y")]), "symbolic links"),
    Case(
        "11-as-a-leaf",
        stack([s("l", "m"), s("m", "l"), *(s(f"c{i}", f"c{i + 1}") for i in range(41))]),
        holds={"": 0o755, "l": "-> m", "m": "-> l"} | {f"c{i}": f"-> c{i + 1}" for i in range(41)},
    ),
    Case(
        "12-verbatim",
        stack([s("a", "/etc/passwd"), s("b", "//x/../."), s("c", " "), s("d", b"\xff\n")]),
        holds={
            "": 0o755,
            "a": "-> /etc/passwd",
            "b": "-> //x/../.",
            "c": "->  ",
            "d": "-> \udcff\n",
        },
    ),
    Case(
        "13-usr-merge",
        stack([d("usr/lib"), s("lib", "usr/lib")], [f("lib/n.so", b"1"), d("lib/deep")]),
        holds={"": 0o755, "usr": 0o755, "usr/lib": 0o755, "lib": "-> usr/lib"}
        | {"usr/lib/n.so": b"1", "usr/lib/deep": 0o755},
    ),
    Case(
        "14-directory-over-a-link",
        stack([f("t/x", b"1"), s("l", "t")], [d("l", 0o700), f("l/y", b"2")]),
        holds={"": 0o755, "t": 0o755, "t/x": b"1", "l": 0o700, "l/y": b"2"},
    ),
    Case(
        "14-over-full-directories",
        stack(
            [f("a/b/x"), f("c/d/x"), f("e/g/x"), f("i/x"), f("keep", b"k")],
            [s("a", "t"), f("c", b"file"), h("e", "keep"), n("i", "fifo")],
        ),
        holds={"": 0o755, "a": "-> t", "c": b"file", "e": b"k", "keep": b"k", "i": ("fifo",)},
        has={"keep": {"nlink": 2}},
    ),
    Case(
        "14-every-other-change",
        stack(
            [f("a", b"1"), s("b", "x"), n("c", "char", 1, 3), n("e", "fifo"), f("g", b"1")],
            [s("a", "y"), f("b", b"2"), d("c"), f("e", b"3"), n("g", "block", 8, 1)],
            [d("a"), n("b", "fifo"), f("c/x", b"4"), s("e", "z"), h("g", "c/x")],
        ),
        holds={
            "": 0o755,
            "a": 0o755,
            "b": ("fifo",),
            "c": 0o755,
            "c/x": b"4",
            "e": "-> z",
            "g": b"4",
        },
    ),
    Case("15-to-outside", stack([h("x", "../../etc/passwd")]), "hardlink to .*outside"),
    Case("15-absolute", aimed(lambda out: [[h("x", f"{out}/canary")]]), "which does not exist"),
    Case(
        "15-through-a-link",
        aimed(lambda out: [[s("l", out), h("x", "l/canary")]]),
        "which does not exist",
    ),
    Case("15-to-a-directory", stack([d("p"), h("x", "p")]), "which is a directory"),
    Case("15-to-the-root", stack([h("x", "/")]), "which is no file"),
    Case("15-to-nothing", stack([h("x", "y")]), "which does not exist"),
    Case("15-to-what-comes-later", stack([h("x", "y"), f("y")]), "which does not exist"),
    Case(
        "15-to-what-a-whiteout-took", stack([f("y")], [f(".wh.y"), h("x", "y")]), "does not exist"
    ),
    Case(
        "16-links-the-link",
        aimed(
            lambda out: [
                [
                    s("l", f"{out}/canary"),
                    h("m", "l"),
                    s("k", "t"),
                    h("j", "k"),
                    s("b", "x" * 60, uid=7),
                    h("e", "b"),
                    h("g", "b"),
                    s("y", "z" * 59),
                    h("w", "y"),
                ]
            ]
        ),
        has={"m": {"nlink": 2}, "j": {"held": "-> t", "nlink": 2}, "w": {"held": "-> " + "z" * 59}}
        | {"g": {"held": "-> " + "x" * 60, "nlink": 3, "uid": 7}},
        peer="the path is longer than what the table can spell",
    ),
    Case(
        "17-into-a-lower-layer",
        stack([f("a", b"1", mode=0o4711)], [h("b", "a"), h("p/c", "/a")], [f("b", b"2")]),
        holds={"": 0o755, "a": b"1", "b": b"2", "p": 0o755, "p/c": b"1"},
        has={"a": {"nlink": 2, "mode": 0o4711}, "b": {"nlink": 1}},
    ),
    Case(
        "17-over-an-existing-path",
        stack([f("a", b"1"), f("b", b"2"), s("c", "a")], [h("b", "a"), h("c", "a"), h("a", "./a")]),
        holds={"": 0o755, "a": b"1", "b": b"1", "c": b"1"},
        has={"a": {"nlink": 3}},
        peer="umoci removes a file that a hardlink to itself replaces",
    ),
    Case(
        "18-target-goes",
        stack(
            [f("a", b"1"), h("b", "a"), f("c", b"3")],
            [f(".wh.a"), h("e", "c"), f("c", b"33"), h("g", "b"), h("i", "g")],
            [f(".wh.g"), d("i")],
        ),
        holds={"": 0o755, "b": b"1", "c": b"33", "e": b"3", "i": 0o755},
    ),
    Case(
        "20-target-empty",
        stack([s("l", "")]),
        "a symbolic link to nothing",
    ),
    Case("20-target-of-4096", stack([s("l", "t" * 4096)]), "over 4095 bytes"),
    Case(
        "20-target-of-4095",
        stack([s("l", "t" * 4095), s("m", "u" * 60), s("k", "v" * 59)]),
        holds={"": 0o755, "l": "-> " + "t" * 4095, "m": "-> " + "u" * 60, "k": "-> " + "v" * 59},
    ),
]

WHITEOUTS = [
    Case(
        "21-either-order",
        stack(
            [f("x", b"1"), f("y", b"1"), d("p", 0o700), f("p/old", b"1"), f("q/old", b"1")],
            [
                f("x", b"2"),
                f(".wh.x"),
                f(".wh.y"),
                f("y", b"2"),
                f("p/new"),
                f(".wh.p"),
                d("q"),
                f(".wh.q"),
            ],
        ),
        holds={"": 0o755, "x": b"2", "y": b"2", "p": 0o755, "p/new": b"", "q": 0o755},
        peer="umoci lets a whiteout take what stands before it in its own layer",
    ),
    Case(
        "22-before-and-after",
        stack(
            [f("a/old"), f("b/old"), f("b/q/old"), f("c/old")],
            [
                f(f"a/{OPAQUE}"),
                f("a/new", b"1"),
                f("b/new", b"2"),
                f("b/q/new", b"3"),
                f(f"b/{OPAQUE}"),
                f(f"c/{OPAQUE}"),
            ],
        ),
        holds={"": 0o755, "a": 0o755, "a/new": b"1", "b": 0o755, "b/new": b"2", "b/q": 0o755}
        | {"b/q/new": b"3", "c": 0o755},
    ),
    Case(
        "22-in-the-root",
        stack([f("a/x"), f("b"), s("c", "a")], [f("e", b"1"), f(OPAQUE), f("g", b"2")]),
        holds={"": 0o755, "e": b"1", "g": b"2"},
    ),
    Case(
        "22-keeps-a-hardlink-of-its-layer",
        stack([f("a/x", b"1")], [h("a/y", "a/x"), f(f"a/{OPAQUE}")]),
        holds={"": 0o755, "a": 0o755, "a/y": b"1"},
        has={"a/y": {"nlink": 1}},
    ),
    Case(
        "23-of-every-type",
        stack(
            [f("a"), f("b"), f("c"), f("e"), f("g"), f("i"), f("p/old"), f("keep", b"k")],
            [
                h(".wh.a", "keep"),
                d(".wh.b"),
                s(".wh.c", "/etc"),
                f(".wh.e", b"not empty"),
                n(".wh.g", "char"),
                h(".wh.i", "nowhere"),
                h(f"p/{OPAQUE}", "keep"),
            ],
        ),
        holds={"": 0o755, "keep": b"k", "p": 0o755},
        has={"keep": {"nlink": 1}},
        peer="umoci makes some of these into files",
    ),
    Case(
        "24-of-nothing-and-links",
        stack(
            [f(".wh.none"), f("t/x", b"1"), f("t/y", b"2"), s("l", "/t"), s("gone", "t")],
            [f("no/.wh.x"), f(".wh.gone"), f("l/.wh.x"), f("t/y/.wh.z")],
        ),
        holds={"": 0o755, "t": 0o755, "t/y": b"2", "l": "-> /t"},
        peer="umoci makes the parents of a whiteout",
    ),
    Case(
        "24-through-a-link-to-the-host",
        aimed(lambda out: [[s("l", out), s("m", "../..")], [f("l/.wh.canary"), f("m/.wh.l")]]),
        holds={"": 0o755, "m": "-> ../.."},
        peer="the host's directory is not in the image",
    ),
    Case("25-bare", stack([f("p/.wh.")]), r"p/\.wh\.: a whiteout that names nothing"),
    Case("25-dot", stack([f(".wh..")]), "a whiteout that names nothing"),
    Case("25-dots", stack([f("p/.wh...")]), "a whiteout that names nothing"),
    Case("25-component", stack([f(".wh.p/x")]), "named like a whiteout"),
    Case("25-component-by-a-link", stack([s("l", ".wh.p"), f("l/x")]), "named like a whiteout"),
    Case("25-below-an-opaque-marker", stack([f(f"p/{OPAQUE}/x")]), "named like a whiteout"),
    Case(
        "26-aufs",
        stack([f(".wh..wh.aufs"), d(".wh..wh.plnk", 0o700), f(".wh..wh.plnk/1.2", b"1"), f("x")]),
        holds={"": 0o755, "x": b""},
        peer="umoci refuses a directory named like a whiteout",
    ),
    Case(
        "27-overlayfs",
        stack(
            [f("x", b"1"), f("p/old", b"2")],
            [n("x", "char"), d("p", pax={"SCHILY.xattr.trusted.overlay.opaque": "y"})],
        ),
        holds={"": 0o755, "x": ("char", 0, 0), "p": 0o755, "p/old": b"2"},
        lists=("trusted.overlay.opaque: 1 entry, first /p",),
    ),
]

LIMITS = [
    Case(
        "19-links",
        stack([f("f"), *(h(f"d{i % 9}/l{i}", "f") for i in range(65_000))]),
        "more than 65000 links to it",
        size="64MiB",
    ),
    Case(
        "19-subdirectories",
        stack([d(f"p/{i}") for i in range(64_999)]),
        "p: more than 65000 links to it, or subdirectories",
        size="64MiB",
    ),
]

CASES = [*PATHS, *LINKS, *WHITEOUTS, *LIMITS]

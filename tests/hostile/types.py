"""Rows 28 to 40: what kinds of things there are, whose they are, and what they may be called."""

from __future__ import annotations

import base64

from support.filesystems import ACL, CAPABILITY, acl
from support.tarball import entry, gnu_long, number, padded

from hostile.case import Case, T, d, f, h, n, s, stack

SECOND = 10**9
NEW = {"": 0o755, "x": b""}
"""A tree with nothing but an empty file x."""

SPECIAL = [
    Case(
        "28-devices",
        stack(
            [
                n("null", "char", 1, 3, mode=0o666),
                n("disk", "block", 259, 70000, mode=0o660),
                n("pipe", "fifo", mode=0o622, uid=7),
                h("null2", "null"),
                n("zero", "char", 0, 0),
                n("big", "char", 4095, (1 << 20) - 1),
                n("256", "block", 256, 0),
            ]
        ),
        holds={"": 0o755, "null": ("char", 1, 3), "null2": ("char", 1, 3), "pipe": ("fifo",)}
        | {"disk": ("block", 259, 70_000), "zero": ("char", 0, 0), "256": ("block", 256, 0)}
        | {"big": ("char", 4095, (1 << 20) - 1)},
        has={"null": {"mode": 0o666, "nlink": 2}, "pipe": {"mode": 0o622, "uid": 7}},
    ),
    Case("28-no-such-major", stack([n("x", "block", 4096, 0)]), "device number 4096:0"),
    Case("28-no-such-minor", stack([n("x", "char", 1, -1)]), "device number 1:-1"),
    Case(
        "28-29-30-as-a-parent",
        stack([n("p", "fifo")], [f("p/x", b"1", mode=0o6755)], [n("p", "char", 5, 1)]),
        holds={"": 0o755, "p": ("char", 5, 1)},
        peer="umoci makes no directory of a FIFO",
    ),
    Case(
        "29-setuid-setgid-sticky",
        stack([f("x", mode=0o6711, uid=5), d("p", 0o3777, gid=6), d("t", 0o1777), h("y", "x")]),
        holds={"": 0o755, "x": b"", "y": b"", "p": 0o3777, "t": 0o1777},
        has={"x": {"mode": 0o6711, "uid": 5, "nlink": 2}, "p": {"gid": 6}},
    ),
    Case(
        "30-unreadable",
        stack(
            [
                d("./", 0o555),
                f("secret", b"s" * 5000, mode=0),
                d("p", 0),
                f("p/q/x", mode=0),
                d("usr/bin", 0o555),
                f("usr/bin/a", b"1", mode=0o111),
                d("root", 0o550),
            ],
            [
                f("usr/bin/b", b"2"),
                f("usr/bin/.wh.a"),
                f("p/q/y"),
                f("root/.profile", b"r"),
                f("secret", b"t" * 6000, mode=0),
            ],
        ),
        holds={"": 0o555, "secret": b"t" * 6000, "p": 0, "p/q": 0o755, "p/q/x": b"", "p/q/y": b""}
        | {"usr": 0o755, "usr/bin": 0o555, "usr/bin/b": b"2", "root": 0o550}
        | {"root/.profile": b"r"},
        has={"secret": {"mode": 0, "size": 6000}, "p/q/x": {"mode": 0}},
        peer="umoci leaves the mode of the root alone",
    ),
    Case(
        "31-mode-bits",
        stack(
            [f("x", mode=0o100_644), f("y", mode=0o7_777_777), d("p", 0o100_755), f("z", mode=-1)]
        ),
        holds={"": 0o755, "x": b"", "y": b"", "p": 0o755, "z": b""},
        has={"x": {"mode": 0o644}, "y": {"mode": 0o7777}, "z": {"mode": 0o7777}},
        peer="umoci reads no negative mode",
    ),
    Case("31-no-number", stack([f("x", fields={100: b"rwxr-xr-"})]), "not a number"),
]

OWNERS = [
    Case(
        "32-exact",
        stack(
            [
                f("a", uid=0, gid=65_535),
                f("b", uid=65_535, gid=65_536),
                f("c", uid=4_294_967_294, gid=4_294_967_294),
                f("e", pax={"uid": "65536", "gid": "4294967294"}),
                f("g", fields={265: b"root\0", 297: b"root\0"}, uid=7, gid=8),
            ]
        ),
        has={
            "a": {"uid": 0, "gid": 65_535},
            "b": {"uid": 65_535, "gid": 65_536},
            "c": {"uid": 4_294_967_294, "gid": 4_294_967_294},
            "e": {"uid": 65_536, "gid": 4_294_967_294},
            "g": {"uid": 7, "gid": 8},
        },
    ),
    *(
        Case(f"32-{name}", stack([f("x", pax={"uid": value})]), "x: .*(owner|number)")
        for name, value in {
            "minus-one": "-1",
            "two-to-the-32": "4294967296",
            "all-ones": "4294967295",
            "a-word": "root",
            "hex": "0x10",
            "a-fraction": "1.5",
            "many-digits": "9" * 400,
            "blank": " 1",
        }.items()
    ),
    Case("32-header-minus-one", stack([f("x", fields={108: number(-1, 8)})]), "owner -1:0"),
    Case("32-header-all-ones", stack([f("x", gid=4_294_967_295)]), "owner 0:4294967295"),
    Case("32-header-no-number", stack([f("x", fields={108: b"12z4567\0"})]), "not a number"),
    Case(
        "33-carried",
        stack(
            [
                f("a", pax={"mtime": "-1.5"}),
                f("b", mtime=-(1 << 31)),
                f("c", pax={"mtime": "2147483648.123456789"}),
                f("e", mtime=(1 << 34) - (1 << 31) - 1),
                f("g", pax={"mtime": "0.0000000009"}),
                s("l", "t", pax={"mtime": "-0.000000001"}),
            ]
        ),
        has={
            "a": {"mtime_ns": -1_500_000_000},
            "b": {"mtime_ns": -(1 << 31) * SECOND},
            "c": {"mtime_ns": 2_147_483_648_123_456_789},
            "e": {"mtime_ns": ((1 << 34) - (1 << 31) - 1) * SECOND},
            "g": {"mtime_ns": 0},
            "l": {"mtime_ns": -1},
        },
        peer="umoci cannot set these times on the host",
    ),
    Case(
        "33-clamped",
        stack(
            [
                f("a", mtime=-(1 << 31) - 1),
                f("b", mtime=1 << 34),
                f("c", pax={"mtime": "9" * 30}),
                f("e", mtime=11_000_000_000),
                d("./", pax={"mtime": "-" + "9" * 30}),
            ]
        ),
        has={
            "a": {"mtime_ns": -(1 << 31) * SECOND},
            "b": {"mtime_ns": ((1 << 34) - (1 << 31) - 1) * SECOND},
            "c": {"mtime_ns": ((1 << 34) - (1 << 31) - 1) * SECOND},
            "e": {"mtime_ns": 10_737_418_240 * SECOND - 1},
            "": {"mtime_ns": -(1 << 31) * SECOND},
        },
        lists=("mtime outside of 1901..2446, clamped: 4", "mtime in 2310..2378"),
        peer="umoci cannot set these times on the host",
    ),
    *(
        Case(f"33-{name}", stack([f("x", pax={"mtime": value})]), "x: mtime is not a time")
        for name, value in {
            "nan": "NaN",
            "infinite": "inf",
            "exponent": "1e9",
            "words": "yesterday",
            "two-points": "1.2.3",
            "blank": "1 ",
            "plus": "+1",
        }.items()
    ),
    Case("33-header", stack([f("x", fields={136: b"99999999999\0"})]), "not a number"),
]

FORMS = [
    *(
        Case(f"34-unknown-{ord(flag):02x}", stack([entry("x", flag)]), "x: unknown tar entry type")
        for flag in "8DMNVXz \x80"
    ),
    Case(
        "34-contiguous-and-old",
        stack(
            [
                entry("x", "7", b"seven", mtime=T),
                entry("y", "\x00", b"old", mtime=T),
                entry("p/", "\x00", mode=0o700, mtime=T),
            ]
        ),
        holds={"": 0o755, "x": b"seven", "y": b"old", "p": 0o700},
        peer="umoci does not know the type 7",
    ),
    Case(
        "34-long-names",
        stack(
            [
                gnu_long("g/" * 60 + "name") + f("short", b"1"),
                gnu_long("t" * 200, b"K") + s("l", "short"),
                f("p" * 200, b"2"),
                f("both", b"3", pax={"path": "renamed", "size": "1"}),
            ]
        ),
        has={"g/" * 60 + "name": {"held": b"1"}, "l": {"held": "-> " + "t" * 200}}
        | {"p" * 200: {"held": b"2"}, "renamed": {"held": b"3"}},
        peer="umoci takes the size of a PAX header for another",
    ),
    Case(
        "34-sparse",
        stack(
            [
                entry(
                    "GNUSparseFile.1/x",
                    data=padded(b"2\n512\n3\n9000\n3\n") + b"onetwo",
                    pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
                    | {"GNU.sparse.name": "x", "GNU.sparse.realsize": "10000"},
                    mtime=T,
                )
            ]
        ),
        holds={"": 0o755, "x": bytes(512) + b"one" + bytes(8485) + b"two" + bytes(997)},
    ),
]

_LIBARCHIVE = base64.b64encode(CAPABILITY).rstrip(b"=")
_XATTR = "SCHILY.xattr."

ATTRIBUTES = [
    Case(
        "35-carried",
        stack(
            [
                f("caps", pax={_XATTR + "security.capability": CAPABILITY}),
                f("more", pax={"LIBARCHIVE.xattr.security.capability": _LIBARCHIVE}),
                f("acl", pax={_XATTR + "system.posix_acl_access": ACL}, mode=0o674),
                d("p", pax={_XATTR + "system.posix_acl_default": ACL}, mode=0o700),
                f("note", pax={_XATTR + "user.note": b"\0\xff\n", _XATTR + "user.empty": ""}),
                h("hard", "note"),
                d("./", pax={_XATTR + "user.root": "r"}),
            ]
        ),
        has={
            "caps": {"xattrs": {b"security.capability": CAPABILITY}},
            "more": {"xattrs": {b"security.capability": CAPABILITY}},
            "acl": {"xattrs": {b"system.posix_acl_access": ACL}, "mode": 0o674},
            "p": {"xattrs": {b"system.posix_acl_default": ACL}},
            "hard": {"xattrs": {b"user.note": b"\0\xff\n", b"user.empty": b""}},
            "": {"xattrs": {b"user.root": b"r"}},
        },
    ),
    Case(
        "35-listed",
        stack(
            [
                f("x", pax={_XATTR + "trusted.x": "1", _XATTR + "security.selinux": "label"}),
                f("y", pax={_XATTR + "system.posix_acl_access": acl((1, 6, 0), (64, 7, 0))}),
                f("z", pax={_XATTR + "user.big": bytes(5000), "RHT.security.selinux": "label"}),
                s("l", "t", pax={_XATTR + "user.x": "1"}),
                n("p", "fifo", pax={_XATTR + "user.x": "1"}),
            ]
        ),
        has={"x": {"xattrs": {}}, "y": {"xattrs": {}}, "z": {"xattrs": {}}, "l": {"xattrs": {}}},
        lists=(
            "trusted.x: 1",
            "security.selinux: 2",
            "posix_acl_access (malformed",
            "user.big (no room",
            "user.x (only files and directories have them): 2",
        ),
        peer="umoci cannot set these",
    ),
    Case(
        "35-many-kinds",
        stack([f("x", pax={f"{_XATTR}odd.{i}": "" for i in range(500)})]),
        holds=NEW,
        lists=(*(f"odd.{i}" for i in range(0)), *[""] * 41),
        peer="umoci cannot set these",
    ),
]

NAMES = [
    Case(
        "36-newlines",
        stack(
            [
                f("a\n!touch PWNED\nb", b"1", uid=5, mode=0o600),
                f("c\rd", b"2", uid=6),
                s("l", "x\n!touch PWNED\n"),
                d("e\n", 0o700, gid=7),
                f("e\n/\n", b"3", gid=8),
                n("g\n", "char", 1, 3),
                f("h\n", pax={_XATTR + "security.capability": CAPABILITY}),
            ]
        ),
        holds={"": 0o755, "a\n!touch PWNED\nb": b"1", "c\rd": b"2", "l": "-> x\n!touch PWNED\n"}
        | {"e\n": 0o700, "e\n/\n": b"3", "g\n": ("char", 1, 3), "h\n": b""},
        has={"a\n!touch PWNED\nb": {"uid": 5}, "e\n/\n": {"gid": 8}},
    ),
    Case("36-nul", stack([f("x", pax={"path": "a\0b"})]), "NUL"),
    Case("36-nul-in-a-target", stack([s("x", "t", pax={"linkpath": "a\0b"})]), "NUL"),
    Case("36-nul-in-a-key", stack([f("x", pax={"SCHILY.xattr.user.a\0b": "1"})]), "NUL"),
    Case(
        "37-odd-names",
        stack(
            [
                f(name, str(i).encode(), uid=i + 1)
                for i, name in enumerate(
                    [
                        "two words",
                        '"quoted"',
                        "back\\slash",
                        "-rf",
                        "!sh",
                        "#x",
                        "<2>",
                        "\t",
                        "~",
                        "\x1b[31m",
                        "n" * 255,
                        "$(reboot)",
                        "`x`",
                        "a'b",
                        "*",
                        "?",
                        " ",
                        "\x7f",
                        "\u202e",
                        "%s%n",
                        "con",
                        "a\x01b",
                    ]
                )
            ]
            + [f(b"\xff\xfe\x80", b"raw"), d("quit\nclose"), f("quit\nclose/;", b";")]
        ),
        has={
            "two words": {"held": b"0", "uid": 1},
            "<2>": {"held": b"6", "uid": 7},
            "\x1b[31m": {"held": b"9"},
            "n" * 255: {"held": b"10", "uid": 11},
            b"\xff\xfe\x80": {"held": b"raw"},
            "quit\nclose/;": {"held": b";"},
        },
    ),
    Case(
        "37-escaped-in-the-error",
        stack([f("a\n\x1b[31m\u202e/../x")]),
        r"a\\n\\x1b\[31m\\u202e/\.\./x",
    ),
    Case(
        "37-listed-escaped",
        stack([f("a\n\x1b[2J", pax={_XATTR + "trusted.\x1b[31m\n": "1"})]),
        has={"a\n\x1b[2J": {"held": b""}},
        lists=(r"xattr trusted.\x1b[31m\n: 1 entry, first /a\n\x1b[2J",),
        peer="umoci cannot set these",
    ),
    Case("38-as-a-file", stack([f("lost+found")]), "lost.found in the root"),
    Case("38-as-a-link", stack([s("lost+found", "/etc")]), "lost.found in the root"),
    Case("38-as-a-hardlink", stack([f("x"), h("lost+found", "x")]), "lost.found in the root"),
    Case("38-behind-a-link", stack([s("l", "."), f("l/lost+found")]), "lost.found in the root"),
    Case(
        "38-as-a-directory",
        stack([d("lost+found", 0o1755, uid=4), f("lost+found/x", b"1"), f("p/lost+found", b"2")]),
        holds={"": 0o755, "lost+found": 0o1755, "lost+found/x": b"1", "p": 0o755}
        | {"p/lost+found": b"2"},
        has={"lost+found": {"uid": 4}},
    ),
]

_EVIL = 'x"\n!touch PWNED\n$(touch PWNED)`touch PWNED`\x1b[31m\u202e\0'

CONFIG = [
    Case(
        "39-config",
        stack(
            [f("x")],
            config={
                "Env": [f"PATH={_EVIL}", "=", "", _EVIL, "LD_PRELOAD=/x.so"],
                "Entrypoint": [_EVIL, "-c", "init=/bin/sh"],
                "Cmd": [_EVIL] * 100,
                "User": "../../root\n0:0",
                "WorkingDir": "/../../..\n",
                "StopSignal": "SIG\nKILL; reboot",
                "Labels": {_EVIL: _EVIL, "a" * 10_000: ""},
                "Volumes": {"../..": {}},
            },
        ),
        holds=NEW,
    ),
    Case(
        "40-passwd-and-group",
        stack(
            [
                f("etc/passwd", b"root:x:0:0:" + b"A" * 3_000_000 + b"\n"),
                s("etc/group", "/dev/zero"),
                n("etc/shadow", "fifo"),
                n("etc/nsswitch.conf", "char", 1, 5),
                f("home/x", uid=1234),
            ]
        ),
        has={"etc/group": {"held": "-> /dev/zero"}, "etc/shadow": {"held": ("fifo",)}}
        | {"etc/passwd": {"size": 3_000_012}, "home/x": {"uid": 1234}},
    ),
    Case(
        "40-passwd-is-a-directory",
        stack([d("etc/passwd"), f("etc/passwd/x"), s("etc/group", "group")]),
        holds={"": 0o755, "etc": 0o755, "etc/passwd": 0o755, "etc/passwd/x": b""}
        | {"etc/group": "-> group"},
    ),
]

CASES = [*SPECIAL, *OWNERS, *FORMS, *ATTRIBUTES, *NAMES, *CONFIG]

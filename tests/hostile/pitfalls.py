"""The awkward images of the field, P1 to P22, rebuilt small: each broke somebody's converter."""

from __future__ import annotations

import random

from support.filesystems import ACL, CAPABILITY
from support.images import LayerBytes
from support.tarball import tar

from hostile.case import Case, d, f, h, n, s, stack

_XATTR = "SCHILY.xattr."
_MODES = (0, 0o111, 0o444, 0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777)


def _many() -> list[bytes]:
    """24,000 small files in 300 directories."""
    return [f(f"node_modules/p{i % 300}/f{i}.js", b"%d" % i, mode=0o640) for i in range(24_000)]


def _owners() -> list[bytes]:
    """One file for each of many owners and modes: what a wholesale chown would lose."""
    chance = random.Random(8)
    return [
        f(f"var/lib/{i}", b"", uid=chance.choice((0, 26, 999, 70_000)), gid=i, mode=_MODES[i % 9])
        for i in range(200)
    ]


CASES = [
    Case(
        "P1-P2-names-that-debugfs-would-read",
        stack(
            [
                f("with space", b"1", uid=7),
                f('/quo"te', b"2", uid=8),
                f("<12>", b"3", uid=9),
                f("nope\nsif <2> mode 0", b"4", uid=10),
                d("!cd", 0o700, uid=11),
            ]
        ),
        has={
            "with space": {"uid": 7},
            'quo"te': {"uid": 8},
            "<12>": {"uid": 9},
            "nope\nsif <2> mode 0": {"uid": 10},
            "": {"mode": 0o755},
        },
    ),
    Case(
        "P3-P4-usrmerge-with-an-agent-in-the-way",
        stack(
            [
                d("usr/lib/systemd/system"),
                d("usr/sbin"),
                s("lib", "usr/lib"),
                s("sbin", "usr/sbin"),
            ],
            [f("sbin/init", b"old", mode=0o755), f("lib/agent", b"old")],
        ),
        holds={
            "": 0o755,
            "usr": 0o755,
            "usr/lib": 0o755,
            "usr/lib/systemd": 0o755,
            "usr/lib/systemd/system": 0o755,
            "usr/lib/agent": b"old",
            "usr/sbin": 0o755,
            "usr/sbin/init": b"old",
            "lib": "-> usr/lib",
            "sbin": "-> usr/sbin",
        },
    ),
    Case(
        "P5-P6-shadow-files-of-mode-0",
        stack(
            [
                f("etc/shadow", b"root:*:", mode=0),
                f("etc/gshadow", b"root:*::", mode=0),
                d("data", 0),
                f("data/big", bytes(range(1, 251)) * 20_000, mode=0),
            ],
            [f("etc/shadow", b"root:!:", mode=0)],
        ),
        has={
            "etc/shadow": {"held": b"root:!:", "mode": 0},
            "etc/gshadow": {"held": b"root:*::", "mode": 0},
            "data": {"held": 0},
            "data/big": {"size": 5_000_000, "mode": 0},
        },
        size="32MiB",
    ),
    Case(
        "P7-directories-of-mode-555-rewritten",
        stack(
            [
                d("usr/bin", 0o555),
                f("usr/bin/a", b"1", mode=0o555),
                f("usr/bin/b", mode=0o555),
                d("root", 0o550),
                f("root/.bashrc"),
            ],
            [f("usr/bin/a", b"2", mode=0o555), f("usr/bin/.wh.b"), h("usr/bin/c", "usr/bin/a")],
            [f("root/.wh..wh..opq"), f("root/.ssh/keys", b"k", mode=0o400)],
        ),
        holds={
            "": 0o755,
            "usr": 0o755,
            "usr/bin": 0o555,
            "usr/bin/a": b"2",
            "usr/bin/c": b"2",
            "root": 0o550,
            "root/.ssh": 0o755,
            "root/.ssh/keys": b"k",
        },
    ),
    Case(
        "P8-P9-everybodys-files",
        stack([d("./", 0o755), *_owners()]),
        has={"": {"uid": 0, "gid": 0}, "var/lib/7": {"gid": 7, "mode": 0o2755}},
    ),
    Case("P10-the-root-stays-open", stack([f("x")]), has={"": {"mode": 0o755, "uid": 0, "gid": 0}}),
    Case(
        "P11-P20-capabilities-and-lists",
        stack(
            [
                f(
                    "usr/bin/ping",
                    b"elf",
                    mode=0o755,
                    pax={_XATTR + "security.capability": CAPABILITY},
                ),
                d(
                    "var/log/journal",
                    0o2755,
                    gid=101,
                    pax={
                        _XATTR + "system.posix_acl_access": ACL,
                        _XATTR + "system.posix_acl_default": ACL,
                    },
                ),
            ],
            [h("bin/ping", "usr/bin/ping"), f("var/log/journal/x")],
        ),
        has={
            "bin/ping": {"xattrs": {b"security.capability": CAPABILITY}, "nlink": 2},
            "var/log/journal": {
                "xattrs": {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL},
                "gid": 101,
            },
            "var/log/journal/x": {"xattrs": {}},
        },
    ),
    Case(
        "P12-P13-P14-hardlinks-as-git-and-perl-have-them",
        stack(
            [
                f("git/http", b"remote" * 900),
                *(h(f"git/{x}", "git/http") for x in ("https", "ftp")),
                f("usr/bin/perl", b"perl"),
                f("usr/bin/perl5.36", b"perl"),
            ],
            [h("usr/bin/perl5.36", "usr/bin/perl"), f("git/.wh.http"), h("git/ftps", "git/ftp")],
            [f("git/https", b"new"), f("usr/bin/.wh.perl")],
        ),
        holds={
            "": 0o755,
            "git": 0o755,
            "git/https": b"new",
            "git/ftp": b"remote" * 900,
            "git/ftps": b"remote" * 900,
            "usr": 0o755,
            "usr/bin": 0o755,
            "usr/bin/perl5.36": b"perl",
        },
        has={"git/ftp": {"nlink": 2}, "usr/bin/perl5.36": {"nlink": 1}},
    ),
    Case(
        "P15-whiteouts-shipped-as-hardlinks",
        stack(
            [f("usr/share/a/x", b"1"), f("usr/share/b", b"2"), f("usr/share/c", b"3")],
            [
                f("usr/share/a/.wh.x"),
                h("usr/share/.wh.b", "usr/share/a/.wh.x"),
                f("usr/share/y"),
                h("usr/share/.wh.c", "usr/share/a/.wh.x"),
            ],
        ),
        holds={"": 0o755, "usr": 0o755, "usr/share": 0o755, "usr/share/a": 0o755}
        | {"usr/share/y": b""},
        peer="umoci refuses a hardlink to a whiteout",
    ),
    Case(
        "P16-opaque-behind-its-siblings",
        stack([f("app/old"), f("app/q/old")], [f("app/new"), d("app/q"), f("app/.wh..wh..opq")]),
        holds={"": 0o755, "app": 0o755, "app/new": b"", "app/q": 0o755},
    ),
    Case(
        "P17-directories-and-links-swap",
        stack(
            [f("var/lib/neo4j/conf/x"), s("www", "html"), s("logs", "var/log"), d("var/log")],
            [s("var/lib/neo4j/conf", "/conf"), d("conf"), s("www", "html2"), d("logs", 0o700)],
            [f("var/lib/neo4j/conf/y", b"y"), f("logs/x", b"x")],
        ),
        holds={
            "": 0o755,
            "var": 0o755,
            "var/lib": 0o755,
            "var/lib/neo4j": 0o755,
            "var/lib/neo4j/conf": "-> /conf",
            "conf": 0o755,
            "conf/y": b"y",
            "www": "-> html2",
            "logs": 0o700,
            "logs/x": b"x",
            "var/log": 0o755,
        },
    ),
    Case(
        "P18-P19-three-encodings",
        stack(
            LayerBytes(tar(f("a", b"1")), "zstd"),
            LayerBytes(tar(f("b", b"2")), "gzip"),
            LayerBytes(tar(f("c", b"3")), "none"),
        ),
        holds={"": 0o755, "a": b"1", "b": b"2", "c": b"3"},
        peer="umoci reads no zstd",
    ),
    Case("P21-features-of-the-host", stack([f("x")], [n("dev/null", "char", 1, 3)]), size="64MiB"),
    Case(
        "P22-many-small-files",
        stack(_many(), compression="zstd"),
        has={"node_modules/p299/f23999.js": {"held": b"23999", "mode": 0o640}},
        size="256MiB",
        peer="umoci reads no zstd",
    ),
]

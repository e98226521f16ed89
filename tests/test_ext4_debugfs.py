"""What a script may hold, and what counts as a complaint."""

from __future__ import annotations

import pytest

from reconciler.errors import HostError
from reconciler.ext4.debugfs import Script, complaints


def test_every_command_of_the_api_passes_its_own_grammar() -> None:
    script = Script()
    script.forget_writes()
    script.set_field(12, "mode", 0o100644)
    script.set_field("banger-network.service", "block[0]", 4294967295)
    script.set_time(12, "mtime", -1)
    script.cd(2)
    script.mkdir("multi-user.target.wants")
    script.rm("old")
    script.write(3, "banger-getty@tty.service")
    script.symlink("unit", "/etc/systemd/system/unit")
    script.set_xattr(12, "security.capability", 4)
    script.remove_xattr(12, "security.selinux")
    assert script.text().splitlines() == [
        "ssv kbytes_written 0",
        "sif <12> mode 33188",
        "sif banger-network.service block[0] 4294967295",
        "sif <12> mtime @4294967295",
        "cd <2>",
        "mkdir multi-user.target.wants",
        "rm old",
        "write 3 banger-getty@tty.service",
        "symlink unit /etc/systemd/system/unit",
        "ea_set -f 4 <12> security.capability",
        "ea_rm <12> security.selinux",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "!touch PWNED",
        "a\n!touch PWNED",
        "a\r!touch PWNED",
        "a b",
        '"a"',
        "-f",
        "<2>",
        "..",
        "a/b",
        "",
        "\u00e9",
        "x" * 256,
        "a\0b",
    ],
)
def test_names_that_mean_something_to_debugfs_are_refused(name: str) -> None:
    script = Script()
    script.mkdir(name)
    with pytest.raises(HostError, match="refused to give debugfs"):
        script.text()


@pytest.mark.parametrize(
    "line", ["dump <2> /etc/x", "sif <2> uid \u0663", "rdump / /", "lcd /", "!id", "x" * 9000, "\n"]
)
def test_lines_in_bulk_meet_the_same_grammar(line: str) -> None:
    script = Script()
    script.extend(["sif <2> uid 0", line, "sif <3> uid 0"])
    with pytest.raises(HostError, match="refused to give debugfs"):
        script.text()


@pytest.mark.parametrize(
    ("stderr", "complaint"),
    [
        (b"debugfs 1.47.0 (5-Feb-2023)\n", ""),
        (b"debugfs 1.47.4-rc1 (6-Mar-2025)\n", ""),
        (
            b"debugfs 1.47.0 (5-Feb-2023)\n<9>: File not found\n\x1b[31m",
            "<9>: File not found; \\x1b[31m",
        ),
        (b"Bad magic number in super-block\n", "Bad magic number in super-block"),
        (b"", ""),
    ],
)
def test_complaints_are_what_stands_beside_the_banner(stderr: bytes, complaint: str) -> None:
    assert complaints(stderr) == complaint

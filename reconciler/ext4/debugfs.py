"""Scripts for `debugfs -w -f`, built from a closed set of commands: no byte of an image gets in.

`debugfs` hands a line that starts with `!` to the shell, cuts lines at CR and LF before it looks
at quotes, and takes what stands behind byte 8191 of a line for a new command. So a script addresses
what came out of an image by inode number, calls files of the host by serial numbers (the tool runs
in their directory), spells out only names of this project, and has every line matched against the
grammar below before it leaves; that also bounds its length. `stages.ownership` and `stages.guest`
write scripts; `tools` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from reconciler.errors import Code, HostError
from reconciler.text import printable

_INODE = r"<[0-9]{1,10}>"
_NAME = r"(?!\.\.?[ \n])[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,254}"
_SOURCE = r"[0-9]{1,10}"
_TARGET = r"/?[A-Za-z0-9_.][A-Za-z0-9_.@+/-]{0,510}"
_COMMANDS = (
    rf"sif (?:{_INODE}|{_NAME}) [a-z_]{{1,20}}(?:\[(?:1?[0-9]|[DT]?IND)\])? @?[0-9]{{1,10}}",
    rf"cd {_INODE}",
    "ssv kbytes_written 0",
    rf"mkdir {_NAME}",
    rf"rm {_NAME}",
    rf"write {_SOURCE} {_NAME}",
    rf"symlink {_NAME} {_TARGET}",
    rf"ea_set -f {_SOURCE} {_INODE} {_NAME}",
    rf"ea_rm {_INODE} {_NAME}",
)
_SCRIPT = re.compile(f"(?:(?:{'|'.join(_COMMANDS)})\n)*+", re.ASCII)
_BANNER = re.compile(rb"\s*debugfs [0-9]+\.[0-9]+[0-9A-Za-z.~+-]* \([0-9A-Za-z-]+\)\s*")


class Script:
    """Lines for one run of debugfs. Inode numbers are those of the image that it is meant for."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def extend(self, lines: Iterable[str]) -> None:
        """Take finished lines in bulk, parted by line ends; `text` checks every one of them."""
        self._lines.extend(lines)

    def set_field(self, target: int | str, field: str, value: int) -> None:
        """Set one inode field to an unsigned number; `target` is an inode or a name in `cd`."""
        where = f"<{target}>" if isinstance(target, int) else target
        self._lines.append(f"sif {where} {field} {value}")

    def set_time(self, target: int | str, field: str, seconds: int) -> None:
        """Set the low 32 bits of a time. Unsigned, because debugfs takes -1 for a parse error."""
        where = f"<{target}>" if isinstance(target, int) else target
        self._lines.append(f"sif {where} {field} @{seconds & 0xFFFFFFFF}")

    def forget_writes(self) -> None:
        """Zero the superblock's count of bytes written, which libext2fs then leaves alone.

        It would tell how the builder's own files differed from what was wanted, and make images of
        the same content differ in four bytes.
        """
        self._lines.append("ssv kbytes_written 0")

    def cd(self, inode: int) -> None:
        """Make a directory of the image the one that names refer to."""
        self._lines.append(f"cd <{inode}>")

    def mkdir(self, name: str) -> None:
        """Make a directory, mode 0755 and owner 0:0."""
        self._lines.append(f"mkdir {name}")

    def rm(self, name: str) -> None:
        """Unlink a name that is no directory."""
        self._lines.append(f"rm {name}")

    def write(self, source: int, name: str) -> None:
        """Copy the host file called `source` in the run's directory: owner 0:0, its own mode."""
        self._lines.append(f"write {source} {name}")

    def symlink(self, name: str, target: str) -> None:
        """Make a symbolic link."""
        self._lines.append(f"symlink {name} {target}")

    def set_xattr(self, inode: int, name: str, source: int) -> None:
        """Set an attribute to the content of the host file `source`; an ACL in its tar form."""
        self._lines.append(f"ea_set -f {source} <{inode}> {name}")

    def remove_xattr(self, inode: int, name: str) -> None:
        """Remove an attribute that is there."""
        self._lines.append(f"ea_rm <{inode}> {name}")

    def text(self) -> str:
        """The script, after each line matched a known command. Raises HostError on any other."""
        text = "\n".join([*self._lines, ""])
        if not _SCRIPT.fullmatch(text):
            wrong = next((line for line in self._lines if not _SCRIPT.fullmatch(f"{line}\n")), "")
            raise HostError(
                f"refused to give debugfs the line '{printable(wrong)}'", code=Code.INTERNAL
            )
        return text


def complaints(stderr: bytes) -> str:
    """What debugfs said beside its banner, as one printable line; empty when it is content."""
    rest = _BANNER.sub(b"", stderr, count=1)
    return printable(b"; ".join(line.strip() for line in rest.splitlines() if line.strip()))

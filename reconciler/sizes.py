"""Sizes as people write them: the one parser and the one formatter of the project.

`config` parses `size = "4GiB"` with it; whoever prints bytes formats them with it. Pure. The rules
are those of docs/config.md ("Sizes"): every suffix is binary, whether it says `GB`, `GiB` or `G`,
and a bare number means MiB, a convention of the tool's users that must not change.
"""

from __future__ import annotations

import re

from reconciler.errors import ConfigError
from reconciler.text import printable

LARGEST = 2**63 - 1
"""The largest file offset that Linux knows, hence the largest size."""

_UNITS = {"": 2**20, "b": 1} | {
    prefix + tail: 2 ** (10 * power)
    for power, prefix in enumerate("kmgtpe", start=1)
    for tail in ("", "b", "ib")
}
_EXACT_UNITS = tuple(
    (2 ** (10 * power), suffix)
    for power, suffix in reversed(list(enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))))
)
_SIZE = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]+)(?:\.(?P<part>[0-9]+))?(?P<suffix>[^0-9.]*)")
_LONGEST_TEXT = 64


def parse_size(text: str) -> int:
    """Read a size such as `4GiB`, `1.5g` or `1024` (MiB); gives bytes, 1 to 2**63-1.

    A fraction is exact arithmetic and ends at a whole byte, rounded down.

    Raises ConfigError, which quotes the text: empty, negative, zero, unknown suffix, too large.
    """
    quoted = f'"{printable(text, 40)}"'
    found = _SIZE.fullmatch(text.strip())
    if not text.strip():
        raise _bad(f"the size {quoted} is empty")
    if found is None or len(text.strip()) > _LONGEST_TEXT:
        raise _bad(f"{quoted} is not a size")
    if found["sign"] == "-":
        raise _bad(f"the size {quoted} is negative")
    unit = _UNITS.get(found["suffix"].lower())
    if unit is None:
        raise _bad(f"the size {quoted} has an unknown suffix")
    part = found["part"] or ""
    size: int = int(found["whole"] + part) * unit // 10 ** len(part)
    if size == 0:
        raise _bad(f"the size {quoted} is zero")
    if size > LARGEST:
        raise _bad(f"the size {quoted} is too large: the largest is {LARGEST} bytes")
    return size


def format_size(size: int) -> str:
    """Write bytes in the largest unit that is exact: `4GiB`, `1536MiB`, and `1025B` when none is.

    `parse_size(format_size(n)) == n` for every n from 1 to 2**63-1.
    """
    for unit, suffix in _EXACT_UNITS:
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return "0B"


def _bad(brief: str) -> ConfigError:
    return ConfigError(brief, resolution="Write a size such as 4GiB, 512MiB or 1.5GiB.")

"""Durations as people write them: `500ms`, `10m`, `1h30m`.

`config` reads intervals and ages with it, `cli` its `--timeout` and the like. Pure. Only text with
a unit is a duration: a bare 30 is seconds to one reader and minutes to the next.
"""

from __future__ import annotations

import re

from reconciler.errors import ConfigError
from reconciler.text import printable

LONGEST = 10 * 365 * 86400.0
"""Seconds; beyond ten years a number is a slip of the pen."""

_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _UNITS))


def parse_duration(text: str) -> float:
    """Read a duration such as `1h30m`; gives seconds, 0.0 (from `0s`) to LONGEST.

    Units are d, h, m, s and ms, the larger first, each at most once. Raises ConfigError.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise ConfigError(
            f'"{printable(text, 40)}" is not a duration',
            resolution="Write a number with its unit, such as 500ms, 30s, 10m or 1h30m.",
        )
    seconds = sum(float(found[unit] or 0) * length for unit, length in _UNITS.items())
    if seconds > LONGEST:
        raise ConfigError(
            f'the duration "{printable(text, 40)}" is too long',
            resolution="Write at most 3650d.",
        )
    return seconds

"""The file itself: bytes off the disk and text out of bytes, or why there is none.

`config` reads with it. Apart from the parser because every way in which a path can fail to be a
readable UTF-8 file deserves its own advice.
"""

from __future__ import annotations

import getpass
from pathlib import Path

from reconciler.errors import ConfigError
from reconciler.text import printable

LARGEST_FILE = 4 << 20
"""Bytes; ten thousand images fit into less."""

LOCK_VERSION = 1
"""The `version` of a lock file that is written, and the newest that is understood."""
MEND_LOCK = "Take one side of a merge or remove the file, then run `banger-reconcile lock`."


def read_bytes(path: Path) -> bytes:
    """The bytes of a configuration file. Raises ConfigError that says what to do."""
    name = printable(str(path), 400)
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except IsADirectoryError:
        advice = f"Give the file in it, such as {name.rstrip('/')}/banger.toml."
        raise ConfigError(f"{name} is a directory, not a file", resolution=advice) from None
    except FileNotFoundError:
        raise _missing(path, name) from None
    except PermissionError:
        advice = f"Let {_user()} read it and enter its directories."
        raise ConfigError(f"{name} may not be read", resolution=advice) from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{name} is larger than 4MiB: that is no configuration")
    return data


def invalid(name: str, problems: tuple[str, ...], resolution: str = "") -> ConfigError:
    """The ConfigError that carries all problems of the file called `name`."""
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return ConfigError(f"{name} is invalid: {count}", problems, resolution=resolution)


def decode(data: bytes, name: str) -> str:
    """The text of the file called `name`. Raises ConfigError with the line that is not UTF-8."""
    try:
        # editors on other systems begin a file with a byte order mark
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"{name}:{line}: the byte 0x{data[error.start]:02x} is not UTF-8"
        raise invalid(name, (found,), "Save the file as UTF-8, as TOML demands.") from None


def _missing(path: Path, name: str) -> ConfigError:
    if path.is_symlink():
        target = printable(str(path.readlink()))
        return ConfigError(
            f"{name} is a link to {target}, which does not exist",
            resolution="Mend the link, or give another file.",
        )
    return ConfigError(
        f"{name} does not exist",
        resolution="Give the path of a banger.toml; docs/config.md shows how to write one.",
    )


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name, as in containers
        return "this user"

"""Where state and cache lie when no flag says so. The order is the contract's: docs/config.md."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from reconciler.errors import HostError


def _base(variable: str, systemd: str, xdg: str, home: str) -> Callable[[], Path]:
    """The default of a directory option, in the order of the contract."""

    def default() -> Path:
        if own := os.environ.get(variable):
            return Path(own)
        if given := os.environ.get(systemd):
            return Path(given.split(":", 1)[0])
        if shared := os.environ.get(xdg):
            return Path(shared) / "banger"
        try:
            return Path.home() / home / "banger"
        except RuntimeError:  # neither HOME nor an entry in the user database
            brief = f"no directory is known: neither ${variable} nor $HOME is set"
            raise HostError(brief, resolution="Set HOME, or give both directories.") from None

    return default


state_directory = _base("BANGER_STATE_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state")
cache_directory = _base("BANGER_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")

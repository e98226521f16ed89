"""Two small notes in the state directory: what is suspended, and since when images are orphans.

Files of their own beside the records, because they must outlive a database that is lost: the
artifacts' manifests cannot tell them again. A pass reads them; `suspend`, `resume` and a pass that
prunes write them, as the one writer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from reconciler.errors import Code, HostError
from reconciler.files import host_errors, write_durably
from reconciler.prune import Sighting

EVERY = "*"
"""Stands for every image in the note of what is suspended."""
_Value = TypeVar("_Value")
_Note = TypeVar("_Note")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Suspension(BaseModel):
    """Who is left alone, why, and since when (RFC 3339, UTC)."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    reason: str
    at: str


class Orphan(BaseModel):
    """One orphan: seconds and passes up to `mark`, a time of CLOCK_BOOTTIME in the boot `boot`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    seconds: float
    passes: int
    boot: str
    mark: float


_LATER = ConfigDict(defer_build=True)
_suspensions = TypeAdapter(dict[str, Suspension], config=_LATER)
_orphans = TypeAdapter(dict[str, Orphan], config=_LATER)


class Notes:
    """The notes of one state directory."""

    def __init__(self, state: Path) -> None:
        self._suspended = state / "suspended.json"
        self._orphans = state / "orphans.json"

    def suspensions(self) -> dict[str, Suspension]:
        """name, or EVERY -> why. Raises HostError when it cannot be read: then nothing is safe."""
        return _read(self._suspended, _suspensions)

    def suspend(self, name: str, suspension: Suspension) -> None:
        """Leave a name alone from here on."""
        self._write(self._suspended, _suspensions, self.suspensions() | {name: suspension})

    def resume(self, name: str) -> bool:
        """Work on a name again; False when it was not suspended. EVERY resumes every one."""
        before = self.suspensions()
        after = {} if name == EVERY else {n: s for n, s in before.items() if n != name}
        if after != before:
            self._write(self._suspended, _suspensions, after)
        return after != before

    def see(self, names: Iterable[str], *, keep: bool) -> dict[str, Sighting]:
        """One more pass has seen these orphans; how long, and how often. keep: write it down.

        Time counts only where this kernel's own clock saw it pass, so that no jump of the wall
        clock shortens a grace; what happened in an earlier boot counts as far as a pass noted it.
        """
        before = _read(self._orphans, _orphans)
        boot, now = _boot(), time.clock_gettime(time.CLOCK_BOOTTIME)
        after = {name: _seen_again(before.get(name), boot, now) for name in names}
        if keep and after.keys() | before.keys():
            self._write(self._orphans, _orphans, after)
        return {name: Sighting(orphan.seconds, orphan.passes) for name, orphan in after.items()}

    def _write(self, path: Path, adapter: TypeAdapter[_Value], value: _Value) -> None:
        with host_errors(f"{path.name} cannot be written"):
            write_durably(path, adapter.dump_json(value, indent=2) + b"\n")


def _seen_again(orphan: Orphan | None, boot: str, now: float) -> Orphan:
    if orphan is None:
        return Orphan(seconds=0.0, passes=1, boot=boot, mark=now)
    passed = max(0.0, now - orphan.mark) if orphan.boot == boot else 0.0
    seconds, passes = orphan.seconds + passed, orphan.passes + 1
    return Orphan(seconds=seconds, passes=passes, boot=boot, mark=now)


def _read(path: Path, adapter: TypeAdapter[dict[str, _Note]]) -> dict[str, _Note]:
    try:
        return adapter.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise HostError(
            f"{path} cannot be read: {error}",
            code=Code.STATE_INVALID,
            resolution="Mend it or remove it, then suspend again what is to be left alone.",
            retryable=False,
        ) from error


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""

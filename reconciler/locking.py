"""What the `lock` verb decides: which digests stay as they are locked, and which are looked up.

As with the lock files of package managers, what is locked and still fits stays; a tag is looked up
again only for a new image, a changed entry, and whatever `--upgrade` names. The kernel's files are
this host's, so they are always those of now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from reconciler.config.load import Config
from reconciler.errors import BangerError
from reconciler.model import DesiredImage, Locked
from reconciler.plan import Unresolved, Wanted


@dataclass(frozen=True, slots=True)
class Change:
    """One name before and after, None where it is not locked."""

    name: str
    before: Locked | None
    after: Locked | None

    @property
    def action(self) -> str:
        """What happens to the entry: keep, add, move, update (all but the digest) or remove."""
        if self.before is None:
            return "add"
        if self.after is None:
            return "remove"
        if self.before.digest != self.after.digest:
            return "move"
        return "keep" if self.before == self.after else "update"


@dataclass(frozen=True, slots=True)
class Locking:
    """The new content of a lock file, or why there is none."""

    changes: tuple[Change, ...]
    failures: tuple[tuple[str, BangerError], ...] = ()

    @property
    def entries(self) -> tuple[Locked, ...]:
        """The entries of the new file."""
        return tuple(change.after for change in self.changes if change.after)


def to_look_up(config: Config, upgrade: Collection[str]) -> Config:
    """The configuration with the images to upgrade unpinned, and nothing left aside.

    config: as `config.lock.under_lock` gives it.
    """
    images = (
        replace(spec, suspend=False, lock=None if spec.name in upgrade else spec.lock)
        for spec in config.images
    )
    return replace(config, images=tuple(images))


def relock(wanted: tuple[Wanted, ...], before: Mapping[str, Locked]) -> Locking:
    """The new lock file out of what was found; before: by name, what was locked."""
    changes: list[Change] = []
    failures: list[tuple[str, BangerError]] = []
    for image in wanted:
        name = image.spec.name
        if isinstance(image, DesiredImage):
            changes.append(Change(name, before.get(name), _locked(image)))
        elif isinstance(image, Unresolved):
            failures.append((name, image.error))
    gone = before.keys() - {image.spec.name for image in wanted}
    changes += [Change(name, before[name], None) for name in sorted(gone)]
    return Locking(tuple(changes), tuple(failures))


def _locked(image: DesiredImage) -> Locked:
    spec, kernel = image.spec, image.kernel
    return Locked(
        spec.name,
        spec.ref,
        image.pinned.digest,
        str(spec.platform),
        spec.kernel_ref,
        replace(kernel, cmdline="") if kernel else None,  # said by the configuration, not found
    )

"""What an operator does to one name by hand: remove, roll back, suspend, resume, verify.

Each is one careful act under the writer's lock, apart from the pass that follows a configuration.
A name that a configuration wants again is built again by the next pass; that is why a rollback
suspends the image, visibly, until `resume`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.errors import Code, HostError
from reconciler.manifest import damage
from reconciler.model import Record
from reconciler.notes import EVERY, Notes, Suspension
from reconciler.observe import record_of
from reconciler.records import Contents, Records
from reconciler.stages.record import timestamp
from reconciler.store import Store


@dataclass(frozen=True, slots=True)
class Done:
    """What was done to one name, in words; `changed` False when it was so already."""

    name: str
    changed: bool
    message: str


@dataclass(frozen=True, slots=True)
class Verified:
    """One artifact, read back: file -> what is wrong with it; empty when whole."""

    name: str
    id: str
    path: Path
    problems: dict[str, str]


@dataclass(frozen=True, slots=True)
class Hand:
    """An operator's hand on one state directory. patience: seconds to wait for another writer."""

    state_dir: Path
    cache_dir: Path
    patience: float = 0.0

    def remove(self, name: str, *, protected: bool) -> Done:
        """Forget a name and its link; the next collection takes the artifact."""
        with self._writing() as (store, records, contents):
            if name not in contents.records:
                if name not in contents.failures:
                    raise _unknown(name, contents)
                records.clear_failure(name)
                return Done(name, True, f"{name}: its failure is forgotten, it had no artifact")
            if contents.records[name].protect and not protected:
                raise HostError(
                    f"{name} is protected",
                    code=Code.NOT_PERMITTED,
                    resolution="Give --protected to remove it all the same.",
                    retryable=False,
                )
            records.forget(name)
            store.unname(name)
        return Done(name, True, f"{name} is forgotten; the next collection frees its artifact")

    def rollback(self, name: str) -> Done:
        """Let the name stand for its previous artifact again, and suspend it there.

        The artifact that it leaves becomes the previous one, so a second rollback undoes it.
        """
        with self._writing() as (store, records, contents):
            record = _known(name, contents)
            earlier, rest = _newest_whole(store, record)
            manifest = store.manifest(store.artifact(earlier))
            if manifest is None:
                raise _nothing_earlier(name)
            now = record_of(name, manifest)
            restored = replace(
                now,
                created_at=record.created_at,
                updated_at=timestamp(),
                protect=record.protect,
                retain=max(1, record.retain),
                previous=(record.id, *rest),
                fingerprints=store.fingerprints(store.artifact(earlier)),
            )
            reason = f"rolled back from {record.id[:12]}"
            Notes(store.state).suspend(name, Suspension(reason=reason, at=timestamp()))
            store.switch(name, earlier)
            records.save(restored)
        advice = f"suspended until `banger-reconcile resume {name}`"
        return Done(name, True, f"{name} is {earlier[:12]} again, {advice}")

    def suspend(self, name: str | None, reason: str) -> Done:
        """Leave a name, or with None every image, alone until `resume`."""
        with self._writing() as (store, _, contents):
            note = Suspension(reason=reason, at=timestamp())
            Notes(store.state).suspend(name or EVERY, note)
        who = name or "every image"
        known = name is None or name in contents.records.keys() | contents.failures.keys()
        also = "" if known else "; nothing is recorded of it yet"
        return Done(who, True, f"{who} is left alone: {reason}{also}")

    def resume(self, name: str | None) -> Done:
        """Work on a name again; None resumes everything that is suspended."""
        with self._writing() as (store, _, _contents):
            notes = Notes(store.state)
            changed = notes.resume(name or EVERY)
            still = EVERY in notes.suspensions()
        who = name or "every image"
        if still:
            return Done(who, changed, f"{who}: every image is suspended; resume without a name")
        return Done(who, changed, f"{who} is {'worked on again' if changed else 'not suspended'}")

    def verify(self, name: str | None) -> list[Verified]:
        """Read artifacts back and compare them with their manifests. Takes no lock."""
        store = Store(self.state_dir, self.cache_dir)
        contents = Records(store.database).read()
        if name is not None:
            _known(name, contents)
        wanted = [r for r in contents.records.values() if name in (None, r.name)]
        return [_verified(store, record) for record in wanted]

    @contextmanager
    def _writing(self) -> Iterator[tuple[Store, Records, Contents]]:
        store = Store(self.state_dir, self.cache_dir)
        store.prepare()
        with store.writer(self.patience):
            records = Records(store.database)
            yield store, records, records.read()


def _verified(store: Store, record: Record) -> Verified:
    path = store.artifact(record.id)
    manifest = store.manifest(path)
    if manifest is None or manifest.id != record.id:
        problems = {"manifest.json": "is missing or damaged"}
    else:
        problems = damage(path, manifest)
    return Verified(record.name, record.id, path, problems)


def _newest_whole(store: Store, record: Record) -> tuple[str, tuple[str, ...]]:
    """The newest earlier artifact that reads back as published, and the others."""
    for image_id in record.previous:
        path = store.artifact(image_id)
        manifest = store.manifest(path)
        if manifest and manifest.id == image_id and not damage(path, manifest):
            return image_id, tuple(i for i in record.previous if i != image_id)
    raise _nothing_earlier(record.name)


def _nothing_earlier(name: str) -> HostError:
    return HostError(
        f"{name} has no earlier artifact that is whole",
        code=Code.NOT_FOUND,
        resolution="Set retain to keep earlier artifacts from now on.",
        retryable=False,
    )


def _known(name: str, contents: Contents) -> Record:
    if name not in contents.records:
        raise _unknown(name, contents)
    return contents.records[name]


def _unknown(name: str, contents: Contents) -> HostError:
    names = ", ".join(sorted(contents.records)) or "none"
    return HostError(
        f"there is no record of {name}",
        code=Code.NOT_FOUND,
        resolution=f"Recorded are: {names}.",
        retryable=False,
    )

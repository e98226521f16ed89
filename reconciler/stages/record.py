"""record: the name stands for the artifact from here on. Written last: no record means not done.

In: a published artifact. Out: the by-name link and the record, `managed = true`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from reconciler.errors import HostError
from reconciler.model import DesiredImage, Record
from reconciler.room import Room


def run(image: DesiredImage, room: Room) -> None:
    """Switch the link, then commit the record; a name that was taken over is forgotten after it."""
    record = _record(image, room)
    room.store.switch(record.name, record.id)
    old = room.before.name if room.before and room.before.name != record.name else None
    room.records.save(record, instead_of=old)
    if old:
        room.store.unname(old)


def _record(image: DesiredImage, room: Room) -> Record:
    directory = room.store.artifact(image.id)
    manifest = room.store.manifest(directory)
    if manifest is None:
        raise HostError(
            f"the artifact {image.id} is not there: the image that was to publish it has failed",
            resolution="Mend that one first.",
        )
    before, spec, now = room.before, image.spec, timestamp()
    return Record(
        name=spec.name,
        id=image.id,
        ref=spec.ref,
        digest=manifest.digest,
        platform=manifest.platform,
        size=manifest.size,
        keys=manifest.keys,
        created_at=before.created_at if before else now,
        updated_at=now,
        kernel=spec.kernel_ref,
        protect=spec.protect,
        retain=spec.retain,
        blobs=manifest.blobs,
        previous=_previous(before, image.id, spec.retain),
        not_carried=manifest.not_carried,
        fingerprints=room.store.fingerprints(directory),
    )


def _previous(before: Record | None, image_id: str, retain: int) -> tuple[str, ...]:
    """Earlier ids, newest first, at most `retain` of them."""
    if before is None:
        return ()
    earlier = before.previous if before.id == image_id else (before.id, *before.previous)
    return tuple(dict.fromkeys(i for i in earlier if i != image_id))[:retain]


def timestamp(after: float = 0.0) -> str:
    """Now, or so many seconds later, as RFC 3339 in UTC with whole seconds."""
    return (datetime.now(UTC) + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")

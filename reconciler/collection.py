"""What the collector may remove: the decision alone, pure. `apply` does the removing.

Deleting is the careful part: a thing goes only when no record, no wanted image and no process
refers to it and it is old enough; everything that stays says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from reconciler.model import Record
from reconciler.plan import Plan


class Kind(StrEnum):
    """What kinds of things the state and cache directories hold."""

    ARTIFACT = "artifact"
    STAGING = "staging"
    SCRATCH = "scratch"
    BLOB = "blob"
    PARTIAL = "partial"
    LINK = "link"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing on disk. key: id, flatten key, digest or name; age in seconds; bytes allocated."""

    kind: Kind
    key: str
    path: Path
    age: float
    bytes: int
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Ages:
    """`[gc]`: how old, in seconds, a thing has to be before it may go."""

    staging: float
    blob: float


@dataclass(frozen=True, slots=True)
class References:
    """What must stay: ids of artifacts, digests of blobs, names with a record."""

    artifacts: frozenset[str]
    blobs: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Removal:
    """One decision to remove, with its reason."""

    holding: Holding
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What goes, and what would go but for the reason given."""

    remove: tuple[Removal, ...] = ()
    kept: tuple[Removal, ...] = field(default_factory=tuple)


def references(
    records: Iterable[Record],
    plan: Plan | None,
    documents: frozenset[str] = frozenset(),
    links: Mapping[str, str] | None = None,
) -> References:
    """Everything that the records, and the wanted images of a plan, stand on.

    documents: digests of what the wanted references were resolved through, indexes for one.
    links: where the names lead on disk; after a crash that may be a step ahead of the record.
    """
    records = tuple(records)
    names = frozenset(record.name for record in records)
    ids = {record.id for record in records}
    ids.update(image_id for name, image_id in (links or {}).items() if name in names)
    blobs = set(documents).union(*(record.blobs for record in records))
    for record in records:
        ids.update(record.previous[: record.retain])
    for image in plan.images if plan else ():
        if image.desired:
            ids.add(image.desired.id)
            pinned = image.desired.pinned
            blobs.update((pinned.digest, pinned.config.digest))
            blobs.update(layer.blob.digest for layer in pinned.layers)
    return References(frozenset(ids), frozenset(blobs), names)


def plan_collection(holdings: Iterable[Holding], stays: References, ages: Ages) -> Collection:
    """Decide about every holding."""
    holdings = tuple(holdings)
    published = {h.key for h in holdings if h.kind is Kind.ARTIFACT}
    remove: list[Removal] = []
    kept: list[Removal] = []
    for holding in holdings:
        reason = _why_garbage(holding, stays, ages, published)
        if holding.kind is Kind.STRANGER:
            kept.append(Removal(holding, "nothing of ours"))
        elif reason and holding.in_use:
            kept.append(Removal(holding, "a running guest holds it open"))
        elif reason:
            remove.append(Removal(holding, reason))
    return Collection(tuple(remove), tuple(kept))


def _why_garbage(holding: Holding, stays: References, ages: Ages, published: set[str]) -> str:
    """Why this may go; empty when it stays."""
    key, age = holding.key, holding.age
    match holding.kind:
        case Kind.ARTIFACT:
            return "" if key in stays.artifacts else "no record and no wanted image refers to it"
        case Kind.STAGING if key in published and key in stays.artifacts:
            return "its artifact is published"
        case Kind.STAGING | Kind.SCRATCH:
            return "an abandoned build" if age >= ages.staging else ""
        case Kind.BLOB:
            unused = key not in stays.blobs and age >= ages.blob
            return "no record and no wanted image refers to it" if unused else ""
        case Kind.PARTIAL:
            return "an abandoned download" if age >= ages.blob else ""
        case Kind.LINK:
            return "" if key in stays.names else "its name has no record"
        case Kind.STRANGER:
            return ""

"""What the records say, for the `status` verb: no configuration, no lock, no write, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reconciler.files import allocated
from reconciler.records import Contents, Records
from reconciler.store import Store


@dataclass(frozen=True, slots=True)
class Status:
    """The records, and by name the bytes that each artifact occupies on disk."""

    store: Store
    contents: Contents
    allocated: dict[str, int]


def read_status(state_dir: Path, cache_dir: Path) -> Status:
    """Read it. Raises HostError for a database that a newer program wrote."""
    store = Store(state_dir, cache_dir)
    contents = Records(store.database).read()
    records = contents.records.values()
    return Status(store, contents, {r.name: allocated(store.artifact(r.id)) for r in records})

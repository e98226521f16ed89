"""What the records say, for the `status` verb: no configuration, no lock, no write, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reconciler.files import allocated
from reconciler.notes import EVERY, Notes, Suspension
from reconciler.records import Contents, Records
from reconciler.store import Store


@dataclass(frozen=True, slots=True)
class Status:
    """The records, and by name the bytes that each artifact occupies on disk."""

    store: Store
    contents: Contents
    allocated: dict[str, int]
    suspensions: dict[str, Suspension]

    def suspended(self, name: str) -> str | None:
        """Why this name is left alone; None when it is not."""
        note = self.suspensions.get(name) or self.suspensions.get(EVERY)
        return note.reason if note else None


def read_status(state_dir: Path, cache_dir: Path) -> Status:
    """Read it. Raises HostError for a database that a newer program wrote."""
    store = Store(state_dir, cache_dir)
    contents = Records(store.database).read(history=True)
    records = contents.records.values()
    sizes = {r.name: allocated(store.artifact(r.id)) for r in records}
    return Status(store, contents, sizes, Notes(store.state).suspensions())

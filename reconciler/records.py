"""The persisted records: which artifact a name stands for, from what, since when.

SQLite in WAL mode with `synchronous=FULL`: a commit survives power loss, a killed writer leaves the
old row. A reader never waits and never writes: a pass that changes nothing leaves every file as
it was. Each row carries the sha256 of its document, because SQLite's own check does not see a
flipped bit in a value; a row that does not match is as good as missing, and the manifest beside
the artifact tells it again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from reconciler.errors import Code, HostError
from reconciler.ext4.imagefile import disk_is_full
from reconciler.model import READY, Failure, History, Record, Transition, camel_case
from reconciler.text import printable

SCHEMA_VERSION = 1
_BUSY_SECONDS = 10.0
_READ_TRIES = 3
HISTORY_LENGTH = 20
"""Changes of its Ready condition that are kept for a name."""
_adapters: dict[type, TypeAdapter[Any]] = {}
_TABLES: dict[type, str] = {Record: "records", Failure: "failures", History: "history"}
Row = TypeVar("Row", Record, Failure, History)

_NOW = "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', 'now')"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS {table}
(name TEXT PRIMARY KEY, document TEXT NOT NULL, sha256 TEXT NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that is persisted, read at one moment. `damaged`: why rows had to be left out."""

    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    unusable: str = ""
    """Why the whole database cannot be used; empty when it can."""
    history: dict[str, tuple[Transition, ...]] = field(default_factory=dict)
    """Changes of state by name: only with `read(history=True)`, for no pass needs them."""


class Records:
    """The records in one database file. Cheap to make; every call opens and closes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self.written = False
        """True once anything was written, or tried, through this object."""

    def read(self, *, history: bool = False) -> Contents:
        """Everything in it. A missing or garbage database is `unusable`; a newer one is refused."""
        for _ in range(_READ_TRIES - 1):
            before = self._stamp()
            contents = self._read(immutable=not self._log.exists(), history=history)
            if self._stamp() == before:
                return contents
        return self._read(immutable=False, history=history)

    def _read(self, *, immutable: bool, history: bool) -> Contents:
        if self._stamp()[1] == 0:  # empty: its first writer was killed before the first commit
            return Contents(unusable="there is no database yet")
        # Without a WAL file everything is in the main file, and "immutable" reads that without
        # making one; `read` looks again when a writer came by meanwhile.
        mode = "mode=ro&immutable=1" if immutable else "mode=ro"
        uri = f"{self._path.absolute().as_uri()}?{mode}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as database:
                contents = self._contents(database)
                past = dict(_past(database)) if history else {}
                return replace(contents, history=past)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                return Contents(unusable=f"{self._path.name} is damaged: {error}")
            # busy, forbidden, out of descriptors: what is in it may be in perfect order
            raise _state_error(self._path, error, "read") from error

    def _stamp(self) -> tuple[int, int, bool]:
        try:
            info = self._path.stat()
        except FileNotFoundError:
            return 0, 0, False
        return info.st_mtime_ns, info.st_size, self._log.exists()

    def _contents(self, database: sqlite3.Connection) -> Contents:
        self._check_version(database)
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        damaged: list[str] = []
        records = {r.name: r for r in _rows(database, Record, damaged)}
        failures = {f.name: f for f in _rows(database, Failure, damaged)}
        return Contents(records, failures, tuple(damaged))

    def create(self) -> None:
        """Make the database, with nothing in it."""
        with self._writer():
            pass

    def save(self, record: Record, *, instead_of: str | None = None) -> None:
        """Write one record and clear its failure, in one commit; another name goes with it."""
        with self._writer() as database:
            if instead_of:
                _delete(database, _TABLES.values(), instead_of)
            _put(database, "records", record.name, _adapter(Record).dump_json(record).decode())
            _delete(database, ("failures",), record.name)
            _note(database, record.name, _ready(record, record.updated_at))

    def forget(self, name: str) -> None:
        """Remove a record, its failure and its history."""
        with self._writer() as database:
            _delete(database, _TABLES.values(), name)

    def fail(self, failure: Failure) -> None:
        """Keep the last failure of a name."""
        with self._writer() as database:
            _put(database, "failures", failure.name, _adapter(Failure).dump_json(failure).decode())
            reason = camel_case(failure.code)
            _note(database, failure.name, Transition(failure.at, "False", reason, failure.message))

    def clear_failure(self, name: str) -> None:
        """The name is well again, or wanted no more."""
        with self._writer() as database:
            _delete(database, ("failures",), name)
            if record := next(_rows(database, Record, [], name=name), None):
                (now,) = database.execute(_NOW).fetchone()
                _note(database, name, _ready(record, now))
            else:
                _delete(database, ("history",), name)

    def drop_damaged(self) -> None:
        """Remove the rows that cannot be read: what could be told again has been."""
        with self._writer() as database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            _drop(database, Record)
            _drop(database, Failure)
            _drop(database, History)

    def set_aside(self) -> Path:
        """Move an unusable database out of the way, keeping it for a look. Returns where it is."""
        self.written = True
        aside = self._path.with_name(f"{self._path.name}.damaged")
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(aside)
        return aside

    @contextmanager
    def _writer(self) -> Iterator[sqlite3.Connection]:
        self.written = True
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=FULL")
                self._check_version(database)
                with database:
                    for table in _TABLES.values():
                        database.execute(_SCHEMA.format(table=table))
                    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                    yield database
        except sqlite3.DatabaseError as error:
            raise _state_error(self._path, error) from error

    def _check_version(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise HostError(
                f"{self._path} was written by a newer banger-reconcile (schema {version})",
                code=Code.STATE_INVALID,
                resolution="Upgrade this program, or use another --state-dir. Nothing was touched.",
                retryable=False,
            )


def _adapter(kind: type) -> TypeAdapter[Any]:
    """What reads and writes rows of a kind: made when there is one."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _rows(
    database: sqlite3.Connection,
    kind: type[Row],
    damaged: list[str],
    bad: list[int] | None = None,
    *,
    name: str | None = None,
) -> Iterator[Row]:
    """The rows that are whole; of the others, words go to `damaged` and row numbers to `bad`.

    name: only the row of this name.
    Any bit of a row may have flipped: also one of its name, or one that makes text another type.
    """
    table = _TABLES[kind]
    query = f"SELECT rowid, name, document, sha256 FROM {table} NOT INDEXED"  # noqa: S608
    if name is not None:
        query += " WHERE name = ?"
    found = []
    for number, key, document, digest in database.execute(query, () if name is None else (name,)):
        if isinstance(document, str) and _sha256(document) == digest:
            with suppress(ValidationError):
                row: Row = _adapter(kind).validate_json(document)
                if row.name == key:
                    found.append(row)
                    continue
        damaged.append(f"the row of {printable(str(key), 80)} in {table} is damaged")
        if bad is not None:
            bad.append(number)
    yield from sorted(found, key=lambda row: row.name)


def _past(
    database: sqlite3.Connection, name: str | None = None
) -> Iterator[tuple[str, tuple[Transition, ...]]]:
    """By name, changes of state. For people only, in a table younger than the others.

    So neither its absence nor its damage is a reason to doubt the records.
    """
    with suppress(sqlite3.DatabaseError):
        for found in _rows(database, History, [], name=name):
            yield found.name, found.transitions


def _note(database: sqlite3.Connection, name: str, now: Transition) -> None:
    """Add to a name's history what is another state than its last one."""
    known = next((past for _, past in _past(database, name)), ())
    last = known[-1] if known else None
    same_failure = last and now.status == "False" and last.reason == now.reason
    if same_failure or (last and replace(last, at=now.at) == now):
        return
    history = History(name, (*known, now)[-HISTORY_LENGTH:])
    _put(database, "history", name, _adapter(History).dump_json(history).decode())


def _ready(record: Record, at: str) -> Transition:
    return Transition(at, "True", READY, f"artifact {record.id[:12]}")


def _delete(database: sqlite3.Connection, tables: Iterable[str], name: str) -> None:
    for table in tables:
        database.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608


def _drop(database: sqlite3.Connection, kind: type[Row]) -> None:
    bad: list[int] = []
    list(_rows(database, kind, [], bad))
    rows = [(row,) for row in bad]
    database.executemany(f"DELETE FROM {_TABLES[kind]} WHERE rowid = ?", rows)  # noqa: S608


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """True for what no waiting and no permission would mend: the file is no database of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    no_such_table = code == sqlite3.SQLITE_ERROR
    return no_such_table or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _put(database: sqlite3.Connection, table: str, name: str, document: str) -> None:
    statement = f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)"  # noqa: S608
    database.execute(statement, (name, document, _sha256(document)))


def _sha256(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()


def _state_error(path: Path, error: sqlite3.DatabaseError, done: str = "written") -> HostError:
    text = str(error)
    if "full" in text or ("I/O" in text and disk_is_full(path)):
        return HostError(
            f"no space to write {path}",
            code=Code.DISK_FULL,
            resolution="Free space there, then run again.",
        )
    if "readonly" in text or "read-only" in text or "unable to open" in text:
        return HostError(
            f"{path} cannot be {done}: {text}", code=Code.NOT_PERMITTED, retryable=False
        )
    return HostError(f"{path} cannot be {done}: {text}", code=Code.STATE_INVALID)

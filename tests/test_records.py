"""The persisted records: they survive, they refuse, and reading them leaves no trace."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import Code, HostError
from reconciler.model import Failure, Record, StageKeys
from reconciler.records import HISTORY_LENGTH, Records

WEB = Record(
    name="web",
    id="0" * 32,
    ref="registry.lab/web:1",
    digest="sha256:" + "a" * 64,
    platform="linux/amd64",
    size=1 << 30,
    keys=StageKeys("f", "e", "o", "g", "k"),
    created_at="2026-01-01T00:00:00Z",
    updated_at="2026-01-02T00:00:00Z",
    previous=("1" * 32,),
    fingerprints={"rootfs.ext4": (1, 2, 3)},
)
DOWN = Failure("web", "registry-unavailable", "pull", "no answer", "", True, 3, "t0", "t1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


def test_a_record_comes_back_as_it_was(path: Path) -> None:
    Records(path).save(WEB)
    assert Records(path).read().records == {"web": WEB}


def test_success_clears_the_failure(path: Path) -> None:
    records = Records(path)
    records.fail(DOWN)
    assert records.read().failures == {"web": DOWN}
    records.save(WEB)
    assert records.read().failures == {}


def test_forget_removes_the_record_and_its_failure(path: Path) -> None:
    records = Records(path)
    records.save(WEB)
    records.fail(DOWN)
    records.forget("web")
    assert not records.read().records
    assert not records.read().failures


def test_reading_touches_nothing(path: Path) -> None:
    Records(path).save(WEB)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in path.parent.iterdir()}
    directory = path.parent.stat().st_mtime_ns
    Records(path).read()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in path.parent.iterdir()} == before
    assert path.parent.stat().st_mtime_ns == directory


def test_a_reader_sees_what_a_writer_committed_and_has_not_checkpointed(path: Path) -> None:
    Records(path).save(WEB)
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM records")
        database.commit()
        assert path.with_name("records.db-wal").exists()
        assert Records(path).read().records == {}
    database.close()


def test_durability_is_what_power_loss_asks_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real = sqlite3.connect

    def spying(*args: object, **kwargs: object) -> sqlite3.Connection:
        database: sqlite3.Connection = real(*args, **kwargs)  # type: ignore[call-overload]
        database.set_trace_callback(said.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", spying)
    Records(path).save(WEB)
    assert "PRAGMA journal_mode=WAL" in said
    assert "PRAGMA synchronous=FULL" in said


def test_missing_is_unusable_and_says_so(path: Path) -> None:
    assert "no database" in Records(path).read().unusable
    assert not path.exists()


@pytest.mark.parametrize("garbage", [b"", b"not a database at all, but long enough" * 100])
def test_garbage_is_unusable_and_can_be_set_aside(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    records = Records(path)
    assert records.read().unusable
    aside = records.set_aside()
    assert aside.read_bytes() == garbage
    records.save(WEB)
    assert records.read().records == {"web": WEB}


def test_a_truncated_database_is_unusable(path: Path) -> None:
    Records(path).save(WEB)
    path.write_bytes(path.read_bytes()[:5000])
    assert Records(path).read().unusable


def test_a_flipped_bit_in_a_row_is_noticed(path: Path) -> None:
    Records(path).save(WEB)
    Records(path).save(replace(WEB, name="db"))
    with sqlite3.connect(path) as database:
        database.execute(
            "UPDATE records SET document = replace(document, '1073741824', '1073741825') "
            "WHERE name = 'web'"
        )
    database.close()
    contents = Records(path).read()
    assert list(contents.records) == ["db"]
    assert "web" in contents.damaged[0]


def test_a_newer_database_is_refused_untouched(path: Path) -> None:
    Records(path).save(WEB)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    before = path.read_bytes()
    with pytest.raises(HostError, match="newer") as caught:
        Records(path).read()
    assert caught.value.code is Code.STATE_INVALID
    with pytest.raises(HostError, match="newer"):
        Records(path).save(WEB)
    assert path.read_bytes() == before


class TestHistory:
    def test_it_holds_changes_of_state_and_no_repetitions(self, path: Path) -> None:
        records = Records(path)
        records.save(WEB)
        records.save(replace(WEB, updated_at="2026-01-03T00:00:00Z"))
        for number in range(5):
            records.fail(replace(DOWN, at=f"t{number}", attempts=number))
        records.fail(replace(DOWN, code="not-found", at="t9"))
        records.clear_failure("web")
        found = records.read(history=True).history["web"]
        told = [(change.status, change.reason) for change in found]
        assert told == [
            ("True", "Reconciled"),
            ("False", "RegistryUnavailable"),
            ("False", "NotFound"),
            ("True", "Reconciled"),
        ]
        assert found[1].at == "t0"

    def test_it_is_bounded_and_goes_with_the_name(self, path: Path) -> None:
        records = Records(path)
        for number in range(HISTORY_LENGTH * 2):
            records.fail(replace(DOWN, code="not-found" if number % 2 else "timeout"))
        assert len(records.read(history=True).history["web"]) == HISTORY_LENGTH
        records.forget("web")
        assert records.read(history=True).history == {}

    def test_a_database_from_before_there_was_one_is_read(self, path: Path) -> None:
        Records(path).save(WEB)
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE history")
        database.close()
        contents = Records(path).read(history=True)
        assert (contents.records, contents.history) == ({"web": WEB}, {})
        assert not contents.damaged and not contents.unusable

    def test_its_damage_is_no_damage_of_the_records(self, path: Path) -> None:
        Records(path).save(WEB)
        with sqlite3.connect(path) as database:
            database.execute("UPDATE history SET document = 'x'")
        database.close()
        contents = Records(path).read(history=True)
        assert (contents.damaged, contents.history) == ((), {})

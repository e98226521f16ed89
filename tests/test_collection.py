"""The collector's decision: what goes, what stays, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.collection import (
    Ages,
    Holding,
    Kind,
    References,
    plan_collection,
    references,
)
from reconciler.model import Record, StageKeys
from reconciler.plan import Plan

HOUR = 3600.0
AGES = Ages(staging=HOUR, blob=24 * HOUR)
STAYS = References(frozenset({"live"}), frozenset({"sha256:live"}), frozenset({"web"}))


def holding(kind: Kind, key: str, hours: float, *, in_use: bool = False) -> Holding:
    return Holding(kind, key, Path("/x") / key, hours * HOUR, 4096, in_use)


@pytest.mark.parametrize(
    ("thing", "goes"),
    [
        (holding(Kind.ARTIFACT, "live", 99), False),
        (holding(Kind.ARTIFACT, "old", 0), True),
        (holding(Kind.ARTIFACT, "old", 99, in_use=True), False),
        (holding(Kind.STAGING, "abandoned", 2), True),
        (holding(Kind.STAGING, "young", 0.5), False),
        (holding(Kind.SCRATCH, "abandoned", 2), True),
        (holding(Kind.SCRATCH, "young", 0.5), False),
        (holding(Kind.BLOB, "sha256:live", 99), False),
        (holding(Kind.BLOB, "sha256:dead", 25), True),
        (holding(Kind.BLOB, "sha256:dead", 23), False),
        (holding(Kind.PARTIAL, "sha256-dead.part", 25), True),
        (holding(Kind.PARTIAL, "sha256-dead.part", 1), False),
        (holding(Kind.LINK, "web", 0), False),
        (holding(Kind.LINK, "gone", 0), True),
    ],
)
def test_what_goes(thing: Holding, goes: bool) -> None:
    found = plan_collection([thing], STAYS, AGES)
    assert [removal.holding for removal in found.remove] == ([thing] if goes else [])
    assert all(removal.reason for removal in found.remove)


def test_what_an_exchange_left_in_staging_goes_at_once() -> None:
    things = [holding(Kind.ARTIFACT, "live", 0), holding(Kind.STAGING, "live", 0)]
    (removal,) = plan_collection(things, STAYS, AGES).remove
    assert removal.holding.kind is Kind.STAGING


def test_what_a_guest_holds_open_is_kept_and_named() -> None:
    thing = holding(Kind.ARTIFACT, "old", 99, in_use=True)
    (kept,) = plan_collection([thing], STAYS, AGES).kept
    assert kept.holding is thing
    assert "guest" in kept.reason


def test_a_record_keeps_its_artifact_its_blobs_and_as_many_earlier_ones_as_it_retains() -> None:
    record = Record(
        name="web",
        id="now",
        ref="r",
        digest="sha256:d",
        platform="linux/amd64",
        size=1,
        keys=StageKeys("f", "e", "o", "g", "k"),
        created_at="",
        updated_at="",
        retain=1,
        previous=("before", "long-ago"),
        blobs=("sha256:d", "sha256:l"),
    )
    stays = references([record], Plan(()))
    assert stays.artifacts == {"now", "before"}
    assert stays.blobs == {"sha256:d", "sha256:l"}
    assert stays.names == {"web"}

"""What may be removed because it left the configuration, and every guard that keeps it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from reconciler.config.load import PruneSettings
from reconciler.model import Action, ImageSpec, Reason, Record, StageKeys
from reconciler.notes import Notes
from reconciler.plan import Held, ImagePlan, Plan
from reconciler.prune import Sighting, limit, prune

ON = PruneSettings(images=True, grace=60.0, max_count=None, max_percent=50, allow_empty=False)
OLD = Sighting(seconds=61.0, passes=2)


def record(name: str, *, protect: bool = False) -> Record:
    keys = StageKeys("f", "e", "o", "g", "k")
    when = "2026-01-01T00:00:00Z"
    return Record(name, "0" * 32, "r", "d", "p", 1, keys, when, when, protect=protect)


def orphan(name: str, *, protect: bool = False) -> ImagePlan:
    return ImagePlan(
        name, Action.ORPHAN, Reason.REMOVED_FROM_CONFIG, record=record(name, protect=protect)
    )


def wanted(name: str) -> ImagePlan:
    held = Held(ImageSpec(name, "r", 1), Reason.BACKING_OFF)
    return ImagePlan(name, Action.NOOP, Reason.IN_SYNC, held=held, record=record(name))


KEEP = [wanted("w1"), wanted("w2")]


@pytest.mark.parametrize(
    ("images", "settings", "seen", "action", "reason"),
    [
        ([orphan("x")], ON, {"x": OLD}, Action.PRUNE, Reason.REMOVED_FROM_CONFIG),
        ([orphan("x")], ON, {}, Action.ORPHAN, Reason.REMOVED_FROM_CONFIG),
        ([orphan("x")], ON, {"x": Sighting(59.0, 9)}, Action.ORPHAN, Reason.REMOVED_FROM_CONFIG),
        ([orphan("x")], ON, {"x": Sighting(99.0, 1)}, Action.ORPHAN, Reason.REMOVED_FROM_CONFIG),
        ([orphan("x", protect=True)], ON, {"x": OLD}, Action.ORPHAN, Reason.PROTECTED),
        (
            [orphan("x")],
            PruneSettings(False, 60.0, None, 50, False),
            {"x": OLD},
            Action.ORPHAN,
            Reason.REMOVED_FROM_CONFIG,
        ),
        (
            [orphan("x")],
            PruneSettings(True, 60.0, 0, None, False),
            {"x": OLD},
            Action.ORPHAN,
            Reason.PRUNE_BLOCKED_LIMIT,
        ),
    ],
)
def test_one_orphan_beside_wanted_images(
    images: list[ImagePlan],
    settings: PruneSettings,
    seen: dict[str, Sighting],
    action: Action,
    reason: Reason,
) -> None:
    plan = prune(Plan((*KEEP, *images)), settings, seen)
    assert plan.images[:2] == tuple(KEEP)
    assert (plan.images[2].action, plan.images[2].reason) == (action, reason)


def test_more_than_max_removes_none_and_says_what_to_do() -> None:
    names = ("x", "y", "z")
    plan = prune(Plan((*KEEP, *map(orphan, names))), ON, dict.fromkeys(names, OLD))
    assert {i.reason for i in plan.images[2:]} == {Reason.PRUNE_BLOCKED_LIMIT}
    assert plan.images[2].refused and "max" in plan.images[2].refused.resolution


def test_never_to_nothing_unless_that_is_allowed() -> None:
    plan = prune(Plan((orphan("x"),)), ON, {"x": OLD})
    (image,) = plan.images
    assert image.reason is Reason.PRUNE_BLOCKED_EMPTY
    assert image.refused and "--allow-empty" in image.refused.resolution
    allowed = PruneSettings(True, 60.0, None, 50, True)
    (image,) = prune(Plan((orphan("x"),)), allowed, {"x": OLD}).images
    assert image.action is Action.PRUNE


def unbuilt(name: str) -> ImagePlan:
    held = Held(ImageSpec(name, "r", 1), Reason.BACKING_OFF)
    return ImagePlan(name, Action.NOOP, Reason.BACKING_OFF, held=held)


def suspended(name: str) -> ImagePlan:
    return ImagePlan(name, Action.SUSPEND, Reason.SUSPENDED, record=record(name))


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ([unbuilt("new")], Reason.PRUNE_BLOCKED_EMPTY),
        ([suspended("y")], Reason.PRUNE_BLOCKED_EMPTY),
        ([unbuilt("new"), suspended("y")], Reason.REMOVED_FROM_CONFIG),
        ([orphan("p", protect=True), wanted("w")], Reason.REMOVED_FROM_CONFIG),
    ],
)
def test_the_last_image_goes_only_when_another_is_there(
    others: list[ImagePlan], reason: Reason
) -> None:
    """A file whose one new image cannot be built must not cost the host its old one."""
    plan = prune(Plan((*others, orphan("x"))), ON, {"x": OLD})
    assert plan.images[-1].reason is reason


def test_an_orphan_that_a_guest_runs_from_keeps_its_name() -> None:
    plan = prune(Plan((*KEEP, orphan("x"))), ON, {"x": OLD}, frozenset(("x",)))
    assert (plan.images[2].action, plan.images[2].reason) == (Action.ORPHAN, Reason.IN_USE)


@pytest.mark.parametrize(
    ("count", "percent", "records", "most"),
    [(3, None, 100, 3), (0, None, 100, 0), (None, 25, 100, 25), (None, 25, 3, 1), (None, 0, 9, 0)],
)
def test_the_limit(count: int | None, percent: int | None, records: int, most: int) -> None:
    assert limit(PruneSettings(True, 0.0, count, percent, False), records) == most


class TestSightings:
    def test_time_and_passes_add_up(self, tmp_path: Path) -> None:
        notes = Notes(tmp_path)
        assert notes.see(["x"], keep=True) == {"x": Sighting(0.0, 1)}
        time.sleep(0.05)
        again = notes.see(["x"], keep=True)["x"]
        assert again.passes == 2
        assert again.seconds >= 0.05

    def test_one_that_came_back_begins_anew(self, tmp_path: Path) -> None:
        notes = Notes(tmp_path)
        notes.see(["x"], keep=True)
        notes.see([], keep=True)
        assert notes.see(["x"], keep=True)["x"].passes == 1

    def test_another_boot_gives_no_time_away(self, tmp_path: Path) -> None:
        note = {"x": {"seconds": 7.0, "passes": 1, "boot": "another", "mark": 1e12}}
        (tmp_path / "orphans.json").write_text(json.dumps(note))
        assert Notes(tmp_path).see(["x"], keep=False) == {"x": Sighting(7.0, 2)}

    def test_a_look_writes_nothing(self, tmp_path: Path) -> None:
        Notes(tmp_path).see(["x"], keep=False)
        assert not list(tmp_path.iterdir())

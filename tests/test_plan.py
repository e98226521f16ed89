"""The planner's table: what is there decides which stages run, and the reason is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.errors import Code, RemoteError
from reconciler.model import (
    Action,
    Descriptor,
    DesiredImage,
    ImageSpec,
    KernelTriple,
    Layer,
    PinnedImage,
    Platform,
    Reason,
    Record,
    Stage,
)
from reconciler.plan import Artifact, ImagePlan, Observed, Unresolved, make_plan

GiB = 1 << 30


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def pinned(letter: str = "a", layers: str = "12") -> PinnedImage:
    made = tuple(Layer(Descriptor("gzip", digest(x), 10), digest(x)) for x in layers)
    return PinnedImage(
        digest(letter), Descriptor("config", digest("c"), 5), made, Platform("linux", "amd64")
    )


WEB = DesiredImage(
    ImageSpec("web", "registry.lab/web:1", GiB, kernel_ref="generic"),
    pinned(),
    KernelTriple("generic", digest("7")),
    digest("9"),
)
CACHED = frozenset((digest("1"), digest("2")))


def spec(image: DesiredImage, **changes: object) -> DesiredImage:
    return replace(image, spec=replace(image.spec, **changes))


def record(image: DesiredImage, name: str | None = None) -> Record:
    return Record(
        name=name or image.spec.name,
        id=image.id,
        ref=image.spec.ref,
        digest=image.pinned.digest,
        platform="linux/amd64",
        size=image.spec.size or 0,
        keys=image.keys,
        created_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:00Z",
        kernel=image.spec.kernel_ref,
    )


def artifact(image: DesiredImage, **state: object) -> Artifact:
    return replace(Artifact(image.id, image.keys.rootfs, image.keys.kernel), **state)


def seen(image: DesiredImage, **extra: object) -> Observed:
    """A host on which `image` was built and recorded."""
    base = Observed({image.spec.name: record(image)}, {image.id: artifact(image)}, blobs=CACHED)
    return replace(base, **extra)


OTHER_KERNEL = replace(WEB, kernel=KernelTriple("generic", digest("8")))
OTHER_GUEST = replace(WEB, guest_digest=digest("0"))
MOVED_TAG = replace(WEB, pinned=pinned("b", "13"))
BIGGER = spec(WEB, size=2 * GiB)

FROM_EXT4 = "ext4 ownership guest kernel publish record"
FROM_FLATTEN = f"flatten {FROM_EXT4}"
FROM_PULL = f"pull {FROM_FLATTEN}"
ON_A_CLONE = "kernel publish record"

TABLE = [
    ("nothing there", WEB, Observed(), "create", "NotPresent", FROM_PULL),
    ("blobs cached", WEB, Observed(blobs=CACHED), "create", "NotPresent", FROM_FLATTEN),
    (
        "whole artifact, no record",
        WEB,
        Observed(artifacts={WEB.id: artifact(WEB)}, blobs=CACHED),
        "repair",
        "RecordMissing",
        "record",
    ),
    ("all there", WEB, seen(WEB), "noop", "InSync", ""),
    ("kernel changed", OTHER_KERNEL, seen(WEB), "update", "KernelChanged", ON_A_CLONE),
    (
        "kernel gone",
        WEB,
        seen(
            WEB, artifacts={WEB.id: artifact(WEB, kernel_whole=False, problem="kernel is missing")}
        ),
        "repair",
        "ArtifactCorrupt",
        ON_A_CLONE,
    ),
    ("name changed", spec(WEB, name="www"), seen(WEB), "update", "NameChanged", "record"),
    ("tag moved to another digest", MOVED_TAG, seen(WEB), "update", "DigestChanged", FROM_PULL),
    ("tag moved, same digest", WEB, seen(WEB), "noop", "InSync", ""),
    (
        "other tag, other digest",
        replace(spec(WEB, ref="registry.lab/web:2"), pinned=pinned("b", "13")),
        seen(WEB),
        "update",
        "RefChanged",
        FROM_PULL,
    ),
    (
        "other tag, same digest: the record says the new tag, nothing is built",
        spec(WEB, ref="registry.lab/web:2"),
        seen(WEB),
        "noop",
        "InSync",
        "record",
    ),
    (
        "size changed, the tree still in scratch",
        BIGGER,
        seen(WEB, trees=frozenset((BIGGER.keys.flatten,))),
        "update",
        "SizeChanged",
        FROM_EXT4,
    ),
    ("size changed, scratch empty", BIGGER, seen(WEB), "update", "SizeChanged", FROM_FLATTEN),
    (
        "guest assets changed, the tree still in scratch",
        OTHER_GUEST,
        seen(WEB, trees=frozenset((WEB.keys.flatten,))),
        "update",
        "GuestChanged",
        FROM_EXT4,
    ),
    ("guest assets changed", OTHER_GUEST, seen(WEB), "update", "GuestChanged", FROM_FLATTEN),
    (
        "artifact damaged",
        WEB,
        seen(WEB, artifacts={WEB.id: artifact(WEB, rootfs_whole=False, kernel_whole=False)}),
        "repair",
        "ArtifactCorrupt",
        FROM_FLATTEN,
    ),
    (
        "artifact gone",
        WEB,
        seen(WEB, artifacts={}),
        "repair",
        "ArtifactMissing",
        FROM_FLATTEN,
    ),
    (
        "artifact damaged, but a guest runs from it",
        WEB,
        seen(WEB, artifacts={WEB.id: artifact(WEB, rootfs_whole=False, in_use=True)}),
        "noop",
        "InUse",
        "",
    ),
    (
        "interrupted with a whole rootfs",
        WEB,
        Observed(staging={WEB.id: frozenset((Stage.GUEST,))}),
        "create",
        "NotPresent",
        "kernel publish record",
    ),
    (
        "interrupted just before publish",
        WEB,
        Observed(staging={WEB.id: frozenset((Stage.GUEST, Stage.KERNEL))}),
        "create",
        "NotPresent",
        "publish record",
    ),
    (
        "interrupted with a whole tree",
        WEB,
        Observed(trees=frozenset((WEB.keys.flatten,))),
        "create",
        "NotPresent",
        FROM_EXT4,
    ),
    (
        "interrupted with nothing proven",
        WEB,
        Observed(staging={WEB.id: frozenset()}, blobs=CACHED),
        "create",
        "NotPresent",
        FROM_FLATTEN,
    ),
    (
        "records lost, artifact and link there",
        WEB,
        seen(WEB, recovered=frozenset(("web",))),
        "repair",
        "RecordMissing",
        "record",
    ),
    (
        "guest = false",
        spec(WEB, guest=False),
        Observed(),
        "create",
        "NotPresent",
        FROM_PULL.replace("guest ", ""),
    ),
    (
        "no kernel",
        replace(WEB, kernel=None),
        Observed(),
        "create",
        "NotPresent",
        FROM_PULL.replace("kernel ", ""),
    ),
    (
        "the link of a name leads elsewhere, after a crash or a hand",
        WEB,
        seen(WEB, mislinked=frozenset(("web",))),
        "repair",
        "RecordMissing",
        "record",
    ),
    (
        "the same kernel under another name",
        replace(
            spec(WEB, kernel_ref="newer"),
            kernel=replace(WEB.kernel or KernelTriple("", ""), name="newer"),
        ),
        seen(WEB),
        "noop",
        "InSync",
        "record",
    ),
    ("suspended and never built", spec(WEB, suspend=True), Observed(), "suspend", "Suspended", ""),
    ("suspended", spec(WEB, suspend=True), seen(WEB), "suspend", "Suspended", ""),
]


def plan_one(image: DesiredImage, observed: Observed) -> ImagePlan:
    return make_plan([image], observed).images[0]


@pytest.mark.parametrize(
    ("image", "observed", "action", "reason", "stages"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_only_what_is_missing_runs(
    image: DesiredImage, observed: Observed, action: str, reason: str, stages: str
) -> None:
    found = plan_one(image, observed)
    assert (found.action, found.reason) == (action, reason)
    assert " ".join(found.runs) == stages
    assert all(step.reason for step in found.steps)


def test_layers_in_common_are_not_fetched_again() -> None:
    step = next(s for s in plan_one(MOVED_TAG, seen(WEB)).steps if s.stage is Stage.PULL)
    assert step.reason == "1 of 2 layer blobs are not cached"


def test_a_kernel_change_clones_the_rootfs_of_the_old_artifact() -> None:
    assert plan_one(OTHER_KERNEL, seen(WEB)).clone_from == WEB.id


def test_a_damaged_rootfs_is_never_cloned() -> None:
    observed = seen(WEB, artifacts={WEB.id: artifact(WEB, rootfs_whole=False)})
    assert plan_one(OTHER_KERNEL, observed).clone_from is None


def test_a_new_name_takes_over_the_record_of_the_old() -> None:
    plan = make_plan([spec(WEB, name="www")], seen(WEB))
    assert plan.images[0].taken_over == record(WEB)
    assert [image.name for image in plan.images] == ["www"]


def test_a_second_name_for_the_same_image_only_needs_a_record() -> None:
    plan = make_plan([WEB, spec(WEB, name="www")], Observed())
    assert [" ".join(image.runs) for image in plan.images] == [FROM_PULL, "record"]


def test_a_second_kernel_for_the_same_image_clones_what_the_first_publishes() -> None:
    plan = make_plan([WEB, spec(OTHER_KERNEL, name="www")], Observed())
    assert " ".join(plan.images[1].runs) == ON_A_CLONE
    assert plan.images[1].clone_from == WEB.id


def test_a_record_that_nobody_wants_is_an_orphan_and_kept() -> None:
    (plan,) = make_plan([], seen(WEB)).images
    assert (plan.action, plan.reason) == (Action.ORPHAN, Reason.REMOVED_FROM_CONFIG)
    assert not plan.runs
    assert not plan.changes


def test_an_unresolved_image_fails_alone() -> None:
    error = RemoteError("no answer", code=Code.REGISTRY_UNAVAILABLE)
    down = Unresolved(ImageSpec("db", "registry.lab/db:1", GiB), Stage.RESOLVE, error)
    first, second = make_plan([down, WEB], seen(WEB)).images
    assert first.unresolved is down
    assert second.action is Action.NOOP


def test_a_suspended_image_that_cannot_be_found_is_no_failure() -> None:
    error = RemoteError("no answer", code=Code.REGISTRY_UNAVAILABLE)
    down = Unresolved(spec(WEB, suspend=True).spec, Stage.RESOLVE, error)
    (plan,) = make_plan([down], seen(WEB)).images
    assert (plan.action, plan.unresolved, plan.runs) == (Action.SUSPEND, None, ())


def test_two_names_that_swap_images_only_need_records() -> None:
    db = replace(spec(WEB, name="db"), pinned=pinned("b", "13"))
    there = Observed(
        {"web": record(WEB), "db": record(db)},
        {WEB.id: artifact(WEB), db.id: artifact(db)},
        blobs=CACHED,
    )
    swapped = spec(db, name="web"), spec(WEB, name="db")
    plans = make_plan(swapped, there).images
    assert [(p.name, p.action, " ".join(p.runs)) for p in plans] == [
        ("web", Action.UPDATE, "record"),
        ("db", Action.UPDATE, "record"),
    ]


def test_a_name_that_moves_and_changes_size_is_new_and_the_old_one_an_orphan() -> None:
    web, old = make_plan([spec(BIGGER, name="www")], seen(WEB)).images
    assert (web.action, web.taken_over) == (Action.CREATE, None)
    assert (old.name, old.action) == ("web", Action.ORPHAN)


@pytest.mark.parametrize(
    ("other", "same_rootfs", "same_id"),
    [
        (spec(WEB, name="www"), True, True),
        (spec(WEB, ref="registry.lab/web:2"), True, True),
        (spec(WEB, protect=True, retain=5), True, True),
        (OTHER_KERNEL, True, False),
        (OTHER_GUEST, False, False),
        (BIGGER, False, False),
        (MOVED_TAG, False, False),
    ],
)
def test_the_id_follows_from_what_changes_the_bytes(
    other: DesiredImage, same_rootfs: bool, same_id: bool
) -> None:
    assert (other.keys.rootfs == WEB.keys.rootfs) is same_rootfs
    assert (other.id == WEB.id) is same_id

"""`--replace NAME[:STAGE]`: make an image again although nothing is missing. Pure.

From the stage on, everything runs; before it, only what is needed and no longer there. The result
has the same id, because the inputs are the same: the artifact is swapped, the name stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.errors import Code, HostError
from reconciler.model import Action, DesiredImage, Reason, Stage
from reconciler.plan import (
    ROOTFS_STAGES,
    ImagePlan,
    Observed,
    Plan,
    Step,
    kernel_step,
    rootfs_steps,
    skip,
)

_ORDER = tuple(Stage)
_WHY = "asked for with --replace"


def replacing(
    plan: Plan, requested: Mapping[str, Stage], observed: Observed, in_use: frozenset[str]
) -> Plan:
    """The plan with these names built from these stages on.

    in_use: ids of artifacts that a process has open: those are refused, as a damaged one is.
    What cannot be pinned, and what is suspended, stays as it was planned.
    """
    return Plan(
        tuple(
            _replaced(image, image.desired, requested[image.name], observed, in_use)
            if image.name in requested and image.desired and image.action is not Action.SUSPEND
            else image
            for image in plan.images
        )
    )


def _replaced(
    image: ImagePlan,
    desired: DesiredImage,
    since: Stage,
    observed: Observed,
    in_use: frozenset[str],
) -> ImagePlan:
    if desired.id in in_use:
        error = HostError(
            f"{image.name} is not replaced: a running process holds its artifact open",
            code=Code.BUSY,
            resolution="Stop the guest, then ask again.",
        )
        return replace(
            image,
            action=Action.NOOP,
            reason=Reason.IN_USE,
            steps=(),
            clone_from=None,
            refused=error,
        )
    action = Action.REPLACE if image.record else image.action
    asked = replace(image, action=action, reason=Reason.REQUESTED)
    if since is Stage.RECORD and Stage.PUBLISH not in image.runs:
        steps = (*(s for s in image.steps if s.stage is not since), _forced(since))
        return replace(asked, steps=steps)
    pinned = Step(Stage.RESOLVE, run=False, reason=f"pinned to {desired.pinned.digest[:19]}")
    rootfs, donor = _rootfs(image, desired, since, observed)
    kernel = kernel_step(desired, replace(observed, staging={}))
    steps = (pinned, *rootfs, kernel, _forced(Stage.PUBLISH), _forced(Stage.RECORD))
    steps = tuple(replace(s, reason=_WHY) if s.run and s.stage is since else s for s in steps)
    return replace(asked, steps=steps, clone_from=donor, verifies_blobs=_within(since, Stage.PULL))


def _rootfs(
    image: ImagePlan, desired: DesiredImage, since: Stage, observed: Observed
) -> tuple[tuple[Step, ...], str | None]:
    """The stages of the rootfs; after them it is cloned where one is whole, which need not be."""
    if not _within(since, Stage.GUEST):
        own = observed.artifacts.get(desired.id)
        donor = desired.id if own and own.rootfs_whole else image.clone_from
        if donor:
            return skip(ROOTFS_STAGES, f"the rootfs is cloned from artifact {donor[:12]}"), donor
    trees = observed.trees if not _within(since, Stage.FLATTEN) else frozenset[str]()
    blobs = observed.blobs if not _within(since, Stage.PULL) else frozenset[str]()
    seen = replace(observed, staging={}, trees=trees, blobs=blobs)
    return rootfs_steps(desired, seen, None), None


def _within(since: Stage, stage: Stage) -> bool:
    """Whether this stage is one of those from `since` on."""
    return _ORDER.index(since) <= _ORDER.index(stage)


def _forced(stage: Stage) -> Step:
    return Step(stage, run=True, reason=_WHY)

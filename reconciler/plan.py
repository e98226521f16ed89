"""The planner: what is wanted and what is there go in, a Plan comes out. Pure.

It reads nothing and prints nothing. `observe` gathers the facts, `apply` walks the plan, the `plan`
verb renders it; each step carries its reason, because "why would this rebuild?" is asked of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reconciler.errors import BangerError
from reconciler.model import Action, DesiredImage, ImageSpec, Reason, Record, Stage


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A wanted image that could not be pinned in this pass, and why."""

    spec: ImageSpec
    stage: Stage
    error: BangerError


@dataclass(frozen=True, slots=True)
class Held:
    """A wanted image that this pass leaves alone, and why."""

    spec: ImageSpec
    reason: Reason
    detail: str = ""


Wanted = DesiredImage | Unresolved | Held


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is known of one published directory.

    rootfs_whole, kernel_whole: the files are those of the manifest (by fingerprint, or read back).
    problem: what is wrong with it, for people; empty when whole.
    """

    id: str
    rootfs_key: str
    kernel_key: str
    rootfs_whole: bool = True
    kernel_whole: bool = True
    in_use: bool = False
    problem: str = ""

    @property
    def whole(self) -> bool:
        """True when nothing of it has to be made again."""
        return self.rootfs_whole and self.kernel_whole


@dataclass(frozen=True, slots=True)
class Observed:
    """The facts of one pass.

    staging: id -> the stages whose output in its staging directory is proven whole.
    trees: flatten keys whose staging tree is still in scratch, proven whole.
    blobs: digests of the layer blobs that are in the cache.
    recovered: names whose records come from manifests, because the database was lost.
    mislinked: names with a record and an artifact whose link does not lead there.
    refreshed: records whose artifact was read back and is whole, with its fingerprints of now.
    """

    records: Mapping[str, Record] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    staging: Mapping[str, frozenset[Stage]] = field(default_factory=dict)
    trees: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()
    recovered: frozenset[str] = frozenset()
    mislinked: frozenset[str] = frozenset()
    refreshed: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one image: run or not, and why."""

    stage: Stage
    run: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What to do about one name.

    clone_from: id of the artifact whose rootfs.ext4 is cloned instead of being built.
    taken_over: the record of an old name that this name takes over.
    verifies_blobs: cached layers are read back, and those that are damaged fetched again.
    """

    name: str
    action: Action
    reason: Reason
    desired: DesiredImage | None = None
    unresolved: Unresolved | None = None
    held: Held | None = None
    record: Record | None = None
    steps: tuple[Step, ...] = ()
    clone_from: str | None = None
    taken_over: Record | None = None
    detail: str = ""
    verifies_blobs: bool = False
    refused: BangerError | None = None
    """Why something that was asked for is not done: a removal, or a replacement."""

    @property
    def id(self) -> str | None:
        """The id that the name will stand for, as far as it is known."""
        if self.desired is not None:
            return self.desired.id
        return self.record.id if self.record else None

    @property
    def runs(self) -> tuple[Stage, ...]:
        """The stages that will run, in order."""
        return tuple(step.stage for step in self.steps if step.run)

    @property
    def changes(self) -> bool:
        """True when applying this makes something different for the user of the image."""
        if self.action is Action.PRUNE:
            return True
        building = (Action.CREATE, Action.UPDATE, Action.REPLACE, Action.REPAIR)
        return self.action in building and bool(self.runs)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass does, image by image, in the order of the configuration; then the orphans."""

    images: tuple[ImagePlan, ...]

    @property
    def changes(self) -> bool:
        """True when any image changes."""
        return any(image.changes for image in self.images)


def make_plan(wanted: Iterable[Wanted], observed: Observed) -> Plan:
    """Decide about every wanted image and every record that nobody wants any more."""
    wanted = tuple(wanted)
    names = {image.spec.name for image in wanted}
    available = dict(observed.artifacts)
    plans: list[ImagePlan] = []
    moved: set[str] = set()
    for image in wanted:
        if isinstance(image, Unresolved):
            plans.append(_unresolved(image, observed.records.get(image.spec.name)))
            continue
        if isinstance(image, Held):
            plans.append(_held(image, observed.records.get(image.spec.name)))
            continue
        plan = _plan_image(image, observed, available, names, moved)
        plans.append(plan)
        if plan.taken_over:
            moved.add(plan.taken_over.name)
        if plan.runs:
            # what this image publishes is there for those after it
            available[image.id] = Artifact(image.id, image.keys.rootfs, image.keys.kernel)
    orphans = (r for name, r in observed.records.items() if name not in names | moved)
    return Plan((*plans, *(_orphan(record) for record in orphans)))


def _unresolved(image: Unresolved, record: Record | None) -> ImagePlan:
    if image.spec.suspend:  # not to be touched: then it need not be found either
        detail = image.error.brief
        return ImagePlan(
            image.spec.name, Action.SUSPEND, Reason.SUSPENDED, record=record, detail=detail
        )
    action = Action.UPDATE if record else Action.CREATE
    reason = Reason.STAGE_INCOMPLETE if record else Reason.NOT_PRESENT
    step = Step(image.stage, run=True, reason=image.error.brief)
    return ImagePlan(
        image.spec.name, action, reason, unresolved=image, record=record, steps=(step,)
    )


def _held(image: Held, record: Record | None) -> ImagePlan:
    action = Action.SUSPEND if image.reason is Reason.SUSPENDED else Action.NOOP
    return ImagePlan(
        image.spec.name, action, image.reason, held=image, record=record, detail=image.detail
    )


def _orphan(record: Record) -> ImagePlan:
    return ImagePlan(record.name, Action.ORPHAN, Reason.REMOVED_FROM_CONFIG, record=record)


def _plan_image(
    image: DesiredImage,
    observed: Observed,
    available: Mapping[str, Artifact],
    names: set[str],
    moved: set[str],
) -> ImagePlan:
    name = image.spec.name
    record = observed.records.get(name)
    if image.spec.suspend:
        return ImagePlan(name, Action.SUSPEND, Reason.SUSPENDED, desired=image, record=record)
    present = available.get(image.id)
    taken_over = None if record else _moved_from(image, observed.records, names, moved)
    if taken_over:
        action, reason = Action.UPDATE, Reason.NAME_CHANGED
    else:
        action, reason = _verdict(image, record, observed, present)
    if present and not present.whole and present.in_use:
        detail = f"the artifact is damaged ({present.problem}) and a running guest holds it open"
        return ImagePlan(name, Action.NOOP, Reason.IN_USE, image, record=record, detail=detail)
    steps, clone_from = _steps(image, observed, available, action)
    detail = (present.problem if present else "") or image.no_kernel
    return ImagePlan(
        name,
        action,
        reason,
        image,
        record=record,
        steps=steps,
        clone_from=clone_from,
        taken_over=taken_over,
        detail=detail,
    )


def _moved_from(
    image: DesiredImage, records: Mapping[str, Record], names: set[str], moved: set[str]
) -> Record | None:
    """The record of the same artifact under a name that nobody wants any more."""
    image_id = image.id
    for old in records.values():
        if old.id == image_id and old.name not in names and old.name not in moved:
            return old
    return None


def _verdict(
    image: DesiredImage,
    record: Record | None,
    observed: Observed,
    present: Artifact | None,
) -> tuple[Action, Reason]:
    if record is None:
        image_id = image.id
        referenced = any(other.id == image_id for other in observed.records.values())
        if present and present.whole and not referenced and image_id in observed.artifacts:
            return Action.REPAIR, Reason.RECORD_MISSING
        return Action.CREATE, Reason.NOT_PRESENT
    if record.id != image.id:
        return Action.UPDATE, _what_changed(image, record)
    if present is None:
        return Action.REPAIR, Reason.ARTIFACT_MISSING
    if not present.whole:
        return Action.REPAIR, Reason.ARTIFACT_CORRUPT
    if image.spec.name in observed.recovered | observed.mislinked:
        return Action.REPAIR, Reason.RECORD_MISSING
    return Action.NOOP, Reason.IN_SYNC


def _what_changed(image: DesiredImage, record: Record) -> Reason:
    """The first input, in pipeline order, that differs from what the record was built from."""
    keys = image.keys
    if image.pinned.digest != record.digest:
        return Reason.REF_CHANGED if image.spec.ref != record.ref else Reason.DIGEST_CHANGED
    if keys.flatten != record.keys.flatten:
        return Reason.RECIPE_CHANGED
    if image.spec.injects_modules and keys.kernel != record.keys.kernel:
        return Reason.KERNEL_CHANGED  # its modules are in the keys of what follows
    if keys.ext4 != record.keys.ext4:
        return Reason.SIZE_CHANGED
    if keys.guest != record.keys.guest:
        return Reason.GUEST_CHANGED
    return Reason.KERNEL_CHANGED


def _steps(
    image: DesiredImage, observed: Observed, available: Mapping[str, Artifact], action: Action
) -> tuple[tuple[Step, ...], str | None]:
    present = available.get(image.id)
    pinned = Step(Stage.RESOLVE, run=False, reason=f"pinned to {image.pinned.digest[:19]}")
    if present and present.whole:
        done = f"artifact {image.id[:12]} is whole"
        return (pinned, *skip(_BUILDING, done), _record_step(image, observed, action)), None
    rootfs_key = image.keys.rootfs
    clone_from = next(
        (a.id for a in available.values() if a.rootfs_key == rootfs_key and a.rootfs_whole),
        None,
    )
    rootfs = rootfs_steps(image, observed, clone_from)
    kernel = kernel_step(image, observed)
    publish = Step(Stage.PUBLISH, run=True, reason=f"artifact {image.id[:12]} is to be published")
    record = Step(Stage.RECORD, run=True, reason=f"{image.spec.name} is to stand for it")
    return (pinned, *rootfs, kernel, publish, record), clone_from


ROOTFS_STAGES = (Stage.PULL, Stage.FLATTEN, Stage.EXT4, Stage.OWNERSHIP, Stage.GUEST)
_BUILDING = (*ROOTFS_STAGES, Stage.KERNEL, Stage.PUBLISH)


def skip(stages: Iterable[Stage], reason: str) -> tuple[Step, ...]:
    """These stages, not run."""
    return tuple(Step(stage, run=False, reason=reason) for stage in stages)


def _record_step(image: DesiredImage, observed: Observed, action: Action) -> Step:
    record = observed.records.get(image.spec.name)
    if action is not Action.NOOP or record is None:
        return Step(Stage.RECORD, run=True, reason=f"no record of {image.spec.name} stands for it")
    spec = image.spec
    said = (record.ref, record.kernel, record.protect, record.retain)
    if said != (spec.ref, spec.kernel_ref, spec.protect, spec.retain):
        reason = "ref, kernel-ref, protect or retain is said differently now"
        return Step(Stage.RECORD, run=True, reason=reason)
    return Step(Stage.RECORD, run=False, reason="the record stands for it")


def rootfs_steps(
    image: DesiredImage, observed: Observed, clone_from: str | None
) -> tuple[Step, ...]:
    """Backwards from the finished rootfs: a stage runs only when its output is needed and gone."""
    if Stage.GUEST in observed.staging.get(image.id, frozenset()):
        return skip(ROOTFS_STAGES, "the rootfs is whole in an interrupted build")
    if clone_from:
        return skip(ROOTFS_STAGES, f"the rootfs is cloned from artifact {clone_from[:12]}")
    guest = "the assets go in" if image.spec.guest else "guest = false: nothing is injected"
    if image.spec.injects_modules:
        guest += ", and the kernel's modules"
    direct = image.builder == "direct"
    owners = "ext4 wrote the owners" if direct else "the new filesystem needs its owners"
    tail = (
        Step(Stage.EXT4, run=True, reason="no artifact holds this rootfs"),
        Step(Stage.OWNERSHIP, run=not direct, reason=owners),
        Step(Stage.GUEST, run=image.spec.guest, reason=guest),
    )
    if image.keys.flatten in observed.trees:
        return (*skip(ROOTFS_STAGES[:2], "the staging tree is whole in scratch"), *tail)
    flatten = Step(Stage.FLATTEN, run=True, reason="ext4 needs the tree, and none is in scratch")
    return (_pull_step(image, observed), flatten, *tail)


def _pull_step(image: DesiredImage, observed: Observed) -> Step:
    digests = {layer.blob.digest for layer in image.pinned.layers}
    missing = len(digests - observed.blobs)
    if not missing:
        return Step(Stage.PULL, run=False, reason=f"all {len(digests)} layer blobs are cached")
    reason = f"{missing} of {len(digests)} layer blobs are not cached"
    return Step(Stage.PULL, run=True, reason=reason)


def kernel_step(image: DesiredImage, observed: Observed) -> Step:
    """Whether the kernel has to be brought beside the rootfs."""
    if image.kernel is None:
        return Step(Stage.KERNEL, run=False, reason=image.no_kernel or "no kernel-ref")
    if Stage.KERNEL in observed.staging.get(image.id, frozenset()):
        return Step(Stage.KERNEL, run=False, reason="the kernel is whole in an interrupted build")
    injected = ", its modules into it, too" if image.spec.injects_modules else ""
    reason = f"{image.kernel.name} goes beside the rootfs{injected}"
    return Step(Stage.KERNEL, run=True, reason=reason)

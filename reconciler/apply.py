"""Carry out a Plan: one branch and one Outcome per action. Decides nothing.

Images are built `jobs` at a time and fail each on their own. Those that share a filesystem go one
after the other, because the planner lets the later ones use what the first publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from reconciler.collection import Collection, Holding, Kind, Removal
from reconciler.errors import REPORT, BangerError, Code, HostError
from reconciler.model import Action, Emit, Failure, Stage
from reconciler.parallel import in_threads
from reconciler.plan import ImagePlan, Observed, Plan
from reconciler.records import Contents
from reconciler.room import Interrupted
from reconciler.services import Progress, Services, StageResult
from reconciler.stages.record import timestamp
from reconciler.store import Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one planned image."""

    plan: ImagePlan
    stages: tuple[StageResult, ...]
    changed: bool = False
    error: BangerError | None = None
    failed_stage: Stage | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What the collector removed, and what it could not."""

    removed: tuple[Removal, ...] = ()
    kept: tuple[Removal, ...] = ()
    bytes_freed: int = 0
    errors: tuple[str, ...] = field(default_factory=tuple)

    def count(self, *kinds: Kind) -> int:
        """How many things of these kinds went."""
        return sum(removal.holding.kind in kinds for removal in self.removed)


def apply(
    plan: Plan,
    services: Services,
    failures: dict[str, Failure],
    jobs: int,
    *,
    fail_fast: bool = False,
) -> tuple[Outcome, ...]:
    """Do what the plan says, in its order as far as `jobs` allows. Never raises for one image.

    fail_fast: after the first failure no other image is begun, and those begun are stopped.
    """
    for name in failures.keys() - {image.name for image in plan.images}:
        _noting(services, name, partial(services.records.clear_failure, name))  # wanted no more
    groups: dict[str, list[ImagePlan]] = {}
    for image in plan.images:
        shared = image.desired.keys.flatten if image.desired else image.name
        groups.setdefault(shared, []).append(image)

    def one(image: ImagePlan) -> Outcome:
        outcome = _apply_image(image, services, failures.get(image.name))
        if fail_fast and outcome.error:
            services.cancelled.set()
        return outcome

    def walk(images: list[ImagePlan]) -> list[Outcome]:
        return [one(image) for image in images]

    walked = in_threads(walk, groups.values(), jobs, "image")
    done = {outcome.plan.name: outcome for group in walked for outcome in group}
    return tuple(done[image.name] for image in plan.images)


def _apply_image(plan: ImagePlan, services: Services, earlier: Failure | None) -> Outcome:
    progress = Progress(plan, services.emit)
    try:
        _branch(plan, services, progress)
    except BangerError as error:
        return _failed(services, progress, error, earlier)
    except Exception as error:  # one image's bug must not take the others down
        services.emit("image.crashed", image=plan.name, exc_info=True)
        wrapped = HostError(
            f"an unexpected {type(error).__name__}: {error}",
            code=Code.INTERNAL,
            resolution=REPORT,
            retryable=False,
        )
        return _failed(services, progress, wrapped, earlier)
    if earlier and not plan.held:
        _noting(services, plan.name, lambda: services.records.clear_failure(plan.name))
    if plan.changes and plan.desired:
        services.emit("image.ready", image=plan.name, digest=_digest(plan))
    return Outcome(plan, progress.results(), changed=plan.changes)


def _branch(plan: ImagePlan, services: Services, progress: Progress) -> None:
    if plan.unresolved:
        raise plan.unresolved.error
    match plan.action:
        case Action.CREATE | Action.UPDATE | Action.REPLACE | Action.REPAIR | Action.NOOP:
            if plan.runs and plan.desired:
                from reconciler.pipeline import build  # the builders: only where one is needed

                build(plan.desired, services, progress)
        case Action.ORPHAN:
            services.emit("image.orphaned", image=plan.name, reason=plan.reason.value)
        case Action.PRUNE:
            if not services.wishes.may_delete():
                raise Interrupted("the configuration changed before it was removed")
            forget(services, plan.name)
        case _:
            pass


def forget(services: Services, name: str) -> None:
    """Let a name stand for nothing; its artifact is the collector's from here on."""
    services.records.forget(name)
    services.store.unname(name)
    services.emit("image.pruned", image=name)


def _failed(
    services: Services, progress: Progress, error: BangerError, earlier: Failure | None
) -> Outcome:
    plan = progress.plan
    stage = plan.unresolved.stage if plan.unresolved else progress.failed
    attempts = earlier.attempts + 1 if earlier else 1
    now = timestamp()
    fields = {"error_code": error.code.value, "attempt": attempts, "message": error.brief}
    services.emit("image.failed", image=plan.name, stage=stage.value if stage else "", **fields)
    if not isinstance(error, Interrupted):
        failure = Failure(
            name=plan.name,
            code=error.code.value,
            stage=stage.value if stage else "",
            message=error.brief,
            hint=error.resolution,
            retryable=error.retryable,
            attempts=attempts,
            since=earlier.since if earlier else now,
            at=now,
            next_retry_at=_try_again(services, plan.name, error),
        )
        _noting(services, plan.name, lambda: services.records.fail(failure))
    return Outcome(plan, progress.results(), error=error, failed_stage=stage, attempts=attempts)


def _try_again(services: Services, name: str, error: BangerError) -> str | None:
    """When the image is tried again, as a time for people; None when nobody does by itself."""
    again = services.wishes.again(name, error)
    if again is None:
        return None
    fields = {"attempt": again.attempts, "stalled": again.stalled, "error_code": error.code.value}
    services.emit("backoff.scheduled", image=name, delay_seconds=round(again.seconds, 1), **fields)
    return timestamp(again.seconds)


def _noting(services: Services, name: str, note: Callable[[], None]) -> None:
    try:
        note()
    except BangerError as error:  # what became of the image matters more than the note of it
        services.emit("record.failed", image=name, message=error.brief)


def _digest(plan: ImagePlan) -> str:
    return plan.desired.pinned.digest if plan.desired else ""


def restore_records(services: Services, before: Contents, observed: Observed) -> None:
    """Put a lost database together again, out of what the manifests beside the artifacts say.

    Records whose artifact was read back get its fingerprints, so that it is read once only.
    """
    if before.unusable and services.store.database.exists():
        aside = services.records.set_aside()
        services.emit("records.damaged", message=f"kept as {aside.name}")
    refreshed = {record.name: record for record in observed.refreshed}
    for name in sorted(observed.recovered | refreshed.keys()):
        services.records.save(refreshed.get(name, observed.records[name]))
        if name in observed.recovered:
            services.emit("records.restored", image=name)
    if before.damaged:
        services.records.drop_damaged()


def collect(collection: Collection, store: Store, emit: Emit) -> Collected:
    """Remove what the collector decided on. What cannot be removed is named and left alone."""
    removed: list[Removal] = []
    errors: list[str] = []
    for removal in collection.remove:
        try:
            _remove(removal.holding, store)
        except BangerError as error:
            errors.append(error.brief)
            continue
        removed.append(removal)
        holding = removal.holding
        fields = {"key": holding.key, "reason": removal.reason, "bytes": holding.bytes}
        emit("gc.removed", kind=holding.kind.value, **fields)
    freed = sum(removal.holding.bytes for removal in removed)
    return Collected(tuple(removed), collection.kept, freed, tuple(errors))


def _remove(holding: Holding, store: Store) -> None:
    if holding.kind is Kind.LINK:
        store.unname(holding.key)
    elif holding.kind is Kind.ARTIFACT:
        store.retire(holding.key)
    else:
        store.remove(holding.path)

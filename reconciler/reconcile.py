"""One pass: observe, plan, apply, collect. Read this first.

`cli` calls `reconcile` for the one-shot command and `preview` for `plan`; the daemon calls
`reconcile` again and again. Each pass reads everything anew, so it does not matter what woke it.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from reconciler.apply import Collected, Outcome, apply, collect, restore_records
from reconciler.asked import held, narrowed, planned
from reconciler.collection import Ages, plan_collection, references
from reconciler.config.load import Config
from reconciler.config.lock import kernel_difference
from reconciler.errors import HostError
from reconciler.kernel.store import KernelStore
from reconciler.logins import ask_helper
from reconciler.model import Emit, RegistryConfig
from reconciler.notes import Notes
from reconciler.observe import Surveyor
from reconciler.oci.blobs import BlobCache, BorrowedBlobs
from reconciler.oci.limits import DEFAULTS
from reconciler.oci.source import TIMEOUT, Sources
from reconciler.plan import Plan, Wanted
from reconciler.processes import Checkpoint
from reconciler.records import Contents, Records
from reconciler.room import Interrupted
from reconciler.services import Services
from reconciler.stages.record import timestamp
from reconciler.store import Store
from reconciler.tools import Tools
from reconciler.wishes import Wishes


@dataclass(frozen=True, slots=True)
class Host:
    """Where a pass works and whom it tells: everything but the configuration."""

    state_dir: Path
    cache_dir: Path
    emit: Emit
    cancelled: threading.Event
    wishes: Wishes = field(default_factory=Wishes)
    generation: int = 1
    """How many configurations, this one included, the process has worked by."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass found and did. Outcomes are in the order of the plan; none for a preview."""

    mode: str
    reconcile_id: str
    config: Config
    store: Store
    started_at: str
    seconds: float
    plan: Plan
    outcomes: tuple[Outcome, ...]
    before: Contents
    after: Contents
    collected: Collected
    warnings: tuple[str, ...]
    generation: int = 1

    @property
    def changed(self) -> bool:
        """True when an image is another than before (or would be, in a preview)."""
        if self.mode == "plan":
            return self.plan.changes
        return any(outcome.changed for outcome in self.outcomes)

    @property
    def failed(self) -> bool:
        """True when an image failed or cannot be planned, or when a removal was refused."""
        stuck = any(image.unresolved or image.refused for image in self.plan.images)
        return stuck or any(outcome.error for outcome in self.outcomes)


def reconcile(config: Config, host: Host) -> Pass:
    """Make the host equal to the configuration. Raises Busy, or HostError for a state not usable.

    One image's failure is in its Outcome; it does not raise and does not stop the others.
    """
    begin, started_at, reconcile_id = time.monotonic(), timestamp(), new_id()
    wishes, host = host.wishes, _speaking_of(host, reconcile_id)
    with _services(config.registries, config, host) as services:
        services.store.prepare()
        with _alone(services, wishes.lock_timeout):
            surveyor = _surveyor(services)
            known = _holds_anything(services.store)
            before = services.records.read()
            notes = Notes(services.store.state)
            wanted = surveyor.wanted(config, held(config, wishes, notes))
            services.sources.remember()
            observed = surveyor.observed(wanted, before, wishes.replace)
            made = planned(wanted, observed, wishes, services.store)
            plan = narrowed(config, wishes, made, services.store, notes, keep=True)
            host.emit("plan.computed", changes=plan.changes, images=len(plan.images))
            restore_records(services, before, observed)
            if plan.changes and not known:
                services.records.create()  # from now on, an artifact without records is a loss
            jobs = wishes.jobs or config.reconcile.jobs
            asked = {n: f for n, f in before.failures.items() if wishes.concerns(n)}
            outcomes = apply(plan, services, asked, jobs, fail_fast=wishes.fail_fast)
            after = _read_again(services, before)
            collected = Collected()
            if wishes.may_delete() and not (wishes.only or host.cancelled.is_set()):
                worse = before if known and (before.unusable or before.damaged) else after
                collected = _collect(surveyor, services, plan, worse, _ages(config), dry_run=False)
    return Pass(
        mode="apply",
        reconcile_id=reconcile_id,
        config=config,
        store=services.store,
        started_at=started_at,
        seconds=time.monotonic() - begin,
        plan=plan,
        outcomes=outcomes,
        before=before,
        after=after,
        collected=collected,
        warnings=_warnings(config, plan, before, collected),
        generation=host.generation,
    )


def _read_again(services: Services, before: Contents) -> Contents:
    """The records after the work; where a full disk forbids even that, those from before it."""
    if not services.records.written:
        return before
    try:
        return services.records.read()
    except HostError as error:
        return replace(before, unusable=error.brief)


def preview(config: Config, host: Host) -> Pass:
    """What `reconcile` would do. Leaves state and cache as they are, waits for no lock."""
    begin, started_at, reconcile_id = time.monotonic(), timestamp(), new_id()
    wishes, host = host.wishes, _speaking_of(host, reconcile_id)
    with (
        TemporaryDirectory(prefix="banger-plan-") as aside,
        _services(config.registries, config, host, aside=Path(aside)) as services,
    ):
        surveyor = _surveyor(services)
        before = services.records.read()
        notes = Notes(services.store.state)
        wanted = surveyor.wanted(config, held(config, wishes, notes))
        observed = surveyor.observed(wanted, before, wishes.replace)
        made = planned(wanted, observed, wishes, services.store)
        plan = narrowed(config, wishes, made, services.store, notes, keep=False)
        collected = Collected()
        if not wishes.only:
            collected = _collect(surveyor, services, plan, before, _ages(config), dry_run=True)
    host.emit("plan.computed", changes=plan.changes, images=len(plan.images))
    return Pass(
        mode="plan",
        reconcile_id=reconcile_id,
        config=config,
        store=services.store,
        started_at=started_at,
        seconds=time.monotonic() - begin,
        plan=plan,
        outcomes=(),
        before=before,
        after=before,
        collected=collected,
        warnings=_warnings(config, plan, before, collected),
    )


def pin_all(config: Config, host: Host) -> tuple[Wanted, ...]:
    """What every image stands for now, or why that cannot be told: for the `lock` verb.

    Manifests land in the cache. State is left alone, and nobody's lock is waited for.
    """
    with _services(config.registries, config, host) as services:
        return _surveyor(services).wanted(config, {})


def collect_now(host: Host, ages: Ages, *, dry_run: bool) -> Collected:
    """The `gc` verb: collect by what the records say. Raises Busy unless it is a dry run."""
    with _services((), None, host) as services:
        surveyor = _surveyor(services)
        if dry_run:
            contents = services.records.read()
            return _collect(surveyor, services, None, contents, ages, dry_run=True)
        services.store.prepare()
        with _alone(services, host.wishes.lock_timeout):
            contents = services.records.read()
            return _collect(surveyor, services, None, contents, ages, dry_run=False)


def new_id() -> str:
    """A fresh `reconcile_id`: it ties the events, the log and the document of one pass together."""
    return uuid.uuid4().hex[:12]


def _alone(services: Services, patience: float) -> AbstractContextManager[None]:
    """Be the one writer, after at most this many seconds of waiting; a signal ends that, too."""
    return services.store.writer(
        patience,
        lambda said: services.emit("lock.waiting", message=said),
        _checkpoint(services.cancelled),
    )


def _speaking_of(host: Host, reconcile_id: str) -> Host:
    """The same host, whose every event says which pass and which configuration it belongs to."""
    said = {"reconcile_id": reconcile_id, "generation": host.generation}
    return replace(host, emit=partial(host.emit, **said))


@contextmanager
def _services(
    registries: tuple[RegistryConfig, ...],
    config: Config | None,
    host: Host,
    *,
    aside: Path | None = None,
) -> Iterator[Services]:
    """What a pass works with. With `aside`, new documents land there instead of in the cache."""
    store = Store(host.state_dir, host.cache_dir)
    blobs = BlobCache(store.oci)
    if aside:
        blobs = BorrowedBlobs(blobs, aside)
    limits = config.limits if config else DEFAULTS
    with Sources(
        registries,
        blobs,
        host.emit,
        offline=host.wishes.offline,
        frozen=host.wishes.frozen,
        read_only=aside is not None,
        ask=partial(ask_helper, checkpoint=_checkpoint(host.cancelled)),
        limits=limits,
        timeout=config.reconcile.timeout if config else TIMEOUT,
    ) as sources:
        yield Services(
            store=store,
            records=Records(store.database),
            blobs=blobs,
            sources=sources,
            kernels=_kernels(store, config, host, sources, aside),
            tools=Tools(),
            emit=host.emit,
            cancelled=host.cancelled,
            wishes=host.wishes,
            timeout=_timeout(config, host.wishes),
            limits=limits,
        )


def _timeout(config: Config | None, wishes: Wishes) -> float:
    """Seconds for one image: what was asked for, else what the configuration says."""
    if wishes.timeout is not None:
        return wishes.timeout
    return config.reconcile.timeout if config else math.inf


def _checkpoint(cancelled: threading.Event) -> Checkpoint:
    def checkpoint() -> None:
        if cancelled.is_set():
            raise Interrupted("the pass was interrupted")

    return checkpoint


def _kernels(
    store: Store, config: Config | None, host: Host, sources: Sources, aside: Path | None
) -> KernelStore:
    if not config or not config.kernels:
        return KernelStore(store.kernels, ())
    from reconciler.kernel.origins import Origins  # readers of packages and images: not every pass
    from reconciler.kernel.unpack import KernelImages

    checkpoint = _checkpoint(host.cancelled)
    images = KernelImages(sources, sources.blobs, config.limits, checkpoint)
    origins = Origins(store.kernels, aside / "kernels" if aside else None, checkpoint, images)
    return KernelStore(store.kernels, config.kernels, origins)


def _surveyor(services: Services) -> Surveyor:
    return Surveyor(services.store, services.blobs, services.sources, services.kernels)


def _holds_anything(store: Store) -> bool:
    """False on a new host: that there are no records then is no loss."""
    return bool(store.database.exists() or store.names() or store.artifact_ids())


def _ages(config: Config) -> Ages:
    return Ages(staging=config.gc.staging_min_age, blob=config.gc.blob_min_age)


def _collect(
    surveyor: Surveyor,
    services: Services,
    plan: Plan | None,
    contents: Contents,
    ages: Ages,
    *,
    dry_run: bool,
) -> Collected:
    """Collect, unless the records cannot be read: then nothing is known to be garbage."""
    if _holds_anything(services.store) and (contents.unusable or contents.damaged):
        return Collected(errors=("nothing is collected: the records could not be read",))
    specs = [image.desired.spec for image in plan.images if image.desired] if plan else []
    documents = services.sources.documents(specs)
    stays = references(contents.records.values(), plan, documents, services.store.names())
    found = plan_collection(surveyor.holdings(stays), stays, ages)
    if not dry_run:
        return collect(found, services.store, services.emit)
    freed = sum(removal.holding.bytes for removal in found.remove)
    return Collected(found.remove, found.kept, freed)


def _warnings(
    config: Config, plan: Plan, before: Contents, collected: Collected
) -> tuple[str, ...]:
    wanted = [i.desired for i in plan.images if i.desired]
    kernels = [(d.spec.name, kernel_difference(d.spec.lock, d.kernel)) for d in wanted]
    unlocked = [f"{name}: {words}" for name, words in kernels if words]
    details = [f"{i.name}: {i.detail}" for i in plan.images if i.detail and i.desired]
    kept = [f"{r.holding.path}: kept, {r.reason}" for r in collected.kept]
    return (*config.warnings, *unlocked, *before.damaged, *details, *kept, *collected.errors)

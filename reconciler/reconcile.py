"""One pass: observe, plan, apply, collect. Read this first.

`cli` calls `reconcile` for the one-shot command and `preview` for `plan`; the daemon calls
`reconcile` again and again. Each pass reads everything anew, so it does not matter what woke it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from reconciler.apply import Collected, Outcome, apply, collect, restore_records
from reconciler.collection import Ages, plan_collection, references
from reconciler.config.load import Config
from reconciler.errors import HostError
from reconciler.kernel.origins import Origins
from reconciler.kernel.store import KernelStore
from reconciler.logins import ask_helper
from reconciler.model import Emit, RegistryConfig
from reconciler.observe import Surveyor
from reconciler.oci.blobs import BlobCache, BorrowedBlobs
from reconciler.oci.limits import DEFAULTS
from reconciler.oci.source import TIMEOUT, Sources
from reconciler.pipeline import Services
from reconciler.plan import Plan, make_plan
from reconciler.records import Contents, Records
from reconciler.room import Interrupted
from reconciler.stages.record import timestamp
from reconciler.store import Store
from reconciler.tools import Checkpoint, Tools


@dataclass(frozen=True, slots=True)
class Host:
    """Where a pass works and whom it tells: everything but the configuration."""

    state_dir: Path
    cache_dir: Path
    emit: Emit
    cancelled: threading.Event
    jobs: int | None = None
    """Images at a time; None takes the configuration's word."""
    offline: bool = False
    """No request leaves: what is not in the cache is an error."""


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

    @property
    def changed(self) -> bool:
        """True when an image is another than before (or would be, in a preview)."""
        if self.mode == "plan":
            return self.plan.changes
        return any(outcome.changed for outcome in self.outcomes)

    @property
    def failed(self) -> bool:
        """True when an image failed, or cannot be planned."""
        unresolved = any(image.unresolved for image in self.plan.images)
        return unresolved or any(outcome.error for outcome in self.outcomes)


def reconcile(config: Config, host: Host) -> Pass:
    """Make the host equal to the configuration. Raises Busy, or HostError for a state not usable.

    One image's failure is in its Outcome; it does not raise and does not stop the others.
    """
    begin, started_at, reconcile_id = time.monotonic(), timestamp(), new_id()
    with _services(config.registries, config, host) as services:
        services.store.prepare()
        with services.store.writer():
            surveyor = _surveyor(services)
            before = services.records.read()
            wanted = surveyor.wanted(config)
            observed = surveyor.observed(wanted, before)
            plan = make_plan(wanted, observed)
            host.emit("plan.computed", changes=plan.changes, images=len(plan.images))
            restore_records(services, before, observed)
            jobs = host.jobs or config.reconcile.jobs
            outcomes = apply(plan, services, before.failures, jobs)
            after = _read_again(services, before)
            collected = Collected()
            if not host.cancelled.is_set():
                worse = before if before.unusable or before.damaged else after
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
        warnings=_warnings(plan, before, collected),
    )


def _read_again(services: Services, before: Contents) -> Contents:
    """The records after the work; where a full disk forbids even that, those from before it."""
    try:
        return services.records.read()
    except HostError as error:
        return replace(before, unusable=error.brief)


def preview(config: Config, host: Host) -> Pass:
    """What `reconcile` would do. Leaves state and cache as they are, waits for no lock."""
    begin, started_at = time.monotonic(), timestamp()
    with (
        TemporaryDirectory(prefix="banger-plan-") as aside,
        _services(config.registries, config, host, aside=Path(aside)) as services,
    ):
        surveyor = _surveyor(services)
        before = services.records.read()
        wanted = surveyor.wanted(config)
        plan = make_plan(wanted, surveyor.observed(wanted, before))
        collected = _collect(surveyor, services, plan, before, _ages(config), dry_run=True)
    host.emit("plan.computed", changes=plan.changes, images=len(plan.images))
    return Pass(
        mode="plan",
        reconcile_id=new_id(),
        config=config,
        store=services.store,
        started_at=started_at,
        seconds=time.monotonic() - begin,
        plan=plan,
        outcomes=(),
        before=before,
        after=before,
        collected=collected,
        warnings=_warnings(plan, before, collected),
    )


def collect_now(host: Host, ages: Ages, *, dry_run: bool) -> Collected:
    """The `gc` verb: collect by what the records say. Raises Busy unless it is a dry run."""
    with _services((), None, host) as services:
        surveyor = _surveyor(services)
        if dry_run:
            contents = services.records.read()
            return _collect(surveyor, services, None, contents, ages, dry_run=True)
        services.store.prepare()
        with services.store.writer():
            contents = services.records.read()
            return _collect(surveyor, services, None, contents, ages, dry_run=False)


def new_id() -> str:
    """A fresh `reconcile_id`: it ties the events, the log and the document of one pass together."""
    return uuid.uuid4().hex[:12]


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
        offline=host.offline,
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
            kernels=_kernels(store, config, host, aside),
            tools=Tools(),
            emit=host.emit,
            cancelled=host.cancelled,
            limits=limits,
        )


def _checkpoint(cancelled: threading.Event) -> Checkpoint:
    def checkpoint() -> None:
        if cancelled.is_set():
            raise Interrupted("the pass was interrupted")

    return checkpoint


def _kernels(store: Store, config: Config | None, host: Host, aside: Path | None) -> KernelStore:
    checkpoint = _checkpoint(host.cancelled)
    origins = Origins(store.kernels, aside / "kernels" if aside else None, checkpoint)
    return KernelStore(store.kernels, config.kernels if config else (), origins)


def _surveyor(services: Services) -> Surveyor:
    return Surveyor(services.store, services.blobs, services.sources, services.kernels)


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
    links = services.store.names()
    known = services.store.database.exists() or links or services.store.artifact_ids()
    if known and (contents.unusable or contents.damaged):
        return Collected(errors=("nothing is collected: the records could not be read",))
    specs = [image.desired.spec for image in plan.images if image.desired] if plan else []
    documents = services.sources.documents(specs)
    stays = references(contents.records.values(), plan, documents, links)
    found = plan_collection(surveyor.holdings(stays), stays, ages)
    if not dry_run:
        return collect(found, services.store, services.emit)
    freed = sum(removal.holding.bytes for removal in found.remove)
    return Collected(found.remove, found.kept, freed)


def _warnings(plan: Plan, before: Contents, collected: Collected) -> tuple[str, ...]:
    details = [f"{i.name}: {i.detail}" for i in plan.images if i.detail and i.desired]
    kept = [f"{r.holding.path}: kept, {r.reason}" for r in collected.kept]
    return (*before.damaged, *details, *kept, *collected.errors)

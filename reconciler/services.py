"""What a pass builds with, and the account of one build: what `apply` hands to the `pipeline`.

Apart from the pipeline, so that a pass which builds nothing does not import the builders.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler.errors import BangerError, Code
from reconciler.files import host_error
from reconciler.model import Emit, Stage
from reconciler.oci.limits import DEFAULTS, Limits
from reconciler.plan import ImagePlan
from reconciler.wishes import Wishes

if TYPE_CHECKING:
    from reconciler.kernel.store import KernelStore
    from reconciler.oci.blobs import BlobCache
    from reconciler.oci.source import Sources
    from reconciler.records import Records
    from reconciler.store import Store
    from reconciler.tools import Tools


@dataclass(frozen=True, slots=True)
class Services:
    """What a pass builds with; one set for all images."""

    store: Store
    records: Records
    blobs: BlobCache
    sources: Sources
    kernels: KernelStore
    tools: Tools
    emit: Emit
    cancelled: threading.Event
    wishes: Wishes = field(default_factory=Wishes)
    timeout: float = math.inf
    """Seconds for one image."""
    limits: Limits = DEFAULTS


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of one stage. status: ok, failed, skipped, or pending when it was not reached."""

    stage: Stage
    run: bool
    status: str
    reason: str
    seconds: float = 0.0


@dataclass(slots=True)
class Progress:
    """The stages of one image as they come to pass. Threads of one image share it."""

    plan: ImagePlan
    emit: Emit
    done: dict[Stage, StageResult] = field(default_factory=dict)
    failed: Stage | None = None

    @contextmanager
    def stage(self, stage: Stage, reason: str = "") -> Iterator[None]:
        """Run the body as this stage: timed, announced, and blamed when it fails."""
        reason = reason or next((s.reason for s in self.plan.steps if s.stage is stage), "")
        name, begin = self.plan.name, time.monotonic()
        self.emit("stage.started", image=name, stage=stage.value, reason=reason)
        try:
            yield
        except BaseException as error:
            seconds = time.monotonic() - begin
            self.failed = self.failed or stage
            self.done[stage] = StageResult(stage, True, "failed", reason, seconds)
            code = error.code.value if isinstance(error, BangerError) else Code.INTERNAL.value
            fields = {"duration_seconds": round(seconds, 3), "error_code": code}
            self.emit("stage.failed", image=name, stage=stage.value, **fields)
            if isinstance(error, OSError):
                raise host_error(f"{stage.value} failed", error) from error
            raise
        seconds = time.monotonic() - begin
        self.done[stage] = StageResult(stage, True, "ok", reason, seconds)
        fields = {"duration_seconds": round(seconds, 3)}
        self.emit("stage.finished", image=name, stage=stage.value, **fields)

    def results(self) -> tuple[StageResult, ...]:
        """Every step of the plan, with what became of it."""
        return tuple(
            self.done.get(step.stage)
            or StageResult(step.stage, step.run, "pending" if step.run else "skipped", step.reason)
            for step in self.plan.steps
        )

"""Passes and records as the JSON documents of the contract. Pure: values in, plain data out.

`cli` prints what this returns for `--json`; `render` draws the same values as tables. Additions
keep `SCHEMA_VERSION`, a removal or a change of meaning raises it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reconciler.collection import Kind
from reconciler.errors import BangerError
from reconciler.model import READY, Action, DesiredImage, Record, Stage, camel_case
from reconciler.plan import ImagePlan
from reconciler.sizes import format_size

if TYPE_CHECKING:
    from reconciler.apply import Collected, Outcome
    from reconciler.reconcile import Pass
    from reconciler.records import Contents

SCHEMA_VERSION = "1"
Document = dict[str, Any]

_COUNTED = {
    Action.CREATE: "created",
    Action.UPDATE: "updated",
    Action.REPLACE: "updated",
    Action.REPAIR: "repaired",
    Action.NOOP: "unchanged",
    Action.PRUNE: "pruned",
    Action.ORPHAN: "orphaned",
    Action.SUSPEND: "suspended",
}

_PLANNED = {
    "created": "to create",
    "updated": "to update",
    "repaired": "to repair",
    "pruned": "to remove",
}


def pass_document(result: Pass) -> Document:
    """The document of one pass, or of a preview (`mode` is "apply" or "plan")."""
    outcomes = {outcome.plan.name: outcome for outcome in result.outcomes}
    images = [image_document(result, plan, outcomes.get(plan.name)) for plan in result.plan.images]
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": result.mode,
        "reconcile_id": result.reconcile_id,
        "config": {
            "path": str(result.config.path),
            "sha256": result.config.sha256,
            "generation": result.generation,
        },
        "started_at": result.started_at,
        "duration_seconds": round(result.seconds, 3),
        "changed": result.changed,
        "failed": result.failed,
        "partial": result.changed and result.failed,
        "msg": summary_line(result),
        "summary": summary(result),
        "images": images,
        "gc": gc_counts(result.collected),
        "diff": [diff for image in result.plan.images if (diff := _diff(image))],
        "warnings": list(result.warnings),
        "errors": [error for image in images if (error := image["error"])],
    }


def summary(result: Pass) -> dict[str, int]:
    """How many images met which end; an image that failed counts as failed only."""
    failed = {o.plan.name for o in result.outcomes if o.error}
    failed |= {image.name for image in result.plan.images if image.unresolved}
    counts = dict.fromkeys(dict.fromkeys(_COUNTED.values()), 0)
    for image in result.plan.images:
        if image.name not in failed:
            counts[_COUNTED[image.action]] += 1
    gone = (Action.ORPHAN, Action.PRUNE)
    desired = sum(image.action not in gone for image in result.plan.images)
    return {"desired": desired, **counts, "failed": len(failed)}


def summary_line(result: Pass) -> str:
    """The summary in words, zeros left out: `1 created, 2 unchanged`; of a plan, `1 to create`."""
    words = _PLANNED if result.mode == "plan" else {}
    counts = summary(result)
    said = [f"{n} {words.get(word, word)}" for word, n in counts.items() if n and word != "desired"]
    return ", ".join(said) or "no images"


def image_document(result: Pass, plan: ImagePlan, outcome: Outcome | None) -> Document:
    """One image of a pass; without an outcome, what was planned for it."""
    record = result.after.records.get(plan.name, plan.record)
    failure = result.after.failures.get(plan.name)
    error = outcome.error if outcome else plan.unresolved and plan.unresolved.error
    error = error or plan.refused
    image_id = record.id if record else plan.id
    if result.mode == "plan" and plan.runs:
        image_id = plan.id or image_id
    stands = record or (result.mode == "plan" and plan.desired and plan.runs)
    desired = plan.desired
    return {
        "name": plan.name,
        "ref": _spec_ref(plan),
        "resolved_digest": desired.pinned.digest if desired else record and record.digest,
        "id": image_id,
        "path": str(result.store.artifact(image_id)) if image_id and stands else None,
        "by_name": str(result.store.by_name / plan.name) if image_id and stands else None,
        "action": plan.action.value,
        "reason": plan.reason.value,
        "detail": plan.detail,
        "stages": stage_documents(plan, outcome),
        "conditions": conditions(result.after, plan.name, result.generation),
        "not_carried": list(record.not_carried) if record else [],
        "attempts": failure.attempts if failure else 0,
        "next_retry_at": failure.next_retry_at if failure else None,
        "error": _error(plan, outcome, error) if error else None,
    }


def _spec_ref(plan: ImagePlan) -> str | None:
    if plan.desired:
        return plan.desired.spec.ref
    if plan.unresolved:
        return plan.unresolved.spec.ref
    if plan.held:
        return plan.held.spec.ref
    return plan.record.ref if plan.record else None


def stage_documents(plan: ImagePlan, outcome: Outcome | None) -> list[Document]:
    """The stages of one image: what was planned, and what came of it where something did."""
    if outcome is None:
        return [_stage(s.stage, s.run, "planned", s.reason, 0.0) for s in plan.steps]
    return [_stage(s.stage, s.run, s.status, s.reason, s.seconds) for s in outcome.stages]


def _stage(stage: Stage, run: bool, status: str, reason: str, seconds: float) -> Document:
    return {
        "name": stage.value,
        "action": "run" if run else "skip",
        "status": status,
        "reason": reason,
        "duration_seconds": round(seconds, 3),
    }


def conditions(contents: Contents, name: str, generation: int = 1) -> list[Document]:
    """Ready; Reconciling while a retry is due; Stalled when only another configuration can help."""
    record, failure = contents.records.get(name), contents.failures.get(name)
    since = next((t.at for t in reversed(contents.history.get(name, ()))), None)
    if failure is None and record:
        return [_condition("Ready", ("True", READY, ""), since or record.updated_at, generation)]
    if failure is None:
        return [_condition("Ready", ("False", "NotPresent", ""), None, generation)]
    reason, start = camel_case(failure.code), failure.since
    found = [_condition("Ready", ("False", reason, failure.message), start, generation)]
    if not failure.retryable:
        found.append(_condition("Stalled", ("True", reason, failure.hint), start, generation))
    elif failure.next_retry_at:
        when = f"try {failure.attempts + 1} at {failure.next_retry_at}"
        said = ("True", "ProgressingWithRetry", when)
        found.append(_condition("Reconciling", said, start, generation))
    return found


def working(stage: str, generation: int) -> Document:
    """The condition of an image that is at work this moment, in this stage."""
    return _condition("Reconciling", ("True", "Progressing", stage), None, generation)


def _condition(
    kind: str, said: tuple[str, str, str], since: str | None, generation: int
) -> Document:
    status, reason, message = said
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "last_transition_time": since,
        "observed_generation": generation,
    }


def _error(plan: ImagePlan, outcome: Outcome | None, error: BangerError) -> Document:
    stage = outcome.failed_stage if outcome else plan.unresolved and plan.unresolved.stage
    return {"image": plan.name, "stage": stage.value if stage else None, **error_document(error)}


def error_document(error: BangerError) -> Document:
    """A failure as the contract's `error` object."""
    return {
        "code": error.code.value,
        "message": error.brief,
        "retryable": error.retryable,
        "hint": error.resolution,
    }


def gc_counts(collected: Collected) -> dict[str, int]:
    """The `gc` object: things removed by kind, and the allocated bytes that came free."""
    return {
        "staging_removed": collected.count(Kind.STAGING, Kind.SCRATCH),
        "blobs_removed": collected.count(Kind.BLOB, Kind.PARTIAL),
        "artifacts_removed": collected.count(Kind.ARTIFACT, Kind.LINK),
        "bytes_freed": collected.bytes_freed,
    }


def _diff(plan: ImagePlan) -> Document | None:
    """Before and after of one image that changes, as Ansible's `--diff` shows them."""
    if not plan.changes:
        return None
    name = plan.name
    before = _record_lines(plan.record or plan.taken_over)
    after = _desired_lines(plan.desired) if plan.desired else ""
    return {"before_header": name, "before": before, "after_header": name, "after": after}


def _record_lines(record: Record | None) -> str:
    if record is None:
        return ""
    return _lines(
        name=record.name,
        id=record.id,
        ref=record.ref,
        digest=record.digest,
        size=format_size(record.size),
        kernel=record.kernel,
    )


def _desired_lines(image: DesiredImage) -> str:
    return _lines(
        name=image.spec.name,
        id=image.id,
        ref=image.spec.ref,
        digest=image.pinned.digest,
        size=format_size(image.spec.size) if image.spec.size else "auto",
        kernel=image.spec.kernel_ref,
    )


def _lines(**values: str | None) -> str:
    return "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)

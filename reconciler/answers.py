"""The JSON documents of the verbs that are no pass: `status`, `gc`, `verify`, `explain`, `rm`.

Pure, like `report`, whose pass document these share their words with.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from reconciler.collection import Removal
from reconciler.errors import BangerError
from reconciler.model import Failure, StageKeys
from reconciler.notes import EVERY
from reconciler.plan import ImagePlan
from reconciler.report import (
    SCHEMA_VERSION,
    Document,
    conditions,
    error_document,
    gc_counts,
    image_document,
)

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.apply import Collected
    from reconciler.locking import Change, Locking
    from reconciler.manual import Done, Verified
    from reconciler.reconcile import Pass
    from reconciler.status import Status


def gc_document(collected: Collected, *, dry_run: bool) -> Document:
    """The document of the `gc` verb: every object, why, and the bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "gc",
        "dry_run": dry_run,
        "changed": bool(collected.removed) and not dry_run,
        "failed": bool(collected.errors),
        "gc": gc_counts(collected),
        "removed": [_removal(r) for r in collected.removed],
        "kept": [_removal(r) for r in collected.kept],
        "errors": list(collected.errors),
    }


def _removal(removal: Removal) -> Document:
    holding = removal.holding
    return {
        "kind": holding.kind.value,
        "path": str(holding.path),
        "bytes": holding.bytes,
        "reason": removal.reason,
    }


def status_document(status: Status) -> Document:
    """The document of `status`: what each name stands for, from the records alone."""
    contents = status.contents
    suspended = status.suspensions.keys() - {EVERY}
    names = sorted(contents.records.keys() | contents.failures.keys() | suspended)
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "status",
        "images": [_status(name, status) for name in names],
        "warnings": [*contents.damaged, *_unusable(status), *_everything(status)],
        "errors": [],
    }


def _unusable(status: Status) -> list[str]:
    """Why no record could be read, where there were some."""
    there = status.store.database.exists()
    return [status.contents.unusable] if status.contents.unusable and there else []


def _everything(status: Status) -> list[str]:
    """That nothing is worked on, also where there is no image yet to say it of."""
    note = status.suspensions.get(EVERY)
    return [f"every image is suspended: {note.reason}"] if note else []


def _status(name: str, status: Status) -> Document:
    record, failure = status.contents.records.get(name), status.contents.failures.get(name)
    path = status.store.artifact(record.id) if record else None
    return {
        "name": name,
        "ref": record.ref if record else None,
        "resolved_digest": record.digest if record else None,
        "id": record.id if record else None,
        "path": str(path) if path else None,
        "by_name": str(status.store.by_name / name) if record else None,
        "size": record.size if record else None,
        "allocated_bytes": status.allocated.get(name),
        "kernel": record.kernel if record else None,
        "protect": record.protect if record else False,
        "suspended": status.suspended(name),
        "updated_at": record.updated_at if record else None,
        "conditions": conditions(status.contents, name),
        "history": [asdict(change) for change in status.contents.history.get(name, ())],
        "not_carried": list(record.not_carried) if record else [],
        "attempts": failure.attempts if failure else 0,
        "next_retry_at": failure.next_retry_at if failure else None,
        "error": _last_error(failure) if failure else None,
    }


def _last_error(failure: Failure) -> Document:
    return {
        "code": failure.code,
        "stage": failure.stage,
        "message": failure.message,
        "retryable": failure.retryable,
        "hint": failure.hint,
        "at": failure.at,
    }


def config_error_document(error: BangerError, problems: tuple[str, ...]) -> Document:
    """The document of a run that could not start: still what Ansible registers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "error",
        "changed": False,
        "failed": True,
        "msg": error.brief,
        "images": [],
        "warnings": [],
        "errors": [error_document(error) | {"problems": list(problems)}],
    }


def done_document(mode: str, done: Done) -> Document:
    """The document of a verb that does one thing to one name."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": mode,
        "name": done.name,
        "changed": done.changed,
        "failed": False,
        "msg": done.message,
        "errors": [],
    }


def verify_document(found: list[Verified]) -> Document:
    """The document of `verify`: every artifact, and what is wrong with its files."""
    damaged = [one for one in found if one.problems]
    words = f"{len(found) - len(damaged)} whole, {len(damaged)} damaged"
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "verify",
        "changed": False,
        "failed": bool(damaged),
        "msg": words if found else "no images",
        "images": [
            {
                "name": one.name,
                "id": one.id,
                "path": str(one.path),
                "whole": not one.problems,
                "problems": one.problems,
            }
            for one in found
        ],
        "errors": [],
    }


def explain_document(result: Pass) -> Document:
    """The document of `explain`: one image's inputs, before and now, and the stages that follow."""
    (plan,) = result.plan.images
    image = image_document(result, plan, None)
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "explain",
        "changed": plan.changes,
        "failed": result.failed,
        "msg": f"{plan.name}: {plan.action.value}, {plan.reason.value}",
        "name": plan.name,
        "action": plan.action.value,
        "reason": plan.reason.value,
        "detail": plan.detail,
        "inputs": inputs(plan),
        "stages": image["stages"],
        "errors": [image["error"]] if image["error"] else [],
    }


def lock_document(locking: Locking, path: Path, *, changed: bool) -> Document:
    """The document of `lock`: every image, the digest that it was and is locked to."""
    errors = [{"image": name, **error_document(error)} for name, error in locking.failures]
    actions = [change.action for change in locking.changes]
    said = [f"{actions.count(one)} {done}" for one, done in _LOCKED.items() if one in actions]
    if errors:
        said = [f"nothing written: {len(errors)} failed"]
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "lock",
        "path": str(path),
        "changed": changed,
        "failed": bool(errors),
        "msg": ", ".join(said) or "no images",
        "images": [_change(change) for change in locking.changes],
        "errors": errors,
    }


_LOCKED = {
    "add": "added",
    "move": "moved",
    "update": "updated",
    "remove": "removed",
    "keep": "kept",
}


def _change(change: Change) -> Document:
    before, after = change.before, change.after
    entry = after or before
    kernel = after.kernel if after else None
    return {
        "name": change.name,
        "action": change.action,
        "ref": entry.ref if entry else None,
        "platform": entry.platform if entry else None,
        "before": before.digest if before else None,
        "digest": after.digest if after else None,
        "kernel": kernel
        and {
            "name": kernel.name,
            "digest": kernel.kernel,
            "initrd_digest": kernel.initrd,
            "modules_digest": kernel.modules,
        },
    }


def inputs(plan: ImagePlan) -> list[Document]:
    """Each input of an image: what the record was built from, what is wanted now."""
    record, desired = plan.record or plan.taken_over, plan.desired
    before = _inputs_of(record.ref, record.digest, record.platform, record.keys) if record else {}
    now = {}
    if desired:
        platform = str(desired.pinned.platform)
        now = _inputs_of(desired.spec.ref, desired.pinned.digest, platform, desired.keys)
    return [
        {
            "input": name,
            "before": before.get(name),
            "now": now.get(name),
            "changed": bool(now) and before.get(name) != now.get(name),
        }
        for name in dict.fromkeys((*before, *now))
    ]


def _inputs_of(ref: str, digest: str, platform: str, keys: StageKeys) -> dict[str, str]:
    """By name; the keys chain, so the first that differs names the stage whose input changed."""
    said = {"ref": ref, "digest": digest, "platform": platform}
    stages = ("flatten", "ext4", "ownership", "guest", "kernel")
    return said | {f"key of {stage}": getattr(keys, stage) for stage in stages}

"""What a run was asked for, brought to bear on a configuration and on a plan.

`reconcile` calls these in this order: who is left alone, which tags are asked for, the plan with
what is replaced, and the part of it that is meant, with its removals decided.
"""

from __future__ import annotations

from dataclasses import replace

from reconciler.config.load import Config
from reconciler.model import Action, Reason
from reconciler.notes import EVERY, Notes
from reconciler.plan import Held, ImagePlan, Observed, Plan, Wanted, make_plan
from reconciler.prune import prune
from reconciler.replacing import replacing
from reconciler.store import Store
from reconciler.wishes import Wishes


def held(config: Config, wishes: Wishes, notes: Notes) -> dict[str, Held]:
    """Why images are left alone by this pass; the first reason that holds."""
    found: dict[str, Held] = {}
    suspended = notes.suspensions()
    for spec in config.images:
        if wishes.only and spec.name not in wishes.only:
            found[spec.name] = Held(spec, Reason.NOT_SELECTED)
        elif spec.suspend:
            found[spec.name] = Held(spec, Reason.SUSPENDED, "the configuration says so")
        elif note := suspended.get(spec.name) or suspended.get(EVERY):
            found[spec.name] = Held(spec, Reason.SUSPENDED, note.reason)
        elif spec.name in wishes.held:
            found[spec.name] = Held(spec, Reason.BACKING_OFF)
    return found


def planned(wanted: tuple[Wanted, ...], observed: Observed, wishes: Wishes, store: Store) -> Plan:
    """The plan, with what `--replace` names made again."""
    plan = make_plan(wanted, observed)
    ids = {image.id for image in plan.images if image.name in wishes.replace}
    in_use = frozenset(image_id for image_id in ids if image_id and store.in_use(image_id))
    return replacing(plan, wishes.replace, observed, in_use)


def narrowed(
    config: Config, wishes: Wishes, plan: Plan, store: Store, notes: Notes, *, keep: bool
) -> Plan:
    """The part of a plan that `--image` asks for, or all of it with its removals decided."""
    if wishes.only:
        return Plan(tuple(image for image in plan.images if image.name in wishes.only))
    plan = Plan(tuple(_spared(image, notes) for image in plan.images))
    settings = config.prune
    images = settings.images if wishes.prune is None else wishes.prune
    trusted = wishes.may_delete()  # else the file may say by now that an orphan is wanted
    settings = replace(
        settings, images=images and trusted, allow_empty=settings.allow_empty or wishes.allow_empty
    )
    if not trusted:
        return prune(plan, settings, {})
    orphans = {i.name: i.record for i in plan.images if i.action is Action.ORPHAN and images}
    in_use = frozenset(n for n, record in orphans.items() if record and store.in_use(record.id))
    # without pruning nobody is waiting for a grace to pass: it begins when pruning does
    return prune(plan, settings, notes.see(orphans, keep=keep), in_use)


def _spared(image: ImagePlan, notes: Notes) -> ImagePlan:
    """An orphan that is suspended is left alone like any other image."""
    suspended = notes.suspensions()
    note = suspended.get(image.name) or suspended.get(EVERY)
    if image.action is not Action.ORPHAN or note is None:
        return image
    return replace(image, action=Action.SUSPEND, reason=Reason.SUSPENDED, detail=note.reason)

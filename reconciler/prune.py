"""Which images that left the configuration are removed. Pure: a plan goes in, a stricter one out.

Deleting is the careful part, because a torn file looks like a removal: it is opt-in, delayed by a
grace and by two passes, bounded in number, and never down to nothing. A guard that blocks says how
it is lifted. Protection is stored with the record and outlives the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reconciler.config.load import PruneSettings
from reconciler.errors import Code, HostError
from reconciler.model import Action, Reason
from reconciler.plan import ImagePlan, Plan

PASSES = 2
"""Passes that have to see an orphan before it may go, the one that removes it included."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """How long an image has been an orphan: seconds, and passes that saw it, this one included."""

    seconds: float = 0.0
    passes: int = 1


def prune(
    plan: Plan,
    settings: PruneSettings,
    seen: Mapping[str, Sighting],
    in_use: frozenset[str] = frozenset(),
) -> Plan:
    """Turn orphans into removals where everything allows it; the others say why they stay.

    in_use: names of orphans whose artifact a process holds open.
    """
    judged = [_judge(image, settings, seen, in_use) for image in plan.images]
    going = [image for image in judged if image.action is Action.PRUNE]
    refusal = _refusal(judged, going, settings)
    if refusal is None:
        return Plan(tuple(judged))
    reason, error = refusal
    return Plan(
        tuple(
            replace(i, action=Action.ORPHAN, reason=reason, refused=error) if i in going else i
            for i in judged
        )
    )


def _judge(
    image: ImagePlan,
    settings: PruneSettings,
    seen: Mapping[str, Sighting],
    in_use: frozenset[str],
) -> ImagePlan:
    if image.action is not Action.ORPHAN or image.record is None:
        return image
    if image.record.protect:
        advice = f"protected; `banger-reconcile rm {image.name} --protected` removes it"
        return replace(image, reason=Reason.PROTECTED, detail=advice)
    if not settings.images:
        return image
    sighting = seen.get(image.name, Sighting())
    left = settings.grace - sighting.seconds
    if left > 0 or sighting.passes < PASSES:
        return replace(image, detail=f"removed {max(0.0, left):.0f} s from now at the earliest")
    if image.name in in_use:
        return replace(image, reason=Reason.IN_USE, detail="a running guest holds it open")
    return replace(image, action=Action.PRUNE)


def _refusal(
    judged: list[ImagePlan], going: list[ImagePlan], settings: PruneSettings
) -> tuple[Reason, HostError] | None:
    """Why none of those that would go may go."""
    if not going:
        return None
    names = ", ".join(image.name for image in going)
    why = _nothing_left(judged)
    if why and not settings.allow_empty:
        return Reason.PRUNE_BLOCKED_EMPTY, _blocked(
            f"{why}; removing {names} is refused",
            "Give --allow-empty, or set allow-empty in [prune], if no image is what you want.",
        )
    records = sum(image.record is not None for image in judged)
    most = limit(settings, records)
    if len(going) > most:
        return Reason.PRUNE_BLOCKED_LIMIT, _blocked(
            f"{len(going)} of {records} images would be removed, more than {most}: {names}",
            "Raise max in [prune], or remove them one by one: banger-reconcile rm NAME.",
        )
    return None


def _nothing_left(judged: list[ImagePlan]) -> str:
    """Why the removals would leave a host without images; empty when they do not.

    What is wanted and was never built does not count: it may never be.
    """
    if not any(image.desired or image.unresolved or image.held for image in judged):
        return "the configuration lists no image"
    stays = (i for i in judged if i.action is not Action.PRUNE and (i.record or i.taken_over))
    return "" if any(stays) else "no image of this host would be left"


def _blocked(brief: str, advice: str) -> HostError:
    return HostError(brief, code=Code.PRUNE_BLOCKED, resolution=advice, retryable=False)


def limit(settings: PruneSettings, records: int) -> int:
    """How many images one pass may remove; a percentage above zero allows at least one."""
    if settings.max_count is not None:
        return settings.max_count
    percent = settings.max_percent or 0
    return max(1, records * percent // 100) if percent else 0

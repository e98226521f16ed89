"""What a run was asked for beyond its configuration: the flags, and what the daemon holds back.

`cli` and `daemon` fill it in, a pass reads it. Pure data; what is not said here is as the
configuration says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reconciler.errors import BangerError
from reconciler.model import ImageSpec


def never(_image: ImageSpec) -> str:
    """The answer of a run that goes on with every image to the end."""
    return ""


def always() -> bool:
    """The answer of a run whose configuration is read once."""
    return True


@dataclass(frozen=True, slots=True)
class Again:
    """When a failed image is tried again: in so many seconds, after so many failures in a row.

    stalled: only another configuration is expected to help.
    """

    seconds: float
    attempts: int
    stalled: bool


def by_hand(_name: str, _error: BangerError) -> Again | None:
    """The answer of a run after which nobody tries again by itself."""
    return None


@dataclass(frozen=True, slots=True)
class Wishes:
    """Durations are seconds; None takes the configuration's word.

    only: the names to look at, empty for all; nothing else is touched, nothing is pruned.
    held: names in backoff, left alone by this pass.
    give_up: asked again and again during a build; why it is to stop, or nothing.
    may_delete: asked right before anything is removed; False when the file holds something else
    than the pass works by, or nothing that parses.
    again: told of every failure; when the image is tried again.
    """

    only: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    jobs: int | None = None
    timeout: float | None = None
    lock_timeout: float = 0.0
    fail_fast: bool = False
    offline: bool = False
    prune: bool | None = None
    allow_empty: bool = False
    give_up: Callable[[ImageSpec], str] = never
    may_delete: Callable[[], bool] = always
    again: Callable[[str, BangerError], Again | None] = by_hand

    def concerns(self, name: str) -> bool:
        """Whether the run looks at this name at all."""
        return not self.only or name in self.only

"""What a run was asked for beyond its configuration: the flags, and what the daemon holds back.

`cli` and `daemon` fill it in, a pass reads it. Pure data; what is not said here is as the
configuration says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reconciler.model import ImageSpec, Stage


def never(_image: ImageSpec) -> str:
    """The answer of a run that goes on with every image to the end."""
    return ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """Durations are seconds; None takes the configuration's word.

    replace: name -> the stage from which on it is made again although nothing is missing.
    only: the names to look at, empty for all; nothing else is touched, nothing is pruned.
    held: names in backoff, left alone by this pass.
    locked: banger.lock has to fit; frozen: and what it names is cached, so nobody is asked for it.
    give_up: asked again and again during a build; why it is to stop, or nothing.
    """

    only: frozenset[str] = frozenset()
    replace: Mapping[str, Stage] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    jobs: int | None = None
    timeout: float | None = None
    lock_timeout: float = 0.0
    fail_fast: bool = False
    offline: bool = False
    locked: bool = False
    frozen: bool = False
    prune: bool | None = None
    allow_empty: bool = False
    give_up: Callable[[ImageSpec], str] = never

    def concerns(self, name: str) -> bool:
        """Whether the run looks at this name at all."""
        return not self.only or name in self.only

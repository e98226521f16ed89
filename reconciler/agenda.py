"""When the daemon runs its next pass, and which images that pass leaves alone. Pure.

No clock and no dice in here: each comes in as a Moment, so every rule is a row of a table test.
`daemon` asks and obeys. Any number of requests during a pass are one request for the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from reconciler.config.load import Config, ReconcileSettings, RetrySettings

LONGEST_STALL = 86400.0
"""Seconds: what only a change of configuration should mend is tried again at least this often."""
_MOST_DOUBLINGS = 64  # beyond that every ceiling has been reached, and floats have an end


class Ending(StrEnum):
    """How one try ended."""

    OK = "ok"
    RETRY = "retry"
    STALLED = "stalled"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, in seconds of the monotonic clock, and a draw from 0 to 1 for whatever needs one."""

    now: float
    draw: float


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that failed `attempts` times in a row and is left alone until `until`."""

    attempts: int
    until: float
    stalled: bool = False


def backoff(attempts: int, retry: RetrySettings, draw: float, asked: float | None = None) -> float:
    """Seconds to wait after so many failures: full jitter under an exponential ceiling.

    asked: the other side's Retry-After, which is never undercut.
    """
    doublings = min(attempts - 1, _MOST_DOUBLINGS)
    ceiling = min(retry.max, retry.base * retry.factor**doublings)
    return max(ceiling * draw, asked or 0.0)


def stall(attempts: int, settings: ReconcileSettings, draw: float) -> float:
    """Seconds to leave a permanent failure alone: from one interval, doubling, up to a day."""
    ceiling = settings.interval * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)
    return max(settings.interval, min(LONGEST_STALL, ceiling)) * (1 + settings.jitter * draw)


def changed(old: Config, new: Config) -> frozenset[str]:
    """The names whose entry, or what it refers to, is another in the new configuration."""
    names = {spec.name for spec in (*old.images, *new.images)}
    if _shared(old) != _shared(new):
        return frozenset(names)
    return frozenset(name for name in names if inputs(old, name) != inputs(new, name))


def _shared(config: Config) -> tuple[object, ...]:
    """What can be why any image failed, and changes no byte of one that is whole."""
    return (config.registries, config.limits, config.reconcile.timeout)


def inputs(config: Config, name: str) -> tuple[object, ...]:
    """Everything in a configuration that says how the image of this name is built."""
    spec = next((spec for spec in config.images if spec.name == name), None)
    if spec is None:
        return ()
    kernel = next((entry for entry in config.kernels if entry.name == spec.kernel_ref), None)
    return (replace(spec, protect=False, retain=0), kernel, config.guest)


class Agenda:
    """What is to be done when. The first pass is due at once."""

    def __init__(self) -> None:
        self._asked = True
        self._resync = 0.0
        self._began = 0.0
        self._pause: Wait | None = None
        self._waits: dict[str, Wait] = {}

    @property
    def waits(self) -> dict[str, Wait]:
        """name -> why and until when it is left alone."""
        return dict(self._waits)

    def ask(self) -> None:
        """An edit or a request: a pass as soon as none is running."""
        self._asked = True
        self._pause = None

    def forget(self, names: Iterable[str]) -> None:
        """These entries changed or went: what failed before says nothing about them."""
        for name in names:
            self._waits.pop(name, None)

    def clear(self) -> None:
        """Forget every wait: somebody has asked for everything now."""
        self._waits.clear()
        self.ask()

    def held(self, now: float) -> frozenset[str]:
        """The names that a pass starting now leaves alone."""
        return frozenset(name for name, wait in self._waits.items() if wait.until > now)

    def next_at(self) -> float:
        """When the next pass is due; 0.0 for at once."""
        if self._pause:
            return self._pause.until
        if self._asked:
            return 0.0
        # a wait that was over when the last pass began had its turn, even if that pass did not try:
        # the image may be suspended, or the try interrupted. The resync comes back to it.
        ahead = (wait.until for wait in self._waits.values() if wait.until > self._began)
        return min([self._resync, *ahead])

    def started(self, moment: Moment, settings: ReconcileSettings) -> None:
        """A pass has started; the next resync is an interval from here, give or take the jitter."""
        self._asked, self._began = False, moment.now
        swing = settings.jitter * (2 * moment.draw - 1)
        self._resync = moment.now + settings.interval * (1 + swing)

    def ended(
        self,
        name: str,
        ending: Ending,
        moment: Moment,
        settings: ReconcileSettings,
        *,
        asked: float | None = None,
    ) -> Wait | None:
        """One image's try has ended; gives the wait that stands for it now.

        asked: the Retry-After of the other side, in seconds.
        """
        if ending is Ending.OK:
            self._waits.pop(name, None)
        elif ending is not Ending.INTERRUPTED:
            attempts = _attempts(self._waits.get(name))
            if ending is Ending.STALLED:
                seconds = stall(attempts, settings, moment.draw)
            else:
                seconds = backoff(attempts, settings.retry, moment.draw, asked)
            self._waits[name] = Wait(attempts, moment.now + seconds, ending is Ending.STALLED)
        return self._waits.get(name)

    def pass_ended(
        self, ending: Ending, moment: Moment, settings: ReconcileSettings
    ) -> Wait | None:
        """The pass as a whole has ended; one that could not run is tried again after a pause."""
        if ending is Ending.OK:
            self._pause = None
            return None
        self._asked = True
        if ending is not Ending.INTERRUPTED:
            attempts = _attempts(self._pause)
            seconds = backoff(attempts, settings.retry, moment.draw)
            self._pause = Wait(attempts, moment.now + seconds)
        return self._pause


def _attempts(earlier: Wait | None) -> int:
    return earlier.attempts + 1 if earlier else 1

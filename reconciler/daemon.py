"""The daemon: wake, one pass, back off, stop.

One loop takes messages (what the watcher saw, a signal, a pass that ended) and never does anything
that takes long: passes run in a thread beside it, one at a time, and settling a file is the
watcher's. So the loop can answer a signal, the watchdog and an edit that makes a running build
pointless at any moment. When to run is decided in `agenda`, what to do in a pass by `reconcile`.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGHUP, Signals

from reconciler.agenda import Agenda, Ending, Moment, Wait, changed, inputs
from reconciler.apply import Outcome
from reconciler.config.load import Config, parse
from reconciler.config.lock import under_lock
from reconciler.errors import BangerError, Busy, Code, ConfigError, HostError
from reconciler.model import ImageSpec
from reconciler.notify import Notifier
from reconciler.reconcile import Host, Pass, reconcile
from reconciler.records import Records
from reconciler.report import summary_line
from reconciler.room import Interrupted
from reconciler.watch import Sight, Watch, settled

HEARTBEAT = 5.0
"""Seconds between two rounds of an idle loop."""
UNHEALTHY_SECONDS = 30.0
"""Without a round of the loop for so long, something is wrong with it."""
SHUTDOWN_SECONDS = 50.0
"""What a running pass gets to stop in; the contract's 60 less a margin for the exit itself."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A pass has ended: what it did, or why there was none."""

    result: Pass | BangerError


Message = Sight | bool | Signals | Ended


@dataclass(slots=True)
class Running:
    """The pass that runs beside the loop."""

    config: Config
    thread: threading.Thread
    cancelled: threading.Event = field(default_factory=threading.Event)


def accept(
    sight: Sight, path: Path, interval: float | None = None, *, locked: bool = False
) -> Config:
    """The configuration that a sight holds. Raises ConfigError when it is none to work by.

    An empty file is none: it is what a file looks like while somebody writes it. interval: seconds,
    in place of the configuration's. locked: the lock file has to fit.
    """
    if sight.data is None:
        raise sight.problem or ConfigError(f"{path} cannot be read")
    if not sight.data.strip():
        raise ConfigError(f"{path} is empty", resolution="Remove images by removing their entries.")
    config = parse(sight.data, path.absolute().parent, path)
    config = under_lock(config, sight.lock, demanded=locked)
    if interval is None:
        return config
    return replace(config, reconcile=replace(config.reconcile, interval=interval))


class Daemon:
    """One daemon process over one configuration file. `run` it in the main thread.

    sight: what `config` was read from.
    """

    def __init__(
        self,
        config: Config,
        sight: Sight,
        host: Host,
        notifier: Notifier,
        *,
        interval: float | None = None,
    ) -> None:
        self.config = config
        self.generation = 1
        self.rejected: ConfigError | None = None
        self.last: Pass | None = None
        self.trouble: BangerError | None = None
        """Why the last pass did not take place."""
        self.beat = time.monotonic()
        """When the loop last came round, on the monotonic clock."""
        self.told_to_stop = False
        self.after_pass: Callable[[], None] | None = None
        """Called in the loop whenever a pass has ended; must be quick and not raise."""
        self.agenda = Agenda()
        self._host = host
        self._notifier = notifier
        self._interval = interval
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._running: Running | None = None
        self._armed = False
        self._stop_by: float | None = None
        self._dice = random.SystemRandom()
        settle = config.reconcile.settle
        self._watch = Watch(config.path, sight, settle, self._inbox.put, host.emit)

    # -- for signal handlers and for the page ------------------------------------------------------

    def signal(self, number: int) -> None:
        """A signal has come: may be called from its handler."""
        self.told_to_stop = self.told_to_stop or number != SIGHUP
        self._inbox.put(Signals(number))

    @property
    def armed(self) -> bool:
        """True once edits are seen."""
        return self._armed

    @property
    def busy(self) -> bool:
        """True while a pass runs."""
        return self._running is not None

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> bool:
        """Work until told to stop. False when a pass was still running when its time was up."""
        self._watch.start()
        while True:
            for message in self._messages():
                self._handle(message)
            self.beat = time.monotonic()
            self._notifier.alive()
            if self._stop_by is not None:
                if self._running is None or self.beat > self._stop_by:
                    return self._finish()
                self._say_stopping()
            elif self._armed and not self._running and self.agenda.next_at() <= self.beat:
                self._begin_pass()

    def _messages(self) -> Iterator[Message]:
        """What has come; waits for it until something is due."""
        rest = HEARTBEAT
        if self._notifier.watchdog:
            rest = min(rest, self._notifier.watchdog / 3)
        if self._armed and not self._running and self._stop_by is None:
            rest = min(rest, max(0.0, self.agenda.next_at() - time.monotonic()))
        with suppress(queue.Empty):
            yield self._inbox.get(timeout=rest)
            while True:
                yield self._inbox.get_nowait()

    def _handle(self, message: Message) -> None:
        match message:
            case Sight():
                self._take(message)
            case bool():
                self._armed = True
                self._notifier.ready(self.status())
            case Signals():
                self._reload() if message is SIGHUP else self._stop(message)
            case Ended():
                self._ended(message.result)

    # -- the configuration -------------------------------------------------------------------------

    def _take(self, sight: Sight) -> None:
        """Work by what was seen, or go on with the last good configuration."""
        try:
            locked = self._host.wishes.locked
            config = accept(sight, self.config.path, self._interval, locked=locked)
        except ConfigError as error:
            self.rejected = error
            problems = "; ".join(error.problems)
            self._host.emit("config.rejected", message=error.brief, problems=problems)
            self._notifier.status(self.status())
            return
        if (config.sha256, config.lock) != (self.config.sha256, self.config.lock):
            self.agenda.forget(changed(self.config, config))
            self.generation += 1
            self.config = config
            self._watch.settle = config.reconcile.settle
        elif self.rejected is None:
            return
        self.rejected = None
        fields = {"images": len(config.images), "sha256": config.sha256}
        self._host.emit(
            "config.loaded", path=str(config.path), generation=self.generation, **fields
        )
        self.agenda.ask()
        self._notifier.status(self.status())

    def _reload(self) -> None:
        self._notifier.reloading()
        self._take(settled(self.config.path))
        self.agenda.clear()
        self._notifier.ready(self.status())

    # -- passes ------------------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        config, cancelled = self.config, threading.Event()
        held = self.agenda.held(time.monotonic())
        wishes = replace(
            self._host.wishes, held=held, give_up=lambda spec: self._obsolete(spec, config)
        )
        host = replace(self._host, cancelled=cancelled, wishes=wishes, generation=self.generation)
        thread = threading.Thread(
            target=lambda: self._inbox.put(Ended(_one_pass(config, host))), name="pass", daemon=True
        )
        self.agenda.started(self._moment(), config.reconcile)
        self._running = Running(config, thread, cancelled)
        thread.start()
        self._notifier.status(self.status())

    def _obsolete(self, spec: ImageSpec, built_by: Config) -> str:
        """Why a running build is of no use any more; called from its threads."""
        now = self.config
        if now is built_by or inputs(now, spec.name) == inputs(built_by, spec.name):
            return ""
        return "its entry changed while it was built"

    def _ended(self, result: Pass | BangerError) -> None:
        self._running = None
        if isinstance(result, BangerError):
            self._could_not(result)
        else:
            self.last, self.trouble = result, None
            self.agenda.pass_ended(Ending.OK, self._moment(), self.config.reconcile)
            self._schedule(result)
            said = {"reconcile_id": result.reconcile_id, "generation": result.generation}
            self._host.emit(
                "reconcile.finished",
                changed=result.changed,
                failed=result.failed,
                message=summary_line(result),
                duration_seconds=round(result.seconds, 3),
                **said,
            )
        self._notifier.status(self.status())
        if self.after_pass:
            self.after_pass()

    def _could_not(self, error: BangerError) -> None:
        """The pass as a whole was not possible: another writer, a state that cannot be used."""
        self.trouble = error
        ending = Ending.INTERRUPTED if isinstance(error, Interrupted) else Ending.RETRY
        wait = self.agenda.pass_ended(ending, self._moment(), self.config.reconcile)
        event = "lock.waiting" if isinstance(error, Busy) else "reconcile.failed"
        fields = {"attempt": wait.attempts} if wait else {}
        self._host.emit(event, message=error.brief, error_code=error.code.value, **fields)

    def _schedule(self, result: Pass) -> None:
        """Decide for every image of the pass when it is tried again."""
        for outcome in result.outcomes:
            name, earlier = outcome.plan.name, self.agenda.waits.get(outcome.plan.name)
            if outcome.plan.held:
                continue
            if inputs(self.config, name) != inputs(result.config, name):
                continue  # what failed is not what is wanted now
            asked = outcome.error.retry_after if outcome.error else None
            settings = self.config.reconcile
            wait = self.agenda.ended(name, _ending(outcome), self._moment(), settings, asked=asked)
            if wait and wait != earlier:
                self._announce(name, wait, result)

    def _announce(self, name: str, wait: Wait, result: Pass) -> None:
        seconds = max(0.0, wait.until - time.monotonic())
        fields = {"attempt": wait.attempts, "stalled": wait.stalled}
        self._host.emit("backoff.scheduled", image=name, delay_seconds=round(seconds, 1), **fields)
        failure = result.after.failures.get(name)
        if failure:
            at = datetime.now(UTC) + timedelta(seconds=seconds)
            when = at.strftime("%Y-%m-%dT%H:%M:%SZ")
            with suppress(BangerError):  # a note for people: the wait itself is kept here
                Records(result.store.database).fail(replace(failure, next_retry_at=when))

    # -- telling and stopping ----------------------------------------------------------------------

    def status(self) -> str:
        """One line on how things are."""
        parts = []
        if self.rejected:
            parts.append(f"configuration rejected, the last good one holds: {self.rejected.brief}")
        if self.trouble:
            parts.append(self.trouble.brief)
        if self._running:
            parts.append("a pass is running")
        parts.append(summary_line(self.last) if self.last else f"{len(self.config.images)} images")
        return "; ".join(parts)

    def healthy(self) -> bool:
        """True while the loop comes round."""
        return time.monotonic() - self.beat < UNHEALTHY_SECONDS

    def unready(self) -> str:
        """Why nobody should count on this daemon yet; empty when it works by what is wanted."""
        if not self._armed:
            return "the watcher is not armed yet"
        if self.rejected:
            return f"the configuration is rejected: {self.rejected.brief}"
        if self.trouble:
            return self.trouble.brief
        return "" if self.last else "the first pass is not done yet"

    def _stop(self, number: Signals) -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + SHUTDOWN_SECONDS
            self._host.emit("shutdown.started", message=f"{number.name} has come")
        if self._running:
            self._running.cancelled.set()

    def _say_stopping(self) -> None:
        left = max(0.0, (self._stop_by or 0.0) - time.monotonic())
        self._notifier.stopping(left + HEARTBEAT, "stopping: waiting for the running pass")

    def _finish(self) -> bool:
        clean = self._running is None
        self._notifier.stopping(HEARTBEAT, "stopped")
        self._watch.stop()
        self._host.emit("shutdown.finished", clean=clean)
        return clean

    def _moment(self) -> Moment:
        return Moment(time.monotonic(), self._dice.random())


def _one_pass(config: Config, host: Host) -> Pass | BangerError:
    try:
        return reconcile(config, host)
    except BangerError as error:
        return error
    except Exception as error:  # a bug in one pass must not end the service
        host.emit("reconcile.crashed", exc_info=True)
        return HostError(f"an unexpected {type(error).__name__}: {error}", code=Code.INTERNAL)


def _ending(outcome: Outcome) -> Ending:
    if outcome.error is None:
        return Ending.OK
    if isinstance(outcome.error, Interrupted):
        return Ending.INTERRUPTED
    return Ending.RETRY if outcome.error.retryable else Ending.STALLED

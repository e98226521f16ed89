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
from signal import SIGHUP, Signals

from reconciler.agenda import Agenda, Ending, Moment, changed, inputs
from reconciler.beside import beside, ending, one_pass
from reconciler.config.load import Config
from reconciler.errors import BangerError, Busy, ConfigError, HostError
from reconciler.model import ImageSpec
from reconciler.notify import Notifier
from reconciler.reconcile import Host, Pass
from reconciler.report import summary_line
from reconciler.watch import Sight, Watch, accept, settled
from reconciler.wishes import Again

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


@dataclass(frozen=True, slots=True)
class Reread:
    """What a reload found in the file."""

    sight: Sight


Message = Sight | bool | Signals | Ended | Reread


@dataclass(slots=True)
class Running:
    """The pass that runs beside the loop. epoch: how many reloads there had been at its start."""

    config: Config
    epoch: int
    cancelled: threading.Event = field(default_factory=threading.Event)


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
        self.beat = self.ended_at = time.monotonic()
        """When the loop last came round, and when a pass last ended, on the monotonic clock."""
        self.told_to_stop = False
        self.on_news: Callable[[], None] | None = None
        """Called in the loop when a pass has ended or the file was judged; must not wait."""
        self.agenda = Agenda()
        self._lock = threading.Lock()
        """Held where the agenda is written: a pass asks it when failures are tried again."""
        self._host = host
        self._notifier = notifier
        self._interval = interval
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._running: Running | None = None
        self._seen = sight.digest
        self._reloads = 0
        """SIGHUPs that are not answered yet."""
        self._epoch = 0
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

    def next_at(self) -> float:
        """When the next pass is due, on the monotonic clock; 0.0 for at once."""
        with self._lock:
            return self.agenda.next_at()

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
            elif self._armed and not self._running and self.next_at() <= self.beat:
                self._begin_pass()

    def _messages(self) -> Iterator[Message]:
        """What has come; waits for it until something is due."""
        rest = HEARTBEAT
        if self._notifier.watchdog:
            rest = min(rest, self._notifier.watchdog / 3)
        if self._armed and not self._running and self._stop_by is None:
            rest = min(rest, max(0.0, self.next_at() - time.monotonic()))
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
            case Reread():
                self._reloaded(message.sight)
            case Ended():
                self._ended(message.result)

    # -- the configuration -------------------------------------------------------------------------

    def _take(self, sight: Sight) -> None:
        """Work by what was seen, or go on with the last good configuration."""
        if sight.digest == self._seen:
            return
        self._seen = sight.digest
        try:
            self._accepted(accept(sight, self.config.path, self._interval))
        except ConfigError as error:
            self.rejected = error
            problems = "; ".join(error.problems)
            self._host.emit("config.rejected", message=error.brief, problems=problems)
        self._news()

    def _accepted(self, config: Config) -> None:
        if config.sha256 != self.config.sha256:
            with self._lock:
                self.agenda.forget(changed(self.config, config))
            self.generation += 1
            self.config = config
            self._watch.settle = config.reconcile.settle
        self.rejected = None
        fields = {"images": len(config.images), "sha256": config.sha256}
        self._host.emit(
            "config.loaded", path=str(config.path), generation=self.generation, **fields
        )
        self.agenda.ask()

    def _reload(self) -> None:
        """Read the file beside the loop: it may lie where reading takes long, or never ends."""
        self._notifier.reloading()
        self._reloads += 1
        if self._reloads == 1:
            self._read_again()

    def _read_again(self) -> None:
        path = self.config.path
        beside("reload", lambda: self._inbox.put(Reread(settled(path))))

    def _reloaded(self, sight: Sight) -> None:
        self._take(sight)
        with self._lock:
            self._epoch += 1
            self.agenda.clear()
        if self._armed:
            self._notifier.ready(self.status())
        more, self._reloads = self._reloads > 1, 0
        if more:  # asked again meanwhile, perhaps for bytes that were written after these were read
            self._reloads = 1
            self._read_again()

    # -- passes ------------------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        moment, config = self._moment(), self.config
        running = Running(config, self._epoch)
        wishes = replace(
            self._host.wishes,
            held=self.agenda.held(moment.now),
            give_up=lambda spec: self._obsolete(spec, config),
            may_delete=lambda: self.config is config and self.rejected is None,
            again=lambda name, error: self._again(name, error, running),
        )
        host = replace(
            self._host, cancelled=running.cancelled, wishes=wishes, generation=self.generation
        )
        self.agenda.started(moment, config.reconcile)
        self._running = running
        self._watch.look()  # should an event have been lost, this pass finds that out
        try:
            beside("pass", lambda: self._inbox.put(Ended(one_pass(config, host))))
        except RuntimeError as error:  # no thread to be had: a limit of processes or of memory
            self._inbox.put(Ended(HostError(f"no pass can be started: {error}")))
        self._notifier.status(self.status())

    def _obsolete(self, spec: ImageSpec, built_by: Config) -> str:
        """Why a running build is of no use any more; called from its threads."""
        now = self.config
        if now is built_by or inputs(now, spec.name) == inputs(built_by, spec.name):
            return ""
        return "its entry changed while it was built"

    def _again(self, name: str, error: BangerError, running: Running) -> Again | None:
        """When an image that has just failed is tried again; called from the threads of a pass."""
        with self._lock:
            now, then = self.config, running.config
            edited = now is not then and inputs(now, name) != inputs(then, name)
            if edited or running.epoch != self._epoch:
                return None  # what failed is not what is wanted now: the next pass tries that
            moment, asked = self._moment(), error.retry_after
            wait = self.agenda.ended(name, ending(error), moment, now.reconcile, asked=asked)
        if wait is None:
            return None
        return Again(max(0.0, wait.until - moment.now), wait.attempts, wait.stalled)

    def _ended(self, result: Pass | BangerError) -> None:
        self._running, self.ended_at = None, time.monotonic()
        if isinstance(result, BangerError):
            self._could_not(result)
        else:
            self.last, self.trouble = result, None
            self._succeeded(result)
            said = {"reconcile_id": result.reconcile_id, "generation": result.generation}
            self._host.emit(
                "reconcile.finished",
                changed=result.changed,
                failed=result.failed,
                message=summary_line(result),
                duration_seconds=round(result.seconds, 3),
                **said,
            )
        self._news()

    def _could_not(self, error: BangerError) -> None:
        """The pass as a whole was not possible: another writer, a state that cannot be used."""
        self.trouble = error
        wait = self.agenda.pass_ended(ending(error), self._moment(), self.config.reconcile)
        event = "lock.waiting" if isinstance(error, Busy) else "reconcile.failed"
        fields = {"attempt": wait.attempts} if wait else {}
        self._host.emit(event, message=error.brief, error_code=error.code.value, **fields)

    def _succeeded(self, result: Pass) -> None:
        """Forget the waits of what is well again."""
        moment, settings = self._moment(), self.config.reconcile
        with self._lock:
            self.agenda.pass_ended(Ending.OK, moment, settings)
            for outcome in result.outcomes:
                if outcome.error is None and not outcome.plan.held:
                    self.agenda.ended(outcome.plan.name, Ending.OK, moment, settings)

    def _news(self) -> None:
        self._notifier.status(self.status())
        if self.on_news:
            self.on_news()

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

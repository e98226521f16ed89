"""Events on their way out: one vocabulary, two readers, the log and the progress display.

`cli` builds a sink; the rooms below only ever call `emit(event, **fields)`. Whatever came from an
image or a registry is escaped and cut here, once, before anybody sees it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from reconciler.text import printable

LEVELS = ("debug", "info", "warning", "error")
_ERRORS = (
    *("image.failed", "stage.failed", "config.rejected", "image.crashed"),
    *("reconcile.failed", "reconcile.crashed"),
)
_WARNINGS = (
    *("records.damaged", "record.failed", "records.restored", "image.orphaned", "retry"),
    *("watch.degraded", "backoff.scheduled", "lock.waiting", "metrics.failed"),
)
_DEBUG = ("stage.progress",)
_JOURNAL_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_CUT = 500
_SECRETS = (
    # the user and password of a URL; a token of a header; signed and tokened query strings
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{16,}"), r"\1 ***"),
    (
        re.compile(r"(?i)([?&](?:[a-z_-]*(?:token|signature|credential|password|sig)))=[^&\s]+"),
        r"\1=***",
    ),
)

Sink = Callable[[str, dict[str, Any]], None]


class Events:
    """The `emit` of a run. `context` fields (reconcile_id, generation) go with every event."""

    def __init__(self, sinks: Iterable[Sink], **context: object) -> None:
        self._sinks = tuple(sinks)
        self._context = context

    def __call__(self, event: str, **fields: object) -> None:
        """Send one event to every sink; strings are made printable on the way."""
        safe = {
            name: _safe(value) if isinstance(value, str | bytes) else value
            for name, value in {**self._context, **fields}.items()
        }
        for sink in self._sinks:
            with suppress(OSError, ValueError):  # a full disk or a reader that went: no build ends
                sink(event, safe)


def _safe(value: str | bytes) -> str:
    """Text that may be seen: escaped, without secrets, cut."""
    text = printable(value, 1 << 20)
    for secret, shown in _SECRETS:
        text = secret.sub(shown, text)
    return printable(text, _CUT)


def level_of(event: str) -> str:
    """The level that an event is logged at."""
    if event in _ERRORS:
        return "error"
    if event in _WARNINGS:
        return "warning"
    return "debug" if event in _DEBUG else "info"


def log_sink(level: str, form: str, *, colour: bool) -> Sink:
    """A structlog logger on stderr as a sink.

    level: the least that is written. form: auto, console, json or journal; auto is the journal's
    form under systemd, console on a terminal and json elsewhere.
    """
    import structlog  # takes a while, and most runs keep no log

    processors: list[Any] = [_timestamp, structlog.processors.format_exc_info]
    chosen = _form(form)
    if chosen == "console":
        processors.append(structlog.dev.ConsoleRenderer(colors=colour))
    else:
        processors.append(structlog.processors.JSONRenderer(default=str))
    if chosen == "journal":
        processors.append(_journal_prefix)
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )

    def write(event: str, fields: dict[str, Any]) -> None:
        grade = level_of(event)
        getattr(logger, grade)(event, level=grade, **fields)

    return write


def _form(form: str) -> str:
    if form != "auto":
        return form
    if os.environ.get("JOURNAL_STREAM"):
        return "journal"
    return "console" if sys.stderr.isatty() else "json"


def _timestamp(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    event["timestamp"] = utc_now()
    return event


def _journal_prefix(_logger: object, method: str, line: str) -> str:
    return f"<{_JOURNAL_PRIORITY.get(method, 6)}>{line}"


def utc_now() -> str:
    """Now as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

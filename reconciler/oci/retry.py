"""How often and how long a request is tried again before the pass goes on without it.

A few attempts within seconds, for blips; what takes longer is left to the backoff of the daemon, to
which the error's `retry_after` goes. `oci.repository` and `oci.download` wrap their requests in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from reconciler.errors import RemoteError

ATTEMPTS = 4
"""Attempts in a row that bring nothing new."""
PATIENCE = 10.0
"""Seconds: a longer Retry-After is not waited for here."""
MAX_RETRY_AFTER = 3600.0
_SLICE = 0.2
_backoff = wait_random_exponential(multiplier=0.25, max=PATIENCE)

Note = Callable[[RemoteError, int, float], None]
"""`note(error, attempt, seconds)`: told before each wait."""


class NoProgress(stop_base):
    """Stop after `ATTEMPTS` attempts since `measure` last grew."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self._best = measure()
        self._since = 0

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: D102 - tenacity's protocol
        now = self._measure()
        self._since = 1 if now > self._best else self._since + 1
        self._best = max(self._best, now)
        return self._since >= ATTEMPTS


def retrying(
    note: Note,
    waiting: Callable[[], None],
    measure: Callable[[], int],
    total: float = math.inf,
) -> Retrying:
    """A tenacity controller: call it with the function to try.

    waiting: called several times a second while it waits; may raise to give up.
    measure: bytes there so far; attempts that add some are not counted.
    total: seconds after which no other attempt begins.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RemoteError):
            note(error, state.attempt_number, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(_worth_it),
        stop=NoProgress(measure) | stop_after_delay(total),
        wait=_wait,
        sleep=lambda seconds: _sleep(seconds, waiting),
        before_sleep=tell,
        reraise=True,
    )


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), at most an hour; None for nonsense."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), MAX_RETRY_AFTER)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = (then - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _worth_it(error: BaseException) -> bool:
    if not isinstance(error, RemoteError) or not error.retryable:
        return False
    return error.retry_after is None or error.retry_after <= PATIENCE


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RemoteError) else None
    return max(asked or 0.0, float(_backoff(state)))


def _sleep(seconds: float, waiting: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        waiting()
        time.sleep(min(left, _SLICE))

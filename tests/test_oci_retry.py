from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from reconciler.errors import ImageError, RemoteError
from reconciler.oci.retry import ATTEMPTS, MAX_RETRY_AFTER, parse_retry_after, retrying
from reconciler.room import Interrupted


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("0", 0), (" 7 ", 7), ("99999999999999999999", MAX_RETRY_AFTER),
        ("-1", None), ("1.5", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2915 07:28:00 GMT", MAX_RETRY_AFTER), ("\u0663", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (parse_retry_after(soon) or 0) <= 90


def attempts(errors: list[Exception], measures: list[int]) -> int:
    """How often a function is called that raises these errors and has then got that far."""
    calls = 0
    got = 0

    def fails() -> None:
        nonlocal calls, got
        got = measures[min(calls, len(measures) - 1)]
        calls += 1
        raise errors[min(calls, len(errors)) - 1]

    with pytest.raises(type(errors[-1])):
        retrying(lambda *_: None, lambda: None, lambda: got)(fails)
    return calls


def test_blips_are_tried_a_few_times() -> None:
    assert attempts([RemoteError("503")], [0]) == ATTEMPTS


def test_attempts_that_bring_something_do_not_count() -> None:
    assert attempts([RemoteError("cut")], [1, 2, 3, 3, 3, 3, 3]) == 2 + ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [
        RemoteError("404", retryable=False),
        RemoteError("429", retry_after=600),
        ImageError("bad"),
        Interrupted("stop"),
    ],
)
def test_what_is_not_tried_again(error: Exception) -> None:
    assert attempts([error], [0]) == 1


def test_waiting_is_told_and_can_be_given_up() -> None:
    told = []

    def waiting() -> None:
        raise Interrupted("stop")

    def fails() -> None:
        raise RemoteError("503", retry_after=5)

    with pytest.raises(Interrupted):
        retrying(lambda *what: told.append(what), waiting, lambda: 0)(fails)
    [(error, attempt, seconds)] = told
    assert (error.brief, attempt) == ("503", 1)
    assert seconds >= 5

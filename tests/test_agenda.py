"""When passes run and what they leave alone: tables over the pure agenda."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.agenda import LONGEST_STALL, Agenda, Ending, Moment, backoff, changed, stall
from reconciler.config.load import Config, ReconcileSettings, RetrySettings, parse

RETRY = RetrySettings(base=5.0, factor=2.0, max=600.0)
SETTINGS = ReconcileSettings(600.0, 0.1, 2, 1800.0, 0.5, RETRY)


def config(text: str) -> Config:
    return parse(text.encode(), Path("/etc"))


@pytest.mark.parametrize(
    ("attempts", "draw", "asked", "seconds"),
    [
        (1, 1.0, None, 5.0),
        (2, 1.0, None, 10.0),
        (3, 0.5, None, 10.0),
        (8, 1.0, None, 600.0),
        (10_000, 1.0, None, 600.0),
        (4, 0.0, None, 0.0),
        (1, 0.1, 30.0, 30.0),
        (8, 1.0, 30.0, 600.0),
        (1, 1.0, 3600.0, 3600.0),
    ],
)
def test_backoff_is_full_jitter_under_an_exponential_ceiling(
    attempts: int, draw: float, asked: float | None, seconds: float
) -> None:
    assert backoff(attempts, RETRY, draw, asked) == seconds


@pytest.mark.parametrize(
    ("attempts", "draw", "seconds"),
    [(1, 0.0, 600.0), (2, 0.0, 1200.0), (1, 1.0, 660.0), (5000, 0.0, LONGEST_STALL)],
)
def test_what_only_an_edit_mends_is_tried_rarely(
    attempts: int, draw: float, seconds: float
) -> None:
    assert stall(attempts, SETTINGS, draw) == pytest.approx(seconds)


def test_the_first_pass_is_due_at_once_and_then_the_interval_counts() -> None:
    agenda = Agenda()
    assert agenda.next_at() == 0.0
    agenda.started(Moment(100.0, 0.5), SETTINGS)
    assert agenda.next_at() == 700.0
    agenda.started(Moment(100.0, 0.0), SETTINGS)
    assert agenda.next_at() == 640.0
    agenda.started(Moment(100.0, 1.0), SETTINGS)
    assert agenda.next_at() == 760.0


def test_any_number_of_requests_during_a_pass_are_one_more_pass() -> None:
    agenda = Agenda()
    agenda.started(Moment(100.0, 0.5), SETTINGS)
    for _ in range(1000):
        agenda.ask()
    assert agenda.next_at() == 0.0
    agenda.started(Moment(101.0, 0.5), SETTINGS)
    assert agenda.next_at() == 701.0


def test_a_failed_image_waits_longer_each_time_and_success_forgets() -> None:
    agenda = Agenda()
    agenda.started(Moment(0.0, 0.5), SETTINGS)
    for attempts, until in ((1, 5.0), (2, 10.0), (3, 20.0)):
        wait = agenda.ended("web", Ending.RETRY, Moment(0.0, 1.0), SETTINGS)
        assert wait and (wait.attempts, wait.until) == (attempts, until)
    assert agenda.next_at() == 20.0
    assert agenda.held(19.0) == {"web"}
    assert agenda.held(20.0) == frozenset()
    agenda.ended("web", Ending.OK, Moment(20.0, 1.0), SETTINGS)
    assert agenda.next_at() == 600.0
    again = agenda.ended("web", Ending.RETRY, Moment(0.0, 1.0), SETTINGS)
    assert again and again.attempts == 1


def test_one_image_that_waits_does_not_hold_the_others() -> None:
    agenda = Agenda()
    agenda.ended("bad", Ending.STALLED, Moment(0.0, 0.0), SETTINGS)
    agenda.ended("good", Ending.OK, Moment(0.0, 0.0), SETTINGS)
    assert agenda.held(1.0) == {"bad"}


def test_an_interrupted_try_is_no_failure() -> None:
    agenda = Agenda()
    assert agenda.ended("web", Ending.INTERRUPTED, Moment(0.0, 1.0), SETTINGS) is None


def test_a_changed_entry_and_a_reload_end_the_wait() -> None:
    agenda = Agenda()
    agenda.ended("a", Ending.STALLED, Moment(0.0, 0.0), SETTINGS)
    agenda.ended("b", Ending.STALLED, Moment(0.0, 0.0), SETTINGS)
    agenda.forget(["a", "unknown"])
    assert agenda.held(1.0) == {"b"}
    agenda.clear()
    assert agenda.held(1.0) == frozenset()


def test_a_pass_that_could_not_run_pauses_all_until_an_edit() -> None:
    agenda = Agenda()
    agenda.started(Moment(0.0, 0.5), SETTINGS)
    agenda.pass_ended(Ending.RETRY, Moment(0.0, 1.0), SETTINGS)
    assert agenda.next_at() == 5.0
    agenda.pass_ended(Ending.RETRY, Moment(5.0, 1.0), SETTINGS)
    assert agenda.next_at() == 15.0
    agenda.ask()
    assert agenda.next_at() == 0.0


BASE = """
[[kernel]]
name = "k"
kernel = { path = "/boot/a" }
[[image]]
name = "web"
ref = "example.org/web:1"
kernel-ref = "k"
[[image]]
name = "db"
ref = "example.org/db:1"
"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("web:1", "web:2", {"web"}),
        ("/boot/a", "/boot/b", {"web"}),
        ('name = "db"', 'name = "dc"', {"db", "dc"}),
        ('ref = "example.org/db:1"', 'ref = "example.org/db:1"\nprotect = true', set()),
        ("[[kernel]]", "[guest]\nvsock-port = 5\n[[kernel]]", {"web", "db"}),
        ("[[kernel]]", '[[registry]]\nhost = "example.org"\n[[kernel]]', {"web", "db"}),
        ("[[kernel]]", "[limits]\nentries = 5\n[[kernel]]", {"web", "db"}),
        ("[[kernel]]", '[reconcile]\ntimeout = "2h"\n[[kernel]]', {"web", "db"}),
        ("[[kernel]]", "# a comment\n[[kernel]]", set()),
    ],
)
def test_what_an_edit_is_about(old: str, new: str, names: set[str]) -> None:
    assert changed(config(BASE), config(BASE.replace(old, new))) == names


@pytest.mark.parametrize("ending", [None, Ending.INTERRUPTED])
def test_a_wait_that_is_over_starts_one_pass_and_not_one_after_another(
    ending: Ending | None,
) -> None:
    """The pass may not get to the image: it is suspended meanwhile, or the pass is interrupted."""
    agenda = Agenda()
    agenda.started(Moment(0.0, 0.5), SETTINGS)
    agenda.ended("web", Ending.RETRY, Moment(0.0, 1.0), SETTINGS)
    assert agenda.next_at() == 5.0
    agenda.started(Moment(5.0, 0.5), SETTINGS)
    if ending:
        agenda.ended("web", ending, Moment(6.0, 1.0), SETTINGS)
    assert agenda.next_at() == 605.0
    again = agenda.ended("web", Ending.RETRY, Moment(700.0, 1.0), SETTINGS)
    assert again and again.attempts == 2

"""Durations: what is one, and what only looks like one."""

from __future__ import annotations

import pytest

from reconciler.durations import parse_duration
from reconciler.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("24h", 86400),
        ("2d", 172800),
        ("1m500ms", 60.5),
        ("1d2h3m4s5ms", 93784.005),
        ("1.5h", 5400),
        ("0s", 0),
        (" 5s ", 5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10",
        "m",
        "-5s",
        "5 s",
        "5x",
        "30m1h",
        "1h1h",
        "1e3s",
        "5S",
        "4000d",
        "9" * 99 + "s",
    ],
)
def test_what_is_no_duration_is_quoted_and_explained(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)
    assert f'"{text[:30]}' in caught.value.brief
    assert caught.value.resolution

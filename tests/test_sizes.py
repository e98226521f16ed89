"""Sizes: the tables that mission.md asks for, and the round trip as a property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import ConfigError
from reconciler.sizes import LARGEST, format_size, parse_size

KIB, MIB, GIB, TIB, PIB, EIB = (2 ** (10 * power) for power in range(1, 7))

PARSER_CASES: list[tuple[str, int]] = [
    ("4GiB", 4 * GIB),
    ("512MiB", 512 * MIB),
    ("4KiB", 4 * KIB),
    ("4G", 4 * GIB),
    ("4g", 4 * GIB),
    ("4GB", 4 * GIB),
    ("4gib", 4 * GIB),
    ("1.5GiB", 1536 * MIB),
    ("0.5k", 512),
    ("1024", GIB),
    ("1", MIB),
    ("1.5", 1536 * KIB),
    ("  2TiB\t", 2 * TIB),
    ("2tb", 2 * TIB),
    ("3P", 3 * PIB),
    ("7EiB", 7 * EIB),
    ("1025B", 1025),
    ("007m", 7 * MIB),
    ("+1G", GIB),
    ("0.1KiB", 102),
    ("9223372036854775807B", LARGEST),
    ("7.999999999999999999EiB", LARGEST - 1),
]

PARSER_ERRORS: list[tuple[str, str]] = [
    ("", "empty"),
    ("   ", "empty"),
    ("-1", "negative"),
    ("-4GiB", "negative"),
    ("0", "zero"),
    ("0GiB", "zero"),
    ("0.0001KiB", "zero"),
    ("4X", "unknown suffix"),
    ("4GiBs", "unknown suffix"),
    ("4 GiB", "unknown suffix"),
    ("4Gi", "unknown suffix"),
    ("8EiB", "too large"),
    ("9223372036854775808B", "too large"),
    ("99999999999999999999", "too large"),
    ("9" * 5000, "not a size"),
    ("GiB", "not a size"),
    ("1.GiB", "not a size"),
    (".5GiB", "not a size"),
    ("1e3", "not a size"),
    ("1,5GiB", "not a size"),
    ("4GiB 2", "not a size"),
    ("0x10", "not a size"),
    ("٤GiB", "not a size"),
    ("auto", "not a size"),
    ("4GiB\x1b[31m", "not a size"),
]

FORMATTER_CASES: list[tuple[int, str]] = [
    (4 * GIB, "4GiB"),
    (1536 * MIB, "1536MiB"),
    (KIB, "1KiB"),
    (4 * KIB, "4KiB"),
    (1023 * KIB, "1023KiB"),
    (MIB, "1MiB"),
    (GIB, "1GiB"),
    (TIB, "1TiB"),
    (1025, "1025B"),
    (0, "0B"),
    (LARGEST, "9223372036854775807B"),
    (LARGEST - KIB + 1, "9007199254740991KiB"),
    (7 * EIB, "7EiB"),
]

ROUND_TRIP_BOUNDARIES: list[int] = [
    KIB,
    MIB - KIB,
    MIB,
    MIB + KIB,
    GIB - KIB,
    GIB,
    GIB + KIB,
    TIB - KIB,
    TIB,
    TIB + KIB,
    PIB,
    EIB,
    LARGEST - KIB + 1,
]


@pytest.mark.parametrize(("text", "size"), PARSER_CASES)
def test_parser(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "why"), PARSER_ERRORS)
def test_parser_errors_quote_the_input(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        parse_size(text)
    assert f'"{text[:20]}'.split("\x1b")[0] in caught.value.brief
    assert "\x1b" not in caught.value.brief
    assert "4GiB" in caught.value.resolution


@pytest.mark.parametrize(("size", "text"), FORMATTER_CASES)
def test_formatter(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("size", ROUND_TRIP_BOUNDARIES)
def test_round_trip_at_the_boundaries(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(1, LARGEST // KIB))
def test_round_trip_of_every_multiple_of_a_kib(kibibytes: int) -> None:
    assert parse_size(format_size(kibibytes * KIB)) == kibibytes * KIB


@given(st.text())
def test_any_text_gives_a_size_or_a_config_error(text: str) -> None:
    try:
        assert 1 <= parse_size(text) <= LARGEST
    except ConfigError as error:
        assert error.brief.isprintable()

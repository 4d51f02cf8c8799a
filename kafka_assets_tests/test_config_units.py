"""Durations, sizes and times as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_assets.config import parse_duration, parse_size, parse_timestamp_ms


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("1m", 60), ("1h", 3600), ("2d", 172_800), ("1.5 s", 1.5), ("0s", 0)],
)
def test_durations(text, seconds):
    """A duration is a number and its unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 w", "-1s", "1h30m", "1e3s", "s", "99999d", "\u0661s", "1s\n"])
def test_what_is_no_duration(text):
    """A number without a unit, a sign, a sum or a century is no duration."""
    with pytest.raises(ValueError, match="a duration with its unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256 MiB", 268_435_456), ("1GB", 10**9), ("1.5 kib", 1536), ("7B", 7), ("2TB", 2 * 10**12)],
)
def test_sizes(text, size):
    """KB and the like are powers of 1000, KiB and the like of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "5 K", "-1B", "1.5B", "99999999 TiB", "1 Mbit"])
def test_what_is_no_size(text):
    """A size needs a unit, and a whole number of bytes."""
    with pytest.raises(ValueError, match=r"256 MiB \(1024 based\)"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01 00:00:00.5z", 500),
        ("1970-01-01t01:00:00+01:00", 0),
        ("1969-12-31T23:59:59Z", -1000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1969-12-31T23:59:59.9999Z", 0),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000),
        ("9999-12-31T23:59:59-23:59", 253_402_387_139_000),
    ],
)
def test_timestamps(text, milliseconds):
    """A time is milliseconds since 1970, rounded up to the first that is not before it."""
    assert parse_timestamp_ms(text) == milliseconds


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T00:00:00",
        "2026-01-01",
        "1767225600000",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00Z",
        "",
    ],
)
def test_what_is_no_timestamp(text):
    """A time without a zone, or that is on no calendar or clock, is refused."""
    with pytest.raises(ValueError, match=re.escape("an RFC 3339 time with its zone")):
        parse_timestamp_ms(text)


@given(
    st.datetimes(
        timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
        min_value=datetime(2, 1, 1),  # noqa: DTZ001 (hypothesis adds the zone)
        max_value=datetime(9998, 1, 1),  # noqa: DTZ001 (likewise)
    )
)
def test_a_timestamp_is_the_least_millisecond_not_before_it(moment):
    """For any time in any zone the milliseconds are exact, or the next ones."""
    since = datetime(1970, 1, 1, tzinfo=UTC) - moment
    assert parse_timestamp_ms(moment.isoformat()) == -(since // timedelta(milliseconds=1))

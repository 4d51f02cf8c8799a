"""Durations, sizes and points in time, as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction

DURATION = "a duration with its unit, like 500ms, 30s, 5m, 1h or 2d"
SIZE = "a size like 256 MiB (1024 based), 1GB (1000 based) or a whole number of bytes"
TIMESTAMP = "an RFC 3339 time with its zone, like 2026-01-01T00:00:00Z or 2026-01-01T01:00:00+01:00"

_SECONDS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_BYTES = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(rf"{_NUMBER} ?(ms|s|m|h|d)")
_SIZE = re.compile(rf"{_NUMBER} ?({'|'.join(_BYTES)})", re.IGNORECASE)
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 36_500 * 86_400
_LARGEST = 2**63 - 1


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `30s`; a number without a unit is none, as nobody knows which was meant.

    Raises:
        ValueError: The text is no duration, or one above 36500d.
    """
    match = _DURATION.fullmatch(text)
    seconds = Fraction(match[1]) * _SECONDS[match[2]] if match else None
    if seconds is None or seconds > _LONGEST:
        raise ValueError(f"{DURATION}, up to 36500d")
    return float(seconds)


def parse_size(text: str) -> int:
    """Bytes of a size such as `256 MiB` or `1GB`; case does not matter.

    Raises:
        ValueError: The text is no size, not a whole number of bytes, or above 2^63 - 1.
    """
    match = _SIZE.fullmatch(text)
    size = Fraction(match[1]) * _BYTES[match[2].lower()] if match else None
    if size is None or size.denominator != 1 or size > _LARGEST:
        raise ValueError(SIZE)
    return int(size)


def parse_timestamp_ms(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time, rounded up; negative before 1970.

    Rounded up since a look-up by time gives the first record at or after it.

    Raises:
        ValueError: The text is no such time, or it names no zone.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(TIMESTAMP)
    day, time, fraction, sign, hours, minutes = match.groups()
    if int(hours or 0) > 23 or int(minutes or 0) > 59:  # noqa: PLR2004 (hours of a day, minutes of an hour)
        raise ValueError(TIMESTAMP)
    try:
        local = datetime.fromisoformat(f"{day}T{time}+00:00")
    except ValueError:
        raise ValueError(TIMESTAMP) from None
    east = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    nanoseconds = int((fraction or "").ljust(9, "0"))
    return (local - _EPOCH - east) // timedelta(milliseconds=1) - (-nanoseconds // 1_000_000)

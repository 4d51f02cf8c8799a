from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_assets.config import FormatConfig
from kafka_assets.errors import BadRecordError, ConfigInvalidError
from kafka_assets.fetch import RAW_SCHEMA
from kafka_assets.formats import Column, get_format
from kafka_assets.formats.bad import decode, split
from kafka_assets.records import BAD_SCHEMA


def batch(values: list[bytes | None]) -> pa.RecordBatch:
    rows = [
        {"_kafka_topic": "orders", "_kafka_partition": 3, "_kafka_offset": 100 + index, "_kafka_value": value}
        for index, value in enumerate(values)
    ]
    return pa.RecordBatch.from_pylist(rows, RAW_SCHEMA)


def test_raw_keeps_the_bytes():
    """The raw format leaves values as they are, tombstones as NULL."""
    fmt = get_format(FormatConfig("raw", {}))
    records = batch([b"\xff\x00", b"", None])
    assert fmt.columns == (Column("_kafka_value", "BLOB"),)
    decoded = fmt.decode(records)
    assert (decoded.rows, decoded.bad) == (records, None)


def test_utf8_makes_text():
    """The utf8 format has a text column in place of the value; empty and NULL stay apart."""
    fmt = get_format(FormatConfig("utf8", {}))
    texts = ["plain", "\N{SNOWMAN}\N{GRINNING FACE}", "", None, "a\x00b"]
    decoded = fmt.decode(batch([None if text is None else text.encode() for text in texts])).rows
    assert decoded.schema.names == [*RAW_SCHEMA.names[:-1], "value"]
    assert fmt.columns == (Column("value", "VARCHAR"),)
    assert decoded["value"].to_pylist() == texts
    table = pa.Table.from_batches([decoded])
    assert duckdb.connect().from_arrow(table).project("value").fetchall() == [(text,) for text in texts]


@pytest.mark.parametrize(
    ("bad", "where", "shown"),
    [
        (b"abc\xff\xfe", "byte 3", "ff fe"),
        (b"\xed\xa0\x80", "byte 0", "ed a0 80"),
        (b"\xc0\x80", "byte 0", "c0 80"),
        (b"secret text \xe2\x98", "byte 12", "e2 98"),
        (b"\x80" + b"x" * 1000, "byte 0", "80 78 78 78 78 78 78 78."),
    ],
)
def test_utf8_names_the_record_that_is_no_text(bad, where, shown):
    """A value that is not UTF-8 is a bad record; its error tells the first bad bytes, not the value."""
    fmt = get_format(FormatConfig("utf8", {}))
    records = batch([b"fine", None, bad, b"\xff"])
    decoded = fmt.decode(records)
    assert decoded.rows["value"].to_pylist() == ["fine", None]
    assert decoded.bad.schema == BAD_SCHEMA
    assert decoded.bad.select(RAW_SCHEMA.names) == records.slice(2)
    assert decoded.bad["stage"].to_pylist() == ["decode"] * 2
    error = decoded.bad["error"][0].as_py()
    assert where in error
    assert shown in f"{error}."
    assert "secret" not in error
    with pytest.raises(BadRecordError) as refused:
        decode(fmt, records, "fail")
    assert str(refused.value).startswith(f"orders[3]@102: {error}. Nothing of its batch is loaded")
    assert len(str(refused.value)) < 500


def test_what_was_bad_before_it_was_decoded_is_not_decoded():
    """Records that the fetch has marked are bad as they are, beside those that do not decode."""
    records = batch([b"a", b"b", b"\xff"])
    fetched = pa.RecordBatch.from_arrays(
        [*records.columns, pa.array([None, "fetch", None]), pa.array([None, "why", None])], schema=BAD_SCHEMA
    )
    decoded = decode(get_format(FormatConfig("utf8", {})), fetched, "quarantine")
    assert decoded.rows["value"].to_pylist() == ["a"]
    assert decoded.bad["_kafka_value"].to_pylist() == [b"b", b"\xff"]
    assert decoded.bad["stage"].to_pylist() == ["fetch", "decode"]


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=6), st.text(max_size=6).map(str.encode)), max_size=40)
)
def test_every_record_is_either_a_row_or_bad(values):
    """What is UTF-8 is a row with that text, what is not is bad with those bytes: each once, in order."""
    decoded = get_format(FormatConfig("utf8", {})).decode(batch(values))
    rows = {100 + at: value for at, value in enumerate(values) if is_text(value)}
    bad = {100 + at: value for at, value in enumerate(values) if not is_text(value)}
    told = zip(decoded.rows["_kafka_offset"].to_pylist(), decoded.rows["value"].to_pylist(), strict=True)
    assert list(told) == [(at, None if value is None else value.decode()) for at, value in rows.items()]
    assert (decoded.bad is None) == (not bad)
    if decoded.bad is not None:
        columns = (decoded.bad[name].to_pylist() for name in ("_kafka_offset", "_kafka_value"))
        assert list(zip(*columns, strict=True)) == list(bad.items())


def is_text(value):
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.booleans(), max_size=30))
def test_a_split_keeps_every_record_in_order(is_bad):
    """Whatever a format calls bad is parted from the rest, with its error beside it; a slice of a batch too."""
    whole = batch([b"%d" % at for at in range(len(is_bad) + 2)])
    records = whole.slice(1, len(is_bad))
    good, bad = split(records, {at: f"why {at}" for at, one in enumerate(is_bad) if one}, "read")
    assert good == records.filter(pa.array([not one for one in is_bad], pa.bool_()))
    assert bad.select(RAW_SCHEMA.names) == records.filter(pa.array(is_bad, pa.bool_()))
    assert bad["error"].to_pylist() == [f"why {at}" for at, one in enumerate(is_bad) if one]
    assert set(bad["stage"].to_pylist()) <= {"read"}


def test_fingerprints_tell_formats_apart():
    """Each format has a fingerprint of its own."""
    kinds = ("raw", "utf8")
    assert len({get_format(FormatConfig(kind, {})).fingerprint for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FormatConfig("xml", {}), "'xml' is not supported"),
        (FormatConfig("raw", {"x": 1}), "no options, got 'x'"),
    ],
)
def test_what_is_not_supported_is_refused(config, message):
    """An unknown format, or an option that a format does not have, is refused by name."""
    with pytest.raises(ConfigInvalidError, match=message):
        get_format(config)

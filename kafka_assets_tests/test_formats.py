from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from kafka_assets.config import FormatConfig
from kafka_assets.errors import BadRecordError, ConfigInvalidError
from kafka_assets.fetch import RAW_SCHEMA
from kafka_assets.formats import Column, get_format


def batch(values: list[bytes | None]) -> pa.RecordBatch:
    rows = [
        {"_kafka_topic": "orders", "_kafka_partition": 3, "_kafka_offset": 100 + index, "_kafka_value": value}
        for index, value in enumerate(values)
    ]
    return pa.RecordBatch.from_pylist(rows, RAW_SCHEMA)


def test_raw_keeps_the_bytes():
    """The raw format leaves values as they are, tombstones as NULL."""
    fmt = get_format(FormatConfig("raw", {}))
    given = batch([b"\xff\x00", b"", None])
    assert fmt.columns == (Column("_kafka_value", "BLOB"),)
    assert fmt.decode(given) == given


def test_utf8_makes_text():
    """The utf8 format has a text column in place of the value; empty and NULL stay apart."""
    fmt = get_format(FormatConfig("utf8", {}))
    texts = ["plain", "\N{SNOWMAN}\N{GRINNING FACE}", "", None, "a\x00b"]
    decoded = fmt.decode(batch([None if text is None else text.encode() for text in texts]))
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
    """A value that is not UTF-8 is an error naming the record and the first bad bytes, not the value."""
    fmt = get_format(FormatConfig("utf8", {}))
    with pytest.raises(BadRecordError, match=r"orders\[3\]@102: ") as caught:
        fmt.decode(batch([b"fine", None, bad, b"\xff"]))
    assert where in str(caught.value)
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


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

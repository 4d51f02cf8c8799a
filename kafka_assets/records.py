"""Kafka messages into Arrow columns: the one place that touches each message."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from kafka_assets.errors import BadRecordError
from kafka_assets.offsets import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]

HEADERS_TYPE = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
TIMESTAMP_TYPE = pa.timestamp("us", tz="UTC")

RAW_SCHEMA = pa.schema(
    [
        ("_kafka_topic", pa.string()),
        ("_kafka_partition", pa.int32()),
        ("_kafka_offset", pa.int64()),
        ("_kafka_timestamp", TIMESTAMP_TYPE),
        ("_kafka_timestamp_type", pa.string()),
        ("_kafka_key", pa.binary()),
        ("_kafka_headers", HEADERS_TYPE),
        ("_kafka_value", pa.binary()),
    ]
)
"""A record as Kafka has it, before any format has looked at its value."""

BAD_SCHEMA = pa.schema([*RAW_SCHEMA, ("stage", pa.string()), ("error", pa.string())])
"""A bad record: as Kafka has it, at which stage it failed and why."""

ROW_GROUP_ROWS = 122_880
"""DuckDB's row group: inserts from batches of exactly this many rows cost half as much as from others."""

LARGE_RECORD_BYTES = 2048
"""From here on a batch of 256 MiB fills no row group."""

HUGE_RECORD_BYTES = 128 * 1024
"""From here on 2,048 records, which DuckDB has in memory at once, are more than a batch should be."""

BATCH_BYTES = 32 * 1024**2
"""A batch is cut when its keys, values and headers reach this, however few rows it then has."""

NO_TIMESTAMP = -1
"""The timestamp of a message that has none."""

NO_TYPE = 0
"""The timestamp type of such a message."""

_CREATE = 1
# What DuckDB's TIMESTAMPTZ holds, in whole milliseconds; its ends are infinity.
_MIN_TIMESTAMP_MS = -9_223_372_022_400_000
_MAX_TIMESTAMP_MS = 9_223_372_036_854_775


_FETCHING = "fetch"
_WAY_ON = (
    "Nothing of its batch is loaded, and later batches go on. `on_bad_record: quarantine` sets such records aside and"
    " loads the others: `kafka-assets ingest` then runs the batch again, and so does the sensor once its code location"
    " is reloaded."
)


def bad_record(where: str, error: str) -> BadRecordError:
    """Return the error for what a bad record stops, with the way on."""
    return BadRecordError(f"{where}: {error}. {_WAY_ON}")


class RecordBuffer:
    """Gathers messages, column by column, into one record batch of RAW_SCHEMA.

    A batch with records whose metadata no column can hold is of BAD_SCHEMA, `error` NULL for the others.

    Args:
        topics: Names of the topics; messages are appended with indexes into them.
        set_aside: Mark such records, rather than refuse them.
    """

    def __init__(self, topics: Sequence[str], *, set_aside: bool = False) -> None:
        self._set_aside = set_aside
        self._topics = pa.array(topics, pa.string())
        self._one_topic = pa.repeat(topics[0], ROW_GROUP_ROWS) if len(topics) == 1 else None
        self._no_headers = pa.nulls(ROW_GROUP_ROWS, HEADERS_TYPE)
        self._created = pa.repeat("create", ROW_GROUP_ROWS)
        self._type_names = pa.array(["create", "append"])
        self._names = tuple(topics)
        self._reset()

    def _reset(self) -> None:
        self.rows = 0
        self.bytes = 0
        self._numbers: list[tuple[Int64s, Int64s, Int64s]] = []
        self._stamps: list[Int64s] = []
        self._keys: list[pa.Array] = []
        self._values: list[pa.Array] = []
        self._headers: list[pa.Array] = []
        self._any_headers = False
        self._errors: dict[int, str] = {}

    @property
    def full(self) -> bool:
        """Whether the rows are to be taken before more are appended."""
        return self.rows >= ROW_GROUP_ROWS or self.bytes >= BATCH_BYTES

    def append(
        self,
        messages: list[Message],
        stamps: Int64s,
        topics: Int64s,
        partitions: Int64s,
        offsets: Int64s,
    ) -> tuple[Int64s, Int64s]:
        """Append messages without errors, not more than ROW_GROUP_ROWS less `rows`.

        Args:
            messages: The messages.
            stamps: Their timestamps, as `timestamps` gives them; what DuckDB cannot hold is blanked.
            topics: Index of each one's topic.
            partitions: Each one's partition.
            offsets: Each one's offset.

        Returns:
            Of each message the bytes of key, value and header values, and the timestamp in milliseconds,
            NO_TIMESTAMP where it has none.

        Raises:
            BadRecordError: A timestamp that DuckDB cannot hold, a header key that is not UTF-8; not if set aside.
        """
        count = len(messages)
        types, times = stamps[:, 0], stamps[:, 1]
        outside = (times < _MIN_TIMESTAMP_MS) | (times > _MAX_TIMESTAMP_MS)
        if outside.any():
            for row in np.flatnonzero(outside).tolist():
                what = f"its timestamp of {times[row]} ms lies outside of what a TIMESTAMPTZ holds"
                self._note(row, topics, partitions, offsets, what)
            times[outside] = NO_TIMESTAMP
        unstamped = types < _CREATE
        if unstamped.any():
            times[unstamped] = NO_TIMESTAMP
        keys, key_sizes = binary_array(list(map(Message.key, messages)))
        values, sizes = binary_array(list(map(Message.value, messages)))
        sizes = sizes + key_sizes

        headers: list[Any] = []
        left = map(Message.headers, messages)
        while len(headers) < count:
            try:
                headers.extend(left)
            except (SystemError, UnicodeDecodeError):
                what = "the key of one of its headers is not UTF-8, which the Kafka client cannot hand on"
                self._note(len(headers), topics, partitions, offsets, what)
                headers.append(None)
        if any(headers):
            column, header_sizes = _headers_array(headers)
            sizes = sizes + header_sizes
            self._any_headers = True
        else:
            column = self._no_headers.slice(0, count)
        self._headers.append(column)
        self._numbers.append((topics, partitions, offsets))
        self._stamps.append(stamps)
        self._keys.append(keys)
        self._values.append(values)
        self.rows += count
        self.bytes += int(sizes.sum())
        return sizes, times

    def take(self) -> pa.RecordBatch:
        """Return what was gathered, as one batch, and begin anew."""
        rows = self.rows
        topics, partitions, offsets = (np.concatenate(column) for column in zip(*self._numbers, strict=True))
        stamps = np.concatenate(self._stamps)
        types, times = stamps[:, 0], stamps[:, 1]
        unknown = times == NO_TIMESTAMP
        mask = unknown if unknown.any() else None
        if mask is None and (types == _CREATE).all():
            type_column = self._created.slice(0, rows)
        else:
            type_column = pc.take(self._type_names, pa.array(types - _CREATE, mask=mask))
        batch = pa.RecordBatch.from_arrays(
            [
                self._topics.take(pa.array(topics))
                if self._one_topic is None
                else self._one_topic.slice(0, rows),
                pa.array(partitions.astype(np.int32)),
                pa.array(offsets),
                pa.array(times * 1000, mask=mask).view(TIMESTAMP_TYPE),
                type_column,
                pa.concat_arrays(self._keys),
                pa.concat_arrays(self._headers)
                if self._any_headers
                else pa.nulls(rows, HEADERS_TYPE),  # a slice would be written whole
                pa.concat_arrays(self._values),
            ],
            schema=RAW_SCHEMA,
        )
        if self._errors:
            errors = pa.array([self._errors.get(row) for row in range(rows)], pa.string())
            stages = pc.if_else(pc.is_valid(errors), _FETCHING, None)
            batch = pa.RecordBatch.from_arrays([*batch.columns, stages, errors], schema=BAD_SCHEMA)
        self._reset()
        return batch

    def _note(self, row: int, topics: Int64s, partitions: Int64s, offsets: Int64s, error: str) -> None:
        if not self._set_aside:
            where = place(self._names[topics[row]], int(partitions[row]), int(offsets[row]))
            raise bad_record(where, error) from None
        self._errors[self.rows + row] = error


def mean_bytes(*tables: pa.Table | pa.RecordBatch) -> float:
    """Return the mean size of the rows of some tables, in bytes; 0 where there are none."""
    return float(sum(one.nbytes for one in tables) / max(1, sum(one.num_rows for one in tables)))


def place(topic: str, partition: int, offset: int) -> str:
    """Name a record for people: `orders[3]@1200`."""
    return f"{TopicPartition(topic, partition)}@{offset}"


def timestamps(messages: list[Message]) -> Int64s:
    """Return type and milliseconds of each message's timestamp, in two columns; an error's are NO_TYPE and -1.

    Source: librdkafka, `rd_kafka_message_timestamp`.
    """
    count = len(messages)
    stamps = np.fromiter(chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * count)
    return stamps.reshape(count, 2)


def binary_array(values: list[bytes | None]) -> tuple[pa.Array, Int64s]:
    """Return byte strings as a binary array, and their lengths; None is NULL, of length 0."""
    array = pa.array(values, pa.binary())
    if isinstance(array, pa.ChunkedArray):
        raise OverflowError(f"{array.nbytes} bytes do not fit into one binary array")
    ends = np.frombuffer(array.buffers()[1], np.int32, len(values) + 1) if values else np.zeros(1, np.int32)
    return array, np.diff(ends).astype(np.int64)


def _headers_array(headers: list[list[tuple[str, bytes | None]] | None]) -> tuple[pa.Array, Int64s]:
    """Return the headers column, NULL where there are none, and the bytes of each record's header values."""
    count = len(headers)
    ends = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter((len(one) if one else 0 for one in headers), np.int64, count), out=ends[1:])
    keys, values = zip(*chain.from_iterable(one for one in headers if one), strict=True)
    value_array, value_sizes = binary_array(list(values))
    pairs = pa.StructArray.from_arrays(
        [pa.array(keys, pa.string()), value_array], fields=list(HEADERS_TYPE.value_type)
    )
    empty = pa.array(ends[1:] == ends[:-1])
    column = pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pairs, type=HEADERS_TYPE, mask=empty)
    totals = np.zeros(len(value_sizes) + 1, np.int64)
    np.cumsum(value_sizes, out=totals[1:])
    return column, totals[ends[1:]] - totals[ends[:-1]]

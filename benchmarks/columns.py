"""Kafka messages as an Arrow batch, the quick way; no headers, no null keys or values."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaException, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("topic", "partition", "offset", "timestamp", "key", "value")
CREATE_TABLE = (
    'CREATE TABLE IF NOT EXISTS records (topic VARCHAR, "partition" INTEGER, "offset" BIGINT,'
    ' "timestamp" BIGINT, key BLOB, value BLOB)'
)


def to_batch(messages: Sequence[Message]) -> pa.RecordBatch:
    """Return messages of one topic as a batch of COLUMNS.

    Raises:
        KafkaException: One of them is an error.
    """
    count = len(messages)
    failed = next((error for error in map(Message.error, messages) if error), None)
    if failed:
        raise KafkaException(failed)
    stamps = np.fromiter(chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * count)
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(messages[0].topic(), count),
            pa.array(np.fromiter(map(Message.partition, messages), np.int32, count)),
            pa.array(np.fromiter(map(Message.offset, messages), np.int64, count)),
            pa.array(stamps[1::2].copy()),
            _binary(list(map(Message.key, messages))),
            _binary(list(map(Message.value, messages))),
        ],
        names=COLUMNS,
    )


def _binary(values: list[Any]) -> pa.Array:
    ends = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)

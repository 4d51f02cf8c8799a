"""The size of a stream's records before the first of them is committed: from a few that are read for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kafka_assets.errors import KafkaAssetsError
from kafka_assets.fetch import RangeReader
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.records import mean_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

logger = logging.getLogger(__name__)

RECORDS = 256
PARTITIONS = 8
_TIMEOUT = 5.0
_FEW = {"fetch.message.max.bytes": "65536"}
"""A broker gives the first message set whatever its size; the client would ask for more and unpack it."""
_SIZED = ("_kafka_key", "_kafka_headers", "_kafka_value")


def bytes_per_record(kafka: Mapping[str, str], logs: Iterable[OffsetRange]) -> float | None:
    """Return the mean size of the first records of some logs, in bytes; at most 32 MiB are read.

    A batch of records of unknown size would be planned too large to commit, or needlessly small.

    Args:
        kafka: Resolved librdkafka properties.
        logs: What is to be read of each topic-partition; the longest count.

    Returns:
        None where there are no records to tell by, or Kafka did not give them; the fetch will say why.
    """
    longest = sorted(logs, key=lambda one: -one.size)[:PARTITIONS]
    some = [
        PlannedRange(
            OffsetRange(
                one.topic,
                one.partition,
                one.from_offset,
                min(one.until_offset, one.from_offset + RECORDS // PARTITIONS),
            )
        )
        for one in longest
        if one.size
    ]
    try:
        with RangeReader({**kafka, **_FEW}, some, stall_timeout=_TIMEOUT, on_data_loss="skip") as reader:
            first: pa.RecordBatch | None = next(reader, None)
    except KafkaAssetsError as error:
        logger.info("the size of records is not known yet: %s", error)
        return None
    if first is None:
        return None
    return mean_bytes(first.select(_SIZED))

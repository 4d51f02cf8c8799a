"""What a batch shows in the Dagster UI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets.formats import get_format
from kafka_assets.ledger import METADATA_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka_assets.config import StreamConfig, TableName
    from kafka_assets.ledger import BatchRow

DESCRIPTIONS = {
    "_kafka_topic": "Topic the record came from.",
    "_kafka_partition": "Partition of the topic.",
    "_kafka_offset": "Offset; with batch, topic and partition the identity of a row.",
    "_kafka_timestamp": "The record's timestamp; NULL where it has none.",
    "_kafka_timestamp_type": "create (the producer's clock) or append (the broker's).",
    "_kafka_key": "The record's key.",
    "_kafka_headers": "Headers in order; NULL where there are none.",
    "_kafka_batch": "The batch that owns the row: a partition of this asset.",
    "_ingested_at": "When the row was written.",
}


def asset_metadata(stream: StreamConfig, warehouse_uri: str) -> dict[str, dg.TableSchema | str]:
    """Return what is known of a stream's table before any batch ran."""
    own = [dg.TableColumn(column.name, column.type) for column in get_format(stream.format).columns]
    columns = [
        dg.TableColumn(name, kind, description=DESCRIPTIONS[name]) for name, kind in METADATA_COLUMNS.items()
    ]
    return {
        "dagster/table_name": str(stream.table),
        "dagster/uri": warehouse_uri,
        "dagster/column_schema": dg.TableSchema(columns=[*columns, *own]),
    }


def batch_metadata(
    batch: BatchRow,
    table: TableName,
    *,
    outcome: str,
    seconds: float | None = None,
    rate: int | None = None,
) -> Mapping[str, dg.MetadataValue]:
    """Return the metadata of a batch's materialization.

    Args:
        batch: A committed batch.
        table: The table its rows are in.
        outcome: How it came to be committed, in words.
        seconds: What it took from its plan being read to its commit; None when only reported.
        rate: What backpressure allows from now on, in offsets a second; None for no limit by it.
    """
    size = sum(outcome.bytes for outcome in batch.outcomes)
    quarantined = sum(outcome.quarantined for outcome in batch.outcomes)
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/partition_row_count": dg.MetadataValue.int(batch.rows),
        "rows": dg.MetadataValue.int(batch.rows),
        "records": dg.MetadataValue.int(batch.records),
        "quarantined": dg.MetadataValue.int(quarantined),
        "bytes": dg.MetadataValue.int(size),
        "outcome": dg.MetadataValue.text(outcome),
        "ranges": _ranges(batch),
        "next": dg.MetadataValue.md(_next(batch, table, quarantined)),
    }
    if seconds:
        metadata["seconds"] = dg.MetadataValue.float(round(seconds, 3))
        metadata["rows_per_second"] = dg.MetadataValue.float(round(batch.rows / seconds, 1))
    if rate:
        metadata["backpressure_records_per_second"] = dg.MetadataValue.int(rate)
    return metadata


def _ranges(batch: BatchRow) -> dg.TableMetadataValue:
    integers = ("partition", "from", "until", "loaded", "quarantined", "undeliverable", "lost")
    schema = dg.TableSchema(
        columns=[dg.TableColumn("topic", "string"), *(dg.TableColumn(name, "int") for name in integers)]
    )
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "topic": planned.range.topic,
                    "partition": planned.range.partition,
                    "from": planned.range.from_offset,
                    "until": planned.range.until_offset,
                    "loaded": outcome.loaded,
                    "quarantined": outcome.quarantined,
                    "undeliverable": outcome.undeliverable,
                    "lost": outcome.lost,
                }
            )
            for planned, outcome in zip(batch.ranges, batch.outcomes, strict=True)
        ],
        schema=schema,
    )


def _next(batch: BatchRow, table: TableName, quarantined: int) -> str:
    bad = (
        f"\n* {quarantined} records did not decode and are in quarantine: `kafka-assets quarantine show"
        f" {batch.stream}` shows them, `kafka-assets quarantine retry {batch.stream}` decodes them again."
        if quarantined
        else ""
    )
    query = f"SELECT * FROM {table.quoted} WHERE _kafka_batch = '{batch.batch}'"  # noqa: S608  to be read
    return (
        "These rows are in the table, their offsets in the ledger, both by one transaction.\n\n"
        f"* To fetch and **replace** exactly them: *Materialize* partition `{batch.batch}` again.\n"
        "* To check them: *Execute* the check `coverage`, or run"
        f" `kafka-assets verify {batch.stream}`.\n"
        f"* To read them: `{query}`.{bad}"
    )

"""`verify --deep`: fetch what Kafka still has of the committed ranges again, and compare it with the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kafka_assets import ledger_sql as sql
from kafka_assets.config.values import TableName
from kafka_assets.coverage import PROBLEMS_NAMED
from kafka_assets.fetch import RangeReader
from kafka_assets.formats import get_format
from kafka_assets.formats.bad import decode
from kafka_assets.ledger import (
    METADATA_COLUMNS,
    count_quarantined,
    has_ledger,
    read_stream,
)
from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition
from kafka_assets.records import BAD_SCHEMA, RAW_SCHEMA, place
from kafka_assets.removals import of_metadata, removed_condition
from kafka_assets.statements import quote, quote_table, registered
from kafka_assets.warehouse import literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import duckdb

    from kafka_assets.config import StreamConfig
    from kafka_assets.formats import Format
    from kafka_assets.log import KafkaLog
    from kafka_assets.orchestration.ingest import Progress
    from kafka_assets.warehouse import Warehouse

_FETCHED = "_kafka_assets_fetched"
_BAD = "_kafka_assets_bad"
_RANGES = "_kafka_assets_ranges"
_SPANS = "_kafka_assets_spans"
_IDENTITY = ("_kafka_topic", "_kafka_partition", "_kafka_offset")
_OF_THE_COMMIT = ("_kafka_batch", "_ingested_at")


@dataclass(frozen=True, slots=True)
class DeepVerification:
    """What the comparison with Kafka came to.

    Attributes:
        problems: A sentence for each record that the table has not, or has otherwise; the first 100.
        records: Records fetched and compared.
        offsets: Committed offsets of the current incarnations that Kafka still reaches.
        gone: Committed offsets that it no longer reaches, of earlier incarnations too.
    """

    problems: tuple[str, ...]
    records: int
    offsets: int
    gone: int


def verify_deep(
    stream: StreamConfig, warehouse: Warehouse, log: KafkaLog, *, progress: Progress
) -> DeepVerification:
    """Compare every record that Kafka still has of a stream's committed ranges with its row.

    A bad record is compared with the quarantine. What retention or compaction has removed since is no problem, and
    neither is what was removed on purpose. Memory is bounded by one batch of records; the warehouse is held only while
    one is compared.

    Raises:
        KafkaAssetsError: As the fetch does, or the warehouse.
    """
    with warehouse.reading() as con:
        committed, of_earlier = _committed(con, stream.name)
    reachable = _reachable(committed, log)
    offsets = sum(one.range.size for one in reachable)
    gone = of_earlier + sum(one.range.size for one in committed) - offsets
    progress.total(offsets)
    fmt = get_format(stream.format)
    reader = RangeReader(
        stream.kafka.resolve(),
        reachable,
        stall_timeout=stream.stall_timeout,
        # Retention may go on while this reads.
        on_data_loss="skip",
        on_bad_record="quarantine",
    )
    problems: list[str] = []
    records = 0
    reached: dict[TopicPartition, int] = {}
    with reader:
        for raw in reader:
            records += raw.num_rows
            spans = _spans(raw)
            if len(problems) < PROBLEMS_NAMED:
                with warehouse.reading() as con:
                    if con is not None:
                        problems += _compare(con, stream.name, fmt, raw, spans, reachable)
            progress.advance(_advanced(reached, spans))
    return DeepVerification(tuple(problems[:PROBLEMS_NAMED]), records, offsets, gone)


def _committed(con: duckdb.DuckDBPyConnection | None, stream: str) -> tuple[list[PlannedRange], int]:
    """Return the committed ranges of the current incarnations, neighbours made one, and the offsets of earlier ones."""
    reaching: list[PlannedRange] = []
    of_earlier = 0
    if con is None or not has_ledger(con):
        return reaching, of_earlier
    positions = read_stream(con, stream).positions
    for topic, partition, low, high, incarnation, topic_id, epoch in con.execute(
        sql.COMMITTED_RANGES, {"stream": stream}
    ).fetchall():
        one = PlannedRange(OffsetRange(topic, partition, low, high), incarnation, topic_id, epoch)
        if incarnation == positions[one.range.topic_partition].incarnation:
            reaching.append(one)
        else:
            of_earlier += one.range.size
    return reaching, of_earlier


def _reachable(committed: Sequence[PlannedRange], log: KafkaLog) -> list[PlannedRange]:
    """Return what Kafka still reaches of the ranges: of the same topic, between its log start and its end."""
    topics = log.describe({one.range.topic for one in committed}) if committed else {}
    there = [
        one
        for one in committed
        if (topic := topics.get(one.range.topic)) is not None
        and one.range.partition in topic.partitions
        and (one.topic_id is None or topic.topic_id in (None, one.topic_id))
    ]
    bounds = log.bounds({one.range.topic_partition for one in there}) if there else {}
    reachable = []
    for one in there:
        bound = bounds.get(one.range.topic_partition)
        if bound is None:
            continue
        log_reach = replace(
            one.range, from_offset=bound.log_start, until_offset=max(bound.log_start, bound.end)
        )
        common = one.range.intersect(log_reach)
        if common is not None:
            # The epoch was that of the first offset; of another one it says nothing.
            epoch = one.leader_epoch if common.from_offset == one.range.from_offset else None
            reachable.append(replace(one, range=common, leader_epoch=epoch))
    return reachable


def _spans(raw: pa.RecordBatch) -> list[OffsetRange]:
    """Return from which to which offset a batch has records of each topic-partition."""
    found = (
        pa.Table.from_batches([raw])
        .group_by(["_kafka_topic", "_kafka_partition"])
        .aggregate([("_kafka_offset", "min"), ("_kafka_offset", "max")])
        .to_pylist()
    )
    return [
        OffsetRange(
            one["_kafka_topic"],
            one["_kafka_partition"],
            one["_kafka_offset_min"],
            one["_kafka_offset_max"] + 1,
        )
        for one in found
    ]


def _advanced(reached: dict[TopicPartition, int], spans: Iterable[OffsetRange]) -> int:
    """Return by how many offsets these spans go beyond what was reached, and note it."""
    advanced = 0
    for span in spans:
        start = reached.get(span.topic_partition, span.from_offset)
        advanced += max(0, span.until_offset - start)
        reached[span.topic_partition] = span.until_offset
    return advanced


def _compare(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    fmt: Format,
    raw: pa.RecordBatch,
    spans: Sequence[OffsetRange],
    reachable: Sequence[PlannedRange],
) -> list[str]:
    found = con.execute(sql.READ_STREAM, {"stream": stream}).fetchall()
    if not found:
        return []
    incarnations = {one.range.topic_partition: one.incarnation for one in reachable}
    looked_at = pa.Table.from_pylist(
        [
            {
                "topic": span.topic,
                "partition": span.partition,
                "incarnation": incarnations[span.topic_partition],
                "from_offset": span.from_offset,
                "until_offset": span.until_offset,
            }
            for span in spans
        ]
    )
    with registered(con, _SPANS, looked_at):
        ranges = con.execute(sql.COMMITTED_IN_SPANS.format(spans=_SPANS), {"stream": stream}).fetchall()
    own = [column.name for column in fmt.columns]
    names = [name for name in METADATA_COLUMNS if name not in (*_IDENTITY, *_OF_THE_COMMIT)] + own
    low, high = min(span.from_offset for span in spans), max(span.until_offset for span in spans)
    statement = sql.DEEP_FLAWS.format(
        table=quote_table(TableName(schema=found[0][1], name=found[0][2])),
        fetched=_FETCHED,
        ranges=_RANGES,
        # Literals: the scan skips row groups by them.
        batches=", ".join(sorted({literal(row[0]) for row in ranges})) or "NULL",
        low=low,
        high=high,
        columns=", ".join(map(quote, (*_IDENTITY, *names))),
        differing=_differing(names),
        removed=_removed(con, stream),
    )
    decoded = decode(fmt, raw, "quarantine")
    named = {"stream": stream, "limit": PROBLEMS_NAMED}
    with registered(con, _RANGES, _table_of(ranges)):
        with registered(con, _FETCHED, pa.Table.from_batches([decoded.rows])):
            flaws = con.execute(statement, named).fetchall()
        problems = [_problem("table", *flaw) for flaw in flaws]
        if decoded.bad is None and not count_quarantined(con, stream):
            return problems
        bad = BAD_SCHEMA.empty_table() if decoded.bad is None else pa.Table.from_batches([decoded.bad])
        fetched = pa.Table.from_batches([raw.select(RAW_SCHEMA.names)])
        with registered(con, _FETCHED, fetched), registered(con, _BAD, bad):
            flaws = con.execute(_bad_statement(con, stream), named).fetchall()
    return problems + [_problem("quarantine", *flaw) for flaw in flaws]


def _bad_statement(con: duckdb.DuckDBPyConnection, stream: str) -> str:
    names = [name for name in RAW_SCHEMA.names if name not in _IDENTITY]
    return sql.DEEP_BAD_FLAWS.format(
        fetched=_FETCHED,
        bad=_BAD,
        ranges=_RANGES,
        differing=_differing(names),
        removed=_removed(con, stream, of_bad=True),
    )


def _differing(names: Sequence[str]) -> str:
    return ", ".join(
        f"CASE WHEN fetched.{quote(name)} IS DISTINCT FROM held.{quote(name)} THEN {literal(name)} END"
        for name in names
    )


def _removed(con: duckdb.DuckDBPyConnection, stream: str, *, of_bad: bool = False) -> str:
    """Return SQL that is true for the rows, or bad records, a removal takes away, of the batches it holds for."""
    rows = con.execute(sql.ALL_REMOVALS, {"stream": stream}).fetchall()
    conditions = []
    for until, group in groupby(rows, key=lambda row: row[0]):
        predicates = [predicate for _, predicate in group]
        held = of_metadata(con, predicates) if of_bad else predicates
        conditions.append(f"(_kafka_batch <= {literal(until)} AND {removed_condition(held)})")
    return " OR ".join(conditions) or "false"


def _table_of(ranges: Sequence[tuple[Any, ...]]) -> pa.Table:
    schema = pa.schema(
        {
            "_kafka_batch": pa.string(),
            "_kafka_topic": pa.string(),
            "_kafka_partition": pa.int32(),
            "from_offset": pa.int64(),
            "until_offset": pa.int64(),
        }
    )
    columns = list(zip(*ranges, strict=True)) if ranges else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _problem(
    held_in: str, topic: str, partition: int, offset: int, batch: str, differing: list[str] | None
) -> str:
    where = f"{place(topic, partition, offset)} of batch {batch}"
    if differing is None:
        return f"{where}: Kafka has this record, and the {held_in} has no row of it."
    return f"{where}: {', '.join(differing)} in the {held_in} is not what Kafka has."

"""The commit of a batch: rows, the outcome of each range and the change of state, all or nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from kafka_assets import ledger_sql as sql
from kafka_assets.errors import BatchUnknownError, KafkaAssetsError, RangeUnavailableError, RunFailedError
from kafka_assets.ledger import LOSS_ROWS, METADATA_COLUMNS, check_table, loss_row, read_batch
from kafka_assets.offsets import first_flaw, merge
from kafka_assets.planning import Loss
from kafka_assets.statements import changed, insert, quote, quote_table, registered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import duckdb

    from kafka_assets.config.values import TableName
    from kafka_assets.evidence import RangeEvidence
    from kafka_assets.formats import Column
    from kafka_assets.ledger import BatchRow
    from kafka_assets.offsets import PlannedRange, TopicPartition
    from kafka_assets.staging import StagedRange, StagedSlice

_OF_THE_COMMIT = ("_kafka_batch", "_ingested_at")
_STAGED = "_kafka_assets_staged"
_WRAP = 1 << 64

_OUTCOME_ROWS = pa.schema(
    {
        "topic": pa.string(),
        "partition": pa.int32(),
        **dict.fromkeys(
            ("loaded", "filtered", "quarantined", "undeliverable", "lost", "bytes", "gaps"), pa.int64()
        ),
        "end_proof": pa.string(),
        "min_timestamp_ms": pa.int64(),
        "max_timestamp_ms": pa.int64(),
        # Larger than 64 bits: text on the way into the database.
        "offset_sum": pa.string(),
        "digest": pa.string(),
        "digest_function": pa.string(),
    }
)


class GenerationMovedError(KafkaAssetsError):
    """Another run committed the batch since it was read. Nothing was written.

    Attributes:
        batch: The batch as it is now.
    """

    retryable = True

    def __init__(self, batch: BatchRow, expected: int) -> None:
        self.batch = batch
        super().__init__(
            f"batch {batch.batch} of stream {batch.stream} is at generation {batch.generation}, committed by"
            " run"
            f" {batch.run_id}; this run expected {expected}. Nothing was written."
        )


def commit_batch(  # noqa: PLR0913  the parts of one transaction, each by its name
    con: duckdb.DuckDBPyConnection,
    stream: str,
    batch: str,
    *,
    expected_generation: int,
    staged: Sequence[StagedSlice],
    data: Sequence[pa.Table],
    table: TableName,
    columns: Sequence[Column],
    run_id: str,
    fingerprint: str,
    now: datetime,
) -> BatchRow:
    """Write a batch's rows, the outcome of each of its ranges and its change of state.

    From generation 1 on it replaces the rows that are there, never deleting one that was not fetched again.

    Args:
        con: Given by `Warehouse.writing()`.
        stream: The stream.
        batch: The batch.
        expected_generation: Of the batch when its run read it.
        staged: What was fetched, in pieces that tile the batch's ranges.
        data: The rows of `staged`, in the same order.
        table: The stream's table.
        columns: The format's own columns.
        run_id: Of the run that commits.
        fingerprint: Of the format's settings.
        now: `_ingested_at` of the rows and the time of the commit.

    Raises:
        GenerationMovedError: Another run has committed the batch meanwhile.
        RangeUnavailableError: A replay lacks rows that are there.
        BatchUnknownError: The ledger has no such batch.
        WarehouseInvalidError: The table no longer fits.
        RunFailedError: What was staged does not add up to what was planned.
    """
    found = read_batch(con, stream, batch)
    if found is None:
        raise BatchUnknownError(f"stream {stream} has no batch {batch} in the ledger; nothing was written.")
    if found.generation != expected_generation:
        raise GenerationMovedError(found, expected_generation)
    check_table(con, table, columns)
    settled = _settle(found, staged)
    rows = sum(one.rows for one in staged)
    swapped = changed(
        con,
        sql.SWAP_GENERATION,
        stream=stream,
        batch=batch,
        expected=expected_generation,
        run_id=run_id,
        now=now,
        fingerprint=fingerprint,
        rows=rows,
    )
    if swapped != 1:
        raise GenerationMovedError(found, expected_generation)
    target = quote_table(table)
    names = [name for name in METADATA_COLUMNS if name not in _OF_THE_COMMIT]
    names += [column.name for column in columns]
    incoming = _incoming(found, data, names, settled)
    if incoming.num_rows != rows:
        raise RunFailedError(
            f"batch {batch} of {stream}: {incoming.num_rows} rows are staged where the fetch counted {rows}."
            " Nothing was written."
        )
    with registered(con, _STAGED, incoming):
        if expected_generation:
            _guard(con, stream, batch, target)
            con.execute(sql.DELETE_ROWS.format(table=target), {"batch": batch}).fetchall()
            changed(con, sql.DELETE_QUARANTINED, stream=stream, batch=batch)
        inserted = changed(
            con,
            sql.INSERT_ROWS.format(table=target, columns=", ".join(map(quote, names)), staged=_STAGED),
            batch=batch,
            now=now,
        )
    if inserted != rows:
        raise RunFailedError(f"batch {batch} of {stream}: {inserted} of {rows} rows were inserted; undone.")
    insert(
        con,
        sql.UPDATE_OUTCOMES,
        _OUTCOME_ROWS,
        [outcome for outcome, _ in settled],
        stream=stream,
        batch=batch,
    )
    _write_losses(con, stream, batch, [loss for _, losses in settled for loss in losses], now)
    committed = read_batch(con, stream, batch)
    assert committed is not None  # noqa: S101  read in the transaction that has just updated it
    return committed


def _settle(batch: BatchRow, staged: Sequence[StagedSlice]) -> list[tuple[dict[str, Any], list[Loss]]]:
    """Sum the evidence of each planned range over its staged pieces, and check that it is all of it."""
    pieces: dict[TopicPartition, list[StagedRange]] = defaultdict(list)
    for one in staged:
        for piece in one.ranges:
            pieces[piece.evidence.planned.range.topic_partition].append(piece)
    settled = [
        _settle_range(batch, planned, pieces.pop(planned.range.topic_partition, []))
        for planned in batch.ranges
    ]
    if pieces:
        raise RunFailedError(
            f"batch {batch.batch} of {batch.stream}: {', '.join(map(str, pieces))} was fetched but not"
            " planned."
        )
    return settled


def _settle_range(
    batch: BatchRow, planned: PlannedRange, pieces: Sequence[StagedRange]
) -> tuple[dict[str, Any], list[Loss]]:
    whole = planned.range
    where = f"batch {batch.batch} of {batch.stream}, {whole}"
    evidence: list[RangeEvidence] = sorted(
        (piece.evidence for piece in pieces), key=lambda one: one.planned.range.from_offset
    )
    flaw = first_flaw((one.planned.range for one in evidence), whole)
    if flaw is not None:
        raise RunFailedError(f"{where}: what was fetched does not tile it, {flaw}. Nothing was written.")
    if any(one.planned.incarnation != planned.incarnation for one in evidence):
        raise RunFailedError(f"{where}: another incarnation of the topic was fetched. Nothing was written.")
    lost = merge(stretch for one in evidence for stretch in one.lost)
    loaded = sum(one.records for one in evidence)
    undeliverable = sum(one.undeliverable for one in evidence)
    gone = sum(stretch.size for stretch in lost)
    if loaded + undeliverable + gone != whole.size or any(whole.intersect(one) != one for one in lost):
        raise RunFailedError(
            f"{where}: {loaded} records, {undeliverable} offsets seen to be undeliverable and {gone} lost do"
            " not add"
            f" up to its {whole.size} offsets. Nothing was written."
        )
    functions = {piece.digest_function for piece in pieces}
    digests = [piece.digest for piece in pieces]
    known = len(functions) == 1 and None not in digests
    outcome = {
        "topic": whole.topic,
        "partition": whole.partition,
        "loaded": loaded,
        "filtered": 0,
        "quarantined": 0,
        "undeliverable": undeliverable,
        "lost": gone,
        "bytes": sum(one.bytes for one in evidence),
        "gaps": sum(one.gaps for one in evidence),
        "end_proof": evidence[-1].end_proof,
        "min_timestamp_ms": min(_known(one.min_timestamp_ms for one in evidence), default=None),
        "max_timestamp_ms": max(_known(one.max_timestamp_ms for one in evidence), default=None),
        "offset_sum": str(sum(one.offset_sum for one in evidence)),
        "digest": str(sum(_known(digests))) if known else None,
        "digest_function": functions.pop() if known else None,
    }
    return outcome, [
        Loss(
            whole.topic_partition,
            planned.topic_id,
            planned.incarnation,
            stretch.from_offset,
            stretch.until_offset,
            "deleted by Kafka after the batch was planned and before it was fetched",
        )
        for stretch in lost
    ]


def _known(numbers: Iterable[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]


def _incoming(
    batch: BatchRow,
    data: Sequence[pa.Table],
    names: Sequence[str],
    settled: Sequence[tuple[Mapping[str, Any], Sequence[Loss]]],
) -> pa.Table:
    """Return the rows as one table, which DuckDB inserts twice as fast as many small ones."""
    filled = [part for part in data if part.num_rows]
    for part in filled:
        if set(part.column_names) != set(names):
            odd = ", ".join(sorted(set(part.column_names) ^ set(names)))
            raise RunFailedError(
                f"batch {batch.batch} of {batch.stream}: the staged columns differ from the table's in"
                f" {odd}. Nothing"
                " was written."
            )
    if not filled:
        return pa.table({name: pa.nulls(0) for name in names})
    whole = pa.concat_tables([part.select(list(names)) for part in filled])
    staged_sum = (pc.sum(whole["_kafka_offset"]).as_py() or 0) % _WRAP
    if staged_sum != sum(int(outcome["offset_sum"]) for outcome, _ in settled) % _WRAP:
        raise RunFailedError(
            f"batch {batch.batch} of {batch.stream}: the staged rows are not those that were fetched, their"
            " offsets"
            " sum up to another number. Nothing was written."
        )
    return whole


def _guard(con: duckdb.DuckDBPyConnection, stream: str, batch: str, target: str) -> None:
    named = {"stream": stream, "batch": batch}
    missing = con.execute(sql.ROWS_NOT_STAGED.format(table=target, staged=_STAGED), named).fetchall()
    if missing:
        listed = "; ".join(
            f"{topic}[{partition}]: {count} between offsets {low} and {high}"
            for topic, partition, count, low, high in missing
        )
        raise RangeUnavailableError(
            f"Kafka no longer gives back rows of batch {batch} of stream {stream} that are in the table"
            f" ({listed});"
            " retention or compaction took them since. Replacing the batch would lose them, so nothing was"
            " changed."
        )


def _write_losses(
    con: duckdb.DuckDBPyConnection, stream: str, batch: str, losses: Sequence[Loss], now: datetime
) -> None:
    """Replace the batch's losses; those that stay keep the time they were noticed at."""
    named = {"stream": stream, "batch": batch}
    noticed = {tuple(row[:4]): row[4] for row in con.execute(sql.TAKE_LOSSES, named).fetchall()}
    if noticed:
        changed(con, sql.DELETE_LOSSES, **named)
    rows = []
    for loss in losses:
        place = loss.topic_partition
        key = (place.topic, place.partition, loss.from_offset, loss.until_offset)
        rows.append(loss_row(loss, noticed.get(key, now), batch))
    insert(con, sql.INSERT_LOSSES, LOSS_ROWS, rows, stream=stream)

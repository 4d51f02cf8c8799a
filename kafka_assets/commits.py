"""The commit of a batch: rows, the outcome of each range and the change of state, all or nothing."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from kafka_assets import ledger_sql as sql
from kafka_assets.digest import BAD_COLUMNS, DIGEST_FUNCTION, digest_expression
from kafka_assets.errors import BatchUnknownError, KafkaAssetsError, RangeUnavailableError, RunFailedError
from kafka_assets.ledger import (
    LOSS_ROWS,
    METADATA_COLUMNS,
    ClassMove,
    check_table,
    ensure_schema,
    loss_row,
    move_classes,
    read_batch,
)
from kafka_assets.merging import merge_row_groups
from kafka_assets.offsets import OffsetRange, TopicPartition, first_flaw, merge
from kafka_assets.planning import Loss
from kafka_assets.records import ROW_GROUP_ROWS, mean_bytes
from kafka_assets.removals import of_metadata, removals_of, removed_condition
from kafka_assets.scope import WHOLE
from kafka_assets.staging import let_go_of_pages
from kafka_assets.statements import changed, insert, quote, quote_table, registered
from kafka_assets.warehouse import prepare_for_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import duckdb

    from kafka_assets.config.values import TableName
    from kafka_assets.evidence import RangeEvidence
    from kafka_assets.formats import Column
    from kafka_assets.ledger import BatchRow
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.scope import ReplayScope
    from kafka_assets.staged import StagedRange, StagedSlice

_OF_THE_COMMIT = ("_kafka_batch", "_ingested_at")
_STAGED = "_kafka_assets_staged"
_ONCE = "_kafka_assets_once"
_BAD = "_kafka_assets_bad"
_REPLACED = "_kafka_assets_replaced"
_WRAP = 1 << 64

_BAD_DIGEST = digest_expression(BAD_COLUMNS)
_BAD_NAMES = (
    *(name for name in METADATA_COLUMNS if name not in _OF_THE_COMMIT),
    *BAD_COLUMNS,
    "stage",
    "error",
)

_OUTCOME_ROWS = pa.schema(
    {
        "topic": pa.string(),
        "partition": pa.int32(),
        **dict.fromkeys(
            (
                "loaded",
                "filtered",
                "quarantined",
                "undeliverable",
                "lost",
                "removed",
                "bytes",
                "gaps",
                "kept",
            ),
            pa.int64(),
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
            f"batch {batch.batch} of stream {batch.stream} is at generation {batch.generation}, committed by run"
            f" {batch.run_id}; this run expected {expected}. Nothing was written."
        )


@dataclass(frozen=True, slots=True)
class _Held:
    """Rows of a range that are in the table or the quarantine and were not fetched again."""

    rows: int = 0
    quarantined: int = 0
    offset_sum: int = 0
    digest: int = 0


@dataclass(frozen=True, slots=True)
class _Removed:
    """Records of a range that were fetched and that a removal takes away, from the rows or the bad ones."""

    rows: int = 0
    quarantined: int = 0
    offset_sum: int = 0
    digest: int = 0


def commit_batch(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    batch: str,
    *,
    expected_generation: int,
    staged: Sequence[StagedSlice],
    data: list[pa.Table],
    table: TableName,
    columns: Sequence[Column],
    run_id: str,
    fingerprint: str,
    now: datetime,
    bad: list[pa.Table],
    scope: ReplayScope = WHOLE,
) -> BatchRow:
    """Write a batch's rows, its quarantine, the outcome of each of its ranges and its change of state.

    From generation 1 on it replaces the rows and bad records that are there, never deleting one that was not
    fetched again. What `expire` removed stays removed.

    Args:
        con: Given by `Warehouse.writing()`.
        stream: The stream.
        batch: The batch.
        expected_generation: Of the batch when its run read it.
        staged: What was fetched, in pieces that tile the ranges written.
        data: The rows of `staged`, in the same order; let go of here, as COMMIT needs memory of its own.
        table: The stream's table.
        columns: The format's own columns.
        run_id: Of the run that commits.
        fingerprint: Of the format's settings.
        now: `_ingested_at` of the rows and the time of the commit.
        bad: The bad records of `staged`, for the quarantine; let go of too.
        scope: What is replaced from generation 1 on.

    Raises:
        GenerationMovedError: Another run has committed the batch meanwhile.
        RangeUnavailableError: A replay lacks rows that are there, and is not to keep them.
        BatchUnknownError: The ledger has no such batch.
        UsageInvalidError: The scope names what is no range of the batch.
        WarehouseInvalidError: The table no longer fits.
        RunFailedError: What was staged does not add up to what was planned.
    """
    found = read_batch(con, stream, batch)
    if found is None:
        raise BatchUnknownError(f"stream {stream} has no batch {batch} in the ledger; nothing was written.")
    if found.generation != expected_generation:
        raise GenerationMovedError(found, expected_generation)
    ensure_schema(con)
    check_table(con, table, columns)
    ranges = scope.of(found.ranges) if expected_generation else found.ranges
    settled = _settle(found, ranges, staged)
    rows = sum(one.rows for one in staged)
    incoming = _together(found, data, _staged_names(columns))
    if incoming.num_rows != rows:
        raise RunFailedError(
            f"batch {batch} of {stream}: {incoming.num_rows} rows are staged where the fetch counted {rows}."
            " Nothing was written."
        )
    set_aside = _together(found, bad, _BAD_NAMES)
    merge_row_groups(con, stream, batch, quote_table(table))
    _check_sum(found, (incoming, set_aside), settled)
    places = [one.range.topic_partition for one in ranges]
    with ExitStack() as names_in_sql:
        names_in_sql.enter_context(registered(con, _STAGED, incoming))
        names_in_sql.enter_context(registered(con, _REPLACED, _places(places)))
        any_bad = bool(set_aside.num_rows)
        if any_bad:
            names_in_sql.enter_context(registered(con, _BAD, set_aside))
        writing = _Writing(con, stream, batch, quote_table(table), incoming, columns, any_bad)
        predicates = removals_of(con, stream, batch) if rows or any_bad else ()
        removed = writing.removed(predicates)
        if expected_generation:
            held = writing.held()
            if held and not scope.merge:
                raise writing.unavailable()
            settled = _settle_again(found, settled, held, removed, writing.losses())
            writing.delete(merge=scope.merge)
        elif removed:
            settled = [(_without(outcome, removed), losses) for outcome, losses in settled]
        kept = held.values() if expected_generation else ()
        _check_counts(
            f"batch {batch} of {stream}",
            "rows",
            writing.insert(predicates, now),
            [one.rows for one in kept],
            [outcome["loaded"] for outcome, _ in settled],
        )
        _check_counts(
            f"batch {batch} of {stream}",
            "bad records",
            writing.insert_bad(predicates, now),
            [one.quarantined for one in kept],
            [outcome["quarantined"] for outcome, _ in settled],
        )
        _write_losses(con, stream, batch, [loss for _, losses in settled for loss in losses], now)
    del incoming, set_aside
    data.clear()
    bad.clear()
    insert(
        con,
        sql.UPDATE_OUTCOMES,
        _OUTCOME_ROWS,
        [outcome for outcome, _ in settled],
        stream=stream,
        batch=batch,
    )
    swapped = changed(
        con,
        sql.SWAP_GENERATION,
        stream=stream,
        batch=batch,
        expected=expected_generation,
        run_id=run_id,
        now=now,
        fingerprint=fingerprint,
    )
    if swapped != 1:
        raise GenerationMovedError(found, expected_generation)
    committed = read_batch(con, stream, batch)
    assert committed is not None  # noqa: S101  read in the transaction that has just updated it
    return committed


def load_quarantined(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    batch: str,
    rows: pa.Table,
    *,
    table: TableName,
    columns: Sequence[Column],
    now: datetime,
) -> int:
    """Move records of a committed batch from the quarantine into the table, as the rows they have become.

    Returns how many were loaded; the others are what `expire` took away, and are booked as removed.

    Raises:
        RunFailedError: They are not all in the quarantine, or not all in ranges of the batch.
    """
    where = f"batch {batch} of {stream}"
    rows = rows.select(_staged_names(columns))
    prepare_for_records(con, mean_bytes(rows))
    with registered(con, _STAGED, rows):
        writing = _Writing(con, stream, batch, quote_table(table), rows, columns, any_bad=False)
        predicates = removals_of(con, stream, batch)
        removed = writing.removed(predicates)
        moves = [
            ClassMove(
                batch,
                place.topic,
                place.partition,
                loaded=count - removed.get(place, _Removed()).rows,
                quarantined=-count,
                offset_sum=-removed.get(place, _Removed()).offset_sum,
                digest=digest - removed.get(place, _Removed()).digest,
            )
            for place, count, digest in writing.leaving()
        ]
        if sum(-move.quarantined for move in moves) != rows.num_rows or writing.leave() != rows.num_rows:
            raise RunFailedError(f"{where}: the quarantine has not the records that were decoded; undone.")
        inserted = writing.insert(predicates, now)
        _check_counts(where, "rows", inserted, (), [move.loaded for move in moves])
    if move_classes(con, stream, moves) != len(moves):
        raise RunFailedError(f"{where}: the quarantine has records that are in none of its ranges; undone.")
    return inserted


def _check_counts(where: str, what: str, inserted: int, kept: Sequence[int], counted: Sequence[int]) -> None:
    if inserted + sum(kept) != sum(counted):
        raise RunFailedError(
            f"{where}: {inserted} {what} were inserted and {sum(kept)} kept where {sum(counted)} were counted;"
            " undone."
        )


@dataclass(frozen=True, slots=True)
class _Writing:
    """The statements of one commit over what is staged, and over the ranges that are written."""

    con: duckdb.DuckDBPyConnection
    stream: str
    batch: str
    table: str
    rows: pa.Table
    columns: Sequence[Column]
    any_bad: bool

    @property
    def _named(self) -> dict[str, str]:
        return {"stream": self.stream, "batch": self.batch}

    @property
    def _digest(self) -> str:
        return digest_expression([column.name for column in self.columns])

    def _not_staged(self, statement: str, named: Mapping[str, str]) -> list[tuple[Any, ...]]:
        those = sql.OF_REPLACED_RANGES.format(replaced=_REPLACED)
        text = statement.format(
            table=self.table, those=those, staged=self._fetched, digest=self._digest, bad_digest=_BAD_DIGEST
        )
        return self.con.execute(text, named).fetchall()

    @property
    def _fetched(self) -> str:
        """What to name for the identities of all that was fetched."""
        return sql.STAGED_AND_BAD.format(staged=_STAGED, bad=_BAD) if self.any_bad else _STAGED

    def _held_rows(self) -> list[tuple[Any, ...]]:
        return self._not_staged(sql.ROWS_NOT_STAGED, {"batch": self.batch})

    def _held_quarantined(self) -> list[tuple[Any, ...]]:
        return self._not_staged(sql.QUARANTINED_NOT_STAGED, self._named)

    def held(self) -> dict[TopicPartition, _Held]:
        held = {
            TopicPartition(topic, partition): _Held(count, 0, offset_sum, digest)
            for topic, partition, count, _, _, offset_sum, digest in self._held_rows()
        }
        for topic, partition, count, _, _, offset_sum, digest in self._held_quarantined():
            place = TopicPartition(topic, partition)
            rows = held.get(place, _Held())
            held[place] = _Held(rows.rows, count, rows.offset_sum + offset_sum, rows.digest + digest)
        return held

    def unavailable(self) -> RangeUnavailableError:
        listed = "; ".join(
            f"{topic}[{partition}]: {count} between offsets {low} and {high}"
            for topic, partition, count, low, high, *_ in [*self._held_rows(), *self._held_quarantined()]
        )
        return RangeUnavailableError(
            f"Kafka no longer gives back rows of batch {self.batch} of stream {self.stream} that are in the table"
            f" or in quarantine ({listed}); retention or compaction took them since. Replacing them all would lose"
            f" those, so nothing was changed. `kafka-assets replay {self.stream} {self.batch} --merge` keeps them and"
            " replaces the others."
        )

    def removed(self, predicates: Sequence[str]) -> dict[TopicPartition, _Removed]:
        if not predicates:
            return {}
        removed = {
            TopicPartition(topic, partition): _Removed(count, 0, *rest)
            for topic, partition, count, *rest in self._removed(
                _STAGED, self.rows.column_names, self._digest, predicates
            )
        }
        if self.any_bad:
            for topic, partition, count, offset_sum, digest in self._removed(
                _BAD, _BAD_NAMES, _BAD_DIGEST, of_metadata(self.con, predicates)
            ):
                place = TopicPartition(topic, partition)
                rows = removed.get(place, _Removed())
                removed[place] = _Removed(
                    rows.rows, count, rows.offset_sum + offset_sum, rows.digest + digest
                )
        return removed

    def _removed(
        self, staged: str, names: Sequence[str], digest: str, predicates: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        columns, removed = ", ".join(map(quote, names)), removed_condition(predicates)
        text = sql.REMOVED_OF_STAGED.format(digest=digest, columns=columns, staged=staged, removed=removed)
        return self.con.execute(text, {"batch": self.batch}).fetchall()

    def losses(self) -> dict[TopicPartition, list[OffsetRange]]:
        booked: dict[TopicPartition, list[OffsetRange]] = defaultdict(list)
        taken = self.con.execute(sql.TAKE_LOSSES.format(replaced=_REPLACED), self._named).fetchall()
        for topic, partition, low, high, _ in taken:
            booked[TopicPartition(topic, partition)].append(OffsetRange(topic, partition, low, high))
        return booked

    def delete(self, *, merge: bool) -> None:
        those = (sql.OF_STAGED_OFFSETS if merge else sql.OF_REPLACED_RANGES).format(
            staged=self._fetched, replaced=_REPLACED
        )
        changed(self.con, sql.DELETE_ROWS.format(table=self.table, those=those), batch=self.batch)
        changed(self.con, sql.DELETE_QUARANTINED.format(those=those), **self._named)

    @property
    def _selected(self) -> str:
        return ", ".join(map(quote, self.rows.column_names))

    def leaving(self) -> list[tuple[TopicPartition, int, int]]:
        """Return how many of the staged records are in quarantine, and by how much the digest changes with them."""
        named = {"batch": self.batch}
        text = sql.REMOVED_OF_STAGED.format(
            digest=self._digest, columns=self._selected, staged=_STAGED, removed="true"
        )
        became = {
            TopicPartition(topic, partition): digest
            for topic, partition, _, _, digest in self.con.execute(text, named).fetchall()
        }
        text = sql.LEAVING_QUARANTINE.format(
            bad_digest=_BAD_DIGEST, those=sql.OF_STAGED_OFFSETS.format(staged=_STAGED)
        )
        return [
            (place, count, became[place] - digest)
            for topic, partition, count, digest in self.con.execute(text, self._named).fetchall()
            if (place := TopicPartition(topic, partition)) in became
        ]

    def leave(self) -> int:
        those = sql.OF_STAGED_OFFSETS.format(staged=_STAGED)
        return changed(self.con, sql.DELETE_QUARANTINED.format(those=those), **self._named)

    def insert(self, predicates: Sequence[str], now: datetime) -> int:
        statement = sql.INSERT_ROWS.format(
            table=self.table, columns=self._selected, staged=_ONCE, removed=removed_condition(predicates)
        )
        once = pa.RecordBatchReader.from_batches(self.rows.schema, _letting_go(self.rows))
        staged = self.rows["_kafka_offset"].chunks
        if len(staged) > 1 and len(staged[0]) == ROW_GROUP_ROWS:
            # Row groups staged whole are small, and two threads write two at once; parts of large ones they would
            # put together and write again. Until the file is let go.
            self.con.execute("SET threads = 2")
        with registered(self.con, _ONCE, once):
            return changed(self.con, statement, batch=self.batch, now=now)

    def insert_bad(self, predicates: Sequence[str], now: datetime) -> int:
        if not self.any_bad:
            return 0
        statement = sql.INSERT_QUARANTINED.format(
            columns=", ".join(map(quote, _BAD_NAMES)),
            bad=_BAD,
            removed=removed_condition(of_metadata(self.con, predicates)),
        )
        return changed(self.con, statement, now=now, **self._named)


def _staged_names(columns: Sequence[Column]) -> list[str]:
    """Return the columns of staged rows: those of the table, less what the commit fills in."""
    metadata = [name for name in METADATA_COLUMNS if name not in _OF_THE_COMMIT]
    return [*metadata, *(column.name for column in columns)]


def _letting_go(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    """Give the batches of a table one by one, the memory that one took back before the next: a file may be large."""
    for batch in rows.to_batches():
        yield batch
        let_go_of_pages()


def _places(places: Sequence[TopicPartition]) -> pa.Table:
    return pa.table(
        {
            "topic": pa.array([one.topic for one in places], pa.string()),
            "partition": pa.array([one.partition for one in places], pa.int32()),
        }
    )


def _without(outcome: dict[str, Any], removed: Mapping[TopicPartition, _Removed]) -> dict[str, Any]:
    """Return an outcome with what a removal takes away booked as removed, and not in sum and digest."""
    gone = removed.get(TopicPartition(outcome["topic"], outcome["partition"]), _Removed())
    return {
        **outcome,
        "loaded": outcome["loaded"] - gone.rows,
        "quarantined": outcome["quarantined"] - gone.quarantined,
        "removed": gone.rows + gone.quarantined,
        **_moved(outcome, -gone.offset_sum, -gone.digest),
    }


def _moved(outcome: Mapping[str, Any], offset_sum: int, digest: int) -> dict[str, Any]:
    known = outcome["digest_function"] == DIGEST_FUNCTION
    return {
        "offset_sum": str(int(outcome["offset_sum"]) + offset_sum),
        "digest": str(int(outcome["digest"]) + digest) if known else None,
        "digest_function": DIGEST_FUNCTION if known else None,
    }


def _settle_again(
    batch: BatchRow,
    settled: Sequence[tuple[dict[str, Any], list[Loss]]],
    held: Mapping[TopicPartition, _Held],
    removed: Mapping[TopicPartition, _Removed],
    booked: Mapping[TopicPartition, Sequence[OffsetRange]],
) -> list[tuple[dict[str, Any], list[Loss]]]:
    """Settle ranges that were settled before: what Kafka no longer delivers keeps the class it had.

    Lost is only what was lost before it was ever read. The rest that is not delivered now was a row that is
    kept, was removed on purpose, or was never deliverable.
    """
    outcomes = {
        planned.range.topic_partition: outcome
        for planned, outcome in zip(batch.ranges, batch.outcomes, strict=True)
    }
    again = []
    for fetched, losses in settled:
        place = TopicPartition(fetched["topic"], fetched["partition"])
        before, kept = outcomes[place], held.get(place, _Held())
        outcome = _without(fetched, removed)
        lost = [
            replace(loss, from_offset=common.from_offset, until_offset=common.until_offset)
            for loss in losses
            for earlier in booked.get(place, ())
            if (common := earlier.intersect(_stretch(loss))) is not None
        ]
        still_lost = sum(map(_size, lost))
        removed_before = max(0, before.removed - outcome["removed"])
        silent = outcome["undeliverable"] + outcome["lost"]
        undeliverable = silent - still_lost - removed_before - kept.rows - kept.quarantined
        if undeliverable < (before.undeliverable if removed_before else 0):
            raise RunFailedError(
                f"batch {batch.batch} of {batch.stream}, {place}: {before.removed} rows were removed from it on"
                f" purpose, and of what Kafka delivers again only {outcome['removed']} match what was removed;"
                " others would come back. Nothing was written. Decode as when they were removed."
            )
        outcome |= {
            "loaded": outcome["loaded"] + kept.rows,
            "quarantined": outcome["quarantined"] + kept.quarantined,
            "undeliverable": undeliverable,
            "lost": still_lost,
            "removed": outcome["removed"] + removed_before,
            "bytes": max(outcome["bytes"], before.bytes)
            if kept.rows or kept.quarantined
            else outcome["bytes"],
            "kept": kept.rows + kept.quarantined,
            **_moved(outcome, kept.offset_sum, kept.digest),
        }
        again.append((outcome, lost))
    return again


def _stretch(loss: Loss) -> OffsetRange:
    place = loss.topic_partition
    return OffsetRange(place.topic, place.partition, loss.from_offset, loss.until_offset)


def _size(loss: Loss) -> int:
    return loss.until_offset - loss.from_offset


def _settle(
    batch: BatchRow, ranges: Sequence[PlannedRange], staged: Sequence[StagedSlice]
) -> list[tuple[dict[str, Any], list[Loss]]]:
    """Sum the evidence of each of the ranges over its staged pieces, and check that it is all of it."""
    pieces: dict[TopicPartition, list[StagedRange]] = defaultdict(list)
    for one in staged:
        for piece in one.ranges:
            pieces[piece.evidence.planned.range.topic_partition].append(piece)
    settled = [
        _settle_range(batch, planned, pieces.pop(planned.range.topic_partition, [])) for planned in ranges
    ]
    if pieces:
        raise RunFailedError(
            f"batch {batch.batch} of {batch.stream}: {', '.join(map(str, pieces))} was fetched but is not what"
            " was to be written."
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
    records = sum(one.records for one in evidence)
    quarantined = sum(piece.quarantined for piece in pieces)
    undeliverable = sum(one.undeliverable for one in evidence)
    gone = sum(stretch.size for stretch in lost)
    if records + undeliverable + gone != whole.size or any(whole.intersect(one) != one for one in lost):
        raise RunFailedError(
            f"{where}: {records} records, {undeliverable} offsets seen to be undeliverable and {gone} lost do not add"
            f" up to its {whole.size} offsets. Nothing was written."
        )
    functions = {piece.digest_function for piece in pieces}
    digests = [piece.digest for piece in pieces]
    known = len(functions) == 1 and None not in digests
    outcome = {
        "topic": whole.topic,
        "partition": whole.partition,
        "loaded": records - quarantined,
        "filtered": 0,
        "quarantined": quarantined,
        "undeliverable": undeliverable,
        "lost": gone,
        "removed": 0,
        "kept": 0,
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


def _together(batch: BatchRow, data: Sequence[pa.Table], names: Sequence[str]) -> pa.Table:
    """Return the rows as one table, which DuckDB inserts twice as fast as many small ones."""
    filled = [part for part in data if part.num_rows]
    for part in filled:
        if set(part.column_names) != set(names):
            odd = ", ".join(sorted(set(part.column_names) ^ set(names)))
            raise RunFailedError(
                f"batch {batch.batch} of {batch.stream}: the staged columns differ from the table's in {odd}."
                " Nothing was written."
            )
    if not filled:
        return pa.table({name: pa.nulls(0) for name in names})
    return pa.concat_tables([part.select(list(names)) for part in filled])


def _check_sum(
    batch: BatchRow, tables: Sequence[pa.Table], settled: Sequence[tuple[Mapping[str, Any], Sequence[Loss]]]
) -> None:
    offsets = (pc.sum(one["_kafka_offset"]).as_py() for one in tables if one.num_rows)
    if sum(offsets) % _WRAP != sum(int(outcome["offset_sum"]) for outcome, _ in settled) % _WRAP:
        raise RunFailedError(
            f"batch {batch.batch} of {batch.stream}: the staged rows are not those that were fetched, their offsets sum"
            " up to another number. Nothing was written."
        )


def _write_losses(
    con: duckdb.DuckDBPyConnection, stream: str, batch: str, losses: Sequence[Loss], now: datetime
) -> None:
    """Replace the losses of the ranges written; those that stay keep the time they were noticed at."""
    named = {"stream": stream, "batch": batch}
    taken = con.execute(sql.TAKE_LOSSES.format(replaced=_REPLACED), named).fetchall()
    noticed = {tuple(row[:4]): row[4] for row in taken}
    if noticed:
        changed(con, sql.DELETE_LOSSES.format(replaced=_REPLACED), **named)
    rows = []
    for loss in losses:
        place = loss.topic_partition
        key = (place.topic, place.partition, loss.from_offset, loss.until_offset)
        rows.append(loss_row(loss, noticed.get(key, now), batch))
    insert(con, sql.INSERT_LOSSES, LOSS_ROWS, rows, stream=stream)

"""What was planned, what became of it: the ledger, in the same database file as the rows.

Every function works on a connection given by `Warehouse.reading()` or `Warehouse.writing()` and belongs to
the transaction of the latter: a batch's rows, its outcomes and its change of state are committed together or
not at all. Reading functions take a missing file or a database without a ledger for an empty ledger.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from kafka_assets import ledger_sql as sql
from kafka_assets.backpressure import CompletedBatch
from kafka_assets.digest import DIGEST_FUNCTION
from kafka_assets.errors import (
    ConfigInvalidError,
    KafkaAssetsError,
    RunFailedError,
    TableTakenError,
    WarehouseInvalidError,
)
from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition, first_flaw
from kafka_assets.planning import Loss, Position
from kafka_assets.statements import changed, insert, quote, quote_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import duckdb

    from kafka_assets.config.values import TableName
    from kafka_assets.formats import Column
    from kafka_assets.planning import Plan

Kind = Literal["live", "backfill", "rollup"]
Row = tuple[Any, ...]

RECENT_BATCHES = 20
SIZED_BATCHES = 3
"""From how many of them the size of a record is learned: few, as it may change a hundredfold."""

METADATA_COLUMNS: Mapping[str, str] = {
    "_kafka_topic": "VARCHAR",
    "_kafka_partition": "INTEGER",
    "_kafka_offset": "BIGINT",
    "_kafka_timestamp": "TIMESTAMPTZ",
    "_kafka_timestamp_type": "VARCHAR",
    "_kafka_key": "BLOB",
    "_kafka_headers": 'STRUCT("key" VARCHAR, "value" BLOB)[]',
    "_kafka_batch": "VARCHAR",
    "_ingested_at": "TIMESTAMPTZ",
}
"""Name and DuckDB type of the columns every stream's table begins with."""

_KEY_FORMAT = "%Y%m%dT%H%M%S"

_TABLES = frozenset(re.findall(r"CREATE TABLE kafka_assets_ledger\.(\w+)", sql.CREATE_TABLES))

_POSITION_ROWS = pa.schema(
    {
        "topic": pa.string(),
        "topic_id": pa.string(),
        "incarnation": pa.int32(),
        "partition": pa.int32(),
        "start_offset": pa.int64(),
        "planned_until": pa.int64(),
        "leader_epoch": pa.int32(),
    }
)
_RANGE_ROWS = pa.schema(
    {
        "batch": pa.string(),
        "topic": pa.string(),
        "topic_id": pa.string(),
        "incarnation": pa.int32(),
        "partition": pa.int32(),
        "from_offset": pa.int64(),
        "until_offset": pa.int64(),
        "leader_epoch": pa.int32(),
    }
)
LOSS_ROWS = pa.schema(
    {
        "batch": pa.string(),
        "topic": pa.string(),
        "topic_id": pa.string(),
        "incarnation": pa.int32(),
        "partition": pa.int32(),
        "from_offset": pa.int64(),
        "until_offset": pa.int64(),
        "reason": pa.string(),
        "noticed_at": pa.timestamp("us", "UTC"),
    }
)


_MOVE_ROWS = pa.schema(
    {
        "batch": pa.string(),
        "topic": pa.string(),
        "partition": pa.int32(),
        "loaded": pa.int64(),
        "quarantined": pa.int64(),
        # Larger than 64 bits: text on the way into the database.
        "offset_sum": pa.string(),
        "digest": pa.string(),
    }
)


class PlanConflictError(KafkaAssetsError):
    """Another planner changed the stream since its state was read: read and plan again."""

    retryable = True


@dataclass(frozen=True, slots=True)
class RangeOutcome:
    """What became of the offsets of one planned range, classes that add up to its size; bytes delivered."""

    loaded: int
    filtered: int
    quarantined: int
    undeliverable: int
    lost: int
    removed: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ClassMove:
    """By how much the outcome of a committed range changes; what leaves the two classes is removed."""

    batch: str
    topic: str
    partition: int
    loaded: int
    quarantined: int
    offset_sum: int
    digest: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as the ledger has it.

    Attributes:
        generation: 0 as planned, one more at each commit.
        attempts: Runs asked for by the sensor or `ingest`.
        launched_at: When the last of those was asked for.
        committed_at: Of the last commit.
        fingerprint: Of the decode settings: of the last commit, before that of the plan.
        blocked: Whether it waits for a person.
        ranges: By topic, partition.
        outcomes: One a range once committed, else empty.
        rows: Rows in the table.
        records: Offsets loaded, filtered or quarantined.
    """

    stream: str
    batch: str
    kind: str
    state: str
    planned_at: datetime
    generation: int
    attempts: int
    launched_at: datetime | None
    run_id: str | None
    committed_at: datetime | None
    fingerprint: str
    last_error: str | None
    blocked: bool
    ranges: tuple[PlannedRange, ...]
    outcomes: tuple[RangeOutcome, ...]
    rows: int
    records: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as the ledger has it.

    Attributes:
        known: Whether anything was ever planned.
        plan_version: What the next plan must name; 0 for an unknown stream.
        table: `name` or `schema.name`.
        positions: Of the latest incarnation of each topic-partition.
        open_batches: Planned and not committed, oldest first, of every kind.
        last_batch: The greatest batch key.
        last_planned_at: Planning time of the last live batch.
        bytes_per_record: Of the latest live batch with records, or over the latest few if that is more; None
            without any.
        recently_committed: The latest, newest first.
        completed: The latest live batches in the order of their commits, without those that were replaced;
            only where they were asked for.
    """

    known: bool = False
    plan_version: int = 0
    table: str | None = None
    registered_at: datetime | None = None
    positions: Mapping[TopicPartition, Position] = field(default_factory=dict)
    open_batches: tuple[BatchRow, ...] = ()
    last_batch: str | None = None
    last_planned_at: datetime | None = None
    bytes_per_record: float | None = None
    recently_committed: tuple[BatchRow, ...] = ()
    completed: tuple[CompletedBatch, ...] = ()


@dataclass(frozen=True, slots=True)
class PositionReport:
    """The ledger's part of a topic-partition's status, one incarnation.

    Attributes:
        committed_until: Up to where everything from `start_offset` is settled.
        hole: Offsets in planned batches below the last committed one.
    """

    topic: str
    topic_id: str | None
    incarnation: int
    partition: int
    start_offset: int
    planned_until: int
    committed_until: int
    hole: int


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Batches of a stream. `failed` ones are planned and have an error, `blocked` ones wait for a person."""

    planned: int = 0
    committed: int = 0
    failed: int = 0
    blocked: int = 0


def schema_version(con: duckdb.DuckDBPyConnection | None) -> int | None:
    """Return the schema version of the database's ledger, None where it has none.

    Raises:
        WarehouseInvalidError: It is one that this kafka_assets does not read.
    """
    if con is None:
        return None
    tables = {table for (table,) in con.execute(sql.LEDGER_TABLES).fetchall()}
    if not tables:
        return None
    found = con.execute(sql.SCHEMA_VERSIONS).fetchall() if "meta" in tables else []
    versions = [int(version) for (version,) in found]
    if len(versions) != 1 or versions[0] not in (*sql.UPGRADES, sql.SCHEMA_VERSION):
        told = ", ".join(map(str, versions)) or "none"
        raise WarehouseInvalidError(
            f"the ledger in schema kafka_assets_ledger has schema version {told}, and this kafka_assets knows"
            f" {sql.SCHEMA_VERSION}. It was not touched. Use the kafka_assets that wrote it, or a newer one."
        )
    if missing := _TABLES - tables:
        raise WarehouseInvalidError(
            f"the ledger in schema kafka_assets_ledger lacks {', '.join(sorted(missing))}: somebody changed it by"
            " hand. It was not touched. Bring the warehouse back from a copy."
        )
    return versions[0]


def has_ledger(con: duckdb.DuckDBPyConnection | None) -> bool:
    """Tell whether the database has a ledger.

    Raises:
        WarehouseInvalidError: It has one of a version that this kafka_assets does not read.
    """
    return schema_version(con) is not None


def ensure_schema(con: duckdb.DuckDBPyConnection) -> None:
    """Create the ledger and the views over it where there is none, and bring an older one up to date.

    Raises:
        WarehouseInvalidError: There is one of an unknown version.
    """
    version = schema_version(con)
    if version is not None:
        for older in range(version, sql.SCHEMA_VERSION):
            con.execute(sql.UPGRADES[older]).fetchall()
        return
    con.execute(sql.CREATE_TABLES).fetchall()
    con.execute(sql.CREATE_VIEWS).fetchall()
    con.execute(
        "INSERT INTO kafka_assets_ledger.meta VALUES ($version, $ledger)",
        {"version": sql.SCHEMA_VERSION, "ledger": str(uuid.uuid4())},
    ).fetchall()


def read_stream(con: duckdb.DuckDBPyConnection | None, stream: str, *, paced: bool = False) -> StreamState:
    """Read all that planning and launching need to know of a stream; `paced`: backpressure's part too."""
    if con is None or not has_ledger(con):
        return StreamState()
    named = {"stream": stream}
    found = con.execute(sql.READ_STREAM, named).fetchall()
    if not found:
        return StreamState()
    ((version, schema, name, registered_at),) = found
    positions = {
        TopicPartition(topic, partition): Position(*rest)
        for topic, partition, *rest in con.execute(sql.READ_POSITIONS, named).fetchall()
    }
    ((last_batch, last_planned_at),) = con.execute(sql.READ_LAST_BATCH, named).fetchall()
    recent = {**named, "count": RECENT_BATCHES}
    sized = {**recent, "sized": SIZED_BATCHES}
    ((bytes_per_record,),) = con.execute(sql.READ_BYTES_PER_RECORD, sized).fetchall()
    completed = con.execute(sql.READ_COMPLETED, recent).fetchall() if paced else []
    open_keys = _keys(con.execute(sql.READ_OPEN_KEYS, named).fetchall())
    recent_keys = _keys(con.execute(sql.READ_RECENT_KEYS, recent).fetchall())
    rows = {row.batch: row for row in _read_batches(con, stream, [*open_keys, *recent_keys])}
    return StreamState(
        known=True,
        plan_version=version,
        table=name if schema == "main" else f"{schema}.{name}",
        registered_at=_utc(registered_at),
        positions=positions,
        open_batches=tuple(rows[key] for key in sorted(open_keys)),
        last_batch=last_batch,
        last_planned_at=_utc(last_planned_at),
        bytes_per_record=None if bytes_per_record is None else float(bytes_per_record),
        recently_committed=tuple(rows[key] for key in recent_keys),
        completed=tuple(CompletedBatch(*row) for row in completed),
    )


def read_batch(con: duckdb.DuckDBPyConnection | None, stream: str, batch: str) -> BatchRow | None:
    """Read one batch, None where the ledger has no such batch."""
    if con is None or not has_ledger(con):
        return None
    found = _read_batches(con, stream, [batch])
    return found[0] if found else None


def read_batches(
    con: duckdb.DuckDBPyConnection | None, stream: str, keys: Sequence[str]
) -> tuple[BatchRow, ...]:
    """Read those of the batches that the ledger has, in the order of their keys."""
    if con is None or not has_ledger(con):
        return ()
    return tuple(_read_batches(con, stream, keys))


def read_open(con: duckdb.DuckDBPyConnection | None, stream: str) -> tuple[BatchRow, ...]:
    """Read the batches that are planned and not committed, in the order of their keys."""
    if con is None or not has_ledger(con):
        return ()
    return tuple(
        _read_batches(con, stream, _keys(con.execute(sql.READ_OPEN_KEYS, {"stream": stream}).fetchall()))
    )


def read_committed(
    con: duckdb.DuckDBPyConnection | None, stream: str, since: datetime, count: int
) -> tuple[BatchRow, ...]:
    """Read the first so many batches that were committed (last) after a moment, the oldest commit first."""
    if con is None or not has_ledger(con):
        return ()
    named = {"stream": stream, "since": since, "count": count}
    keys = _keys(con.execute(sql.READ_COMMITTED_KEYS, named).fetchall())
    rows = {row.batch: row for row in _read_batches(con, stream, keys)}
    return tuple(rows[key] for key in keys)


def positions_report(con: duckdb.DuckDBPyConnection | None, stream: str) -> tuple[PositionReport, ...]:
    """Return how far each topic-partition is planned and committed, every incarnation, in order."""
    if con is None or not has_ledger(con):
        return ()
    found = con.execute(sql.POSITIONS_REPORT, {"stream": stream}).fetchall()
    return tuple(PositionReport(*row) for row in found)


def batch_counts(con: duckdb.DuckDBPyConnection | None, stream: str) -> BatchCounts:
    """Count a stream's batches by state."""
    if con is None or not has_ledger(con):
        return BatchCounts()
    return BatchCounts(*con.execute(sql.BATCH_COUNTS, {"stream": stream}).fetchall()[0])


def _keys(rows: Iterable[Row]) -> list[str]:
    return [key for (key,) in rows]


def _read_batches(con: duckdb.DuckDBPyConnection, stream: str, keys: Sequence[str]) -> list[BatchRow]:
    named = {"stream": stream, "batches": list(keys)}
    ranges: dict[str, list[PlannedRange]] = defaultdict(list)
    outcomes: dict[str, list[RangeOutcome]] = defaultdict(list)
    for row in con.execute(sql.READ_RANGES, named).fetchall():
        batch, topic, partition, from_offset, until_offset, incarnation, topic_id, epoch, *classes = row
        ranges[batch].append(
            PlannedRange(
                OffsetRange(topic, partition, from_offset, until_offset), incarnation, topic_id, epoch
            )
        )
        if classes[0] is not None:
            outcomes[batch].append(RangeOutcome(*classes))
    return [
        BatchRow(
            stream=stream,
            batch=batch,
            kind=kind,
            state=state,
            planned_at=planned_at.astimezone(UTC),
            generation=generation,
            attempts=attempts,
            launched_at=_utc(launched_at),
            run_id=run_id,
            committed_at=_utc(committed_at),
            fingerprint=fingerprint,
            last_error=last_error,
            blocked=blocked,
            ranges=tuple(ranges[batch]),
            outcomes=tuple(outcomes[batch]),
            rows=rows or 0,
            records=sum(one.loaded + one.filtered + one.quarantined for one in outcomes[batch]),
        )
        for (
            batch,
            kind,
            state,
            planned_at,
            generation,
            attempts,
            launched_at,
            run_id,
            committed_at,
            fingerprint,
            last_error,
            blocked,
            rows,
        ) in con.execute(sql.READ_BATCHES, named).fetchall()
    ]


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def batch_key(now: datetime, floor: str | None) -> str:
    """Return the key of a batch planned now, `20261123T140512042Z`: UTC, milliseconds.

    Always greater than `floor`, even if the clock went backwards: then it is the floor's successor.
    """
    key = _format_key(now.astimezone(UTC))
    if floor is None or key > floor:
        return key
    moment = datetime.strptime(floor, f"{_KEY_FORMAT}%fZ").replace(tzinfo=UTC)
    return _format_key(moment + timedelta(milliseconds=1))


def _format_key(moment: datetime) -> str:
    return f"{moment.strftime(_KEY_FORMAT)}{moment.microsecond // 1000:03d}Z"


def record_plan(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    *,
    table: TableName,
    columns: Sequence[Column],
    fingerprint: str,
    expected_version: int,
    plan: Plan,
    planned_at: datetime,
    key_floor: str | None,
    kind: Kind = "live",
) -> tuple[str, ...]:
    """Write a plan: batches, positions, losses. The first one registers the stream and creates its table.

    Args:
        con: Given by `Warehouse.writing()`.
        stream: The stream planned.
        table: Its table.
        columns: The format's own columns.
        fingerprint: Of the format's settings.
        expected_version: `StreamState.plan_version` of what the plan was made from.
        plan: The plan; with or without batches.
        planned_at: The planning time, which the keys are made of.
        key_floor: A key the new ones must be greater than, beside those in the ledger.
        kind: Of the batches.

    Returns:
        The keys of the batches, in their order.

    Raises:
        PlanConflictError: The stream is not at the expected version.
        TableTakenError: The table is another stream's, or was there before the stream.
        ConfigInvalidError: The stream's rows are in another table.
        WarehouseInvalidError: The table no longer fits.
    """
    ensure_schema(con)
    if expected_version == 0:
        _register(con, stream, table, columns, fingerprint, planned_at)
    else:
        _swap_plan_version(con, stream, table, fingerprint, expected_version)
        check_table(con, table, columns)
    _write_positions(con, stream, plan)
    ((greatest, _),) = con.execute(sql.READ_LAST_BATCH, {"stream": stream}).fetchall()
    floor = max((key for key in (greatest, key_floor) if key), default=None)
    keys: list[str] = []
    for _ in plan.batches:
        floor = batch_key(planned_at, floor)
        keys.append(floor)
    if keys:
        _write_batches(con, stream, keys, plan, kind=kind, planned_at=planned_at, fingerprint=fingerprint)
    insert(
        con,
        sql.INSERT_LOSSES,
        LOSS_ROWS,
        [loss_row(loss, planned_at) for loss in plan.losses],
        stream=stream,
    )
    return tuple(keys)


def _register(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    table: TableName,
    columns: Sequence[Column],
    fingerprint: str,
    now: datetime,
) -> None:
    if con.execute(sql.READ_STREAM, {"stream": stream}).fetchall():
        raise PlanConflictError(f"stream {stream} was registered by another planner meanwhile; plan again.")
    name = {"schema": table.schema or "main", "name": table.name}
    owners = con.execute(sql.TABLE_OWNER, name).fetchall()
    if owners:
        raise TableTakenError(
            f"table {table}, which stream {stream} is to fill, belongs to stream {owners[0][0]}. A table belongs to one"
            f" stream. Nothing was written. Give one of them another `table:`, or, if {stream} is {owners[0][0]} under"
            f" a new name, run `kafka-assets rename {owners[0][0]} {stream}`."
        )
    if con.execute(sql.TABLE_COLUMNS, name).fetchall():
        raise TableTakenError(
            f"table {table}, which stream {stream} is to fill, is there already and no stream made it. Nothing was"
            " written. Name another table with `table:`, or drop or rename that one if you do not need it."
        )
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(table.schema or 'main')}").fetchall()
    con.execute(_create_table(table, columns)).fetchall()
    con.execute(
        sql.REGISTER_STREAM, {"stream": stream, **name, "fingerprint": fingerprint, "now": now}
    ).fetchall()


def _create_table(table: TableName, columns: Sequence[Column]) -> str:
    lines = [f"{quote(name)} {type_}" for name, type_ in METADATA_COLUMNS.items()]
    for column in columns:
        # Whole values are long and differ: zstd halves the time and the space of what DuckDB would choose.
        whole = column.type == "BLOB" or (column.type == "VARCHAR" and len(columns) == 1)
        compression = " USING COMPRESSION zstd" if whole else ""
        lines.append(f"{quote(column.name)} {column.type}{compression}")
    return f"CREATE TABLE {quote_table(table)} (\n    " + ",\n    ".join(lines) + "\n)"


def _swap_plan_version(
    con: duckdb.DuckDBPyConnection, stream: str, table: TableName, fingerprint: str, expected: int
) -> None:
    swapped = changed(con, sql.SWAP_PLAN_VERSION, stream=stream, expected=expected, fingerprint=fingerprint)
    if swapped != 1:
        raise PlanConflictError(
            f"stream {stream} is no longer at plan version {expected}: another planner was faster; plan again."
        )
    ((_, schema, name, _),) = con.execute(sql.READ_STREAM, {"stream": stream}).fetchall()
    if (schema.lower(), name.lower()) != ((table.schema or "main").lower(), table.name.lower()):
        raise ConfigInvalidError(
            f"stream {stream} has its rows in table {schema}.{name}, but the streams file now says {table}. Rows of a"
            f" stream are in one table. Nothing was written. Set `table: {schema}.{name}`."
        )


def check_table(con: duckdb.DuckDBPyConnection, table: TableName, columns: Sequence[Column]) -> None:
    """Check that a stream's table has the columns that are written to it; others may be there too.

    Raises:
        WarehouseInvalidError: Columns are missing or of another type, or the table is gone.
    """
    named = {"schema": table.schema or "main", "name": table.name}
    found = dict(con.execute(sql.TABLE_COLUMNS, named).fetchall())
    if not found:
        raise WarehouseInvalidError(
            f"table {table} is gone, with the rows the ledger counts. Nothing was written. Bring it back from a copy"
            " of the warehouse."
        )
    wanted = {**METADATA_COLUMNS, **{column.name: column.type for column in columns}}
    # The engine's own spelling of the types, to compare like with like.
    spelled = ", ".join(f"typeof(NULL::{type_})" for type_ in wanted.values())
    (types,) = con.execute(f"SELECT {spelled}").fetchall()
    flaws = [
        f"{name} is missing" if name not in found else f"{name} is {found[name]}, not {type_}"
        for name, type_ in zip(wanted, types, strict=True)
        if found.get(name) != type_
    ]
    if flaws:
        raise WarehouseInvalidError(
            f"table {table} does not fit what is written to it: {'; '.join(flaws)}. Nothing was written. Change the"
            " columns back, or the stream's `format:` to what the table was made for."
        )


def _write_positions(con: duckdb.DuckDBPyConnection, stream: str, plan: Plan) -> None:
    stored = {
        TopicPartition(topic, partition): Position(*rest)
        for topic, partition, *rest in con.execute(sql.READ_POSITIONS, {"stream": stream}).fetchall()
    }
    _assert_tiling(stored, plan)
    new: list[dict[str, object]] = []
    changed: list[dict[str, object]] = []
    for partition, position in plan.positions.items():
        before = stored.get(partition)
        known = before is not None and before.incarnation == position.incarnation
        (changed if known else new).append(
            {
                "topic": partition.topic,
                "topic_id": position.topic_id,
                "incarnation": position.incarnation,
                "partition": partition.partition,
                "start_offset": position.start_offset,
                "planned_until": position.planned_until,
                "leader_epoch": position.leader_epoch,
            }
        )
    insert(con, sql.INSERT_POSITIONS, _POSITION_ROWS, new, stream=stream)
    written = insert(con, sql.UPDATE_POSITIONS, _POSITION_ROWS, changed, stream=stream)
    if written != len(changed):
        raise RunFailedError(
            f"the ledger changed {written} of {len(changed)} positions of {stream}; not written."
        )


def _assert_tiling(stored: Mapping[TopicPartition, Position], plan: Plan) -> None:
    """Refuse a plan whose ranges and losses are not exactly the offsets its positions move over."""
    pieces: dict[TopicPartition, list[OffsetRange]] = defaultdict(list)
    for ranges in plan.batches:
        if len({planned.range.topic_partition for planned in ranges}) != len(ranges):
            raise RunFailedError(f"a planned batch names a topic-partition twice: {ranges}; nothing written.")
        for planned in ranges:
            _assert_incarnation(plan, planned.range, planned.incarnation)
            pieces[planned.range.topic_partition].append(planned.range)
    for loss in plan.losses:
        place = loss.topic_partition
        lost = OffsetRange(place.topic, place.partition, loss.from_offset, loss.until_offset)
        _assert_incarnation(plan, lost, loss.incarnation)
        pieces[loss.topic_partition].append(lost)
    for partition, after in plan.positions.items():
        for cover in _moved_over(partition, stored.get(partition), after):
            inside = [one for one in pieces[partition] if cover.intersect(one) is not None]
            pieces[partition] = [one for one in pieces[partition] if one not in inside]
            flaw = first_flaw(inside, cover)
            if flaw is not None:
                raise RunFailedError(f"the plan does not tile what is unplanned of {partition}: {flaw}.")
        if pieces[partition]:
            raise RunFailedError(
                f"{pieces[partition][0]} is planned but its position, {after}, does not move."
            )


def _moved_over(
    partition: TopicPartition, before: Position | None, after: Position
) -> tuple[OffsetRange, OffsetRange]:
    """Return the offsets below and above what was planned before that are planned now."""
    start = until = after.start_offset
    if before is not None and before.incarnation == after.incarnation:
        start, until = before.start_offset, before.planned_until
    elif before is not None and not _follows(before, after):
        raise RunFailedError(f"{partition} goes from {before} to {after}, which is not its next incarnation.")
    if after.start_offset > start or after.planned_until < until:
        raise RunFailedError(f"{partition} goes back from {before} to {after}.")
    topic, number = partition.topic, partition.partition
    return (
        OffsetRange(topic, number, after.start_offset, start),
        OffsetRange(topic, number, until, after.planned_until),
    )


def _follows(before: Position, after: Position) -> bool:
    """Whether an incarnation comes next; in a topic made again, partitions come level with the one furthest on."""
    ahead = after.incarnation - before.incarnation
    return ahead == 1 or (ahead > 1 and after.topic_id != before.topic_id)


def _assert_incarnation(plan: Plan, piece: OffsetRange, incarnation: int) -> None:
    position = plan.positions.get(piece.topic_partition)
    if position is None or position.incarnation != incarnation:
        raise RunFailedError(f"{piece} of incarnation {incarnation} is planned beside position {position}.")


def _write_batches(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    keys: Sequence[str],
    plan: Plan,
    *,
    kind: str,
    planned_at: datetime,
    fingerprint: str,
) -> None:
    con.execute(
        sql.INSERT_BATCHES,
        {
            "stream": stream,
            "batches": list(keys),
            "kind": kind,
            "planned_at": planned_at,
            "fingerprint": fingerprint,
        },
    ).fetchall()
    rows = [
        {
            "batch": key,
            "topic": planned.range.topic,
            "topic_id": planned.topic_id,
            "incarnation": planned.incarnation,
            "partition": planned.range.partition,
            "from_offset": planned.range.from_offset,
            "until_offset": planned.range.until_offset,
            "leader_epoch": planned.leader_epoch,
        }
        for key, ranges in zip(keys, plan.batches, strict=True)
        for planned in ranges
    ]
    insert(con, sql.INSERT_RANGES, _RANGE_ROWS, rows, stream=stream)


def loss_row(loss: Loss, noticed_at: datetime, batch: str | None = None) -> dict[str, object]:
    return {
        "batch": batch,
        "topic": loss.topic_partition.topic,
        "topic_id": loss.topic_id,
        "incarnation": loss.incarnation,
        "partition": loss.topic_partition.partition,
        "from_offset": loss.from_offset,
        "until_offset": loss.until_offset,
        "reason": loss.reason,
        "noticed_at": noticed_at,
    }


def claim_attempt(
    con: duckdb.DuckDBPyConnection, stream: str, batch: str, expected_attempts: int, now: datetime
) -> bool:
    """Count one more attempt of a planned batch; False where another has done so, or it is committed."""
    named = {"stream": stream, "batch": batch, "expected": expected_attempts, "now": now}
    return changed(con, sql.CLAIM_ATTEMPT, **named) == 1


def record_failure(
    con: duckdb.DuckDBPyConnection, stream: str, batch: str, *, error: str, blocked: bool
) -> None:
    """Write down why the last attempt of a batch failed. A batch once committed is never blocked."""
    changed(con, sql.RECORD_FAILURE, stream=stream, batch=batch, error=error, blocked=blocked)


def clear_block(con: duckdb.DuckDBPyConnection, stream: str, batch: str) -> None:
    """Let a blocked batch be run again."""
    changed(con, sql.CLEAR_BLOCK, stream=stream, batch=batch)


def move_classes(con: duckdb.DuckDBPyConnection, stream: str, moves: Sequence[ClassMove]) -> int:
    """Book offsets of committed ranges under other classes; return how many ranges were changed."""
    rows = [
        {
            "batch": move.batch,
            "topic": move.topic,
            "partition": move.partition,
            "loaded": move.loaded,
            "quarantined": move.quarantined,
            "offset_sum": str(move.offset_sum),
            "digest": str(move.digest),
        }
        for move in moves
    ]
    booked = insert(con, sql.MOVE_CLASSES, _MOVE_ROWS, rows, stream=stream, digest_function=DIGEST_FUNCTION)
    changed(con, sql.COUNT_ROWS_AGAIN, stream=stream, batches=sorted({move.batch for move in moves}))
    return booked


def count_quarantined(con: duckdb.DuckDBPyConnection | None, stream: str) -> int:
    """Return how many records of a stream are in quarantine."""
    if con is None or not has_ledger(con):
        return 0
    ((count,),) = con.execute(sql.COUNT_QUARANTINED, {"stream": stream}).fetchall()
    return int(count)

"""What the tests of the warehouse, the ledger and the coverage proof share, child processes included."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kafka_assets import commits, ledger, merging
from kafka_assets.config.values import TableName
from kafka_assets.digest import DIGEST_FUNCTION, digest_expression
from kafka_assets.evidence import RangeEvidence
from kafka_assets.formats import Column
from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition
from kafka_assets.planning import Loss, Plan, Position
from kafka_assets.records import mean_bytes
from kafka_assets.scope import WHOLE
from kafka_assets.staged import StagedRange
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from kafka_assets.ledger import BatchRow
    from kafka_assets.scope import ReplayScope

STREAM = "orders"
TABLE = TableName(schema=None, name="orders")
NOW = datetime(2026, 11, 23, 14, 5, 12, 42000, tzinfo=UTC)


RAW = (Column("_kafka_value", "BLOB"),)

STAGED_SCHEMA = pa.schema(
    {
        "_kafka_topic": pa.string(),
        "_kafka_partition": pa.int32(),
        "_kafka_offset": pa.int64(),
        "_kafka_timestamp": pa.timestamp("us", "UTC"),
        "_kafka_timestamp_type": pa.string(),
        "_kafka_key": pa.binary(),
        "_kafka_headers": pa.list_(pa.struct({"key": pa.string(), "value": pa.binary()})),
        "_kafka_value": pa.binary(),
    }
)


@dataclass(frozen=True, slots=True)
class StagedSlice:
    """What is read of the real one."""

    rows: int
    ranges: tuple[StagedRange, ...]
    bad: pa.Table


def warehouse_at(folder: Path, *, lock_timeout: float = 20.0) -> Warehouse:
    return Warehouse(folder / "w.duckdb", lock_timeout=lock_timeout, staging=folder / "w.duckdb.staging")


def planned(topic: str, partition: int, start: int, end: int, incarnation: int = 0) -> PlannedRange:
    return PlannedRange(OffsetRange(topic, partition, start, end), incarnation, f"id-{incarnation}", 3)


def plan_of(
    positions: Mapping[TopicPartition, Position],
    *batches: Sequence[PlannedRange],
    losses: Sequence[Loss] = (),
    start: int | None = None,
) -> Plan:
    """A plan of these batches, whose positions move as far as its ranges and losses reach."""
    after: dict[TopicPartition, Position] = {}
    pieces = [
        (r.range.topic_partition, r.incarnation, r.range.from_offset, r.range.until_offset)
        for b in batches
        for r in b
    ]
    pieces += [(o.topic_partition, o.incarnation, o.from_offset, o.until_offset) for o in losses]
    for place, incarnation, low, high in pieces:
        before = after.get(place) or positions.get(place)
        if before is None or before.incarnation != incarnation:
            first = low if start is None else start
            before = Position(f"id-{incarnation}", incarnation, first, first, 3)
        after[place] = replace(before, planned_until=max(before.planned_until, high))
    return Plan(batches=tuple(map(tuple, batches)), positions=after, losses=tuple(losses), reason=None)


def record(
    warehouse: Warehouse, plan: Plan, *, version: int, now: datetime = NOW, floor: str | None = None
) -> tuple[str, ...]:
    with warehouse.writing() as con:
        return ledger.record_plan(
            con,
            STREAM,
            table=TABLE,
            columns=RAW,
            fingerprint="raw/1",
            expected_version=version,
            plan=plan,
            planned_at=now,
            key_floor=floor,
        )


def rows_of(
    piece: OffsetRange, *, missing: Collection[int] = (), value: Callable[[int], bytes] | None = None
) -> pa.Table:
    offsets = [offset for offset in range(piece.from_offset, piece.until_offset) if offset not in missing]
    count = len(offsets)
    return pa.table(
        {
            "_kafka_topic": [piece.topic] * count,
            "_kafka_partition": [piece.partition] * count,
            "_kafka_offset": offsets,
            "_kafka_timestamp": [1_700_000_000_000_000 + offset for offset in offsets],
            "_kafka_timestamp_type": ["create"] * count,
            "_kafka_key": [b"key"] * count,
            "_kafka_headers": [None] * count,
            "_kafka_value": [(value or (lambda offset: b"v%d" % offset))(offset) for offset in offsets],
        },
        schema=STAGED_SCHEMA,
    )


def staged_of(
    pieces: Sequence[PlannedRange],
    *,
    missing: Collection[int] = (),
    lost: Sequence[OffsetRange] = (),
    bad: Collection[int] = (),
    value: Callable[[int], bytes] | None = None,
) -> tuple[StagedSlice, pa.Table]:
    """One slice as a fetch would have staged it, without the offsets `missing` (undeliverable) and `lost`.

    Those in `bad` do not decode.
    """
    ranges, tables, all_bad = [], [], []
    with duckdb.connect() as con:
        for piece in pieces:
            gone = {
                offset
                for stretch in lost
                if stretch.topic_partition == piece.range.topic_partition
                for offset in range(stretch.from_offset, stretch.until_offset)
            }
            table = rows_of(piece.range, missing={*missing, *gone}, value=value)
            offsets = table["_kafka_offset"].to_pylist()
            con.register("piece", table)
            digest = con.sql("FROM piece").aggregate(digest_expression(["_kafka_value"])).fetchall()[0][0]
            is_bad = pa.array([offset in bad for offset in offsets], pa.bool_())
            inside = {
                offset for offset in missing if piece.range.from_offset <= offset < piece.range.until_offset
            }
            evidence = RangeEvidence(
                planned=piece,
                records=len(offsets),
                gaps=len(inside - gone),
                undeliverable=len(inside - gone),
                lost=tuple(found for one in lost if (found := one.intersect(piece.range)) is not None),
                bytes=10 * len(offsets) if value is None else table["_kafka_value"].nbytes,
                min_timestamp_ms=1_700_000_000_000 if offsets else None,
                max_timestamp_ms=1_700_000_000_001 if offsets else None,
                offset_sum=sum(offsets),
                end_proof="record",
            )
            ranges.append(StagedRange(evidence, digest, DIGEST_FUNCTION, pc.sum(is_bad).as_py() or 0))
            tables.append(table.filter(pc.invert(is_bad)))
            all_bad.append(table.filter(is_bad))
    whole, aside = pa.concat_tables(tables), pa.concat_tables(all_bad)
    for name, text in (("stage", "decode"), ("error", "made bad")):
        aside = aside.append_column(name, pa.repeat(text, aside.num_rows))
    return StagedSlice(whole.num_rows, tuple(ranges), aside), whole


def commit(
    warehouse: Warehouse,
    batch: str,
    slices: Sequence[tuple[StagedSlice, pa.Table]],
    *,
    generation: int = 0,
    run: str = "run-1",
    now: datetime = NOW,
    scope: ReplayScope = WHOLE,
) -> BatchRow:
    data = [table for _, table in slices]
    with warehouse.writing(bytes_per_record=mean_bytes(*data)) as con:
        return commits.commit_batch(
            con,
            STREAM,
            batch,
            expected_generation=generation,
            staged=[staged for staged, _ in slices],  # type: ignore[misc]  # stand-ins with what is read of them
            data=data,
            bad=[staged.bad for staged, _ in slices],
            table=TABLE,
            columns=RAW,
            run_id=run,
            fingerprint="raw/1",
            now=now,
            scope=scope,
        )


def state_of(warehouse: Warehouse) -> ledger.StreamState:
    with warehouse.reading() as con:
        return ledger.read_stream(con, STREAM)


def await_true(condition: Callable[[], bool]) -> None:
    while not condition():
        # Between two looks at the condition.
        time.sleep(0.005)


def hold(folder: Path, mode: str, pipe: Connection) -> None:
    """Child: hold the file until told to stop."""
    warehouse = warehouse_at(folder)
    with warehouse.writing() if mode == "write" else warehouse.reading():
        pipe.send(os.getpid())
        pipe.recv()


def hold_foreign(path: Path, pipe: Connection) -> None:
    """Child: hold the file as a program does that knows nothing of the locks beside it."""
    con = duckdb.connect(str(path))
    pipe.send(os.getpid())
    pipe.recv()
    con.close()


def append_rows(folder: Path, count: int) -> None:
    """Child: add rows to table `t`, one a transaction."""
    warehouse = warehouse_at(folder, lock_timeout=60)
    for _ in range(count):
        with warehouse.writing() as con:
            con.execute("INSERT INTO t SELECT coalesce(max(i), 0) + 1 FROM t").fetchall()


def create_over_and_over(folder: Path, pipe: Connection) -> None:
    """Child: make one new warehouse after the other until killed."""
    number = 0
    while True:
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        with warehouse_at(place).writing() as con:
            con.execute("CREATE TABLE t AS SELECT 1 AS i").fetchall()
        pipe.send(number)
        number += 1


def plan_and_commit_for_ever(folder: Path, size: int, value_bytes: int, pipe: Connection) -> None:
    """Child: plan and commit batches, and replay some, saying after each what is certainly in the file.

    Every fifth record is bad. Large ones are merged with every second commit.
    """
    merging.FANOUT = 2
    value = None if value_bytes == 0 else lambda offset: b"%d" % offset * (value_bytes // len(str(offset)))
    warehouse = warehouse_at(folder)
    bad_ones = range(3, 1 << 40, 5)
    while True:
        state = state_of(warehouse)
        for batch in state.open_batches:
            commit(warehouse, batch.batch, [staged_of(batch.ranges, missing={7}, bad=bad_ones, value=value)])
            pipe.send(("committed", batch.batch))
        if len(state.recently_committed) % 3 == 2:
            last = state.recently_committed[0]
            staged = staged_of(last.ranges, missing={7}, bad=bad_ones, value=value)
            commit(warehouse, last.batch, [staged], generation=last.generation)
            pipe.send(("replayed", last.batch))
        ranges = []
        for partition in range(2):
            position = state.positions.get(TopicPartition("orders", partition))
            start = position.planned_until if position else 0
            ranges.append(planned("orders", partition, start, start + size))
        for key in record(warehouse, plan_of(state.positions, ranges), version=state.plan_version):
            pipe.send(("planned", key))


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

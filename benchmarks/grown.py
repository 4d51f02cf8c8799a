"""A warehouse as years of batches leave it: the product makes the first batch, SQL multiplies it.

What is multiplied is what the product wrote: its table, its ledger rows, outcomes and digests, so that the
coverage proof of the whole holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from benchmarks.environments import say
from kafka_assets import batches, coverage, ledger_sql, planner
from kafka_assets.config import load_config
from kafka_assets.digest import digest_expression
from kafka_assets.evidence import RangeEvidence
from kafka_assets.formats import get_format
from kafka_assets.offsets import TopicPartition
from kafka_assets.planner import Survey
from kafka_assets.planning import LogBounds, Plan, Position
from kafka_assets.records import RAW_SCHEMA
from kafka_assets.staging import stage
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kafka_assets.config import Config
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.staged import StagedSlice

STREAM = "orders"
TOPIC_ID = "5f0dB0x1Qd2kYB9zTq3m7A"
PARTITIONS = 4
FIRST_BATCH = datetime(2026, 1, 1, tzinfo=UTC)
BETWEEN_BATCHES = timedelta(seconds=30)
_CHUNK_ROWS = 4_000_000

STREAMS_FILE = """
kafka: {bootstrap.servers: 127.0.0.1:9}
warehouse: {uri: "duckdb:///w.duckdb"}
streams:
  orders: {topics: [orders], format: raw}
"""

# A record's values follow from its number alone.
_VALUE = """encode(concat('{"order": ', n, ', "customer": "', hash(n), '", "amount": ', n % 1000, '}'))"""

_ROWS = """
INSERT INTO {table} BY NAME
SELECT
    'orders' AS _kafka_topic,
    ((n // {share}) % {partitions})::INTEGER AS _kafka_partition,
    (n // {rows}) * {share} + n % {share} AS _kafka_offset,
    $first + to_milliseconds((n // {rows}) * {apart}) AS _kafka_timestamp,
    'create' AS _kafka_timestamp_type,
    encode((n % 10000)::VARCHAR) AS _kafka_key,
    NULL AS _kafka_headers,
    {key} AS _kafka_batch,
    $first + to_milliseconds((n // {rows} + 1) * {apart}) AS _ingested_at,
    {value} AS _kafka_value
FROM range($low, $high) AS numbers(n)
"""

_RANGES = """
INSERT INTO kafka_assets_ledger.offset_ranges BY NAME
SELECT template.* REPLACE (
    made.batch AS batch, made.low AS from_offset, made.high + 1 AS until_offset,
    made.stamp AS min_timestamp, made.stamp AS max_timestamp,
    made.offset_sum AS offset_sum, made.digest AS digest
)
FROM (
    SELECT
        _kafka_batch AS batch, _kafka_partition AS "partition", min(_kafka_offset) AS low, max(_kafka_offset) AS high,
        max(_kafka_timestamp) AS stamp, sum(_kafka_offset) AS offset_sum, {digest} AS digest
    FROM {table}
    WHERE _kafka_batch >= $from AND _kafka_batch <= $until
    GROUP BY ALL
) AS made
JOIN kafka_assets_ledger.offset_ranges AS template USING ("partition")
WHERE template.stream = 'orders' AND template.batch = $template
ORDER BY made.batch, "partition"
"""

_BATCHES = """
INSERT INTO kafka_assets_ledger.batches BY NAME
SELECT template.* REPLACE (
    {key} AS batch,
    $first + to_milliseconds(i * {apart}) AS planned_at,
    $first + to_milliseconds(i * {apart}) AS launched_at,
    $first + to_milliseconds((i + 1) * {apart}) AS committed_at
)
FROM range($low, $high) AS numbers(i), kafka_assets_ledger.batches AS template
WHERE template.stream = 'orders' AND template.batch = $template
ORDER BY i
"""


@dataclass(frozen=True, slots=True)
class Made:
    """What a fetch of these ranges would hand on, made here."""

    ranges: tuple[PlannedRange, ...]

    @property
    def evidence(self) -> tuple[RangeEvidence, ...]:
        """All of it delivered."""
        return tuple(
            RangeEvidence(
                planned=one,
                records=one.range.size,
                gaps=0,
                undeliverable=0,
                lost=(),
                bytes=70 * one.range.size,
                min_timestamp_ms=round(FIRST_BATCH.timestamp() * 1000),
                max_timestamp_ms=round(FIRST_BATCH.timestamp() * 1000),
                offset_sum=sum(range(one.range.from_offset, one.range.until_offset)),
                end_proof="record",
            )
            for one in self.ranges
        )

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for one in self.ranges:
            offsets = range(one.range.from_offset, one.range.until_offset)
            count = len(offsets)
            yield pa.RecordBatch.from_pydict(
                {
                    "_kafka_topic": [one.range.topic] * count,
                    "_kafka_partition": [one.range.partition] * count,
                    "_kafka_offset": offsets,
                    "_kafka_timestamp": [FIRST_BATCH] * count,
                    "_kafka_timestamp_type": ["create"] * count,
                    "_kafka_key": [b"%d" % (offset % 10_000) for offset in offsets],
                    "_kafka_headers": [None] * count,
                    "_kafka_value": [b'{"order": %d, "customer": "%d"}' % (n, n * 7919) for n in offsets],
                },
                schema=RAW_SCHEMA,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Grown:
    """A warehouse in a folder of its own, with one stream.

    Args:
        folder: Where its streams file and its database are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "streams.yaml"
        self.file.write_text(STREAMS_FILE)
        self.config: Config = load_config(self.file)
        self.stream = self.config.stream(STREAM)
        self.warehouse = Warehouse.of(self.config.warehouse)

    def plan(self, size: int, *, now: datetime | None = None) -> str:
        """Plan a batch of so many offsets in the way of a tick, brokers apart, and return its key."""
        state = planner.read_state(self.stream, self.warehouse)
        share = size // PARTITIONS
        bounds: dict[TopicPartition, LogBounds] = {}
        for number in range(PARTITIONS):
            place = TopicPartition(STREAM, number)
            position = state.positions.get(place, Position(TOPIC_ID, 0, 0, 0))
            end = position.planned_until + share
            bounds[place] = LogBounds(0, end, end, TOPIC_ID, 0)
        seen = Survey(state, bounds, (), frozenset())
        at = now or planner.utc_now()
        plan: Plan = planner.propose(self.stream, seen, _NoLog(), now=at, drain=True)  # type: ignore[arg-type]
        (key,) = planner.record(self.stream, self.warehouse, seen, plan, now=at, claim=True)
        return key

    def staged(self, key: str) -> list[StagedSlice]:
        """Stage a batch's rows in memory, as `ingest` does."""
        batch = batches.read_batch(self.stream, self.warehouse, key)
        folder = self.warehouse.staging / key
        return [stage(Made(batch.ranges), get_format(self.stream.format), folder, "0", memory_bytes=2**30)]

    def commit(self, key: str, staged: list[StagedSlice]) -> None:
        """Commit a batch in the way of its run."""
        batch = batches.read_batch(self.stream, self.warehouse, key)
        batches.commit(
            self.stream, self.warehouse, batch, staged, run_id="4b7b1e0c-0000-0000-0000-000000000000"
        )

    def proof(self, key: str) -> None:
        """Prove a batch in the way of its run.

        Raises:
            RuntimeError: The proof does not hold.
        """
        with self.warehouse.reading() as con:
            found = coverage.verify(con, STREAM, get_format(self.stream.format).columns, batch=key)
        if not found.ok:
            raise RuntimeError(found.problems[0])

    def grow(self, rows: int, count: int) -> None:
        """Have it hold so many rows in so many batches of one size, from none."""
        each = rows // count
        share = each // PARTITIONS
        template = self.plan(share * PARTITIONS, now=FIRST_BATCH)
        self.commit(template, self.staged(template))
        own = [column.name for column in get_format(self.stream.format).columns]
        apart = round(BETWEEN_BATCHES.total_seconds() * 1000)
        key = f"strftime($first + to_milliseconds({{}} * {apart}), '%Y%m%dT%H%M%S%gZ')"
        words = {
            "table": self.stream.table.quoted,
            "rows": each,
            "share": share,
            "partitions": PARTITIONS,
            "apart": apart,
            "value": _VALUE,
            "digest": digest_expression(own),
        }
        began = time.monotonic()
        step = max(1, _CHUNK_ROWS // each)
        for low in range(1, count, step):
            high = min(count, low + step)
            named = {"first": FIRST_BATCH, "template": template}
            with self.warehouse.writing() as con:
                con.execute(
                    _ROWS.format(**words, key=key.format(f"(n // {each})")),
                    {"first": FIRST_BATCH, "low": low * each, "high": high * each},
                ).fetchall()
                con.execute(
                    _BATCHES.format(**words, key=key.format("i")), {**named, "low": low, "high": high}
                ).fetchall()
                con.execute(
                    _RANGES.format(**words),
                    {"template": template, "from": _key(low), "until": _key(high - 1)},
                ).fetchall()
                con.execute(
                    "UPDATE kafka_assets_ledger.positions SET planned_until = $until", {"until": high * share}
                ).fetchall()
            say(f"{high:,} of {count:,} batches, {time.monotonic() - began:.0f} s")
        with self.warehouse.writing() as con:
            con.execute(
                f"UPDATE kafka_assets_ledger.offset_ranges AS planned {ledger_sql.settled({})}"
            ).fetchall()


class _NoLog:
    """Asked for nothing by a plan whose bounds are given."""


def _key(number: int) -> str:
    moment = FIRST_BATCH + number * BETWEEN_BATCHES
    return f"{moment.strftime('%Y%m%dT%H%M%S')}{moment.microsecond // 1000:03d}Z"

"""`replay`: fetch planned ranges again and replace exactly their rows, a Dagster run for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka_assets import batches
from kafka_assets import ledger_sql as sql
from kafka_assets.errors import KafkaAssetsError, UsageInvalidError
from kafka_assets.ledger import has_ledger, read_stream
from kafka_assets.offsets import OffsetRange, merge
from kafka_assets.orchestration.ingest import replay as run_again
from kafka_assets.scope import ReplayScope
from kafka_assets.statements import quote_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.orchestration.execution import RunExecutor
    from kafka_assets.orchestration.ingest import Progress
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.warehouse import Warehouse


@dataclass(frozen=True, slots=True)
class Replay:
    """What is to be fetched again of one batch.

    Attributes:
        batch: As it was when the replay was asked for.
        ranges: The ranges concerned: whole planned ones. All of a batch that is only planned, since it is loaded
            as a whole or not at all.
    """

    batch: BatchRow
    ranges: tuple[OffsetRange, ...]

    @property
    def offsets(self) -> int:
        return sum(one.size for one in self.ranges)


@dataclass(frozen=True, slots=True)
class Replaced:
    """How many rows of a range were replaced."""

    range: OffsetRange
    rows: int


def of_batches(stream: StreamConfig, warehouse: Warehouse, keys: Sequence[str]) -> tuple[Replay, ...]:
    """Return whole batches to replay, in the order given, each once.

    Raises:
        BatchUnknownError: The ledger has no such batch.
    """
    found = [batches.read_batch(stream, warehouse, key) for key in dict.fromkeys(keys)]
    return tuple(Replay(batch, tuple(one.range for one in batch.ranges)) for batch in found)


def of_ranges(stream: StreamConfig, warehouse: Warehouse, asked: Sequence[OffsetRange]) -> tuple[Replay, ...]:
    """Return the planned ranges of the current incarnation that meet the offsets asked for, oldest batch first.

    Raises:
        UsageInvalidError: Some of the offsets are below the stream's first or beyond its last planned one.
    """
    wanted: dict[str, list[OffsetRange]] = {}
    with warehouse.reading() as con:
        positions = read_stream(con, stream.name).positions
        for one in asked:
            position = positions.get(one.topic_partition)
            low, high = (position.start_offset, position.planned_until) if position else (0, 0)
            if not low <= one.from_offset < one.until_offset <= high:
                planned = f"[{low}, {high}) are planned" if position else "none is planned"
                raise UsageInvalidError(
                    f"{one} cannot be replayed: of {one.topic_partition} in stream {stream.name!r} the offsets"
                    f" {planned}. Nothing was changed. `kafka-assets backfill` reads what lies before."
                )
            assert con is not None  # noqa: S101  there was a position
            named = {
                "stream": stream.name,
                "topic": one.topic,
                "partition": one.partition,
                "from_offset": one.from_offset,
                "until_offset": one.until_offset,
            }
            for key, *place in con.execute(sql.PLANNED_WITHIN.format(asked=sql.BY_OFFSET), named).fetchall():
                wanted.setdefault(key, []).append(OffsetRange(*place))
    return _replays(stream, warehouse, wanted)


def of_times(
    stream: StreamConfig, warehouse: Warehouse, since: datetime | None, until: datetime | None
) -> tuple[Replay, ...]:
    """Return the loaded ranges of the current incarnation with records in `[since, until)`, oldest batch first.

    A range is known by the first and the last timestamp that was seen in it, so a batch that is only planned is
    never among them, nor a range without timestamps.
    """
    wanted: dict[str, list[OffsetRange]] = {}
    with warehouse.reading() as con:
        if con is not None and has_ledger(con):
            named = {"stream": stream.name, "since": since, "until": until}
            for key, *place in con.execute(
                sql.PLANNED_WITHIN.format(asked=sql.BY_TIMESTAMP), named
            ).fetchall():
                wanted.setdefault(key, []).append(OffsetRange(*place))
    return _replays(stream, warehouse, wanted)


def _replays(
    stream: StreamConfig, warehouse: Warehouse, wanted: Mapping[str, Sequence[OffsetRange]]
) -> tuple[Replay, ...]:
    replays = []
    for key in sorted(wanted):
        batch = batches.read_batch(stream, warehouse, key)
        whole = tuple(one.range for one in batch.ranges)
        ranges = tuple(one for one in whole if one in set(wanted[key])) if batch.generation else whole
        replays.append(Replay(batch, ranges))
    return tuple(replays)


def widened(asked: Sequence[OffsetRange], replays: Sequence[Replay]) -> tuple[OffsetRange, ...]:
    """Return what is fetched again beyond the offsets asked for, in order."""
    beyond = [one for replay in replays for one in replay.ranges]
    for one in merge(asked):
        beyond = [rest for piece in beyond for rest in piece.subtract(one)]
    return merge(beyond)


def run_replays(
    stream: StreamConfig,
    runtime: Runtime,
    executor: RunExecutor,
    replays: Sequence[Replay],
    *,
    merge_rows: bool,
    progress: Progress,
) -> tuple[list[Replaced], KafkaAssetsError | None]:
    """Replay each, as far as each can; return what was replaced, and the first error.

    Args:
        stream: The stream.
        runtime: Of the code location.
        executor: Executes the runs.
        replays: What to replay.
        merge_rows: Keep the rows that Kafka no longer gives back, and replace the others.
        progress: Told of the offsets.
    """
    done: list[Replaced] = []
    failed: KafkaAssetsError | None = None
    progress.total(sum(replay.offsets for replay in replays))
    for replay in replays:
        whole = len(replay.ranges) == len(replay.batch.ranges)
        scope = ReplayScope(() if whole else replay.ranges, merge=merge_rows)
        try:
            after = run_again(stream, runtime, executor, replay.batch.batch, scope)
        except KafkaAssetsError as error:
            failed = failed or error
            continue
        progress.advance(replay.offsets)
        done += _replaced(stream, runtime.warehouse, replay, after, merged=merge_rows)
    return done, failed


def _replaced(
    stream: StreamConfig, warehouse: Warehouse, replay: Replay, after: BatchRow, *, merged: bool
) -> list[Replaced]:
    before = {
        planned.range: outcome.loaded
        for planned, outcome in zip(replay.batch.ranges, replay.batch.outcomes, strict=False)
    }
    if not merged or not before:
        return [Replaced(one, before.get(one, 0)) for one in replay.ranges]
    # Rows that were kept have the time of an earlier commit.
    named = {"batch": after.batch, "committed_at": after.committed_at}
    with warehouse.reading() as con:
        statement = sql.ROWS_REPLACED.format(table=quote_table(stream.table))
        rows = con.execute(statement, named).fetchall() if con else []
    written = {(topic, partition): count for topic, partition, count in rows}
    return [Replaced(one, written.get((one.topic, one.partition), 0)) for one in replay.ranges]

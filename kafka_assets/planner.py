"""One round of planning: read the ledger, ask the brokers, plan, record the plan by compare-and-swap."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kafka_assets import ledger, ledger_sql, planning, sampling
from kafka_assets.backpressure import current_rate
from kafka_assets.collector import rare_collections
from kafka_assets.config import Assignment, TopicPattern
from kafka_assets.errors import ConfigInvalidError, KafkaAssetsError, LogTruncatedError, TableTakenError
from kafka_assets.formats import get_format
from kafka_assets.offsets import OffsetRange, is_other_topic
from kafka_assets.records import HUGE_RECORD_BYTES, ROW_GROUP_ROWS
from kafka_assets.starting import resolve_starts, timestamps_to_find

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import Kind, StreamState
    from kafka_assets.log import KafkaLog
    from kafka_assets.offsets import TopicPartition
    from kafka_assets.planning import LogBounds, Plan
    from kafka_assets.warehouse import Warehouse

UNKNOWN_RECORD_BYTES = 1024
"""Assumed of records of which not one could be read yet, so that the first batch is no giant."""

FEW_OFFSETS = 20
"""So many records make no batch too large, whatever their size."""

HUGE_BATCH_BYTES = 96 * 1024**2
"""DuckDB has the values of 2,048 rows in memory at once: of huge ones those of a whole batch, up to four times."""

RATE_SECONDS = 2.0
"""How long a rate that is only to be shown may wait for the file."""

TRUNCATION_READS = 3
TRUNCATION_READ_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at the ledger and at the brokers saw.

    Attributes:
        state: The stream's part of the ledger.
        bounds: The log of every topic-partition the stream reads.
        missing: Topics (or `topic[partition]`) the stream names and the brokers do not have.
        truncated: Topic-partitions whose high watermark stayed below the planned end in every confirming read,
            and those of which a fetch found it by the leader epochs.
    """

    state: StreamState
    bounds: Mapping[TopicPartition, LogBounds]
    missing: tuple[str, ...]
    truncated: frozenset[TopicPartition]


def read_state(stream: StreamConfig, warehouse: Warehouse, *, timeout: float | None = None) -> StreamState:
    """Read the stream's part of the ledger under the shared lock; an empty state where there is no warehouse."""
    with warehouse.reading(timeout) as connection:
        return ledger.read_stream(connection, stream.name, paced=stream.backpressure is not None)


def survey(
    stream: StreamConfig,
    warehouse: Warehouse,
    log: KafkaLog,
    *,
    timeout: float | None = None,
    state: StreamState | None = None,
) -> Survey:
    """Read the ledger, unless its `state` is known, and the bounds of the stream's topic-partitions.

    The ledger is read first: its positions can then only be older than the bounds, never beyond them.
    """
    if state is None:
        state = read_state(stream, warehouse, timeout=timeout)
    # Three answers for each topic-partition come in objects of their own.
    with rare_collections():
        found = log.topic_partitions(stream.selection)
        bounds = log.bounds(found.partitions, topic_ids=found.topic_ids)
    truncated = _confirm_truncated(state, bounds, log) | _met_by_fetches(state, bounds)
    return Survey(state, bounds, found.missing, truncated)


def _confirm_truncated(
    state: StreamState, bounds: Mapping[TopicPartition, LogBounds], log: KafkaLog
) -> frozenset[TopicPartition]:
    """Read again before believing that a log ends below the plan: a new leader may answer with an old end.

    A topic of another id is another matter, and the planner's.
    """
    suspects = {
        partition
        for partition, position in state.positions.items()
        if partition in bounds
        and bounds[partition].high_watermark < position.planned_until
        and not is_other_topic(position.topic_id, bounds[partition].topic_id)
    }
    for _ in range(TRUNCATION_READS - 1):
        if not suspects:
            break
        time.sleep(TRUNCATION_READ_SECONDS)
        again = log.bounds(suspects)
        suspects = {
            partition
            for partition in suspects
            if partition in again
            and again[partition].high_watermark < state.positions[partition].planned_until
            and not is_other_topic(state.positions[partition].topic_id, again[partition].topic_id)
        }
    return frozenset(suspects)


def _met_by_fetches(
    state: StreamState, bounds: Mapping[TopicPartition, LogBounds]
) -> frozenset[TopicPartition]:
    """Return the topic-partitions with a batch that is blocked because its fetch met a truncated log.

    Once the log has grown past the planned end again its bounds say nothing of it, and to plan on from there would
    pass over the records that took the place of those taken back.
    """
    return frozenset(
        partition
        for batch in state.open_batches
        if batch.blocked and batch.last_error
        for planned in batch.ranges
        if (partition := planned.range.topic_partition) in bounds
        and batch.last_error.startswith(f"{LogTruncatedError.code}: {partition} [")
        and planned.incarnation == state.positions[partition].incarnation
    )


def outstanding(seen: Survey) -> int:
    """Return how many offsets are not committed: of open batches, and of the logs behind all that is planned."""
    pending = sum(planned.range.size for batch in seen.state.open_batches for planned in batch.ranges)
    return pending + sum(one.size for one in _left(seen, {}))


def propose(
    stream: StreamConfig,
    seen: Survey,
    log: KafkaLog,
    *,
    now: datetime,
    drain: bool = False,
    ends: Mapping[TopicPartition, int] | None = None,
) -> Plan:
    """Plan what a tick would plan from what was seen; changes nothing.

    Args:
        stream: The stream to plan.
        seen: The ledger and the bounds.
        log: Asked only for the offsets of a start by timestamp. As long as no batch has told the size of
            records, a few of them are read.
        now: The planning time.
        drain: Do not wait for a minimum batch or for the interval.
        ends: Ends not to plan beyond; topic-partitions it does not name are left out.
    """
    state = seen.state
    starts: Mapping[TopicPartition, int] = {}
    if not state.known:
        spec = stream.starting_offsets
        wanted = timestamps_to_find(spec, seen.bounds)
        starts = resolve_starts(spec, seen.bounds, log.offsets_at(wanted) if wanted else {})
    live = [batch for batch in state.open_batches if batch.kind == "live"]
    blocked = sum(batch.blocked for batch in live)
    if state.bytes_per_record is None and len(live) - blocked < stream.max_batches_in_flight:
        left = _left(seen, starts)
        if sum(one.size for one in left) > FEW_OFFSETS:
            sampled = sampling.bytes_per_record(stream.kafka.resolve(), left)
            state = replace(state, bytes_per_record=sampled)
    limits = limits_of(stream, state)
    if drain and state.bytes_per_record is None and limits.records < limits.max_records_per_batch:
        # The assumed size decides: one batch is enough to learn the true one, and the next are as large as may be.
        limits = replace(limits, max_batches_in_flight=1)
    return planning.plan(
        state.positions,
        seen.bounds,
        starts=starts,
        limits=limits,
        policy=planning.Policy(stream.on_data_loss, stream.on_topic_recreated),
        now=now.timestamp(),
        last_planned_at=state.last_planned_at.timestamp() if state.last_planned_at else None,
        open_batches=len(live) - blocked,
        missing_topics=seen.missing,
        truncated=seen.truncated,
        drain=drain,
        waiting_since=state.registered_at.timestamp() if state.registered_at else now.timestamp(),
        blocked_batches=blocked,
        ends=ends,
        whole_topics=not isinstance(stream.selection, Assignment),
    )


def _left(seen: Survey, starts: Mapping[TopicPartition, int]) -> list[OffsetRange]:
    """Return what no plan has yet of each log; of a topic that was recreated or has lost offsets about that."""
    positions = seen.state.positions
    left = []
    for partition, bounds in seen.bounds.items():
        reached = (
            positions[partition].planned_until
            if partition in positions
            else starts.get(partition, bounds.log_start)
        )
        if bounds.log_start < bounds.end:
            low = min(max(reached, bounds.log_start), bounds.end)
            left.append(OffsetRange(partition.topic, partition.partition, low, bounds.end))
    return left


def limits_of(stream: StreamConfig, state: StreamState) -> planning.Limits:
    """Return what the next batch may take, by the stream's options and by what its last batches were like."""
    size = state.bytes_per_record or UNKNOWN_RECORD_BYTES
    most = HUGE_BATCH_BYTES if size > HUGE_RECORD_BYTES else stream.max_bytes_per_batch
    return planning.Limits(
        max_records_per_batch=stream.max_records_per_batch,
        max_records_per_partition_per_second=stream.max_records_per_partition_per_second,
        max_bytes_per_batch=min(most, stream.max_bytes_per_batch),
        bytes_per_record=size,
        # What a batch has of a row group is written again with what the next one adds to it.
        unit=ROW_GROUP_ROWS,
        min_records_per_batch=stream.min_records_per_batch,
        max_batch_delay=stream.max_batch_delay,
        max_batches_in_flight=stream.max_batches_in_flight,
        interval=stream.interval,
        backpressure=stream.backpressure is not None,
        records_per_second=rate_of(stream, state),
    )


def rate_of(stream: StreamConfig, state: StreamState) -> int | None:
    """Return the rate that backpressure allows the stream now, in offsets a second; None for no limit by it."""
    if stream.backpressure is None:
        return None
    return current_rate(stream.backpressure, stream.interval, state.completed)


def rate_now(stream: StreamConfig, warehouse: Warehouse) -> int | None:
    """Return the same as the ledger has it now, to be shown; None also where the ledger cannot be read."""
    if stream.backpressure is None:
        return None
    try:
        return rate_of(stream, read_state(stream, warehouse, timeout=RATE_SECONDS))
    except KafkaAssetsError:
        return None


def record(
    stream: StreamConfig,
    warehouse: Warehouse,
    seen: Survey,
    plan: Plan,
    *,
    now: datetime,
    key_floor: str | None = None,
    claim: bool = False,
    timeout: float | None = None,
    kind: Kind = "live",
) -> tuple[str, ...]:
    """Write the plan into the ledger, if it changes anything, and return the keys of its batches.

    Args:
        stream: The stream planned.
        warehouse: Where its ledger is.
        seen: What the plan was made from: the plan is refused if the ledger has moved on since.
        plan: The plan.
        now: The planning time.
        key_floor: A key that the new ones must be greater than, beside those of the ledger.
        claim: Count a first attempt of each batch in the same transaction.
        timeout: Seconds to wait for the file; `lock_timeout` by default.
        kind: Of its batches.

    Raises:
        PlanConflictError: Another planner was faster; look again.
        TableTakenError: The table is another's.
    """
    # A pattern may match nothing yet: the stream has started all the same, and what comes later begins at its
    # earliest offset.
    starts = isinstance(stream.selection, TopicPattern) and not (seen.state.known or plan.stops)
    if not (plan.batches or plan.positions or plan.losses or starts):
        return ()
    fmt = get_format(stream.format)
    with warehouse.writing(timeout) as connection:
        ledger.ensure_schema(connection)
        keys = ledger.record_plan(
            connection,
            stream.name,
            table=stream.table,
            columns=fmt.columns,
            fingerprint=fmt.fingerprint,
            expected_version=seen.state.plan_version,
            plan=plan,
            planned_at=now,
            key_floor=key_floor,
            kind=kind,
        )
        if claim:
            for key in keys:
                ledger.claim_attempt(connection, stream.name, key, 0, now)
    return keys


def check_table(stream: StreamConfig, warehouse: Warehouse) -> None:
    """Check, before anything is planned, that `record` would not be refused for the stream's table.

    Raises:
        TableTakenError: The table is another stream's, or is there and no stream made it.
        ConfigInvalidError: The stream's rows are in another table.
        WarehouseInvalidError: The table no longer fits.
    """
    table = stream.table
    schema = table.schema or "main"
    named = {"schema": schema, "name": table.name}
    with warehouse.reading() as connection:
        if connection is None:
            return
        state = ledger.read_stream(connection, stream.name)
        known = state.table
        if known and known.lower().removeprefix("main.") == f"{schema}.{table.name}".lower().removeprefix(
            "main."
        ):
            ledger.check_table(connection, table, get_format(stream.format).columns)
            return
        has_ledger = ledger.has_ledger(connection)
        owners = connection.execute(ledger_sql.TABLE_OWNER, named).fetchall() if has_ledger else []
        columns = connection.execute(ledger_sql.TABLE_COLUMNS, named).fetchall()
    if known:
        raise ConfigInvalidError(
            f"stream {stream.name} has its rows in table {known}, but the streams file now says {table}. Rows of a"
            f" stream are in one table, so nothing is planned. Set `table: {known}`."
        )
    if owners or columns:
        whose = f"belongs to stream {owners[0][0]}" if owners else "is there already and no stream made it"
        raise TableTakenError(
            f"table {table}, which stream {stream.name} is to fill, {whose}, so nothing is planned. Name another"
            " table with `table:`."
        )


def utc_now() -> datetime:
    return datetime.now(UTC)

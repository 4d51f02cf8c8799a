"""The way of one batch: read its plan, fetch its slices to staged files, commit them.

Whoever runs a batch (sensor, a click, a backfill, a retry, the command line) comes through here.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kafka_assets import commits, ledger
from kafka_assets.errors import BatchUnknownError, KafkaAssetsError, RangeUnavailableError, RunFailedError
from kafka_assets.fetch import FetchCancelledError, RangeReader
from kafka_assets.formats import get_format
from kafka_assets.planner import utc_now
from kafka_assets.scope import WHOLE
from kafka_assets.slicing import slice_ranges
from kafka_assets.staging import StagedDamagedError, StagedSlice, batch_directory, discard, open_staged, stage
from kafka_assets.warehouse import CommitUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from kafka_assets.config import StreamConfig
    from kafka_assets.config.values import OnDataLoss
    from kafka_assets.ledger import BatchRow
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.scope import ReplayScope
    from kafka_assets.warehouse import Warehouse

logger = logging.getLogger(__name__)

OFFSETS_WORTH_A_SLICE = 250_000
MAX_SLICES = 4

Outcome = Literal["loaded", "replaced", "found committed"]


@dataclass(frozen=True, slots=True)
class Committed:
    """How a batch's commit ended.

    Attributes:
        batch: The batch as the ledger has it now.
        outcome: Whether this run loaded the rows, replaced them, or found them committed by another.
    """

    batch: BatchRow
    outcome: Outcome


def read_batch(stream: StreamConfig, warehouse: Warehouse, key: str) -> BatchRow:
    """Read a batch from the ledger.

    Raises:
        BatchUnknownError: The ledger has no such batch; nothing says which offsets it would be.
    """
    with warehouse.reading() as connection:
        batch = ledger.read_batch(connection, stream.name, key)
    if batch is None:
        raise BatchUnknownError(
            f"stream {stream.name!r} has no batch {key!r} in the ledger of {warehouse.path}, so nothing says which"
            " offsets it holds. Batches are planned by the sensor or by `kafka-assets ingest`, never made by"
            f" hand; `kafka-assets status {stream.name}` shows what is there."
        )
    return batch


def ranges_to_fetch(
    stream: StreamConfig, warehouse: Warehouse, batch: BatchRow, scope: ReplayScope
) -> tuple[PlannedRange, ...]:
    """Return the ranges that a run of a batch fetches: all of one that is planned, else those to be replaced.

    Raises:
        UsageInvalidError: The scope names what is no range of the batch.
        RangeUnavailableError: A range to be replaced is of an earlier incarnation of its topic.
    """
    if not batch.generation:
        return batch.ranges
    ranges = scope.of(batch.ranges)
    with warehouse.reading() as connection:
        positions = ledger.read_stream(connection, stream.name).positions
    for planned in ranges:
        position = positions.get(planned.range.topic_partition)
        if position is not None and planned.incarnation < position.incarnation:
            # Without topic ids the fetch could not tell, and would read other records under these offsets.
            raise RangeUnavailableError(
                f"{planned.range} is of incarnation {planned.incarnation} of its topic, which has begun anew since"
                f" (incarnation {position.incarnation}): Kafka no longer has these records. The rows stay as they"
                " are."
            )
    return ranges


def slices_of(batch: BatchRow) -> tuple[tuple[PlannedRange, ...], ...]:
    """Cut a batch into slices of about even size, one fetching thread each."""
    size = sum(planned.range.size for planned in batch.ranges)
    wanted = min(MAX_SLICES, os.cpu_count() or 1, 1 + size // OFFSETS_WORTH_A_SLICE)
    return slice_ranges(batch.ranges, wanted)


def stage_slices(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: BatchRow,
    slices: Sequence[Sequence[PlannedRange]],
    *,
    name: str,
    memory_bytes: int = 0,
    should_stop: Callable[[], bool] | None = None,
    on_data_loss: OnDataLoss | None = None,
) -> list[StagedSlice]:
    """Fetch slices of a batch, as `stage_ranges` does."""
    return stage_ranges(
        stream,
        warehouse,
        batch.batch,
        batch.generation,
        slices,
        name=name,
        memory_bytes=memory_bytes,
        should_stop=should_stop,
        on_data_loss=on_data_loss,
    )


def stage_ranges(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: str,
    generation: int,
    slices: Sequence[Sequence[PlannedRange]],
    *,
    name: str,
    memory_bytes: int = 0,
    should_stop: Callable[[], bool] | None = None,
    on_data_loss: OnDataLoss | None = None,
) -> list[StagedSlice]:
    """Fetch slices, a thread each, and stage each as `<generation>-<name>-<slice>`.

    Args:
        stream: The stream.
        warehouse: Beside which the staging area is.
        batch: The key of the batch they are of.
        generation: Of the batch: a higher one than 0 is replayed.
        slices: What to fetch.
        name: Of this fetch among those of the batch.
        memory_bytes: How much of it all may stay in this process's memory, for a commit that follows in it.
        should_stop: Asked several times a second; True ends the fetch with an error.
        on_data_loss: Overrides the stream's, which a replay never follows: what Kafka no longer has is not lost
            by it, and the commit refuses to replace a row by nothing.

    Raises:
        KafkaAssetsError: As the fetch or the decoding of any slice did; the other slices are stopped.
    """
    kafka = stream.kafka.resolve()
    directory = batch_directory(warehouse.staging, stream.name, batch)
    fmt = get_format(stream.format)
    policy = on_data_loss or ("skip" if generation else stream.on_data_loss)
    failed = False

    def fetch(index: int, ranges: Sequence[PlannedRange]) -> StagedSlice:
        nonlocal failed
        try:
            reader = RangeReader(
                kafka,
                ranges,
                stall_timeout=stream.stall_timeout,
                on_data_loss=policy,
                should_stop=lambda: failed or (should_stop is not None and should_stop()),
            )
            return stage(
                reader,
                fmt,
                directory,
                f"{generation}-{name}-{index}",
                memory_bytes=memory_bytes // len(slices),
            )
        except BaseException:
            failed = True
            raise

    if len(slices) == 1:
        return [fetch(0, slices[0])]
    with ThreadPoolExecutor(len(slices), thread_name_prefix=f"fetch-{batch}") as pool:
        futures = [pool.submit(fetch, index, ranges) for index, ranges in enumerate(slices)]
        try:
            wait(futures)
        except BaseException:
            # An interrupt reaches this thread alone: the fetching ones have to be told.
            failed = True
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        # The error of one slice stops the others, and that they were stopped says nothing of it.
        raise next((error for error in errors if not isinstance(error, FetchCancelledError)), errors[0])
    return [future.result() for future in futures]


def commit(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: BatchRow,
    staged: Sequence[StagedSlice],
    *,
    run_id: str,
    scope: ReplayScope = WHOLE,
) -> Committed:
    """Write a batch's staged rows, its outcomes and its change of state in one transaction.

    `batch` is the batch as it was when its run began: planned, and its rows are loaded; committed, and they are
    replaced, as far as the scope goes. A slice whose file is missing or damaged is fetched again first.

    Raises:
        KafkaAssetsError: Nothing was changed.
    """
    generation = batch.generation
    for again in (True, False):
        slices, tables = _open_all(stream, warehouse, batch, staged, run_id)
        try:
            row = _commit_once(stream, warehouse, batch, generation, slices, tables, run_id, scope)
        except commits.GenerationMovedError as moved:
            for one in slices:
                discard(one)
            if generation == 0:
                return Committed(moved.batch, "found committed")
            if not again:
                raise RunFailedError(
                    f"batch {batch.batch} of stream {batch.stream} was replaced by other runs twice while this one"
                    " fetched it. Its rows are theirs; start this replay again when they have ended."
                ) from moved
            logger.info("batch %s was replaced by another run meanwhile; fetching it again", batch.batch)
            generation = moved.batch.generation
            staged = stage_slices(
                stream, warehouse, moved.batch, [_ranges(one) for one in slices], name=f"{run_id[:8]}-again"
            )
            continue
        for one in slices:
            discard(one)
        return Committed(row, "replaced" if generation else "loaded")
    raise AssertionError("unreachable: the second round returns or raises")


def _commit_once(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: BatchRow,
    generation: int,
    staged: Sequence[StagedSlice],
    tables: Sequence[pa.Table],
    run_id: str,
    scope: ReplayScope,
) -> BatchRow:
    fmt = get_format(stream.format)
    try:
        with warehouse.writing() as connection:
            return commits.commit_batch(
                connection,
                stream.name,
                batch.batch,
                expected_generation=generation,
                staged=staged,
                data=tables,
                table=stream.table,
                columns=fmt.columns,
                run_id=run_id,
                fingerprint=fmt.fingerprint,
                now=utc_now(),
                scope=scope,
            )
    except CommitUnknownError as unknown:
        # The error does not say whether the transaction is in the file; the file does.
        found = read_batch(stream, warehouse, batch.batch)
        if found.generation == generation + 1 and found.run_id == run_id:
            return found
        raise _plain(unknown) from unknown


def _plain(unknown: CommitUnknownError) -> KafkaAssetsError:
    cause = unknown.__cause__
    if isinstance(cause, KafkaAssetsError):
        return cause
    return RunFailedError(f"the warehouse refused the commit, and nothing of it is in the file: {unknown}")


def _open_all(
    stream: StreamConfig, warehouse: Warehouse, batch: BatchRow, staged: Sequence[StagedSlice], run_id: str
) -> tuple[list[StagedSlice], list[pa.Table]]:
    slices: list[StagedSlice] = []
    tables: list[pa.Table] = []
    for index, one in enumerate(staged):
        try:
            table = open_staged(one)
        except StagedDamagedError as damaged:
            logger.warning("%s; fetching that slice of batch %s again", damaged, batch.batch)
            discard(one)
            (again,) = stage_slices(
                stream, warehouse, batch, [_ranges(one)], name=f"{run_id[:8]}-again{index}"
            )
            slices.append(again)
            tables.append(open_staged(again))
        else:
            slices.append(one)
            tables.append(table)
    return slices, tables


def _ranges(staged: StagedSlice) -> list[PlannedRange]:
    return [piece.evidence.planned for piece in staged.ranges]

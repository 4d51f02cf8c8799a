"""The way of one batch: read its plan, fetch its slices to staged files, commit them.

Whoever runs a batch (sensor, a click, a backfill, a retry, the command line) comes through here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from kafka_assets import commits, ledger, memory, notes
from kafka_assets.batch_lock import batch_directory
from kafka_assets.errors import (
    BadRecordError,
    BatchUnknownError,
    DiskFullError,
    KafkaAssetsError,
    RangeUnavailableError,
    RunFailedError,
    TopicRecreatedError,
    WarehouseLockedError,
)
from kafka_assets.fetch import RangeReader
from kafka_assets.formats import get_format
from kafka_assets.planner import utc_now
from kafka_assets.records import mean_bytes
from kafka_assets.scope import WHOLE
from kafka_assets.slicing import slice_ranges
from kafka_assets.staging import StagedDamagedError, discard, in_file, is_kept, open_staged, stage
from kafka_assets.warehouse import CommitUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import duckdb
    import pyarrow as pa

    from kafka_assets.config import StreamConfig
    from kafka_assets.config.values import OnDataLoss
    from kafka_assets.ledger import BatchRow
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.scope import ReplayScope
    from kafka_assets.staged import StagedSlice
    from kafka_assets.warehouse import Warehouse

logger = logging.getLogger(__name__)

OFFSETS_WORTH_A_SLICE = 250_000

PATIENCE_SECONDS = 2.0
"""How long a run waits for the warehouse with what it has in memory; then that goes into files."""

Outcome = Literal["loaded", "replaced", "found committed"]


class Batch(Protocol):
    """A batch as far as its run has to know it: a row of the ledger is one."""

    @property
    def stream(self) -> str:
        """The stream's name."""

    @property
    def batch(self) -> str:
        """Its key."""

    @property
    def generation(self) -> int:
        """0 if its run loads it, else what its run replaces."""


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A batch known without the ledger, to a run that finds the warehouse locked or has read it before.

    Attributes:
        ranges: What its run fetches.
    """

    stream: str
    batch: str
    generation: int
    ranges: tuple[PlannedRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """How a batch's commit ended.

    Attributes:
        batch: The batch as the ledger has it now.
        outcome: Whether this run loaded the rows, replaced them, or found them committed by another.
    """

    batch: BatchRow
    outcome: Outcome


def read_open(stream: StreamConfig, warehouse: Warehouse) -> tuple[BatchRow, ...]:
    """Read the batches of a stream that are planned and not committed, in the order of their keys."""
    with warehouse.reading() as connection:
        return ledger.read_open(connection, stream.name)


def read_batch(stream: StreamConfig, warehouse: Warehouse, key: str) -> BatchRow:
    """Read a batch of a stream from the ledger.

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


def waits_for_a_person(stream: StreamConfig, batch: BatchRow) -> bool:
    """Tell whether a batch is not run again unless a person asks for it.

    One that a bad record has stopped is run again once the stream sets bad records aside: that was the person's
    word.
    """
    stopped_by, _, _ = (batch.last_error or "").partition(":")
    set_aside = stream.on_bad_record == "quarantine" and stopped_by == BadRecordError.code
    return batch.blocked and not set_aside


def ranges_to_fetch(
    stream: StreamConfig, warehouse: Warehouse, batch: BatchRow, scope: ReplayScope
) -> tuple[PlannedRange, ...]:
    """Return the ranges that a run of a batch fetches: all of one that is planned, else those to be replaced.

    Raises:
        UsageInvalidError: The scope names what is no range of the batch.
        RangeUnavailableError: A range to be replaced is of an earlier incarnation of its topic.
        TopicRecreatedError: A range to be loaded is, and no topic id would tell the fetch so.
    """
    ranges = scope.of(batch.ranges) if batch.generation else batch.ranges
    doubtful = [planned for planned in ranges if batch.generation or planned.topic_id is None]
    if doubtful:
        with warehouse.reading() as connection:
            _check_incarnations(connection, stream, batch.generation, doubtful)
    return ranges


def _check_incarnations(
    connection: duckdb.DuckDBPyConnection | None,
    stream: StreamConfig,
    generation: int,
    ranges: Sequence[PlannedRange],
) -> None:
    """Refuse ranges of a topic that has begun anew, which no topic id tells the fetch."""
    positions = ledger.read_stream(connection, stream.name).positions
    for planned in ranges:
        position = positions.get(planned.range.topic_partition)
        if position is None or planned.incarnation >= position.incarnation:
            continue
        if generation:
            raise RangeUnavailableError(
                f"{planned.range} is of incarnation {planned.incarnation} of its topic, which has begun anew since"
                f" (incarnation {position.incarnation}): Kafka no longer has these records. The rows stay as they"
                " are."
            )
        raise TopicRecreatedError(
            f"{planned.range} was planned on incarnation {planned.incarnation} of its topic, which has begun anew"
            f" since (incarnation {position.incarnation}), and the brokers gave no topic id that tells their records"
            " apart. Nothing was loaded. `kafka-assets reset` books the range as lost."
        )


def slices_of(batch: BatchRow | KnownBatch, groups: int = 1) -> tuple[tuple[PlannedRange, ...], ...]:
    """Cut a batch into slices of about even size for so many fetch steps, or fewer where they would not pay."""
    size = sum(planned.range.size for planned in batch.ranges)
    return slice_ranges(batch.ranges, min(groups, 1 + size // OFFSETS_WORTH_A_SLICE))


def stage_slice(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: Batch,
    ranges: Sequence[PlannedRange],
    *,
    name: str,
    memory_bytes: int = 0,
    should_stop: Callable[[], bool] | None = None,
    on_data_loss: OnDataLoss | None = None,
) -> StagedSlice:
    """Fetch a slice of a batch and stage it as `<generation>-<name>`.

    One thread takes it all: two take turns at the interpreter, and together more time than one.

    Args:
        stream: The stream.
        warehouse: Beside which the staging area is.
        batch: What it is a slice of.
        ranges: What to fetch.
        name: Of this slice among those of the batch's generation.
        memory_bytes: How much of it may stay in this process's memory, for a commit that follows in it.
        should_stop: Asked several times a second; True ends the fetch with an error.
        on_data_loss: Overrides the stream's, which a replay never follows: what Kafka no longer has is not lost
            by it, and the commit refuses to replace a row by nothing.

    Raises:
        KafkaAssetsError: As the fetch or the decoding did.
    """
    directory = batch_directory(warehouse.staging, stream.name, batch.batch)
    reader = RangeReader(
        stream.kafka.resolve(),
        ranges,
        stall_timeout=stream.stall_timeout,
        on_data_loss=on_data_loss or ("skip" if batch.generation else stream.on_data_loss),
        on_bad_record=stream.on_bad_record,
        should_stop=should_stop,
    )
    staged = stage(
        reader,
        get_format(stream.format),
        directory,
        f"{batch.generation}-{name}",
        memory_bytes=memory_bytes,
        on_bad_record=stream.on_bad_record,
    )
    memory.give_back(staged.size_bytes)
    if not batch.generation and not is_kept(staged):
        notes.note_staged(directory, _made_by(stream), [staged])
    return staged


def staged_before(
    stream: StreamConfig, warehouse: Warehouse, batch: Batch, ranges: Sequence[PlannedRange]
) -> list[StagedSlice] | None:
    """Return what an earlier run staged of exactly these ranges and did not commit; None if nothing of use.

    A replay fetches again, and so is fetched again what other settings made or what the stream now refuses.
    """
    if batch.generation:
        return None
    directory = batch_directory(warehouse.staging, stream.name, batch.batch)
    staged = notes.noted_staged(directory, _made_by(stream), ranges)
    pieces = [piece for one in staged or () for piece in one.ranges]
    if stream.on_data_loss == "fail" and any(piece.evidence.lost for piece in pieces):
        return None
    if stream.on_bad_record == "fail" and any(piece.quarantined for piece in pieces):
        return None
    return staged


def _made_by(stream: StreamConfig) -> str:
    return f"{get_format(stream.format).fingerprint} {stream.isolation_level}"


def commit(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: Batch,
    staged: Sequence[StagedSlice],
    *,
    run_id: str,
    scope: ReplayScope = WHOLE,
    say: Callable[[str], None] = logger.info,
) -> Committed:
    """Write a batch's staged rows, its outcomes and its change of state in one transaction.

    `batch` is the batch as it was when its run began: planned, and its rows are loaded; committed, and they are
    replaced, as far as the scope goes. A slice whose file is missing or damaged is fetched again first.
    Where the warehouse is locked, what is kept in memory goes into files before it is waited for.

    Raises:
        KafkaAssetsError: Nothing was changed.
    """
    try:
        return _commit(stream, warehouse, batch, staged, run_id, scope, say)
    except Exception as error:
        held_up = isinstance(error, KafkaAssetsError) and (
            error.retryable or isinstance(error, DiskFullError)
        )
        if not held_up:
            # What is staged may be what is wrong: the next attempt fetches it again.
            notes.forget(warehouse.staging, batch.stream, batch.batch)
        raise


def _commit(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: Batch,
    staged: Sequence[StagedSlice],
    run_id: str,
    scope: ReplayScope,
    say: Callable[[str], None],
) -> Committed:
    generation = batch.generation
    for again in (True, False):
        slices, tables, bad = _open_all(stream, warehouse, batch, staged, run_id)
        try:
            try:
                patience = min(PATIENCE_SECONDS, warehouse.lock_timeout)
                row = _commit_once(
                    stream, warehouse, batch, generation, slices, tables, bad, run_id, scope, patience
                )
            except WarehouseLockedError as locked:
                say(
                    f"{locked.message} Waiting for up to {warehouse.lock_timeout:g} s more, with all of it in files."
                )
                del tables, bad
                _put_in_files(stream, warehouse, batch, generation, slices)
                slices, tables, bad = _open_all(stream, warehouse, batch, slices, run_id)
                row = _commit_once(
                    stream, warehouse, batch, generation, slices, tables, bad, run_id, scope, None
                )
        except commits.GenerationMovedError as moved:
            for one in slices:
                discard(one)
            if generation == 0:
                notes.forget(warehouse.staging, batch.stream, batch.batch)
                return Committed(moved.batch, "found committed")
            if not again:
                raise RunFailedError(
                    f"batch {batch.batch} of stream {batch.stream} was replaced by other runs twice while this one"
                    " fetched it. Its rows are theirs; start this replay again when they have ended."
                ) from moved
            logger.info("batch %s was replaced by another run meanwhile; fetching it again", batch.batch)
            generation = moved.batch.generation
            staged = [
                stage_slice(stream, warehouse, moved.batch, _ranges(one), name=f"{run_id[:8]}-again{index}")
                for index, one in enumerate(slices)
            ]
            continue
        for one in slices:
            discard(one)
        notes.forget(warehouse.staging, batch.stream, batch.batch)
        return Committed(row, "replaced" if generation else "loaded")
    raise AssertionError("unreachable: the second round returns or raises")


def _put_in_files(
    stream: StreamConfig, warehouse: Warehouse, batch: Batch, generation: int, slices: Sequence[StagedSlice]
) -> None:
    """Give back the memory that slices take, and note them for the next attempt should this one end."""
    try:
        in_files = [in_file(one) for one in slices]
    except DiskFullError as full:
        logger.warning("what batch %s has in memory stays there: %s", batch.batch, full)
        return
    if not generation:
        directory = batch_directory(warehouse.staging, stream.name, batch.batch)
        notes.note_staged(directory, _made_by(stream), in_files)


def _commit_once(
    stream: StreamConfig,
    warehouse: Warehouse,
    batch: Batch,
    generation: int,
    staged: Sequence[StagedSlice],
    tables: list[pa.Table],
    bad: list[pa.Table],
    run_id: str,
    scope: ReplayScope,
    timeout: float | None,
) -> BatchRow:
    fmt = get_format(stream.format)
    try:
        with warehouse.writing(timeout, bytes_per_record=mean_bytes(*tables, *bad)) as connection:
            read = [piece.evidence for one in staged for piece in one.ranges if piece.evidence.records]
            doubtful = [evidence.planned for evidence in read if not evidence.identified]
            if not generation and doubtful:
                # Checked before the fetch was only what had no id in its plan, and nothing if the warehouse was locked.
                _check_incarnations(connection, stream, 0, doubtful)
            return commits.commit_batch(
                connection,
                stream.name,
                batch.batch,
                expected_generation=generation,
                staged=staged,
                data=tables,
                bad=bad,
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
    stream: StreamConfig, warehouse: Warehouse, batch: Batch, staged: Sequence[StagedSlice], run_id: str
) -> tuple[list[StagedSlice], list[pa.Table], list[pa.Table]]:
    """Return the slices, fetched again where they were damaged, their rows, and their bad records."""
    slices: list[StagedSlice] = []
    tables: list[pa.Table] = []
    bad: list[pa.Table] = []
    for index, one in enumerate(staged):
        try:
            found = _opened(one)
        except StagedDamagedError as damaged:
            logger.warning("%s; fetching that slice of batch %s again", damaged, batch.batch)
            discard(one)
            again = stage_slice(stream, warehouse, batch, _ranges(one), name=f"{run_id[:8]}-again{index}")
            slices.append(again)
            found = _opened(again)
        else:
            slices.append(one)
        tables.append(found[0])
        bad += found[1:]
    return slices, tables, bad


def _opened(staged: StagedSlice) -> list[pa.Table]:
    return [open_staged(one) for one in (staged, staged.bad) if one is not None]


def _ranges(staged: StagedSlice) -> list[PlannedRange]:
    return [piece.evidence.planned for piece in staged.ranges]

"""`reset`: the operator's answer to loss, truncation or recreation.

First the open batches that can no longer be fetched are settled, each by a run of its own, then the positions
move by compare-and-swap. Cut short anywhere, the same reset does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

from kafka_assets import batches
from kafka_assets.batch_lock import batch_directory
from kafka_assets.errors import KafkaAssetsError, LogTruncatedError, WarehouseLockedError
from kafka_assets.evidence import RangeEvidence
from kafka_assets.formats import get_format
from kafka_assets.ledger import PlanConflictError
from kafka_assets.operations import moves
from kafka_assets.planner import limits_of, record, survey, utc_now
from kafka_assets.staging import stage
from kafka_assets.starting import AtTimestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.log import KafkaLog
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.operations.moves import Moves, Settlement, Sight, Target
    from kafka_assets.planner import Survey
    from kafka_assets.staged import StagedSlice
    from kafka_assets.warehouse import Warehouse


class BatchRuns(Protocol):
    """The runs of a stream's batches, and how to run one here."""

    def alive(self, batch: BatchRow) -> str | None:
        """Return who is at work on a batch, None for nobody."""

    def hold(self, batch: BatchRow) -> bool:
        """Keep others from starting a run of it; False where another process was faster."""

    def release(self, batch: BatchRow) -> None:
        """Let others start one again."""

    def run(self, batch: BatchRow, staged: list[StagedSlice]) -> BatchRow:
        """Run it to its end with what was staged of it."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a reset would do now.

    Attributes:
        seen: What it was made from.
        moves: How positions move.
        settlements: How open batches are settled, oldest first.
    """

    seen: Survey
    moves: Moves
    settlements: tuple[Settlement, ...]

    def batch(self, settlement: Settlement) -> BatchRow:
        """Return the batch that a settlement is of."""
        return next(one for one in self.seen.state.open_batches if one.batch == settlement.batch)


@dataclass(slots=True)
class Applied:
    """What a reset did.

    Attributes:
        proposal: What it was to do.
        settled: The batches that were settled.
        holes: Keys of the backfill batches that keep what was skipped.
        error: Why a batch could not be settled; the positions moved all the same.
    """

    proposal: Proposal
    settled: list[BatchRow] = field(default_factory=list)
    holes: tuple[str, ...] = ()
    error: KafkaAssetsError | None = None


def look(stream: StreamConfig, warehouse: Warehouse, log: KafkaLog, target: Target) -> tuple[Survey, Sight]:
    """Look at the ledger and at the brokers, for topics that the stream no longer reads too."""
    seen = survey(stream, warehouse, log)
    bounds = dict(seen.bounds)
    others = {
        planned.range.topic_partition for batch in seen.state.open_batches for planned in batch.ranges
    } - bounds.keys()
    if others:
        bounds |= log.bounds(others)
    wanted = {}
    if isinstance(target.everywhere, AtTimestamp) and target.everywhere.timestamp_ms >= 0:
        wanted = dict.fromkeys(seen.bounds, target.everywhere.timestamp_ms)
    return seen, moves.Sight(
        positions=seen.state.positions,
        bounds=bounds,
        selected=seen.bounds.keys(),
        truncated=seen.truncated,
        found_at=log.offsets_at(wanted) if wanted else {},
    )


def propose(
    stream: StreamConfig, warehouse: Warehouse, log: KafkaLog, target: Target, *, keep_hole: bool
) -> Proposal:
    """Say what a reset would do now; changes nothing.

    Raises:
        KafkaAssetsError: The target is refused, or something is not reachable.
    """
    seen, sight = look(stream, warehouse, log, target)
    open_batches = {batch.batch: batch.ranges for batch in seen.state.open_batches}
    stopped = [
        batch.batch
        for batch in seen.state.open_batches
        if batch.blocked and (batch.last_error or "").partition(":")[0] in moves.STOPPED_CODES
    ]
    moved = moves.move(sight, target, limits=limits_of(stream, seen.state), keep_hole=keep_hole)
    return Proposal(
        seen,
        moved,
        moves.settlements(open_batches, {*stopped, *_last_chances(open_batches, moved, sight)}, sight),
    )


def _last_chances(
    open_batches: Mapping[str, Sequence[PlannedRange]], moved: moves.Moves, sight: moves.Sight
) -> set[str]:
    """Return the batches with a range that no topic id tells from the incarnation that is about to begin."""
    begun = moved.plan.positions
    return {
        key
        for key, ranges in open_batches.items()
        for planned in ranges
        if (bound := sight.bounds.get(planned.range.topic_partition)) is not None
        and None in (planned.topic_id, bound.topic_id)
        and (position := begun.get(planned.range.topic_partition)) is not None
        and position.incarnation > planned.incarnation
    }


def apply(
    stream: StreamConfig,
    warehouse: Warehouse,
    log: KafkaLog,
    target: Target,
    *,
    keep_hole: bool,
    open_runs: Callable[[], BatchRuns],
) -> Applied:
    """Settle what can no longer be fetched, and move the positions.

    `open_runs` is called only if there is a batch to settle.

    Raises:
        WarehouseLockedError: A run of a batch to be settled is alive; nothing was changed.
        KafkaAssetsError: The target is refused, or something is not reachable. Where that is so only of a second look,
            since a planner was faster, it says which batches were settled before it.
    """
    done: Applied | None = None
    while True:
        try:
            proposal = propose(stream, warehouse, log, target, keep_hole=keep_hole)
        except KafkaAssetsError as error:
            if done is None or not done.settled:
                raise
            raise _too_late(error, done.settled) from error
        done = done or Applied(proposal)
        if proposal.settlements:
            _settle_all(stream, warehouse, open_runs(), proposal, done)
        done.proposal = replace(done.proposal, seen=proposal.seen, moves=proposal.moves)
        try:
            done.holes = record(
                stream, warehouse, proposal.seen, proposal.moves.plan, now=utc_now(), kind="backfill"
            )
        except PlanConflictError:
            continue
        return done


def _settle_all(
    stream: StreamConfig, warehouse: Warehouse, runs: BatchRuns, proposal: Proposal, done: Applied
) -> None:
    wanted = [(proposal.batch(one), one) for one in proposal.settlements]
    held: list[BatchRow] = []
    try:
        for batch, _ in wanted:
            who = runs.alive(batch)
            if who is not None or not runs.hold(batch):
                raise _busy(stream, batch, who or "another process, which has just begun,")
            held.append(batch)
        for batch, settlement in wanted:
            if batches.read_batch(stream, warehouse, batch.batch).generation != batch.generation:
                # A run that had fetched it in time has loaded it since it was looked at.
                continue
            try:
                done.settled.append(runs.run(batch, _stage(stream, warehouse, batch, settlement)))
            except KafkaAssetsError as error:
                if error.retryable:
                    # Tried again, it may still be loaded: the positions wait for that.
                    raise
                done.error = done.error or error
    finally:
        for batch in held:
            runs.release(batch)


def _too_late(error: KafkaAssetsError, settled: Sequence[BatchRow]) -> KafkaAssetsError:
    keys = ", ".join(batch.batch for batch in settled)
    return type(error)(
        f"what can no longer be fetched was settled as proposed (batches: {keys}); meanwhile a planner moved the"
        " positions, which stay as it left them, for at a second look the reset was refused:"
        f" {error.message.replace('Nothing was changed', 'Nothing more was changed')}"
    )


def _busy(stream: StreamConfig, batch: BatchRow, who: str) -> WarehouseLockedError:
    ranges = ", ".join(str(planned.range) for planned in batch.ranges[:3])
    return WarehouseLockedError(
        f"batch {batch.batch} of stream {stream.name!r} ({ranges}) is to be settled, and {who} is at work on"
        " it: it may have fetched what Kafka no longer has. Nothing was changed. Wait until that run ends, or"
        " terminate it, then reset again."
    )


def _stage(
    stream: StreamConfig, warehouse: Warehouse, batch: BatchRow, settlement: Settlement
) -> list[StagedSlice]:
    """Fetch what is left of a batch, and account for the rest as lost."""
    gone = list(settlement.gone)
    staged: list[StagedSlice] = []

    def fetch(ranges: tuple[PlannedRange, ...], name: str) -> StagedSlice:
        return batches.stage_slice(stream, warehouse, batch, ranges, name=name, on_data_loss="skip")

    if settlement.readable:
        try:
            staged.append(fetch(settlement.readable, "left"))
        except LogTruncatedError:
            # Known by the leader epochs alone, and of one range at a time.
            for index, planned in enumerate(settlement.readable):
                try:
                    staged.append(fetch((planned,), f"left{index}"))
                except LogTruncatedError:
                    gone.append(planned)
    if gone:
        directory = batch_directory(warehouse.staging, stream.name, batch.batch)
        name = f"{batch.generation}-gone"
        staged.append(stage(_Gone(gone), get_format(stream.format), directory, name))
    return staged


class _Gone:
    """Reads ranges that Kafka no longer has: no record, and the evidence that all is lost."""

    def __init__(self, ranges: Sequence[PlannedRange]) -> None:
        self.ranges = tuple(sorted(ranges, key=lambda one: one.range))
        self.evidence = tuple(
            RangeEvidence(
                planned=planned,
                records=0,
                gaps=0,
                undeliverable=0,
                lost=(planned.range,),
                bytes=0,
                min_timestamp_ms=None,
                max_timestamp_ms=None,
                offset_sum=0,
                end_proof="lost",
            )
            for planned in self.ranges
        )

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

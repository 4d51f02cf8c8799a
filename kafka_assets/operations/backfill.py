"""`backfill`: plan the history before a stream's first offsets, as batches that are run on request only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka_assets.ledger import PlanConflictError
from kafka_assets.operations.moves import history
from kafka_assets.operations.reset import look
from kafka_assets.planner import limits_of, read_state, record, utc_now

if TYPE_CHECKING:
    from kafka_assets.config import StreamConfig
    from kafka_assets.log import KafkaLog
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.operations.moves import Target
    from kafka_assets.planning import Stop
    from kafka_assets.warehouse import Warehouse


@dataclass(frozen=True, slots=True)
class History:
    """What was planned of the past.

    Attributes:
        keys: The batches, in the order in which they are to be run.
        ranges: What each of them holds.
        stops: What could not be planned, and why.
    """

    keys: tuple[str, ...]
    ranges: tuple[tuple[PlannedRange, ...], ...]
    stops: tuple[Stop, ...]


def plan_history(
    stream: StreamConfig, warehouse: Warehouse, log: KafkaLog, target: Target, *, newest_first: bool = False
) -> History:
    """Plan what lies between a target and the stream's first offsets, in one transaction.

    Raises:
        KafkaAssetsError: The target is refused, or something is not reachable; nothing was changed.
    """
    while True:
        seen, sight = look(stream, warehouse, log, target)
        plan = history(
            sight,
            target,
            limits=limits_of(stream, seen.state),
            missing=seen.missing,
            newest_first=newest_first,
        )
        try:
            keys = record(stream, warehouse, seen, plan, now=utc_now(), kind="backfill")
        except PlanConflictError:
            continue
        return History(keys, plan.batches, plan.stops)


def waiting(stream: StreamConfig, warehouse: Warehouse) -> tuple[str, ...]:
    """Return the keys of the backfill batches that are not committed, oldest first."""
    state = read_state(stream, warehouse)
    return tuple(batch.batch for batch in state.open_batches if batch.kind == "backfill")

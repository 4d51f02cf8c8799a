"""What an operator's word comes to: positions x open batches x log bounds x target -> what changes.

Pure and deterministic. Nothing here moves a position backwards within an incarnation: what was planned once
belongs to its batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, assert_never

from kafka_assets.errors import DataLostError, TopicMissingError, UsageInvalidError
from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition, is_other_topic
from kafka_assets.planning import Loss, Plan, Position, Stop, incarnation_among, of_another_topic, share
from kafka_assets.starting import AtOffset, AtTimestamp, Earliest, Latest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from kafka_assets.planning import Limits, LogBounds
    from kafka_assets.starting import StartingOffset

STOPPED_CODES = ("DATA_LOST", "LOG_TRUNCATED", "TOPIC_RECREATED", "TOPIC_MISSING")
"""The errors after which a batch is not fetched by trying again."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an operator points to.

    Attributes:
        text: As it was typed.
        everywhere: For every topic-partition of the stream, None where single ones are named.
        partitions: Offsets of single topic-partitions; the others are left alone.
    """

    text: str
    everywhere: Earliest | Latest | AtTimestamp | None = None
    partitions: Mapping[TopicPartition, int] = field(default_factory=dict)

    def of(self, tp: TopicPartition) -> StartingOffset | None:
        """Return where it points to in a topic-partition, None for nowhere."""
        if self.everywhere is not None:
            return self.everywhere
        return AtOffset(self.partitions[tp]) if tp in self.partitions else None

    def told(self, tp: TopicPartition) -> str:
        """Return what was typed of a topic-partition."""
        if tp in self.partitions:
            return f"{tp.topic}:{tp.partition}:{self.partitions[tp]}"
        return self.text


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a stream and its topics, the ledger read first.

    Attributes:
        positions: The latest incarnation of every topic-partition ever planned.
        bounds: Of every topic-partition that is there: those the stream reads and those of `ranges`.
        selected: The topic-partitions that the stream reads and that are there.
        truncated: Topic-partitions whose high watermark is below the planned end, confirmed.
        found_at: For a target in time, the first offset at or after it; None where there is none.
    """

    positions: Mapping[TopicPartition, Position]
    bounds: Mapping[TopicPartition, LogBounds]
    selected: Collection[TopicPartition]
    truncated: Collection[TopicPartition] = ()
    found_at: Mapping[TopicPartition, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """How a reset moves the next offset to be planned.

    Attributes:
        topic_partition: Whose.
        incarnation: That of `to_offset`.
        from_offset: The next offset before; in another incarnation where `begins` says so.
        to_offset: The next offset afterwards.
        lost: What is booked as lost.
        hole: What is planned as backfill batches instead.
        begins: Why a new incarnation begins, None where it goes on.
    """

    topic_partition: TopicPartition
    incarnation: int
    from_offset: int
    to_offset: int
    lost: tuple[OffsetRange, ...] = ()
    hole: OffsetRange | None = None
    begins: str | None = None

    @property
    def skipped(self) -> int:
        """The offsets that live batches will not read."""
        return sum(one.size for one in self.lost) + (self.hole.size if self.hole else 0)


@dataclass(frozen=True, slots=True)
class Moves:
    """What a reset does to the plan: what to show of it, and what to write in one transaction."""

    changes: tuple[Change, ...]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an open batch that can no longer be fetched is brought to its end. Both parts tile its ranges.

    Attributes:
        batch: Its key.
        readable: What Kafka still has: it is loaded.
        gone: What it has not: it is booked as lost.
    """

    batch: str
    readable: tuple[PlannedRange, ...]
    gone: tuple[PlannedRange, ...]


def chunks(
    ranges: Iterable[PlannedRange], limits: Limits, *, newest_first: bool = False
) -> tuple[tuple[PlannedRange, ...], ...]:
    """Cut ranges, one a topic-partition, into batches of the size that the limits allow, oldest first."""
    left = sorted((one for one in ranges if one.range.size), key=attrgetter("range"))
    batches: list[tuple[PlannedRange, ...]] = []
    while left:
        takes = share([one.range.size for one in left], limits.records, limits.records_per_partition)
        batch: list[PlannedRange] = []
        rest: list[PlannedRange] = []
        for one, take in zip(left, takes, strict=True):
            whole = one.range
            cut = whole.until_offset - take if newest_first else whole.from_offset + take
            below, above = (one.part(part) for part in whole.split_at(cut))
            taken, remaining = (above, below) if newest_first else (below, above)
            batch.append(taken)
            if remaining.range.size:
                rest.append(remaining)
        batches.append(tuple(batch))
        left = rest
    return tuple(batches)


def move(sight: Sight, target: Target, *, limits: Limits, keep_hole: bool = False) -> Moves:
    """Say how `reset --to` moves the plan.

    A position goes forwards, or to a place in a new incarnation where the topic was created again or its log
    was truncated. `earliest` and `latest` leave those alone that are there or beyond; of a topic-partition
    that the stream reads and has never planned, the next offset is the log start. What lies between and is
    still in the log is kept as backfill batches with `keep_hole`, else it is lost, as the rest is.

    Raises:
        UsageInvalidError: It would go backwards, or beyond the end, or the stream does not read it.
        DataLostError: An offset was given that the log no longer has.
        TopicMissingError: A topic-partition was named that is not there.
    """
    if not sight.positions:
        raise UsageInvalidError(
            "nothing of this stream was planned yet, so there is no position to move. `starting_offsets` says"
            " where it starts."
        )
    _check_named(sight, target)
    refused: list[str] = []
    changes: list[Change] = []
    positions: dict[TopicPartition, Position] = {}
    for tp, before, place in _places(sight):
        wanted = target.of(tp)
        if wanted is None:
            continue
        to = _resolve(wanted, place, sight.bounds[tp], sight.found_at.get(tp))
        if place.begins is None and to < place.next:
            if isinstance(wanted, Earliest | Latest):
                continue
            refused.append(
                f"{tp}: the next offset to be planned is {place.next}, and {target.told(tp)} means {to}"
            )
            continue
        _check_within(tp, to, sight.bounds[tp])
        if place.begins is None and to == place.next:
            continue
        changes.append(_change(tp, before, place, to, sight.bounds[tp], keep_hole=keep_hole))
        epoch = _epoch(sight.bounds[tp], place.position)
        positions[tp] = replace(place.position, planned_until=to, leader_epoch=epoch)
    if refused:
        raise UsageInvalidError(
            "a reset goes forwards, and this would go backwards: "
            + "; ".join(refused[:3])
            + (f"; and {len(refused) - 3} more" if len(refused) > 3 else "")  # noqa: PLR2004  three are shown
            + ". Nothing was changed. To read offsets again that were planned, use `kafka-assets replay`; to"
            " move some topic-partitions only, name them as TOPIC:PARTITION:OFFSET."
        )
    return Moves(tuple(changes), _plan_of(changes, positions, sight, target, limits))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a topic-partition goes on, before the operator has said anything.

    Attributes:
        position: Its position, in a new incarnation at its log start where one has to begin.
        next: The next offset to be planned.
        begins: Why a new incarnation begins.
    """

    position: Position
    next: int
    begins: str | None = None


def _places(sight: Sight) -> Iterable[tuple[TopicPartition, Position | None, _Place]]:
    for _, group in groupby(sorted(sight.selected), key=lambda tp: tp.topic):
        present = list(group)
        topic = present[0].topic
        topic_id = next((found for tp in present if (found := sight.bounds[tp].topic_id) is not None), None)
        known = {tp: position for tp, position in sight.positions.items() if tp.topic == topic}
        old = of_another_topic(known, topic_id)
        incarnation = incarnation_among(known, old)
        for tp in present:
            before, bound = known.get(tp), sight.bounds[tp]
            start = bound.log_start
            if before is None:
                yield tp, None, _Place(Position(topic_id, incarnation, start, start), start)
            elif tp in old:
                begun = max(before.incarnation + 1, incarnation)
                was = before.topic_id or "unknown"
                why = f"the topic was created again, its id was {was} and is {topic_id}"
                yield tp, before, _Place(Position(topic_id, begun, start, start), start, why)
            elif tp in sight.truncated:
                why = (
                    f"the log was truncated: it ends at {bound.high_watermark}, and was planned until"
                    f" {before.planned_until}"
                )
                known_id, begun = before.topic_id or topic_id, before.incarnation + 1
                yield tp, before, _Place(Position(known_id, begun, start, start), start, why)
            else:
                same = replace(before, topic_id=before.topic_id or topic_id)
                yield tp, before, _Place(same, before.planned_until)


def _resolve(wanted: StartingOffset, place: _Place, bound: LogBounds, found: int | None) -> int:
    match wanted:
        case AtOffset(offset):
            return offset
        case Earliest():
            return bound.log_start
        case Latest():
            return bound.end
        case AtTimestamp(timestamp_ms):
            if timestamp_ms < 0:
                return max(bound.log_start, place.next)
            return bound.end if found is None else min(found, bound.end)
        case _:
            assert_never(wanted)


def _check_named(sight: Sight, target: Target) -> None:
    for tp in sorted(target.partitions):
        if tp in sight.selected:
            continue
        if tp in sight.positions:
            raise TopicMissingError(
                f"{tp} is not there, or may not be seen with these credentials, so there is no offset"
                f" {target.partitions[tp]} to point to. Nothing was changed. `--to earliest` settles what was"
                " planned of it."
            )
        raise UsageInvalidError(f"{tp} is named, and the stream does not read it. Nothing was changed.")


def _check_within(tp: TopicPartition, to: int, bound: LogBounds) -> None:
    if to < bound.log_start:
        raise DataLostError(
            f"{tp}: offset {to} is below the log start, which is {bound.log_start}: Kafka deleted what was"
            f" there. Nothing was changed. Give {tp.topic}:{tp.partition}:{bound.log_start} or a higher offset,"
            " or `earliest`."
        )
    if to > max(bound.high_watermark, bound.end):
        raise UsageInvalidError(
            f"{tp}: offset {to} is beyond the end of the log, which is {bound.high_watermark}. Nothing was"
            " changed. `latest` is the end."
        )


def _epoch(bound: LogBounds, position: Position) -> int | None:
    return position.leader_epoch if bound.leader_epoch is None else bound.leader_epoch


def _change(
    tp: TopicPartition,
    before: Position | None,
    place: _Place,
    to: int,
    bound: LogBounds,
    *,
    keep_hole: bool,
) -> Change:
    kept = min(max(place.next, bound.log_start), to) if keep_hole else to
    cuts = (place.next, min(max(place.next, bound.log_start), kept), kept)
    stretches = (OffsetRange(tp.topic, tp.partition, low, high) for low, high in pairwise(cuts))
    return Change(
        tp,
        place.position.incarnation,
        before.planned_until if before else place.next,
        to,
        tuple(one for one in stretches if one.size),
        OffsetRange(tp.topic, tp.partition, kept, to) if kept < to else None,
        place.begins,
    )


def _plan_of(
    changes: Sequence[Change],
    positions: Mapping[TopicPartition, Position],
    sight: Sight,
    target: Target,
    limits: Limits,
) -> Plan:
    losses = [
        Loss(
            change.topic_partition,
            positions[change.topic_partition].topic_id,
            change.incarnation,
            lost.from_offset,
            lost.until_offset,
            f"deleted by Kafka before it was read, skipped by `reset --to {target.told(change.topic_partition)}`"
            if lost.from_offset < sight.bounds[change.topic_partition].log_start
            else f"skipped by `reset --to {target.told(change.topic_partition)}`",
        )
        for change in changes
        for lost in change.lost
    ]
    holes = [
        PlannedRange(
            change.hole,
            change.incarnation,
            positions[change.topic_partition].topic_id,
            positions[change.topic_partition].leader_epoch,
        )
        for change in changes
        if change.hole
    ]
    return Plan(batches=chunks(holes, limits), positions=dict(positions), losses=tuple(losses))


def settlements(
    open_batches: Mapping[str, Sequence[PlannedRange]], stopped: Collection[str], sight: Sight
) -> tuple[Settlement, ...]:
    """Say which open batches can no longer be fetched whole, and what of each is still there.

    Args:
        open_batches: The ranges of every batch that is not committed, by key.
        stopped: Keys of those that are blocked by one of `STOPPED_CODES`: whatever Kafka says now, they are
            to be settled.
        sight: What was seen.
    """
    found: list[Settlement] = []
    for key in sorted(open_batches):
        readable: list[PlannedRange] = []
        gone: list[PlannedRange] = []
        for planned in open_batches[key]:
            whole = planned.range
            cut_from, cut_until = _still_there(planned, sight)
            for low, high, into in (
                (whole.from_offset, cut_from, gone),
                (cut_from, cut_until, readable),
                (cut_until, whole.until_offset, gone),
            ):
                if low < high:
                    into.append(planned.part(replace(whole, from_offset=low, until_offset=high)))
        if gone or key in stopped:
            found.append(Settlement(key, tuple(readable), tuple(gone)))
    return tuple(found)


def _still_there(planned: PlannedRange, sight: Sight) -> tuple[int, int]:
    """Return the part of a range that the log still has; an empty one at its end where it has nothing."""
    whole = planned.range
    low, high = whole.from_offset, whole.until_offset
    bound = sight.bounds.get(whole.topic_partition)
    if bound is None or is_other_topic(planned.topic_id, bound.topic_id):
        return high, high
    position = sight.positions.get(whole.topic_partition)
    newer = position is not None and position.incarnation > planned.incarnation
    if newer and (None in (planned.topic_id, bound.topic_id) or high > bound.high_watermark):
        # Cut below it at some time, and grown again since: from where on its records are others is not known. Nor
        # is it, without an id, whether the topic is the same at all.
        return high, high
    if whole.topic_partition in sight.truncated:
        high = max(low, min(high, bound.high_watermark))
    return min(max(low, bound.log_start), high), high


def history(
    sight: Sight, target: Target, *, limits: Limits, missing: Sequence[str] = (), newest_first: bool = False
) -> Plan:
    """Plan the history of a stream: what lies before the first offset of each current incarnation.

    Topic-partitions that the log cannot give it of, since they are missing, created again or truncated, are
    `stops`; the rest is planned.

    Raises:
        UsageInvalidError: Nothing was planned yet, or the stream does not read what is named.
        DataLostError: An offset was given that the log no longer has.
        TopicMissingError: A topic-partition was named that is not there.
    """
    if not sight.positions:
        raise UsageInvalidError(
            "nothing of this stream was planned yet, so it has no first offset to go back from."
            " `starting_offsets` says where it starts."
        )
    _check_named(sight, target)
    stops = [
        Stop("TOPIC_MISSING", name, None, f"{name} is not there, so its history cannot be read.")
        for name in missing
        if target.everywhere is not None
    ]
    ranges: list[PlannedRange] = []
    positions: dict[TopicPartition, Position] = {}
    for tp, before, place in _places(sight):
        wanted, bound = target.of(tp), sight.bounds[tp]
        if wanted is None or before is None:
            continue
        if place.begins is not None:
            stops.append(_no_history(tp, place.begins, recreated=tp not in sight.truncated))
            continue
        start = before.start_offset
        low = start if isinstance(wanted, Latest) else _back_to(wanted, bound, sight.found_at.get(tp), start)
        if low >= start:
            continue
        _check_within(tp, low, bound)
        span = OffsetRange(tp.topic, tp.partition, low, start)
        ranges.append(PlannedRange(span, before.incarnation, place.position.topic_id, _epoch(bound, before)))
        positions[tp] = replace(place.position, start_offset=low)
    batches = chunks(ranges, limits, newest_first=newest_first)
    return Plan(batches=batches, positions=positions, stops=tuple(stops))


def _back_to(wanted: StartingOffset, bound: LogBounds, found: int | None, start: int) -> int:
    match wanted:
        case AtOffset(offset):
            return offset
        case AtTimestamp(timestamp_ms) if timestamp_ms >= 0:
            return start if found is None else found
        case _:
            return bound.log_start


def _no_history(tp: TopicPartition, why: str, *, recreated: bool) -> Stop:
    return Stop(
        "TOPIC_RECREATED" if recreated else "LOG_TRUNCATED",
        tp.topic,
        tp.partition,
        f"{tp}: {why}. What lies before its first offset is not there any more, and nothing of it was"
        " planned. `kafka-assets reset` goes on in the log as it is now.",
    )

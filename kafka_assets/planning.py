"""What a stream reads next: positions x log bounds x limits -> batches of ranges, or the reason for none.

Pure and deterministic. Whoever calls it has read the ledger and asked the brokers, and writes what comes out
in one compare-and-swap; nothing here depends on the order of a mapping or on the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

MAX_BLOCKED = 10
"""Blocked batches do not count as in flight; with this many, planning stops until a person has looked."""

_MAX_OFFSET = 2**63 - 1
_NAMED = 3
_FIRST_BYTES = 128 * 1024**2


@dataclass(frozen=True, slots=True)
class LogBounds:
    """How far a topic-partition reaches, as the brokers answered.

    Attributes:
        log_start: The lowest offset that can still be read.
        end: Where reading ends now: the last stable offset under read_committed, else the high watermark.
        high_watermark: Where the replicated log ends, open transactions included.
        topic_id: None where the broker or the principal gives none.
        leader_epoch: As answered for `end` or `high_watermark`, never for the log start; None if unknown.
    """

    log_start: int
    end: int
    high_watermark: int
    topic_id: str | None = None
    leader_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """How far a topic-partition is planned, in its latest incarnation.

    Attributes:
        topic_id: None as long as it was never known.
        incarnation: 0 for the topic as first seen, one more each time it was recreated or truncated.
        start_offset: The first offset of this incarnation that is accounted for.
        planned_until: Where the last plan ended and the next one begins.
        leader_epoch: The leader epoch when `planned_until` was last moved, None if unknown.
    """

    topic_id: str | None
    incarnation: int
    start_offset: int
    planned_until: int
    leader_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a batch takes, and when. Times in seconds; `*_records_*` count offsets.

    Attributes:
        bytes_per_record: Learned from earlier batches, None before the first.
        unit: Of a batch limited by its bytes: it takes a multiple of so many offsets, if it takes more.
        backpressure: Whether a rate is estimated, and so there is one batch an interval.
        records_per_second: That rate, over all partitions; None as long as there is no estimate.
    """

    max_records_per_batch: int
    max_records_per_partition_per_second: float | None = None
    max_bytes_per_batch: int = 2**63 - 1
    bytes_per_record: float | None = None
    unit: int = 1
    min_records_per_batch: int = 1
    max_batch_delay: float = 60.0
    max_batches_in_flight: int = 4
    interval: float = 30.0
    backpressure: bool = False
    records_per_second: int | None = None

    @property
    def records(self) -> int:
        """The offsets a batch may take over all partitions: the least of the limits by records, bytes and rate."""
        return min(self.records_by_size, self._in_interval(self.records_per_second) or _MAX_OFFSET)

    @property
    def records_by_size(self) -> int:
        """The offsets a batch may take over all partitions, whatever the rate."""
        size = self.bytes_per_record
        if size is None or size <= 0 or size * self.max_records_per_batch <= self.max_bytes_per_batch:
            return self.max_records_per_batch
        fits = max(int(self.max_bytes_per_batch / size), 1)
        return fits if fits < self.unit else fits - fits % self.unit

    @property
    def records_per_partition(self) -> int | None:
        """The offsets a batch may take of one partition, at least 1; None without a limit by partition."""
        return self._in_interval(self.max_records_per_partition_per_second)

    @property
    def by_rate(self) -> bool:
        """Whether a rate is limited, and so there is one batch an interval, also to drain."""
        return self.backpressure or self.max_records_per_partition_per_second is not None

    def _in_interval(self, rate: float | None) -> int | None:
        return None if rate is None else max(int(min(rate * self.interval, _MAX_OFFSET)), 1)


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do where going on means that records stay unread."""

    on_data_loss: Literal["fail", "skip"] = "fail"
    on_topic_recreated: Literal["fail", "restart"] = "fail"


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets `[from_offset, until_offset)` that Kafka deleted before they were read."""

    topic_partition: TopicPartition
    topic_id: str | None
    incarnation: int
    from_offset: int
    until_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """What is not planned until an operator decides.

    Attributes:
        code: DATA_LOST, LOG_TRUNCATED, TOPIC_RECREATED, TOPIC_MISSING or CONFIG_INVALID.
        topic: The topic concerned.
        partition: The partition concerned, None for the whole topic.
        message: For people, with the values met and the choice they have.
    """

    code: str
    topic: str
    partition: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write to the ledger, in one transaction.

    Attributes:
        batches: The ranges of each new batch, in the order of the batches; none of them empty.
        positions: Every position that is new or changed, as it is after `batches` and `losses`.
        losses: Offsets to book as lost.
        stops: What needs an operator; the rest is planned all the same.
        reason: Why there is no batch, in numbers; None if there is one.
        limit: Where backpressure makes the batch smaller, by how much.
        lag: Offsets readable now that no plan has yet, this one included; without stopped topic-partitions.
        held_back: Offsets between the ends and the high watermarks: open transactions.
        wait: Seconds until time alone lets a batch through, where `reason` is one of time, else None.
    """

    batches: tuple[tuple[PlannedRange, ...], ...] = ()
    positions: Mapping[TopicPartition, Position] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    stops: tuple[Stop, ...] = ()
    reason: str | None = None
    limit: str | None = None
    lag: int = 0
    held_back: int = 0
    wait: float | None = None


def share(lags: Sequence[int], limit: int, cap: int | None = None) -> list[int]:
    """Share `limit` offsets out in proportion to `lags`: Spark's formula, in exact integers.

    The floor of each share, at least 1 for any with lag, never more than `cap` or than its lag. So the sum
    may exceed the limit by less than the number of partitions, or fall short of it; what remains is not
    dealt out.
    """
    total = sum(lags)
    most = total if cap is None else cap
    return [min(lag, most, max(limit * lag // total, 1)) if lag else 0 for lag in lags]


def plan(
    positions: Mapping[TopicPartition, Position],
    bounds: Mapping[TopicPartition, LogBounds],
    *,
    starts: Mapping[TopicPartition, int],
    limits: Limits,
    policy: Policy,
    now: float,
    last_planned_at: float | None,
    open_batches: int,
    missing_topics: Collection[str] = (),
    truncated: Collection[TopicPartition] = (),
    drain: bool = False,
    waiting_since: float | None = None,
    blocked_batches: int = 0,
    ends: Mapping[TopicPartition, int] | None = None,
    whole_topics: bool = True,
) -> Plan:
    """Plan what a tick plans. Times are seconds since 1970.

    Args:
        positions: The latest incarnation of every topic-partition the stream has ever planned.
        bounds: Of every topic-partition the configuration selects and the brokers have.
        starts: Where the stream starts; heeded only while it has no position at all. Topic-partitions that
            are not in it, or come later, start at their log start offset.
        limits: How much a batch takes, and when.
        policy: What to do about loss and recreation.
        now: The planning time.
        last_planned_at: When the latest live batch was planned, None before the first.
        open_batches: Live batches planned, not committed and not blocked.
        missing_topics: Topics, or `topic[partition]`, that are configured and not there.
        truncated: Topic-partitions whose high watermark was below the planned end in every confirming read.
        drain: Wait neither for a minimum batch nor for the interval, except under a rate limit.
        waiting_since: From when a first batch that is too small waits, None for not at all.
        blocked_batches: Live batches that wait for a person.
        ends: Plan nothing at or above these, and nothing of topic-partitions they do not name.
        whole_topics: The stream reads all partitions of its topics, so that one with a position and without
            bounds is gone. False under `assign`.
    """
    held_back = sum(max(bound.high_watermark - bound.end, 0) for bound in bounds.values())
    if not positions and (refused := _refused_starts(starts, bounds)):
        return Plan(stops=refused, reason=_stopped(refused), held_back=held_back)

    draft = _Draft(positions, bounds, {} if positions else starts, policy, frozenset(truncated), ends)
    absent = frozenset(missing_topics)
    draft.stops.extend(_missing(name, positions) for name in absent)
    known = (tp for tp in positions if whole_topics or tp in bounds)
    everything = sorted({*known, *bounds}, key=_by_name)
    for topic, group in groupby(everything, key=lambda tp: tp.topic):
        if topic not in absent:
            draft.settle(topic, [tp for tp in group if str(tp) not in absent])

    lags = [draft.lag(tp) for tp in draft.live]
    if drain:
        limits = replace(limits, min_records_per_batch=1, interval=limits.interval if limits.by_rate else 0.0)
    # Absolute, so that a clock that was set back does not stop the stream until it has caught up.
    since = None if last_planned_at is None else abs(now - last_planned_at)
    waited = None if waiting_since is None else abs(now - waiting_since)
    batches: list[tuple[PlannedRange, ...]] = []
    pause = limit = None
    while lag := sum(lags):
        pause = _full(limits, lag, open_batches + len(batches), blocked_batches)
        pause = pause or _early(limits, lag, len(batches), since, waited)
        if pause:
            break
        first = drain and not batches and not open_batches
        takes = share(lags, _begun(limits, lag) if first else limits.records, limits.records_per_partition)
        batches.append(
            tuple(draft.advance(tp, take) for tp, take in zip(draft.live, takes, strict=True) if take)
        )
        limit = _slowed(limits, lag)
        lags = [lag - take for lag, take in zip(lags, takes, strict=True)]

    stops = tuple(sorted(draft.stops, key=_whole_topics_first))
    reason = None
    if not batches:
        parts = [pause.reason if pause else draft.caught_up(), *draft.notes]
        parts += [_slowed(limits, sum(lags)) or ""]
        parts += [_held_back(bounds)] if held_back else []
        parts += [_stopped(stops)] if stops else []
        reason = "; ".join(part for part in parts if part)
    return Plan(
        batches=tuple(batches),
        positions={tp: found for tp, found in draft.current.items() if positions.get(tp) != found},
        losses=tuple(draft.losses),
        stops=stops,
        reason=reason,
        limit=limit,
        lag=sum(lags),
        held_back=held_back,
        wait=pause.seconds if pause and not batches else None,
    )


def _by_name(tp: TopicPartition) -> tuple[str, int]:
    # Sorts faster than the dataclass itself, which matters with 10,000 of them.
    return tp.topic, tp.partition


def _whole_topics_first(stop: Stop) -> tuple[str, int]:
    return stop.topic, -1 if stop.partition is None else stop.partition


@dataclass(frozen=True, slots=True)
class _Pause:
    """Why there is no further batch now, and for how many seconds if it is only a matter of time."""

    reason: str
    seconds: float | None = None


def _begun(limits: Limits, lag: int) -> int:
    """Return what the first batch of a drain takes: less than the next, which is fetched while it is committed."""
    if lag <= limits.records:
        return limits.records
    return replace(limits, max_bytes_per_batch=min(limits.max_bytes_per_batch, _FIRST_BYTES)).records


def _slowed(limits: Limits, lag: int) -> str | None:
    """Tell the rate by which a batch of a lag is smaller than it would be."""
    if limits.records >= min(limits.records_by_size, lag):
        return None
    return (
        f"backpressure: {limits.records_per_second} offsets a second, so {limits.records} of {lag} in a batch"
        f" each {limits.interval:g} s"
    )


def _full(limits: Limits, lag: int, open_batches: int, blocked: int) -> _Pause | None:
    if blocked >= MAX_BLOCKED:
        return _Pause(
            f"{blocked} batches are blocked, and with {MAX_BLOCKED} planning stops: {lag} offsets wait"
        )
    if open_batches >= limits.max_batches_in_flight:
        return _Pause(
            f"max_batches_in_flight reached: {open_batches} of {limits.max_batches_in_flight} batches open,"
            f" {lag} offsets wait"
        )
    return None


def _early(
    limits: Limits, lag: int, planned: int, since: float | None, waited: float | None
) -> _Pause | None:
    """Whether the next batch has to wait for time to pass.

    Args:
        limits: The limits.
        lag: Offsets not planned yet.
        planned: Batches planned in this round.
        since: Seconds since the last live batch was planned, None before the first.
        waited: Seconds that a first small batch has waited, None for not at all.
    """
    if limits.by_rate and planned:
        return _Pause("one batch an interval under a rate limit", limits.interval)
    pauses = []
    if since is not None and since < limits.interval and (limits.by_rate or lag < limits.records):
        left = limits.interval - since
        pauses.append(
            _Pause(f"interval of {limits.interval:g} s: {left:.1f} s left, {lag} offsets wait", left)
        )
    # A batch that is as large as the limits let it be has nothing to wait for.
    least = min(limits.min_records_per_batch, limits.records)
    delayed = 0.0 if planned else waited if since is None else since
    if lag < least and delayed is not None and delayed < limits.max_batch_delay:
        left = limits.max_batch_delay - delayed
        pauses.append(
            _Pause(f"minimum batch: {lag} of {least} offsets, {left:.1f} s of max_batch_delay left", left)
        )
    return max(pauses, key=lambda pause: pause.seconds or 0.0, default=None)


@dataclass(slots=True)
class _Draft:
    """The positions while a plan is being made, with what was found on the way.

    Attributes:
        current: Every topic-partition heeded, as it stands now.
        live: Those that may be planned, in order of topic and partition.
        losses: Offsets to book as lost.
        stops: What is not planned.
        notes: What else keeps offsets from being planned, for the reason.
    """

    _positions: Mapping[TopicPartition, Position]
    _bounds: Mapping[TopicPartition, LogBounds]
    _starts: Mapping[TopicPartition, int]
    _policy: Policy
    _truncated: Collection[TopicPartition]
    _ends: Mapping[TopicPartition, int] | None
    current: dict[TopicPartition, Position] = field(default_factory=dict)
    live: list[TopicPartition] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lag(self, tp: TopicPartition) -> int:
        """Offsets that may be planned."""
        end = self._bounds[tp].end
        if self._ends is not None:
            end = min(end, self._ends.get(tp, 0))
        return max(end - self.current[tp].planned_until, 0)

    def advance(self, tp: TopicPartition, take: int) -> PlannedRange:
        """Plan the next `take` offsets."""
        position, epoch = self.current[tp], self._bounds[tp].leader_epoch
        until = position.planned_until + take
        self.current[tp] = replace(position, planned_until=until, leader_epoch=epoch)
        return PlannedRange(
            OffsetRange(tp.topic, tp.partition, position.planned_until, until),
            incarnation=position.incarnation,
            topic_id=position.topic_id,
            leader_epoch=position.leader_epoch,
        )

    def caught_up(self) -> str:
        """The reason where nothing is left to plan."""
        if not self.live:
            return (
                "" if self.stops else "nothing to read: no topic-partition is there that the stream selects"
            )
        planned = sum(self.current[tp].planned_until - self.current[tp].start_offset for tp in self.live)
        return f"caught up: {planned} offsets planned over {len(self.live)} topic-partitions"

    def settle(self, topic: str, partitions: Sequence[TopicPartition]) -> None:
        """Find where each partition of a topic goes on, or why it does not."""
        present = [tp for tp in partitions if tp in self._bounds]
        if not present:
            return
        topic_id = next((found for tp in present if (found := self._bounds[tp].topic_id) is not None), None)
        known = {tp: self._positions[tp] for tp in partitions if tp in self._positions}
        old = of_another_topic(known, topic_id)
        incarnation = incarnation_among(known, old)
        stopped = bool(old) and self._policy.on_topic_recreated == "fail"
        if stopped:
            self.stops.append(_recreated(topic, {tp: known[tp] for tp in old}, topic_id))
        for tp in partitions:
            position = known.get(tp)
            if tp in old:
                if not stopped and tp in self._bounds and position is not None:
                    begun = max(position.incarnation + 1, incarnation)
                    self._begin(tp, topic_id, begun, self._bounds[tp].log_start)
            elif tp not in self._bounds:
                self.stops.append(_missing(str(tp), self._positions))
            elif position is not None:
                self._go_on(tp, replace(position, topic_id=position.topic_id or topic_id))
            elif (len(old) < len(known) or not stopped) and (self._ends is None or tp in self._ends):
                start = self._starts.get(tp, self._bounds[tp].log_start)
                self._begin(tp, topic_id, incarnation, start)

    def _begin(self, tp: TopicPartition, topic_id: str | None, incarnation: int, start: int) -> None:
        epoch = self._bounds[tp].leader_epoch
        self._guard_loss(tp, Position(topic_id, incarnation, start, start, epoch))

    def _go_on(self, tp: TopicPartition, position: Position) -> None:
        bound = self._bounds[tp]
        if tp in self._truncated:
            if self._policy.on_data_loss == "skip":
                self._begin(tp, position.topic_id, position.incarnation + 1, bound.log_start)
            else:
                self.current[tp] = position
                self.stops.append(_truncation(tp, position, bound))
            return
        if bound.high_watermark < position.planned_until:
            self.notes.append(
                f"{tp}: the high watermark {bound.high_watermark} is below the planned end"
                f" {position.planned_until}, which is not confirmed: left alone"
            )
        self._guard_loss(tp, position)

    def _guard_loss(self, tp: TopicPartition, position: Position) -> None:
        log_start = self._bounds[tp].log_start
        if position.planned_until < log_start:
            if self._policy.on_data_loss == "fail":
                self.current[tp] = position
                self.stops.append(_loss(tp, position, log_start))
                return
            self.losses.append(
                Loss(
                    tp,
                    position.topic_id,
                    position.incarnation,
                    position.planned_until,
                    log_start,
                    f"the log started at {log_start} when {position.planned_until} was next to be read",
                )
            )
            position = replace(position, planned_until=log_start, leader_epoch=self._bounds[tp].leader_epoch)
        self.current[tp] = position
        self.live.append(tp)


def of_another_topic(
    known: Mapping[TopicPartition, Position], topic_id: str | None
) -> frozenset[TopicPartition]:
    """Those whose position is of a topic that had the same name, judged by its id.

    Without an id on one side nothing is known, unless another partition shows that the topic was recreated.
    """
    if topic_id is None or all(position.topic_id in (None, topic_id) for position in known.values()):
        return frozenset()
    return frozenset(tp for tp, position in known.items() if position.topic_id != topic_id)


def incarnation_among(known: Mapping[TopicPartition, Position], old: Collection[TopicPartition]) -> int:
    """The incarnation in which a partition begins beside those known of its topic, `old` ones of another."""
    kin = [position.incarnation for tp, position in known.items() if tp not in old]
    return min(kin) if kin else max((position.incarnation for position in known.values()), default=-1) + 1


def _refused_starts(
    starts: Mapping[TopicPartition, int], bounds: Mapping[TopicPartition, LogBounds]
) -> tuple[Stop, ...]:
    # An offset between the end and the high watermark is in the log: it waits for an open transaction.
    return tuple(
        Stop(
            "CONFIG_INVALID",
            tp.topic,
            tp.partition,
            f"{tp}: starting_offsets says {starts[tp]}, and the log has the offsets [{bounds[tp].log_start},"
            f" {bounds[tp].high_watermark}). Nothing of the stream was planned. Give an offset from"
            f" {bounds[tp].log_start} to {bounds[tp].high_watermark}, or `earliest`, or `latest`.",
        )
        for tp in sorted(starts, key=_by_name)
        if tp in bounds and not 0 <= starts[tp] <= bounds[tp].high_watermark
    )


def _missing(name: str, positions: Mapping[TopicPartition, Position]) -> Stop:
    """The stop for a topic, or for `topic[partition]`: no topic's name has a bracket."""
    topic, _, rest = name.partition("[")
    partition = int(rest.rstrip("]")) if rest else None
    read = sum(
        position.planned_until - position.start_offset
        for tp, position in positions.items()
        if tp.topic == topic and partition in (None, tp.partition)
    )
    what = f"topic {name}" if partition is None else f"topic-partition {name}"
    history = f"{read} offsets of it were planned" if read else "nothing of it was ever planned"
    return Stop(
        "TOPIC_MISSING",
        topic,
        partition,
        f"{what} is not there, or may not be seen with these credentials; {history}. Nothing of it is planned"
        " until it is there. Correct its name, create it, allow DESCRIBE on it, or take it out of the streams"
        " file.",
    )


def _recreated(topic: str, old: Mapping[TopicPartition, Position], topic_id: str | None) -> Stop:
    before = ", ".join(sorted({position.topic_id or "unknown" for position in old.values()}))
    planned = sum(position.planned_until - position.start_offset for position in old.values())
    return Stop(
        "TOPIC_RECREATED",
        topic,
        None,
        f"topic {topic} was deleted and created again: its id was {before} and is {topic_id}. The {planned}"
        f" offsets planned over {len(old)} topic-partitions are of the old one, and what was not read there"
        " is gone. Nothing of them is planned until you choose: `kafka-assets reset STREAM --to earliest"
        " --yes` to begin the new one, or `on_topic_recreated: restart` to do so always.",
    )


def _truncation(tp: TopicPartition, position: Position, bound: LogBounds) -> Stop:
    until, missing = position.planned_until, position.planned_until - bound.high_watermark
    what = (
        f"the log ends at {bound.high_watermark}, and was planned until {until}. {missing} or more of these offsets"
        " were taken back, by an unclean leader election or because the topic was recreated, and other records"
        " may get them"
        if missing > 0
        else f"a fetch found by the leader epochs that the log was cut off below {until}, which was planned, and has"
        f" grown to {bound.high_watermark} since: offsets that were read have other records now"
    )
    return Stop(
        "LOG_TRUNCATED",
        tp.topic,
        tp.partition,
        f"{tp}: {what}. Nothing of it is planned until you choose: `kafka-assets reset STREAM --to"
        f" {tp.topic}:{tp.partition}:{bound.log_start} --yes`, with this or another offset of the log as it"
        " is now, to begin a new incarnation, or `on_data_loss: skip` to do so always, at the log start.",
    )


def _loss(tp: TopicPartition, position: Position, log_start: int) -> Stop:
    lost = OffsetRange(tp.topic, tp.partition, position.planned_until, log_start)
    return Stop(
        "DATA_LOST",
        tp.topic,
        tp.partition,
        f"{lost}: Kafka deleted these {lost.size} offsets before they were read; the log starts at"
        f" {log_start} now. Nothing of {tp} is planned until you choose: `kafka-assets reset STREAM --to"
        f" {tp.topic}:{tp.partition}:{log_start} --yes` to book them as lost and go on from there, or"
        " `on_data_loss: skip` to do so always.",
    )


def _held_back(bounds: Mapping[TopicPartition, LogBounds]) -> str:
    held = {
        tp: bound.high_watermark - bound.end
        for tp, bound in bounds.items()
        if bound.high_watermark > bound.end
    }
    return f"{sum(held.values())} offsets held back by open transactions on {_named(map(str, sorted(held)))}"


def _stopped(stops: Iterable[Stop]) -> str:
    return "stopped: " + _named(
        f"{stop.code} {stop.topic if stop.partition is None else TopicPartition(stop.topic, stop.partition)}"
        for stop in stops
    )


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more

"""Where a stream starts: what the streams file may say, and the offsets it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from kafka_assets.errors import ConfigInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka_assets.offsets import TopicPartition
    from kafka_assets.planning import LogBounds


@dataclass(frozen=True, slots=True)
class Earliest:
    """The log start offset."""


@dataclass(frozen=True, slots=True)
class Latest:
    """The end of the log: the last stable offset under read_committed, else the high watermark."""


@dataclass(frozen=True, slots=True)
class AtTimestamp:
    """The first record at or after a time, in milliseconds since 1970; without one, the end of the log."""

    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class AtOffset:
    """Exactly this offset."""

    offset: int


StartingOffset = Earliest | Latest | AtTimestamp | AtOffset


@dataclass(frozen=True, slots=True)
class StartingOffsets:
    """Where the topic-partitions that a stream sees first start.

    Attributes:
        default: For those that `partitions` does not name.
        partitions: For single topic-partitions.
    """

    default: StartingOffset = field(default_factory=Earliest)
    partitions: Mapping[TopicPartition, StartingOffset] = field(default_factory=dict)

    def of(self, topic_partition: TopicPartition) -> StartingOffset:
        """Where this topic-partition starts."""
        return self.partitions.get(topic_partition, self.default)


def timestamps_to_find(
    spec: StartingOffsets, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """The times, in milliseconds since 1970, for which `resolve_starts` needs the broker's answer.

    Take the log bounds before asking for these: the lesser of both is then an offset that was there.
    """
    wanted = {tp: spec.of(tp) for tp in partitions}
    return {
        tp: start.timestamp_ms
        for tp, start in wanted.items()
        # The broker refuses a negative timestamp: it stands for special offsets there.
        if isinstance(start, AtTimestamp) and start.timestamp_ms >= 0
    }


def resolve_starts(
    spec: StartingOffsets,
    bounds: Mapping[TopicPartition, LogBounds],
    found_at: Mapping[TopicPartition, int | None],
) -> dict[TopicPartition, int]:
    """The offset at which each topic-partition of `bounds` starts when the stream plans for the first time.

    Args:
        spec: What the streams file says.
        bounds: The log bounds, taken before the times were looked up.
        found_at: For each of `timestamps_to_find`, the offset of the first record at or after it, or None.

    Returns:
        An offset for every topic-partition of `bounds`. One given as a number is passed on as it is; whether
        the log has it is for `planning.plan` to say.

    Raises:
        ConfigInvalidError: `spec` names a partition that a topic of `bounds` does not have. Left alone, it
            would start at the earliest offset whenever it came.
    """
    topics: dict[str, list[int]] = {}
    for tp in bounds:
        topics.setdefault(tp.topic, []).append(tp.partition)
    problems = [
        f"{tp}: the stream reads the partitions {_listed(topics[tp.topic])} of {tp.topic}"
        for tp in sorted(spec.partitions)
        if tp.topic in topics and tp not in bounds
    ]
    if problems:
        raise ConfigInvalidError(
            "starting_offsets names partitions that are not there; nothing was planned. Correct these:",
            problems,
        )
    return {tp: _resolve(spec.of(tp), bound, found_at.get(tp)) for tp, bound in bounds.items()}


def _resolve(start: StartingOffset, bound: LogBounds, found: int | None) -> int:
    match start:
        case AtOffset(offset):
            return offset
        case Latest():
            return bound.end
        case AtTimestamp(timestamp_ms):
            if timestamp_ms < 0:
                return bound.log_start
            return bound.end if found is None else min(found, bound.end)
        case Earliest():
            return bound.log_start
        case _:
            assert_never(start)


def _listed(partitions: list[int]) -> str:
    ordered = sorted(partitions)
    if ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 2:  # noqa: PLR2004 "0, 1" is plainer
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))

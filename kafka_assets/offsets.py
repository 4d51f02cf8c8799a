"""Topic-partitions, half-open offset ranges, and what two or many of those are to one another.

An empty range `[a, a)` is a place in the log that covers nothing: it has a relation to every other
range, and takes no part in an intersection, a tiling or a merge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Relation(Enum):
    """What one offset range is to another. The first that applies, from the top, is the relation."""

    UNRELATED = "unrelated"
    """Of another topic-partition."""
    SAME = "same"
    BEFORE = "before"
    """Ends before the other begins, with offsets between."""
    ENDS_AT = "ends at"
    """Ends where the other begins."""
    AFTER = "after"
    """Begins after the other ends, with offsets between."""
    BEGINS_AT = "begins at"
    """Begins where the other ends."""
    CONTAINS = "contains"
    """Covers the other and more."""
    WITHIN = "within"
    """Is covered by the other, which has more."""
    OVERLAPS_START = "overlaps the start of"
    """Begins before the other and ends inside it."""
    OVERLAPS_END = "overlaps the end of"
    """Begins inside the other and ends after it."""

    @property
    def converse(self) -> Relation:
        """What the other range is to this one."""
        return _CONVERSES.get(self, self)


_CONVERSES = {
    a: b
    for pair in (
        (Relation.BEFORE, Relation.AFTER),
        (Relation.ENDS_AT, Relation.BEGINS_AT),
        (Relation.CONTAINS, Relation.WITHIN),
        (Relation.OVERLAPS_START, Relation.OVERLAPS_END),
    )
    for a, b in (pair, pair[::-1])
}


@dataclass(frozen=True, slots=True, order=True)
class OffsetRange:
    """The offsets `[from_offset, until_offset)` of one topic-partition."""

    topic: str
    partition: int
    from_offset: int
    until_offset: int

    def __post_init__(self) -> None:
        if not 0 <= self.from_offset <= self.until_offset:
            raise ValueError(
                f"an offset range needs 0 <= from <= until, got from {self.from_offset} until"
                f" {self.until_offset} for {self.topic}[{self.partition}]"
            )

    @property
    def topic_partition(self) -> TopicPartition:
        """The topic-partition whose offsets these are."""
        return TopicPartition(self.topic, self.partition)

    @property
    def size(self) -> int:
        """Number of offsets, which is not the number of records: a log has gaps."""
        return self.until_offset - self.from_offset

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] [{self.from_offset}, {self.until_offset})"

    def relation_to(self, other: OffsetRange) -> Relation:
        """What this range is to the other."""
        if (self.topic, self.partition) != (other.topic, other.partition):
            return Relation.UNRELATED
        relation = Relation.OVERLAPS_START if self.from_offset < other.from_offset else Relation.OVERLAPS_END
        if self == other:
            relation = Relation.SAME
        elif self.until_offset <= other.from_offset:
            relation = Relation.ENDS_AT if self.until_offset == other.from_offset else Relation.BEFORE
        elif self.from_offset >= other.until_offset:
            relation = Relation.BEGINS_AT if self.from_offset == other.until_offset else Relation.AFTER
        elif self.from_offset <= other.from_offset and self.until_offset >= other.until_offset:
            relation = Relation.CONTAINS
        elif self.from_offset >= other.from_offset and self.until_offset <= other.until_offset:
            relation = Relation.WITHIN
        return relation

    def intersect(self, other: OffsetRange) -> OffsetRange | None:
        """The offsets in both ranges, None where there are none."""
        if (self.topic, self.partition) != (other.topic, other.partition):
            return None
        start = max(self.from_offset, other.from_offset)
        end = min(self.until_offset, other.until_offset)
        return replace(self, from_offset=start, until_offset=end) if start < end else None

    def subtract(self, other: OffsetRange) -> tuple[OffsetRange, ...]:
        """The offsets of this range that the other has not: up to two ranges, in order, none empty."""
        common = self.intersect(other)
        if common is None:
            return (self,) if self.size else ()
        return tuple(
            replace(self, from_offset=start, until_offset=end)
            for start, end in (
                (self.from_offset, common.from_offset),
                (common.until_offset, self.until_offset),
            )
            if start < end
        )

    def split_at(self, offset: int) -> tuple[OffsetRange, OffsetRange]:
        """The part below `offset` and the part from it on.

        Raises:
            ValueError: `offset` is not inside the range; a part would reach out of it.
        """
        if not self.from_offset <= offset <= self.until_offset:
            raise ValueError(f"{self} cannot be split at {offset}: that is outside of it")
        return replace(self, until_offset=offset), replace(self, from_offset=offset)


@dataclass(frozen=True, slots=True)
class TilingFlaw:
    """Where a set of ranges fails to cover another exactly once.

    Attributes:
        kind: `gap` (covered by none), `overlap` (by two) or `outside` (what should not be covered is).
        range: The offsets concerned.
    """

    kind: Literal["gap", "overlap", "outside"]
    range: OffsetRange

    def __str__(self) -> str:
        return f"{self.kind} at {self.range}"


def first_flaw(ranges: Iterable[OffsetRange], cover: OffsetRange) -> TilingFlaw | None:
    """The lowest place where `ranges` do not tile `cover`, None where each offset of it is in exactly one.

    Args:
        ranges: In any order.
        cover: What they are to cover, with nothing left and nothing beyond.

    Raises:
        ValueError: A range is of another topic-partition than `cover`.
    """
    reached = cover.from_offset
    for tile in sorted(ranges):
        if (tile.topic, tile.partition) != (cover.topic, cover.partition):
            raise ValueError(f"{tile} cannot be part of {cover}: another topic-partition")
        if not tile.size:
            continue
        if tile.from_offset < cover.from_offset:
            below = replace(tile, until_offset=min(tile.until_offset, cover.from_offset))
            return TilingFlaw("outside", below)
        if tile.from_offset > reached and reached < cover.until_offset:
            gap_end = min(tile.from_offset, cover.until_offset)
            return TilingFlaw("gap", replace(cover, from_offset=reached, until_offset=gap_end))
        if tile.from_offset < reached:
            return TilingFlaw("overlap", replace(tile, until_offset=min(reached, tile.until_offset)))
        if tile.until_offset > cover.until_offset:
            return TilingFlaw("outside", replace(tile, from_offset=max(tile.from_offset, cover.until_offset)))
        reached = tile.until_offset
    if reached < cover.until_offset:
        return TilingFlaw("gap", replace(cover, from_offset=reached))
    return None


def merge(ranges: Iterable[OffsetRange]) -> tuple[OffsetRange, ...]:
    """The same offsets in the fewest ranges: in order, what touches or overlaps made one, nothing empty."""
    merged: list[OffsetRange] = []
    for following in sorted(found for found in ranges if found.size):
        last = merged[-1] if merged else None
        if last is None or last.relation_to(following) in (Relation.UNRELATED, Relation.BEFORE):
            merged.append(following)
        elif following.until_offset > last.until_offset:
            merged[-1] = replace(last, until_offset=following.until_offset)
    return tuple(merged)


def is_other_topic(known: str | None, seen: str | None) -> bool:
    """Whether two topic ids tell that a topic was deleted and created again; without one of them nothing does."""
    return None not in (known, seen) and known != seen


@dataclass(frozen=True, slots=True)
class PlannedRange:
    """An offset range as a plan pins it down: of which incarnation of the topic, under which leader epoch.

    Attributes:
        range: The offsets.
        incarnation: 0 for the topic as first seen, one more each time it was recreated or truncated.
        topic_id: The broker's id of the topic; None where the broker or the principal gives none.
        leader_epoch: The leader epoch under which `range.from_offset` was last known to be in the log,
            None if unknown. A log that was cut below it since, and has grown again, no longer agrees.
    """

    range: OffsetRange
    incarnation: int = 0
    topic_id: str | None = None
    leader_epoch: int | None = None

    def part(self, piece: OffsetRange) -> PlannedRange:
        """Return a piece of this range.

        The leader epoch speaks of the first offset alone: those behind it may be of a later leader, so that under
        it they would seem to have been cut off.
        """
        epoch = self.leader_epoch if piece.from_offset == self.range.from_offset else None
        return replace(self, range=piece, leader_epoch=epoch)

    def to_row(self) -> list[str | int | None]:
        """Return it as values that JSON holds, for another step or process."""
        one = self.range
        place = (one.topic, one.partition, one.from_offset, one.until_offset)
        return [*place, self.incarnation, self.topic_id, self.leader_epoch]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> PlannedRange:
        """Return what `to_row` was made of."""
        return cls(OffsetRange(*row[:4]), *row[4:])

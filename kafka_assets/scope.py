"""How much of a committed batch a run replaces, and how that is written on the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka_assets.errors import UsageInvalidError
from kafka_assets.offsets import OffsetRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kafka_assets.offsets import PlannedRange

RANGES_TAG = "kafka_assets/ranges"
MERGE_TAG = "kafka_assets/merge"

RANGE_FORM = "TOPIC:PARTITION:FROM:UNTIL"


@dataclass(frozen=True, slots=True)
class ReplayScope:
    """What a run of a committed batch replaces. A batch that is only planned is always loaded whole.

    It stands on the run as tags, which Dagster shows and copies to whatever executes the run again: a retry
    does the same thing.

    Attributes:
        ranges: Whole planned ranges of the batch; none for all of them.
        merge: Keep the rows that Kafka no longer gives back, where otherwise nothing would be replaced.
    """

    ranges: tuple[OffsetRange, ...] = ()
    merge: bool = False

    def to_tags(self) -> dict[str, str]:
        """Return the run tags that say the same."""
        tags = {}
        if self.ranges:
            tags[RANGES_TAG] = " ".join(map(format_range, self.ranges))
        if self.merge:
            tags[MERGE_TAG] = "true"
        return tags

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> ReplayScope:
        """Return the scope that a run's tags name.

        Raises:
            UsageInvalidError: A person wrote something else into them.
        """
        ranges = tuple(map(parse_range, tags.get(RANGES_TAG, "").split()))
        return cls(ranges, merge=tags.get(MERGE_TAG) == "true")

    def of(self, planned: Sequence[PlannedRange]) -> tuple[PlannedRange, ...]:
        """Return those of a batch's ranges that are replaced, in the batch's order.

        Raises:
            UsageInvalidError: The scope names what is no whole range of the batch.
        """
        odd = set(self.ranges) - {one.range for one in planned}
        if odd:
            raise UsageInvalidError(
                f"{', '.join(map(str, sorted(odd)))} is no planned range of the batch, which has"
                f" {', '.join(str(one.range) for one in planned)}. Nothing was changed. `kafka-assets replay STREAM"
                f" --range {RANGE_FORM}` widens to whole ranges."
            )
        return tuple(one for one in planned if not self.ranges or one.range in self.ranges)


WHOLE = ReplayScope()
"""All ranges of a batch, and no row replaced unless all are fetched again."""


def parse_range(text: str) -> OffsetRange:
    """Return the offsets that `TOPIC:PARTITION:FROM:UNTIL` names.

    Raises:
        UsageInvalidError: The text has another form, or the range is empty.
    """
    topic, *numbers = text.split(":")
    if topic and len(numbers) == 3 and all(map(str.isdecimal, numbers)):  # noqa: PLR2004  the form's three numbers
        partition, low, high = map(int, numbers)
        if low < high:
            return OffsetRange(topic, partition, low, high)
    raise UsageInvalidError(
        f"{text!r} is no offset range: {RANGE_FORM} is one, such as orders:3:1200:2400, from below until (exclusive)"
    )


def format_range(one: OffsetRange) -> str:
    """Return the text that `parse_range` reads."""
    return f"{one.topic}:{one.partition}:{one.from_offset}:{one.until_offset}"

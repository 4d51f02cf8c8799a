"""What a fetch saw of each range, counted independently of the rows it hands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kafka_assets.offsets import OffsetRange, PlannedRange

EndProof = Literal["record", "eof", "position", "lost"]


@dataclass(frozen=True, slots=True)
class RangeEvidence:
    """What was seen of one planned range.

    Attributes:
        planned: The range that was asked for.
        records: Records delivered inside the range.
        gaps: Number of stretches of offsets between `from` and `until` that were not delivered.
        undeliverable: Offsets in those stretches (control records, aborted, compacted away),
            summed from the stretches themselves, never derived from `records`.
        lost: Stretches that Kafka deleted before they were read, under `on_data_loss: skip`.
        bytes: Bytes of keys, values and header values delivered.
        min_timestamp_ms: Smallest record timestamp, milliseconds since the epoch; None without any.
        max_timestamp_ms: Largest record timestamp.
        offset_sum: Sum of the delivered offsets.
        end_proof: How the end was proven: a record at or beyond `until - 1`, an end-of-partition
            event, the consumer's position, or that everything up to `until` was lost.
        identified: Whether the brokers gave the id of its topic, and it was that of the plan.
    """

    planned: PlannedRange
    records: int
    gaps: int
    undeliverable: int
    lost: tuple[OffsetRange, ...]
    bytes: int
    min_timestamp_ms: int | None
    max_timestamp_ms: int | None
    offset_sum: int
    end_proof: EndProof
    identified: bool = True

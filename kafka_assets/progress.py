"""How far a range has been read, and what was seen of it, counted over runs of offsets and not from rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kafka_assets.errors import RunFailedError
from kafka_assets.evidence import EndProof, RangeEvidence
from kafka_assets.offsets import OffsetRange, PlannedRange

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]


class RangeProgress:
    """The reading of one planned range.

    Attributes:
        planned: What is read.
        next: The lowest offset not yet accounted for.
        bytes: Bytes of keys, values and header values delivered.
        position: How far the consumer says it is; used only to notice that it moves.
        proof: How the end was proven, None before it is.
    """

    __slots__ = (
        "_gaps",
        "_lost",
        "_max_ms",
        "_min_ms",
        "_offset_sum",
        "_records",
        "_undeliverable",
        "bytes",
        "next",
        "planned",
        "position",
        "proof",
        "until",
    )

    def __init__(self, planned: PlannedRange) -> None:
        self.planned = planned
        self.until = planned.range.until_offset
        self.next = planned.range.from_offset
        self.position = self.next
        self.proof: EndProof | None = None
        self._records = 0
        self._gaps = 0
        self._undeliverable = 0
        self._lost: list[OffsetRange] = []
        self.bytes = 0
        self._min_ms: int | None = None
        self._max_ms: int | None = None
        self._offset_sum = 0
        if self.next == self.until:
            self.finish("position")

    def deliver(self, offsets: Int64s) -> int:
        """Account for a run of delivered offsets; return how many of them, from the first, are in the range.

        A record at or beyond `until - 1` proves the end.

        Raises:
            RunFailedError: The offsets do not rise from where the range stood.
        """
        count = len(offsets)
        first, last = int(offsets[0]), int(offsets[-1])
        kept = count if last < self.until else int(np.searchsorted(offsets, self.until))
        if kept:
            run = offsets[:kept]
            steps = np.diff(run)
            if first < self.next or (kept > 1 and int(steps.min()) < 1):
                raise RunFailedError(
                    f"{self.planned.range}: Kafka delivered offset {first} when {self.next} or higher was"
                    " due, or"
                    " offsets that do not rise. Nothing of this fetch is used; run the batch again."
                )
            self._gap(first)
            holes = steps[steps > 1]
            self._gaps += len(holes)
            self._undeliverable += int(holes.sum()) - len(holes)
            self._records += kept
            self._offset_sum += int(run.sum())
            self.next = int(run[-1]) + 1
        if kept < count or self.next == self.until:
            self.finish("record")
        return kept

    def measure(self, size: int, min_ms: int | None, max_ms: int | None) -> None:
        """Add the bytes and the timestamps of records that were delivered."""
        self.bytes += size
        if min_ms is not None:
            self._min_ms = min_ms if self._min_ms is None else min(self._min_ms, min_ms)
        if max_ms is not None:
            self._max_ms = max_ms if self._max_ms is None else max(self._max_ms, max_ms)

    def lose(self, at: int, log_start: int) -> None:
        """Account for the offsets from `at` to the log start: Kafka deleted them before they were read."""
        at = min(max(at, self.next), self.until)
        self._gap(at)
        resume = min(log_start, self.until)
        lost = OffsetRange(self.planned.range.topic, self.planned.range.partition, at, resume)
        if self._lost and self._lost[-1].until_offset == at:
            previous = self._lost.pop()
            lost = OffsetRange(lost.topic, lost.partition, previous.from_offset, resume)
        self._lost.append(lost)
        self.next = resume
        if self.next == self.until:
            self.finish("lost")

    def finish(self, proof: EndProof) -> None:
        """Account for what is left of the range as not deliverable: its end was reached."""
        self._gap(self.until)
        self.proof = proof

    def evidence(self, *, identified: bool = True) -> RangeEvidence:
        """Return what was seen of the range, which must be at its end.

        Args:
            identified: Whether the id of its topic was seen to be the planned one.

        Raises:
            RunFailedError: Delivered, undeliverable and lost offsets do not add up to the range.
        """
        lost = sum(stretch.size for stretch in self._lost)
        if self.proof is None or self._records + self._undeliverable + lost != self.planned.range.size:
            raise RunFailedError(
                f"{self.planned.range}: {self._records} records, {self._undeliverable} undeliverable and"
                f" {lost} lost"
                f" offsets do not add up to its {self.planned.range.size}; nothing of this fetch is used."
                " Run the"
                " batch again; if it comes again, it is a defect of kafka_assets."
            )
        return RangeEvidence(
            planned=self.planned,
            records=self._records,
            gaps=self._gaps,
            undeliverable=self._undeliverable,
            lost=tuple(self._lost),
            bytes=self.bytes,
            min_timestamp_ms=self._min_ms,
            max_timestamp_ms=self._max_ms,
            offset_sum=self._offset_sum,
            end_proof=self.proof,
            identified=identified,
        )

    def _gap(self, end: int) -> None:
        if end > self.next:
            self._gaps += 1
            self._undeliverable += end - self.next
            self.next = end

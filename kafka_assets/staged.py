"""What is known of a staged slice: it goes as a small dict from the fetch of a batch to its commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka_assets.evidence import RangeEvidence
from kafka_assets.offsets import OffsetRange, PlannedRange

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class StagedRange:
    """One range of a staged slice.

    Attributes:
        evidence: What was seen of it at the fetch.
        digest: The order-free digest of its rows and bad records; 0 without any, None where it was not made.
        digest_function: What made the digest.
        quarantined: How many of its records are bad.
    """

    evidence: RangeEvidence
    digest: int | None
    digest_function: str
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class StagedSlice:
    """A staged file and what is in it.

    Attributes:
        path: The file; `memory:` and where it would be, for a slice kept in this process.
        checksum: Of all the file's bytes, as `<function>:<hex>`.
        rows: Number of rows in it.
        size_bytes: Its size.
        ranges: The ranges it holds, as they were fetched; none of bad records.
        bad: The bad records of these ranges, in a file of their own; None without any.
    """

    path: str
    checksum: str
    rows: int
    size_bytes: int
    ranges: tuple[StagedRange, ...]
    bad: StagedSlice | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON holds exactly: numbers that may pass 2**53 as text."""
        return {
            "path": self.path,
            "checksum": self.checksum,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "ranges": [_range_to_dict(one) for one in self.ranges],
            "bad": None if self.bad is None else self.bad.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StagedSlice:
        """Return what `to_dict` was made of."""
        return cls(
            path=values["path"],
            checksum=values["checksum"],
            rows=values["rows"],
            size_bytes=values["size_bytes"],
            ranges=tuple(_range_from_dict(one) for one in values["ranges"]),
            bad=None if values["bad"] is None else cls.from_dict(values["bad"]),
        )


def _range_to_dict(staged: StagedRange) -> dict[str, Any]:
    evidence = staged.evidence
    planned = evidence.planned
    return {
        "topic": planned.range.topic,
        "partition": planned.range.partition,
        "from": planned.range.from_offset,
        "until": planned.range.until_offset,
        "incarnation": planned.incarnation,
        "topic_id": planned.topic_id,
        "leader_epoch": planned.leader_epoch,
        "records": evidence.records,
        "gaps": evidence.gaps,
        "undeliverable": evidence.undeliverable,
        "lost": [[one.from_offset, one.until_offset] for one in evidence.lost],
        "bytes": evidence.bytes,
        "min_timestamp_ms": evidence.min_timestamp_ms,
        "max_timestamp_ms": evidence.max_timestamp_ms,
        "offset_sum": str(evidence.offset_sum),
        "end_proof": evidence.end_proof,
        "identified": evidence.identified,
        "digest": None if staged.digest is None else str(staged.digest),
        "digest_function": staged.digest_function,
        "quarantined": staged.quarantined,
    }


def _range_from_dict(values: Mapping[str, Any]) -> StagedRange:
    topic, partition = values["topic"], values["partition"]
    planned = PlannedRange(
        OffsetRange(topic, partition, values["from"], values["until"]),
        incarnation=values["incarnation"],
        topic_id=values["topic_id"],
        leader_epoch=values["leader_epoch"],
    )
    evidence = RangeEvidence(
        planned=planned,
        records=values["records"],
        gaps=values["gaps"],
        undeliverable=values["undeliverable"],
        lost=tuple(OffsetRange(topic, partition, first, end) for first, end in values["lost"]),
        bytes=values["bytes"],
        min_timestamp_ms=values["min_timestamp_ms"],
        max_timestamp_ms=values["max_timestamp_ms"],
        offset_sum=int(values["offset_sum"]),
        end_proof=values["end_proof"],
        identified=values["identified"],
    )
    digest = values["digest"]
    return StagedRange(
        evidence, None if digest is None else int(digest), values["digest_function"], values["quarantined"]
    )

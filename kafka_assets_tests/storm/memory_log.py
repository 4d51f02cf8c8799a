"""Kafka in memory, as far as a stream sees it: logs with holes and markers, their bounds, and fetches."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from kafka_assets.config import Topics
from kafka_assets.errors import (
    DataLostError,
    FetchStalledError,
    LogTruncatedError,
    TopicMissingError,
    TopicRecreatedError,
)
from kafka_assets.log import Discovery
from kafka_assets.offsets import TopicPartition
from kafka_assets.planning import LogBounds
from kafka_assets.progress import RangeProgress
from kafka_assets.records import RAW_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence

    from kafka_assets.config import TopicSelection
    from kafka_assets.evidence import RangeEvidence
    from kafka_assets.offsets import OffsetRange, PlannedRange

OPEN, ABORTED, MARKER, COMPACTED = "open", "aborted", "marker", "compacted"
"""What an offset holds instead of a record that can be delivered."""

FIRST_MS = 1_700_000_000_000
"""The time of a record at offset 0, in milliseconds since 1970."""


def timestamp_ms(offset: int) -> int:
    """Return the time of whatever is at an offset: a second for each offset."""
    return FIRST_MS + 1000 * offset


@dataclass
class Partition:
    """One log.

    Attributes:
        log_start: The lowest offset that is left.
        entries: From offset to a record's value, or to one of the words above.
        end: The high watermark.
        transactions: The offsets of each transaction that is open.
        epochs: The leader epochs and the offset each began at, rising.
    """

    log_start: int = 0
    entries: dict[int, bytes | str] = field(default_factory=dict)
    end: int = 0
    transactions: list[list[int]] = field(default_factory=list)
    epochs: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    @property
    def stable_end(self) -> int:
        return min((offsets[0] for offsets in self.transactions), default=self.end)

    @property
    def epoch(self) -> int:
        return self.epochs[-1][0]

    def append(self, *entries: bytes | str) -> list[int]:
        offsets = list(range(self.end, self.end + len(entries)))
        self.entries.update(zip(offsets, entries, strict=True))
        self.end += len(entries)
        return offsets

    def begin(self, count: int) -> None:
        self.transactions.append(self.append(*[OPEN] * count))

    def finish(self, transaction: int, value: Callable[[int], bytes] | None) -> None:
        """End an open transaction: `value` makes its records, None aborts it."""
        for offset in self.transactions.pop(transaction):
            self.entries[offset] = ABORTED if value is None else value(offset)
        self.append(MARKER)

    def retain_from(self, offset: int) -> None:
        self.log_start = max(self.log_start, min(offset, self.stable_end))
        for gone in [offset for offset in self.entries if offset < self.log_start]:
            del self.entries[gone]

    def lead(self) -> None:
        """Another leader, which has all of the log."""
        self.epochs.append((self.epoch + 1, self.end))

    def truncate(self, end: int) -> None:
        """An unclean leader, whose log ends earlier."""
        self.end = max(end, self.log_start)
        self.entries = {offset: entry for offset, entry in self.entries.items() if offset < self.end}
        self.transactions = [
            kept for one in self.transactions if (kept := [offset for offset in one if offset < self.end])
        ]
        epoch = self.epoch + 1
        self.epochs = [(one, start) for one, start in self.epochs if start < self.end] or [(0, 0)]
        self.epochs.append((epoch, self.end))

    def end_of_epoch(self, epoch: int) -> int:
        return next((start for one, start in self.epochs if one > epoch), self.end)

    def deliverable(self, start: int, until: int) -> dict[int, bytes]:
        """The records in a range, by offset."""
        found = {offset: self.entries.get(offset) for offset in range(start, until)}
        return {offset: entry for offset, entry in found.items() if isinstance(entry, bytes)}


@dataclass
class Topic:
    """One topic; another one of the same name has another id."""

    topic_id: str
    partitions: list[Partition]


@dataclass
class MemoryKafka:
    """The cluster.

    Attributes:
        without_id: Topics whose ids the brokers do not give.
        on_look: Called once, before the next answer to which topic-partitions there are.
        on_halfway: Called once in the middle of the next fetch.
        stale_reads: How many of the next bounds come from a replica that has not heard of the latest records.
    """

    topics: dict[str, Topic] = field(default_factory=dict)
    without_id: set[str] = field(default_factory=set)
    on_look: Callable[[], None] | None = None
    on_halfway: Callable[[], None] | None = None
    stale_reads: int = 0

    def given_id(self, name: str) -> str | None:
        return None if name in self.without_id else self.topics[name].topic_id

    def __contains__(self, at: TopicPartition) -> bool:
        return at.topic in self.topics and at.partition < len(self.topics[at.topic].partitions)

    def partition(self, at: TopicPartition) -> Partition:
        return self.topics[at.topic].partitions[at.partition]

    @property
    def partitions(self) -> list[TopicPartition]:
        return [
            TopicPartition(name, number)
            for name, topic in self.topics.items()
            for number in range(len(topic.partitions))
        ]

    # What `KafkaLog` answers.

    def topic_partitions(self, selection: TopicSelection) -> Discovery:
        assert isinstance(selection, Topics)
        on_look, self.on_look = self.on_look, None
        if on_look is not None:
            on_look()
        return Discovery(
            tuple(sorted(at for at in self.partitions if at.topic in selection.names)),
            tuple(name for name in selection.names if name not in self.topics),
            {name: self.given_id(name) for name in self.topics},
        )

    def bounds(
        self, partitions: Collection[TopicPartition], *, topic_ids: Mapping[str, str | None] | None = None
    ) -> dict[TopicPartition, LogBounds]:
        stale = self.stale_reads > 0
        self.stale_reads -= stale
        answer = {}
        for at in partitions:
            if at not in self:
                continue
            log = self.partition(at)
            topic_id = self.given_id(at.topic) if topic_ids is None else topic_ids[at.topic]
            bounds = LogBounds(log.log_start, log.stable_end, log.end, topic_id, log.epoch)
            if stale:
                middle = (log.log_start + log.stable_end) // 2
                bounds = replace(bounds, end=middle, high_watermark=middle)
            answer[at] = bounds
        return answer

    def offsets_at(self, timestamps_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        for at in timestamps_ms:
            if at not in self:
                raise TopicMissingError(f"{at} is not there")
        return {
            at: next(
                (offset for offset in sorted(self.partition(at).entries) if timestamp_ms(offset) >= wanted),
                None,
            )
            for at, wanted in timestamps_ms.items()
        }


class MemoryReader:
    """Reads as `RangeReader` does, and counts what it sees with the same `RangeProgress`."""

    def __init__(self, kafka: MemoryKafka, ranges: Sequence[PlannedRange], *, on_data_loss: str) -> None:
        self.ranges = tuple(ranges)
        self._kafka = kafka
        self._on_data_loss = on_data_loss
        self._batches = self._read()
        self._evidence: tuple[RangeEvidence, ...] | None = None
        self._unidentified: set[PlannedRange] = set()
        self._values: dict[TopicPartition, dict[int, bytes]] = defaultdict(dict)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

    @property
    def evidence(self) -> tuple[RangeEvidence, ...]:
        assert self._evidence is not None
        return self._evidence

    def values(self, piece: OffsetRange) -> dict[int, bytes]:
        """What was delivered of a range, by offset."""
        found = self._values[piece.topic_partition].items()
        return {offset: value for offset, value in found if piece.from_offset <= offset < piece.until_offset}

    def _read(self) -> Generator[pa.RecordBatch, None, None]:
        self._check_topics()
        progresses = [RangeProgress(planned) for planned in self.ranges]
        for progress in progresses:
            planned, log = progress.planned, self._kafka.partition(progress.planned.range.topic_partition)
            epoch = planned.leader_epoch
            if log.end < progress.next or (
                epoch is not None and log.end_of_epoch(epoch) < planned.range.from_offset
            ):
                raise LogTruncatedError(f"{planned.range}: the log was truncated")
            half = (progress.next + progress.until + 1) // 2
            yield from self._deliver(progress, log, half)
            if self._kafka.on_halfway is not None:
                self._kafka.on_halfway()
                self._kafka.on_halfway = None
                self._check_topics()
            yield from self._deliver(progress, log, progress.until)
            if progress.proof is None:
                if log.stable_end < progress.until:
                    raise FetchStalledError(f"{planned.range}: the log ends at {log.stable_end}")
                progress.finish("eof" if log.end == progress.until else "position")
        self._check_topics()
        self._evidence = tuple(
            progress.evidence(identified=progress.planned not in self._unidentified)
            for progress in progresses
        )

    def _deliver(self, progress: RangeProgress, log: Partition, until: int) -> Iterator[pa.RecordBatch]:
        if progress.proof is None and progress.next < log.log_start:
            if self._on_data_loss == "fail":
                raise DataLostError(f"{progress.planned.range}: the log starts at {log.log_start}")
            progress.lose(progress.next, log.log_start)
        if progress.proof is not None:
            return
        found = log.deliverable(progress.next, min(until, log.stable_end))
        if found:
            progress.deliver(np.array(list(found), np.int64))
            progress.measure(10 * len(found), timestamp_ms(min(found)), timestamp_ms(max(found)))
            self._values[progress.planned.range.topic_partition] |= found
            yield _rows(progress.planned.range.topic_partition, found)

    def _check_topics(self) -> None:
        for planned in self.ranges:
            at = planned.range.topic_partition
            if at not in self._kafka:
                raise TopicMissingError(f"{planned.range}: there is no {at}")
            given = self._kafka.given_id(at.topic)
            if None in (given, planned.topic_id):
                self._unidentified.add(planned)
            elif given != planned.topic_id:
                raise TopicRecreatedError(f"{planned.range}: {at.topic} is another topic")


def _rows(at: TopicPartition, found: Mapping[int, bytes]) -> pa.RecordBatch:
    count = len(found)
    return pa.RecordBatch.from_pydict(
        {
            "_kafka_topic": [at.topic] * count,
            "_kafka_partition": [at.partition] * count,
            "_kafka_offset": list(found),
            "_kafka_timestamp": [1000 * timestamp_ms(offset) for offset in found],
            "_kafka_timestamp_type": ["create"] * count,
            "_kafka_key": [b"key"] * count,
            "_kafka_headers": [None] * count,
            "_kafka_value": list(found.values()),
        },
        schema=RAW_SCHEMA,
    )

"""Exact offset ranges from Kafka as Arrow batches, with evidence of what was delivered and what was not."""

from __future__ import annotations

import logging
import time
from collections import deque
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Literal, Self

import confluent_kafka
import numpy as np
from confluent_kafka import Message

from kafka_assets.client import ClientEvents, create_consumer, kind_of
from kafka_assets.collector import rare_collections
from kafka_assets.errors import (
    DataLostError,
    FetchStalledError,
    KafkaAssetsError,
    LogTruncatedError,
    RangeUnavailableError,
    RunFailedError,
    TopicMissingError,
    TopicRecreatedError,
)
from kafka_assets.log import KafkaLog
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.progress import RangeProgress
from kafka_assets.records import (
    NO_TIMESTAMP,
    NO_TYPE,
    RAW_SCHEMA,
    ROW_GROUP_ROWS,
    RecordBuffer,
    timestamps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from confluent_kafka import Consumer, KafkaError

    from kafka_assets.evidence import RangeEvidence
    from kafka_assets.records import Int64s

__all__ = ["RAW_SCHEMA", "FetchCancelledError", "RangeReader", "read_ranges"]

logger = logging.getLogger(__name__)

_TUNING = {
    # With the default of 1 s a client sleeps a second whenever its queue is full.
    "fetch.queue.backoff.ms": "2",
    "queued.max.messages.kbytes": "8192",
    # A long poll in flight holds up every change of the assignment.
    "fetch.wait.max.ms": "100",
}
# Compressed; what becomes of it in memory may be ten times as much.
_FETCH_MAX_BYTES = "2097152"
_CONSUME_SECONDS = 0.05
_CONSUME_BYTES = 16 * 1024**2
_CONSUME_FIRST = 4
_CONSUME_MOST = 4000
_TRUNCATION_READS = 3
_TRUNCATION_READ_SECONDS = 1.0
_RESUME_SECONDS = 0.2
_LAST_LOOK_SECONDS = 3.0
_PARTITION_BITS = 32
_FAR_MS = np.iinfo(np.int64).max


class FetchCancelledError(KafkaAssetsError):
    """The caller asked the fetch to stop."""


class RangeReader:
    """Reads planned ranges, all at once, as an iterator of record batches of RAW_SCHEMA.

    A batch has 122,880 rows, or fewer where they reach 32 MiB or it is the last. Within a topic-partition
    rows come in the order of their offsets; topic-partitions are mixed. Memory is bounded whatever is read.

    Args:
        kafka: Resolved librdkafka properties.
        ranges: What to read; several of one topic-partition are read one after the other.
        stall_timeout: Seconds without getting any further, after which the fetch fails.
        on_data_loss: `fail`, or `skip` to go on at the log start and note what was lost.
        on_bad_record: `fail`, or `quarantine` to mark records whose metadata cannot be held: a batch that has one is
            of BAD_SCHEMA.
        should_stop: Asked several times a second; True ends the fetch with FetchCancelledError.

    Raises:
        BrokerUnreachableError, BrokerAuthError: No answer, or a refusal.
        DataLostError: Kafka deleted offsets before they were read.
        LogTruncatedError: The log ends below a range.
        TopicMissingError, TopicRecreatedError: The topic is not there, or is another.
        FetchStalledError: Nothing came for `stall_timeout`.
        BadRecordError: A record's metadata cannot be held.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        ranges: Sequence[PlannedRange],
        *,
        stall_timeout: float,
        on_data_loss: Literal["fail", "skip"] = "fail",
        on_bad_record: Literal["fail", "quarantine"] = "fail",
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.ranges = tuple(ranges)
        self._kafka = dict(kafka)
        self._stall_timeout = stall_timeout
        self._on_data_loss = on_data_loss
        self._on_bad_record = on_bad_record
        self._should_stop = should_stop or (lambda: False)
        self._events = ClientEvents(kafka)
        self._evidence: tuple[RangeEvidence, ...] | None = None
        self._unidentified: set[PlannedRange] = set()
        self._topics = sorted({planned.range.topic for planned in self.ranges})
        self._topic_index = {topic: index for index, topic in enumerate(self._topics)}
        self._active: dict[int, RangeProgress] = {}
        self._waiting: dict[int, deque[RangeProgress]] = {}
        self._chunk = _CONSUME_FIRST
        self._moved_at = 0.0
        self._batches = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the consumer, wherever the reading stands."""
        self._batches.close()

    @property
    def evidence(self) -> tuple[RangeEvidence, ...]:
        """What was seen of each range, in the order they were given; only once the last batch was taken."""
        if self._evidence is None:
            raise RuntimeError("there is no evidence before all batches were read")
        return self._evidence

    def _read(self) -> Generator[pa.RecordBatch, None, None]:
        if not self.ranges:
            self._evidence = ()
            return
        progresses = [RangeProgress(planned) for planned in self.ranges]
        buffer = RecordBuffer(self._topics, set_aside=self._on_bad_record == "quarantine")
        rows = 0
        with KafkaLog(self._kafka) as log:
            self._check_topics(log)
            consumer = create_consumer(self._kafka, _tuning(self._kafka), self._events)
            try:
                self._start(consumer, progresses)
                while self._active:
                    with rare_collections():
                        rows += self._step(consumer, log, buffer)
                    if buffer.full:
                        yield buffer.take()
                        self._moved_at = time.monotonic()
            finally:
                consumer.close()
                del consumer
            self._check_topics(log)
        evidence = tuple(
            progress.evidence(identified=progress.planned not in self._unidentified)
            for progress in progresses
        )
        delivered = sum(one.records for one in evidence)
        if delivered != rows:
            raise RunFailedError(
                f"{rows} rows were made of {delivered} records delivered; nothing of this fetch is used. This is a"
                " defect of kafka_assets."
            )
        if buffer.rows:
            yield buffer.take()
        self._evidence = evidence

    def _start(self, consumer: Consumer, progresses: Iterable[RangeProgress]) -> None:
        for progress in sorted(progresses, key=lambda one: one.planned.range):
            if progress.proof is None:
                self._waiting.setdefault(self._key(progress), deque()).append(progress)
        self._active = {key: queue.popleft() for key, queue in self._waiting.items()}
        # One call for all: assigning one after the other waits for a long poll each time.
        consumer.assign([_at(progress, with_epoch=True) for progress in self._active.values()])
        self._moved_at = time.monotonic()

    def _step(self, consumer: Consumer, log: KafkaLog, buffer: RecordBuffer) -> int:
        """Consume once and return the number of rows added to the buffer."""
        if self._should_stop():
            raise FetchCancelledError("the fetch was stopped before its end; nothing of it is used")
        left = sum(progress.until - progress.next for progress in self._active.values())
        # More than is left would never come, and consume() would wait for it.
        wanted = min(self._chunk, left, ROW_GROUP_ROWS - buffer.rows)
        messages = consumer.consume(wanted, _CONSUME_SECONDS)
        self._events.raise_refusal()
        short = len(messages) < wanted
        events: list[tuple[Message, KafkaError]] = []
        stamps = timestamps(messages)
        if (stamps[:, 0] == NO_TYPE).any():
            events = [(one, error) for one in messages if (error := one.error()) is not None]
            messages = [one for one in messages if one.error() is None]
            stamps = timestamps(messages)
        rows = self._take(messages, stamps, buffer) if messages else 0
        moved = rows > 0
        for message, error in events:
            moved |= self._on_event(consumer, log, message, error)
        if short:
            moved |= self._look_at_positions(consumer)
        moved |= self._retire(consumer)
        if moved:
            self._moved_at = time.monotonic()
        elif time.monotonic() - self._moved_at >= self._stall_timeout:
            raise self._stalled(consumer, log)
        return rows

    def _take(self, messages: list[Message], stamps: Int64s, buffer: RecordBuffer) -> int:
        """Account for messages of all topic-partitions, and put those inside their ranges into the buffer."""
        count = len(messages)
        offsets = np.fromiter(map(Message.offset, messages), np.int64, count)
        partitions = np.fromiter(map(Message.partition, messages), np.int64, count)
        topics = np.zeros(count, np.int64)
        if len(self._topics) > 1:
            names = map(Message.topic, messages)
            topics = np.fromiter(map(self._topic_index.__getitem__, names), np.int64, count)  # type: ignore[arg-type]
        keys = (topics << _PARTITION_BITS) | partitions
        edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), count]
        runs: list[tuple[RangeProgress, int]] = []
        keep: npt.NDArray[np.bool_] | None = None
        for start, stop in pairwise(edges):
            progress = self._active.get(int(keys[start]))
            kept = 0
            if progress is not None and progress.proof is None:
                kept = progress.deliver(offsets[start:stop])
            if kept:
                runs.append((progress, kept))  # type: ignore[arg-type]  # kept only of a progress
            if kept < stop - start:
                keep = np.ones(count, np.bool_) if keep is None else keep
                keep[start + kept : stop] = False
        if keep is not None:
            messages, stamps = list(compress(messages, keep.tolist())), stamps[keep]
            offsets, partitions, topics = offsets[keep], partitions[keep], topics[keep]
        if messages:
            sizes, times = buffer.append(messages, stamps, topics, partitions, offsets)
            _measure(runs, sizes, times)
            self._chunk = max(
                1, min(_CONSUME_MOST, 2 * self._chunk, _CONSUME_BYTES // max(1, int(sizes.max())))
            )
        return len(messages)

    def _on_event(self, consumer: Consumer, log: KafkaLog, message: Message, error: KafkaError) -> bool:
        """Follow an error or an end of partition; return whether a range got further by it."""
        kind = kind_of(error)
        if kind == "auth":
            raise self._events.error_for(error, f"reading {message.topic() or 'the ranges'}")
        if kind in ("group", "transport", "leader"):
            # No group is used, and outages are librdkafka's to bridge until the stall timeout.
            self._events.on_error(error)
            return False
        topic, partition = message.topic(), message.partition()
        progress = None
        if topic in self._topic_index and partition is not None and partition >= 0:
            progress = self._active.get((self._topic_index[topic] << _PARTITION_BITS) | partition)
        if progress is not None and progress.proof is None and kind in ("eof", "lost"):
            at = _offset(message)
            return (
                self._on_end(progress, at)
                if kind == "eof"
                else self._on_out_of_range(consumer, log, progress, at)
            )
        if kind in ("truncated", "missing"):
            # A topic that is gone, or is another, explains it better.
            self._check_topics(log)
        if kind == "truncated" and progress is not None:
            raise _truncated(progress, self._events.text(error))
        if kind == "other":
            if not error.retriable():
                raise self._events.error_for(
                    error, f"reading {progress.planned.range if progress else topic}"
                )
            logger.warning("%s: %s; going on", topic, self._events.text(error))
        return False

    def _on_end(self, progress: RangeProgress, end: int) -> bool:
        if end < progress.until:
            return False
        progress.finish("eof")
        return True

    def _on_out_of_range(self, consumer: Consumer, log: KafkaLog, progress: RangeProgress, at: int) -> bool:
        """Find out why Kafka does not have an offset, and go on behind the loss where that is the policy."""
        planned = progress.planned.range
        at = max(at, progress.next)
        for read in range(_TRUNCATION_READS):
            if read:
                self._pause(_TRUNCATION_READ_SECONDS)
            # A topic created again also begins anew: say that rather than that data was lost.
            self._check_topics(log)
            bounds = log.bounds([planned.topic_partition]).get(planned.topic_partition)
            if bounds is None:
                continue
            if at < bounds.log_start:
                if self._on_data_loss == "fail":
                    raise DataLostError(
                        f"{planned}: Kafka deleted the offsets from {at} to {bounds.log_start - 1} before they were"
                        f" read: the fetch stood at {at}, and the log now starts at {bounds.log_start}. Nothing of this"
                        " fetch is used. `on_data_loss: skip` goes on at the log start and books what is gone as lost;"
                        " so does `kafka-assets reset`, once. Longer retention or a shorter interval prevents it."
                    )
                progress.lose(at, bounds.log_start)
                stretch = OffsetRange(planned.topic, planned.partition, at, progress.next)
                logger.warning("%s: deleted by Kafka before it was read, skipped", stretch)
                if progress.proof is None:
                    self._resume(consumer, progress, progress.next)
                return True
            if bounds.high_watermark >= at:
                # Not so any more, say the brokers: a follower that lagged, or a leader on the move.
                self._pause(_RESUME_SECONDS)
                self._resume(consumer, progress, at)
                return False
        end = bounds.high_watermark if bounds else "nowhere"
        raise _truncated(progress, f"its log now ends at {end}")

    def _look_at_positions(self, consumer: Consumer) -> bool:
        """End the ranges whose rest holds only what is never delivered, such as transaction markers."""
        moved = False
        open_ones = [one for one in self._active.values() if one.proof is None]
        if not open_ones:
            return False
        positions = consumer.position([_at(progress) for progress in open_ones])
        for progress, position in zip(open_ones, positions, strict=True):
            if position.offset > progress.position:
                progress.position = position.offset
                moved = True
            if position.offset >= progress.until:
                progress.finish("position")
        return moved

    def _retire(self, consumer: Consumer) -> bool:
        """Unassign the ranges that have ended, and assign those that waited for them."""
        done = {key: progress for key, progress in self._active.items() if progress.proof is not None}
        if not done:
            return False
        for key in done:
            del self._active[key]
        following = {key: self._waiting[key].popleft() for key in done if self._waiting[key]}
        if self._active or following:
            # Not paused: a pause would outlive the assignment.
            consumer.incremental_unassign([_at(progress) for progress in done.values()])
        if following:
            consumer.incremental_assign([_at(progress, with_epoch=True) for progress in following.values()])
            self._active.update(following)
        return True

    def _resume(self, consumer: Consumer, progress: RangeProgress, offset: int) -> None:
        planned = progress.planned.range
        consumer.incremental_unassign([_at(progress)])
        consumer.incremental_assign(
            [confluent_kafka.TopicPartition(planned.topic, planned.partition, offset)]
        )

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._should_stop():
                raise FetchCancelledError("the fetch was stopped before its end; nothing of it is used")
            time.sleep(min(left, _CONSUME_SECONDS))

    def _check_topics(self, log: KafkaLog) -> None:
        """Compare the ids of the topics with those of the plan.

        Raises:
            TopicMissingError: A topic or partition is not there.
            TopicRecreatedError: The topic has another id.
        """
        found = log.describe(self._topics)
        for planned in self.ranges:
            topic = found.get(planned.range.topic)
            if topic is None or planned.range.partition not in topic.partitions:
                what = "topic" if topic is None else "partition"
                raise TopicMissingError(
                    f"{planned.range} cannot be read: the brokers at {self._events.addresses} have no such {what}. If"
                    " it was deleted for good, `kafka-assets reset` books the range as lost; otherwise bring it back"
                    " and run the batch again."
                )
            if None in (planned.topic_id, topic.topic_id):
                self._unidentified.add(planned)
            elif planned.topic_id != topic.topic_id:
                raise TopicRecreatedError(
                    f"{planned.range} was planned on the topic of id {planned.topic_id}, and {planned.range.topic!r}"
                    f" now has id {topic.topic_id}: it was deleted and created again, and its offsets are other"
                    " records. Nothing of this fetch is used. `kafka-assets reset` books what is gone as lost and goes"
                    " on in the new topic."
                )

    def _stalled(self, consumer: Consumer, log: KafkaLog) -> KafkaAssetsError:
        progress = min(self._active.values(), key=lambda one: one.planned.range)
        planned = progress.planned.range
        (position,) = consumer.position([_at(progress)])
        stands = max(progress.next, position.offset)
        try:
            bounds = log.bounds([planned.topic_partition], timeout=_LAST_LOOK_SECONDS).get(
                planned.topic_partition
            )
        except KafkaAssetsError as failed:
            end = f"the end of its log is not known ({failed.code})"
        else:
            end = f"its log ends at {bounds.end}" if bounds else "it is not there"
            if bounds and bounds.high_watermark > bounds.end:
                end += f" for open transactions, else at {bounds.high_watermark}"
        others = f" {len(self._active) - 1} more topic-partitions wait too." if len(self._active) > 1 else ""
        last = (
            f" The last error of a connection: {self._events.last_transport}."
            if self._events.last_transport
            else ""
        )
        return FetchStalledError(
            f"{planned}: nothing came for {self._stall_timeout:.0f} s; the fetch stands at offset {stands} and"
            f" {end}.{others}{last} Nothing of this fetch is used; it is tried again. `stall_timeout` is how"
            " long to wait."
        )

    def _key(self, progress: RangeProgress) -> int:
        planned = progress.planned.range
        return (self._topic_index[planned.topic] << _PARTITION_BITS) | planned.partition


def read_ranges(
    kafka: Mapping[str, str], ranges: Iterable[OffsetRange], *, timeout: float
) -> Iterator[pa.RecordBatch]:
    """Read exact offset ranges, with no ledger.

    Args:
        kafka: librdkafka properties; `bootstrap.servers` at least.
        ranges: What to read. All of it must be in Kafka now.
        timeout: Seconds without getting any further, after which the reading fails.

    Returns:
        Record batches of RAW_SCHEMA, topic-partitions mixed. Closing the iterator closes the consumer.

    Raises:
        RangeUnavailableError: A range is not within log start and end; raised before anything is read.
        TopicMissingError: A topic or partition is not there.
        KafkaAssetsError: As RangeReader does, while iterating.
    """
    wanted = tuple(ranges)
    with KafkaLog(kafka) as log:
        bounds = log.bounds({one.topic_partition for one in wanted})
    planned: list[PlannedRange] = []
    for one in wanted:
        found = bounds.get(one.topic_partition)
        if found is None:
            raise TopicMissingError(
                f"{one} cannot be read: there is no topic-partition {one.topic_partition}."
            )
        if one.from_offset < found.log_start or one.until_offset > found.end:
            raise RangeUnavailableError(
                f"{one} is not all in Kafka: {one.topic_partition} reaches from {found.log_start} to {found.end} now."
                " Nothing was read. Ask for a range within that."
            )
        planned.append(PlannedRange(one, topic_id=found.topic_id, leader_epoch=found.leader_epoch))
    return _closing(RangeReader(kafka, planned, stall_timeout=timeout))


def _closing(reader: RangeReader) -> Generator[pa.RecordBatch, None, None]:
    with reader:
        yield from reader


def _tuning(kafka: Mapping[str, str]) -> dict[str, str]:
    if kafka.keys() & {"receive.message.max.bytes", "message.max.bytes"}:
        return _TUNING
    return {**_TUNING, "fetch.max.bytes": _FETCH_MAX_BYTES}


def _at(progress: RangeProgress, *, with_epoch: bool = False) -> confluent_kafka.TopicPartition:
    """Return the range's topic-partition for librdkafka, at where it stands."""
    planned = progress.planned
    place = (planned.range.topic, planned.range.partition, progress.next)
    if with_epoch and planned.leader_epoch is not None:
        return confluent_kafka.TopicPartition(*place, leader_epoch=planned.leader_epoch)
    return confluent_kafka.TopicPartition(*place)


def _offset(message: Message) -> int:
    offset = message.offset()
    return -1 if offset is None else offset


def _measure(runs: Sequence[tuple[RangeProgress, int]], sizes: Int64s, times: Int64s) -> None:
    """Give each run of records its bytes and its smallest and largest timestamp."""
    starts = np.cumsum([0, *(kept for _, kept in runs[:-1])])
    known = times != NO_TIMESTAMP
    if known.all():
        low, high = times, times
    else:
        low, high = np.where(known, times, _FAR_MS), np.where(known, times, -_FAR_MS)
    totals = np.add.reduceat(sizes, starts).tolist()
    lows = np.minimum.reduceat(low, starts).tolist()
    highs = np.maximum.reduceat(high, starts).tolist()
    for (progress, _), total, least, most in zip(runs, totals, lows, highs, strict=True):
        progress.measure(total, None if least == _FAR_MS else least, None if most == -_FAR_MS else most)


def _truncated(progress: RangeProgress, why: str) -> LogTruncatedError:
    return LogTruncatedError(
        f"{progress.planned.range}: the log was truncated: the fetch stood at offset {progress.next}, and {why}."
        " Records that were read before may be gone from Kafka, and offsets may come again with other records. Nothing"
        " of this fetch is used. `kafka-assets reset` goes on in a new incarnation of the topic-partition."
    )

"""What tests put into Kafka and how they look at it, without the code under test."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from kafka_assets.dev.topics import admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Header = tuple[str, bytes | None]
Place = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One record to produce; `partition` None leaves the choice to the key."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[Header] | None = None
    timestamp_ms: int | None = None
    partition: int | None = None


def tombstone(key: bytes, partition: int | None = None) -> Record:
    """A record without a value, which deletes its key when the topic is compacted."""
    return Record(None, key, partition=partition)


def values(count: int, size: int = 10, first: int = 0) -> list[bytes]:
    """`count` distinct values of `size` bytes."""
    return [b"%0*d" % (size, first + index) for index in range(count)]


def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[Record | bytes | None],
    partition: int | None = None,
    config: Mapping[str, object] | None = None,
) -> list[Place]:
    """Produce records, where a bare value stands for its record; returns (partition, offset) of each."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, **(config or {})}
    )
    return _send(producer, topic, records, partition)


class Transaction:
    """A transaction that is open until told otherwise; keep hold of the object."""

    def __init__(self, bootstrap: str, transactional_id: str | None = None, timeout: float = 60.0) -> None:
        self.id = transactional_id or f"test-{uuid.uuid4()}"
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": self.id,
                "transaction.timeout.ms": int(timeout * 1000),
                "linger.ms": 0,
            }
        )
        self._producer.init_transactions(30)
        self._producer.begin_transaction()

    def produce(
        self, topic: str, records: Iterable[Record | bytes | None], partition: int | None = None
    ) -> list[Place]:
        """Produce within the transaction and wait until the records are in the log."""
        return _send(self._producer, topic, records, partition)

    def commit(self) -> None:
        """End it with its records to be read."""
        self._producer.commit_transaction(30)

    def abort(self) -> None:
        """End it with its records never to be read."""
        self._producer.abort_transaction(30)


def produce_transaction(
    bootstrap: str,
    topic: str,
    records: Iterable[Record | bytes | None],
    outcome: Literal["commit", "abort", "open"] = "commit",
    partition: int | None = None,
    timeout: float = 60.0,
) -> Transaction:
    """Produce records in a transaction of their own; with "open", keep the answer and end it yourself."""
    transaction = Transaction(bootstrap, timeout=timeout)
    transaction.produce(topic, records, partition)
    if outcome == "commit":
        transaction.commit()
    elif outcome == "abort":
        transaction.abort()
    return transaction


def watermarks(bootstrap: str, topic: str, *, committed: bool = False) -> dict[int, Place]:
    """Partition -> (log start offset, high watermark), or the last stable offset when `committed`."""
    consumer = _consumer(bootstrap, committed=committed)
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30) for p in partitions}
    finally:
        consumer.close()


def read_all(bootstrap: str, topic: str, *, committed: bool = True) -> list[Message]:
    """Every record of the topic up to its end, partition by partition in the order of offsets."""
    consumer = _consumer(bootstrap, committed=committed)
    try:
        left = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in left])
        messages = []
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, f"{topic} {sorted(left)} did not reach the end"
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    raise AssertionError(str(error))
        return sorted(messages, key=lambda message: (message.partition(), message.offset()))
    finally:
        consumer.close()


def delete_records(bootstrap: str, topic: str, until: Mapping[int, int]) -> None:
    """Move the log start of each partition to an offset, as retention does."""
    wanted = [TopicPartition(topic, partition, offset) for partition, offset in until.items()]
    client = admin(bootstrap)  # held: the futures of a client that is gone never end
    for future in client.delete_records(wanted).values():
        future.result(30)


def wait_until(condition: Callable[[], T], what: str, timeout: float = 60.0) -> T:
    """Await a condition and return its first true answer; fails, naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        # Between two looks at the condition.
        time.sleep(0.05)


def _consumer(bootstrap: str, *, committed: bool) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "fetch.wait.max.ms": 50,
        }
    )


def _send(
    producer: Producer, topic: str, records: Iterable[Record | bytes | None], partition: int | None
) -> list[Place]:
    places: list[Place | None] = []

    def delivered(index: int) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, str(error)
            places[index] = (message.partition(), message.offset())

        return note

    for index, given in enumerate(records):
        record = given if isinstance(given, Record) else Record(given)
        places.append(None)
        arguments: dict[str, object] = {}
        where = record.partition if record.partition is not None else partition
        if where is not None:
            arguments["partition"] = where
        if record.timestamp_ms is not None:
            arguments["timestamp"] = record.timestamp_ms
        if record.headers is not None:
            arguments["headers"] = list(record.headers)
        while True:
            try:
                producer.produce(
                    topic, record.value, key=record.key, on_delivery=delivered(index), **arguments
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(60)
    assert left == 0, f"{left} records were not delivered"
    return [place for place in places if place is not None]

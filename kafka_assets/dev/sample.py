"""Sample orders: the same ones for the same seed, as JSON, with the order's id as the record's key."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from kafka_assets.config import Topics
from kafka_assets.dev.jars import LocalKafkaError
from kafka_assets.dev.topics import quiet
from kafka_assets.log import KafkaLog

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

_FIRST_ORDER_AT = datetime(2026, 1, 1, tzinfo=UTC)
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF")
_STATUSES = ("placed", "paid", "shipped", "delivered", "returned")
_CUSTOMERS = 5000
_CENTS_AT_MOST = 50_000
_POLL_EVERY = 1000
_BEATS_PER_SECOND = 10
_FLUSH_SECONDS = 60.0


def orders(seed: int = 0, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Endless orders as (key, JSON), one a second by their own clock, with ids from `first` on."""
    pick = random.Random(f"{seed}/{first}").random  # noqa: S311 - samples, no secrets
    number = first
    while True:
        cents = int(pick() * _CENTS_AT_MOST) + 100
        placed = _FIRST_ORDER_AT + timedelta(seconds=number)
        yield (
            b"%d" % number,
            (
                f'{{"id": {number}, "customer": "customer-{int(pick() * _CUSTOMERS):04}", '
                f'"amount": {cents // 100}.{cents % 100:02}, "currency": "{_CURRENCIES[int(pick() * 5)]}", '
                f'"status": "{_STATUSES[int(pick() * 5)]}", "created_at": "{placed:%Y-%m-%dT%H:%M:%SZ}"}}'
            ).encode(),
        )
        number += 1


def produce_orders(
    bootstrap: str, topic: str, count: int, partitions: int | None = None, seed: int = 0
) -> None:
    """Produce that many orders and wait until Kafka has them all.

    Args:
        bootstrap: `host:port`, several with commas between.
        topic: An existing topic.
        count: How many orders.
        partitions: Deal the orders out to this many partitions in turn; None: the key's hash decides.
        seed: The same seed gives the same orders.

    Raises:
        LocalKafkaError: Kafka did not take them all.
    """
    producer = _producer(bootstrap)
    for index, (key, value) in enumerate(islice(orders(seed), count)):
        _put(producer, topic, key, value, -1 if partitions is None else index % partitions)
        if index % _POLL_EVERY == 0:
            producer.poll(0)
    left = producer.flush(_FLUSH_SECONDS)
    if left:
        raise LocalKafkaError(
            f"{left} of {count} orders were not taken by {bootstrap} within {_FLUSH_SECONDS:g} s. "
            "Is it running?"
        )


def feed(bootstrap: str, topic: str, rate: float, stop_event: threading.Event) -> None:
    """Produce about `rate` orders a second until told to stop; the ids go on from what the topic holds."""
    producer = _producer(bootstrap)
    source = orders(first=_written(bootstrap, topic))
    began, sent = time.monotonic(), 0
    while not stop_event.wait(1 / _BEATS_PER_SECOND):
        due = int((time.monotonic() - began) * rate) - sent
        for key, value in islice(source, due):
            _put(producer, topic, key, value, -1)
        sent += due
        producer.poll(0)
    producer.flush(1.0)


def _producer(bootstrap: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
        },
        logger=quiet,
    )


def _put(producer: Producer, topic: str, key: bytes, value: bytes, partition: int) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def _written(bootstrap: str, topic: str) -> int:
    with KafkaLog({"bootstrap.servers": bootstrap}) as log:
        found = log.topic_partitions(Topics((topic,)))
        return sum(bounds.end for bounds in log.bounds(found.partitions).values())

"""The topics that every system reads: 8 partitions, lz4, JSON text of a fixed size, keys of 8 bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from confluent_kafka import Producer

from kafka_assets.dev.topics import create_topic

PARTITIONS = 8
_WORDS = (
    "order parcel ship return paid open late north south harbour depot invoice credit account"
    " customer retail box crate weight amount total tax region branch driver route"
)
_TEXT_WORDS = 200_000
_CHUNK = 2_000
_QUEUED_MOST = 200_000
_PRODUCER = {
    "compression.type": "lz4",
    "acks": "1",
    "linger.ms": "50",
    "batch.size": "1000000",
    "queue.buffering.max.messages": "1000000",
    "queue.buffering.max.kbytes": "400000",
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One topic's worth of records.

    Attributes:
        topic: The topic, also its name in results.
        records: How many, spread evenly over the partitions.
        value_bytes: The size of each record's value.
    """

    topic: str
    records: int
    value_bytes: int


def fill(bootstrap: str, dataset: Dataset) -> float:
    """Create a dataset's topic and produce its records with a process a core; return the seconds it took."""
    create_topic(bootstrap, dataset.topic, PARTITIONS)
    return add(bootstrap, dataset)


def add(bootstrap: str, dataset: Dataset) -> float:
    """Produce a dataset's records into the topic that is there; return the seconds it took."""
    started = time.monotonic()
    workers = min(PARTITIONS, os.cpu_count() or 1)
    partitions = [list(range(worker, PARTITIONS, workers)) for worker in range(workers)]
    # A forked child would inherit the threads' locks of this process's Kafka clients.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for each in [pool.submit(_produce, bootstrap, dataset, mine) for mine in partitions]:
            each.result()
    return time.monotonic() - started


def values(count: int, size: int, first: int) -> list[bytes]:
    """Make JSON texts of exactly so many bytes, no two alike."""
    text = _text()
    room = len(text) - size
    made = []
    for number in range(first, first + count):
        head = f'{{"id":{number},"customer":{number * 7919 % 99991},"amount":{number % 9973 / 100},"note":"'
        at = number * 31 % room
        made.append(f'{head}{text[at : at + size - len(head) - 2]}"}}'.encode())
    return made


def _text() -> str:
    if not _texts:
        choose = random.Random(7).choices  # noqa: S311 - filler, the same in every run
        _texts.append(" ".join(choose(_WORDS.split(), k=_TEXT_WORDS)))
    return _texts[0]


_texts: list[str] = []


def _produce(bootstrap: str, dataset: Dataset, partitions: list[int]) -> None:
    failed: list[object] = []

    def noted(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer({"bootstrap.servers": bootstrap, **_PRODUCER, "on_delivery": noted})
    share, rest = divmod(dataset.records, PARTITIONS)
    left = {partition: share + (partition < rest) for partition in partitions}
    while any(left.values()):
        for partition in partitions:
            count = min(_CHUNK, left[partition])
            if not count:
                continue
            first = partition * 10_000_000 + left[partition]
            records = values(count, dataset.value_bytes, first)
            batch = [{"key": b"%08d" % (first + at), "value": value} for at, value in enumerate(records)]
            while len(producer) > _QUEUED_MOST:
                producer.poll(0.01)
            if producer.produce_batch(dataset.topic, batch, partition=partition) != count:
                raise RuntimeError(
                    f"the producer's queue took less than {count} records into {dataset.topic}"
                )
            left[partition] -= count
        producer.poll(0)
    producer.flush(120)
    if failed or len(producer):
        raise RuntimeError(
            f"{len(failed) + len(producer)} records did not reach {dataset.topic}: {failed[:1]}"
        )

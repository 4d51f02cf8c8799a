"""Spark's Receiver, small but true: a group consumer cuts what comes into blocks, batches insert the blocks.

Without its log (Spark's KafkaReceiver) blocks are kept in memory only, and the client commits offsets by
itself every second. With its log (ReliableKafkaReceiver with `receiver.writeAheadLog.enable`) each block
is logged, then noted, then its offsets are committed to Kafka; a batch notes its blocks before it runs, and
after it that it is done; a new life runs again what was noted and not done.

Arguments: bootstrap servers, topic, folder, `log` or `memory`, `serve` (for ever) or `drain` (to the log
ends seen at the start). Prints `ready` once partitions are assigned; after a drain a JSON object of records,
seconds and bytes logged.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.columns import CREATE_TABLE, to_batch
from benchmarks.receiver.journal import Journal, Place

BLOCK_SECONDS = 0.2
BATCH_SECONDS = 1.0
AUTO_COMMIT_SECONDS = 1.0
_CONSUME = 4_000
_CONSUME_SECONDS = 0.05
# A dead member of this name is replaced at once; without it the group would wait for its session to time out.
_MEMBER = "receiver-1"


@dataclass(frozen=True, slots=True)
class Block:
    """Some records as they came, and where they are logged, if they are."""

    records: pa.RecordBatch
    place: Place | None


class Receiver(threading.Thread):
    """Consumes without end, and puts away a block every BLOCK_SECONDS.

    Attributes:
        blocks: What was put away and not yet taken.
        logged: Bytes of blocks logged.
        failure: What ended it.
        caught_up: Set once all that the topic had at the start is put away.
    """

    def __init__(self, bootstrap: str, topic: str, journal: Journal | None) -> None:
        super().__init__(daemon=True)
        self.blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self.logged = 0
        self.failure: BaseException | None = None
        self.caught_up = threading.Event()
        self._journal = journal
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"receiver-{topic}-{'log' if journal else 'memory'}",
                "group.instance.id": _MEMBER,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": journal is None,
                "auto.commit.interval.ms": round(AUTO_COMMIT_SECONDS * 1000),
                "fetch.queue.backoff.ms": 2,
                "fetch.wait.max.ms": 100,
            }
        )
        partitions = self._consumer.list_topics(topic, timeout=30).topics[topic].partitions
        self._ends = {
            each: self._consumer.get_watermark_offsets(TopicPartition(topic, each))[1] for each in partitions
        }

    def run(self) -> None:
        """Receive until something fails."""
        try:
            self._receive()
        except BaseException as failure:  # noqa: BLE001 - whatever it is, the main thread raises it
            self.failure = failure

    def take(self) -> list[Block]:
        """Take the blocks that are there.

        Raises:
            BaseException: What ended the receiver.
        """
        if self.failure:
            raise self.failure
        return [self.blocks.get() for _ in range(self.blocks.qsize())]

    def _receive(self) -> None:
        self._consumer.subscribe([self._topic], on_assign=self._assigned)
        while True:
            messages: list[Message] = []
            cut = time.monotonic() + BLOCK_SECONDS
            while (left := cut - time.monotonic()) > 0:
                messages += self._consumer.consume(_CONSUME, min(left, _CONSUME_SECONDS))
            if messages:
                self._put_away(to_batch(messages))
            if not self.caught_up.is_set() and self._is_caught_up():
                self.caught_up.set()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        print("ready", flush=True)

    def _put_away(self, records: pa.RecordBatch) -> None:
        if self._journal is None:
            self.blocks.put(Block(records, None))
            return
        place = self._journal.blocks.append(records)
        self._journal.added(place)
        self.logged += place.length
        self.blocks.put(Block(records, place))
        last = (
            pa.Table.from_batches([records]).group_by("partition").aggregate([("offset", "max")]).to_pylist()
        )
        offsets = [TopicPartition(self._topic, each["partition"], each["offset_max"] + 1) for each in last]
        self._consumer.commit(offsets=offsets, asynchronous=False)

    def _is_caught_up(self) -> bool:
        positions = self._consumer.position(self._consumer.assignment())
        if len(positions) < len(self._ends):
            return False
        known = [each for each in positions if each.offset >= 0]
        # Where nothing came in this life there is no position, and the committed offset tells.
        unknown = [each for each in positions if each.offset < 0]
        committed = self._consumer.committed(unknown, timeout=30) if unknown else []
        return all(each.offset >= self._ends[each.partition] for each in (*known, *committed))


class Driver:
    """Turns blocks into batches, and a batch into one transaction.

    Attributes:
        rows: Inserted in this life.
    """

    def __init__(self, database: Path, journal: Journal | None) -> None:
        self.rows = 0
        self._journal = journal
        self._left: list[Block] = []
        self._database = duckdb.connect(str(database))
        self._database.execute(CREATE_TABLE)

    def recover(self) -> None:
        """Run again what was begun and is not known to be done; keep blocks of no batch for the next."""
        if self._journal is None:
            return
        for batch, places in sorted(self._journal.open_batches.items()):
            self._insert([self._journal.blocks.read(each) for each in places])
            self._journal.done(batch)
        self._left = [Block(self._journal.blocks.read(each), each) for each in self._journal.unassigned]
        self._journal.blocks.clean({each.file for each in self._journal.unassigned})

    def run(self, blocks: list[Block]) -> None:
        """Run a batch of blocks, if there are any."""
        blocks, self._left = self._left + blocks, []
        if not blocks:
            return
        records = [block.records for block in blocks]
        if self._journal is None:
            self._insert(records)
            return
        batch = self._journal.began([block.place for block in blocks if block.place])
        self._insert(records)
        self._journal.done(batch)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _insert(self, records: list[pa.RecordBatch]) -> None:
        arrived = pa.Table.from_batches(records)
        self._database.execute("INSERT INTO records SELECT * FROM arrived")
        self.rows += arrived.num_rows


def main() -> None:
    """Run as the arguments say."""
    bootstrap, topic, place, kind, mode = sys.argv[1:]
    folder = Path(place)
    gc.freeze()
    started = time.monotonic()
    journal = Journal(folder / "tracker", folder / "log") if kind == "log" else None
    driver = Driver(folder / "out.duckdb", journal)
    driver.recover()
    receiver = Receiver(bootstrap, topic, journal)
    receiver.start()
    # Not longer than whoever started it, lest a killed trial leave one behind.
    parent = os.getppid()
    while mode == "serve" and os.getppid() == parent:
        time.sleep(BATCH_SECONDS)
        driver.run(receiver.take())
    while mode == "drain" and not receiver.caught_up.wait(BATCH_SECONDS):
        driver.run(receiver.take())
    driver.run(receiver.take())
    driver.close()
    seconds = time.monotonic() - started
    print(json.dumps({"records": driver.rows, "seconds": seconds, "logged": receiver.logged}))


if __name__ == "__main__":
    main()

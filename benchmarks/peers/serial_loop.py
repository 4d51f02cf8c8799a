"""The bare limit of one thread: exact ranges into Arrow, then one insert in one transaction, no more.

No ledger, no proof, no bound on memory. Arguments: bootstrap servers, topic, folder. The last line printed is
a JSON object of records and seconds, from the look at the log ends to the closed file.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

CHUNK = 4_000
COLUMNS = ("topic", "partition", "offset", "timestamp", "key", "value")


def binary(values: list[bytes]) -> pa.Array:
    """Return byte strings, none of them None, as one Arrow array."""
    ends = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=ends[1:])
    return pa.Array.from_buffers(
        pa.binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    )


bootstrap, topic, folder = sys.argv[1:]
gc.disable()
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": "serial",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "fetch.queue.backoff.ms": 2,
        "queued.max.messages.kbytes": 16384,
        "fetch.wait.max.ms": 100,
    }
)
started = time.monotonic()
partitions = consumer.list_topics(topic).topics[topic].partitions
bounds = {p: consumer.get_watermark_offsets(TopicPartition(topic, p)) for p in partitions}
left = sum(high - low for low, high in bounds.values())
consumer.assign(
    [TopicPartition(topic, partition, low) for partition, (low, high) in bounds.items() if high > low]
)
topics = pa.repeat(topic, CHUNK)
batches = []
while left:
    messages = consumer.consume(min(CHUNK, left), 1.0)
    if not messages:
        continue
    count = len(messages)
    failed = next((error for error in map(Message.error, messages) if error), None)
    if failed:
        raise KafkaException(failed)
    stamps = np.fromiter(chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * count)
    batches.append(
        pa.RecordBatch.from_arrays(
            [
                topics.slice(0, count),
                pa.array(np.fromiter(map(Message.partition, messages), np.int32, count)),
                pa.array(np.fromiter(map(Message.offset, messages), np.int64, count)),
                pa.array(stamps[1::2].copy()),
                binary(list(map(Message.key, messages))),
                binary(list(map(Message.value, messages))),
            ],
            names=COLUMNS,
        )
    )
    left -= count
consumer.close()
arrived = pa.Table.from_batches(batches)
database = duckdb.connect(str(Path(folder) / "out.duckdb"))
database.execute("BEGIN")
database.execute(
    'CREATE TABLE records (topic VARCHAR, "partition" INTEGER, "offset" BIGINT, "timestamp" BIGINT,'
    " key BLOB, value BLOB)"
)
database.execute("INSERT INTO records SELECT * FROM arrived")
database.execute("COMMIT")
database.close()
seconds = time.monotonic() - started
print(json.dumps({"records": arrived.num_rows, "seconds": seconds}))

"""The bare limit of one thread: exact ranges into Arrow, then one insert in one transaction, no more.

No ledger, no proof, no bound on memory. Arguments: bootstrap servers, topic, folder. The last line printed is
a JSON object of records and seconds, from the look at the log ends to the closed file.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from benchmarks.columns import CREATE_TABLE, to_batch

CHUNK = 4_000

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
bounds = {each: consumer.get_watermark_offsets(TopicPartition(topic, each)) for each in partitions}
left = sum(high - low for low, high in bounds.values())
consumer.assign([TopicPartition(topic, each, low) for each, (low, high) in bounds.items() if high > low])
batches = []
while left:
    messages = consumer.consume(min(CHUNK, left), 1.0)
    if messages:
        batches.append(to_batch(messages))
        left -= len(messages)
consumer.close()
arrived = pa.Table.from_batches(batches)
database = duckdb.connect(str(Path(folder) / "out.duckdb"))
database.execute("BEGIN")
database.execute(CREATE_TABLE)
database.execute("INSERT INTO records SELECT * FROM arrived")
database.execute("COMMIT")
database.close()
seconds = time.monotonic() - started
print(json.dumps({"records": arrived.num_rows, "seconds": seconds}))

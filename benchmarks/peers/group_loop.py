"""The loop that people write by hand: a consumer group, poll() one by one, rows to DuckDB, commit offsets.

At least once: killed between insert and commit, it inserts again. Arguments: bootstrap servers, topic,
records to read, folder. The last line printed is a JSON object of records and seconds, from the subscription
to the last commit.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

import duckdb
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException

ROWS = 10_000
COLUMNS = ("topic", "partition", "offset", "timestamp", "key", "value")

bootstrap, topic, wanted, folder = sys.argv[1:]
records = int(wanted)
database = duckdb.connect(str(Path(folder) / "out.duckdb"))
database.execute(
    'CREATE TABLE records (topic VARCHAR, "partition" INTEGER, "offset" BIGINT, "timestamp" BIGINT,'
    " key BLOB, value BLOB)"
)
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        # Of this run alone: an earlier one's offsets would have it wait for records that do not come.
        "group.id": f"loop-{uuid.uuid4()}",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        # Kinder than what is usually written: with the default of 1 s a full queue sleeps for a second.
        "fetch.queue.backoff.ms": 2,
    }
)
started = time.monotonic()
consumer.subscribe([topic])
rows: list[tuple[object, ...]] = []
done = 0
while done < records:
    message = consumer.poll(1.0)
    if message is None:
        continue
    if message.error():
        raise KafkaException(message.error())
    rows.append(
        (
            message.topic(),
            message.partition(),
            message.offset(),
            message.timestamp()[1],
            message.key(),
            message.value(),
        )
    )
    if len(rows) == ROWS or done + len(rows) == records:
        arrived = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=COLUMNS)
        database.execute("INSERT INTO records SELECT * FROM arrived")
        consumer.commit(asynchronous=False)
        done += len(rows)
        rows.clear()
seconds = time.monotonic() - started
consumer.close()
database.close()
print(json.dumps({"records": done, "seconds": seconds}))

"""Spark Structured Streaming, `availableNow`, into Parquet or DuckDB. Runs in Spark's own environment.

Arguments: bootstrap servers, topic, sink (parquet | duckdb), folder, offsets per batch (0 for no limit).
The last line printed is a JSON object of records and seconds, from the query's start to its end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from pyspark.sql import SparkSession

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

bootstrap, topic, sink, place, most = sys.argv[1:]
folder = Path(place)

session = (
    SparkSession.builder.master("local[2]")
    .config("spark.jars", os.environ["SPARK_EXTRA_JARS"])
    .config("spark.ui.enabled", "false")
    .config("spark.driver.memory", "2g")
    .config("spark.driver.maxResultSize", "0")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.local.dir", str(folder / "local"))
    .config("spark.sql.session.timeZone", "UTC")
    .getOrCreate()
)
session.sparkContext.setLogLevel("ERROR")

started = time.monotonic()
source = (
    session.readStream.format("kafka")
    .option("kafka.bootstrap.servers", bootstrap)
    .option("kafka.isolation.level", "read_committed")
    .option("subscribe", topic)
    .option("startingOffsets", "earliest")
)
if int(most):
    source = source.option("maxOffsetsPerTrigger", most)
writer = (
    source.load()
    .writeStream.option("checkpointLocation", str(folder / "checkpoint"))
    .trigger(availableNow=True)
)

if sink == "parquet":
    query = writer.format("parquet").option("path", str(folder / "parquet")).start()
else:
    database = duckdb.connect(str(folder / "out.duckdb"))
    database.execute("CREATE TABLE IF NOT EXISTS batches (id BIGINT)")
    columns = (
        'key BLOB, value BLOB, topic VARCHAR, "partition" INTEGER, "offset" BIGINT,'
        ' "timestamp" TIMESTAMPTZ, timestampType INTEGER'
    )
    database.execute(f"CREATE TABLE IF NOT EXISTS records ({columns})")

    def insert(frame: DataFrame, batch: int) -> None:
        """Insert a batch once, however often Spark runs it."""
        rows = frame.toArrow()
        database.execute("BEGIN")
        if not database.execute("SELECT 1 FROM batches WHERE id = ?", [batch]).fetchone():
            database.register("rows_now", rows)
            database.execute("INSERT INTO records BY NAME SELECT * FROM rows_now")
            database.unregister("rows_now")
            database.execute("INSERT INTO batches VALUES (?)", [batch])
        database.execute("COMMIT")

    query = writer.foreachBatch(insert).start()

query.awaitTermination()
if sink == "duckdb":
    database.close()
seconds = time.monotonic() - started
records = sum(progress["numInputRows"] for progress in query.recentProgress)
print(json.dumps({"records": records, "seconds": seconds}), flush=True)
session.stop()

"""`python -m benchmarks.readers`: how long a reader waits for an answer while the warehouse is written.

A process of its own connects every 0.3 s with `kafka_assets.connect` and counts the table's rows: first while
`dagster dev` ingests 20,000 records a second at `interval: 5s`, then while `kafka-assets ingest` drains a backlog.
How long the file is held by a writer is seen in /proc/locks, which disturbs nobody. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import duckdb
from confluent_kafka import Producer

import kafka_assets
from benchmarks.dagster_dev import dagster_dev
from benchmarks.data import Dataset, fill, values
from benchmarks.environments import say
from benchmarks.folders import scratch
from kafka_assets.config import load_config
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import create_topic
from kafka_assets.errors import KafkaAssetsError, WarehouseInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

WORK = Path(__file__).parent / ".work" / "readers"
EVERY_SECONDS = 0.3
PROMISED_SECONDS = 0.2
_LOOK_SECONDS = 0.003
_BEATS_PER_SECOND = 10
_WARM_BATCHES = 3
_PARTITIONS = 4
_VALUE_BYTES = 100

STREAMS = """\
kafka: {{bootstrap.servers: '{bootstrap}'}}
warehouse: {{uri: 'duckdb:///warehouse.duckdb'}}
streams:
  records: {{topics: [{topic}], interval: 5s}}
"""

_spawn = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class Holds:
    """For how long one process after another held a file's lock to write, in seconds."""

    seconds: list[float] = field(default_factory=list)


def main() -> None:
    """Measure both and print a line for each; exit 1 where a promise was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of steady ingest (default 60)")
    parser.add_argument("--rate", type=int, default=20_000, help="records a second (default 20,000)")
    parser.add_argument("--backlog", type=int, default=2_000_000, help="records to drain (default 2,000,000)")
    parser.add_argument("--readers", type=int, default=1, help="processes that read (default 1)")
    options = parser.parse_args()
    with scratch(WORK), LocalKafka(data_dir=WORK / "kafka") as kafka:
        kept = [
            _steady(kafka.bootstrap_servers, options.rate, options.seconds, options.readers),
            _drain(kafka.bootstrap_servers, options.backlog, options.readers),
        ]
    sys.exit(0 if all(kept) else 1)


def _steady(bootstrap: str, rate: int, seconds: float, readers: int) -> bool:
    folder, file = _project(bootstrap, "steady")
    create_topic(bootstrap, "steady", _PARTITIONS)
    feeder = _spawn.Process(target=_feed, args=(bootstrap, "steady", rate), daemon=True)
    with dagster_dev(folder, "-m", "kafka_assets.definitions") as dev:
        feeder.start()
        try:
            dev.wait(lambda: _committed(file) >= _WARM_BATCHES, "batches")
            began, before = time.monotonic(), _rows(file)
            with _watched(file) as holds, _reading(file, readers) as waits:
                time.sleep(seconds)
            took, rows = time.monotonic() - began, _rows(file) - before
        finally:
            feeder.kill()
            feeder.join()
        failed = len(dev.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])))
    say(f"steady: {rows / took:,.0f} records/s committed, {failed} runs failed")
    _tell("steady", waits, holds)
    return statistics.median(waits) <= PROMISED_SECONDS and not failed


def _drain(bootstrap: str, records: int, readers: int) -> bool:
    folder, file = _project(bootstrap, "drain")
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    fill(bootstrap, Dataset("drain", records, _VALUE_BYTES))
    command = [str(Path(sys.executable).with_name("kafka-assets")), "--config", str(file), "ingest", "--json"]
    with _reading(file, readers) as waits, _watched(file) as holds:
        ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    done = json.loads(ended.stdout)["streams"]["records"]
    say(f"drain: {done['records']:,} records in {len(done['batches'])} batches, {done['seconds']} s")
    _tell("drain", waits, holds)
    return max(waits) <= max(holds.seconds) + PROMISED_SECONDS and done["records"] == records


def _tell(name: str, waits: list[float], holds: Holds) -> None:
    waits.sort()
    p95 = waits[int(0.95 * (len(waits) - 1))]
    print(
        f"{name}: {len(waits)} reads, connect to answer: median {statistics.median(waits):.3f} s, 95%"
        f" {p95:.3f} s, longest {waits[-1]:.3f} s; {len(holds.seconds)} writes, longest"
        f" {max(holds.seconds):.3f} s, in all {sum(holds.seconds):.1f} s"
    )


def _project(bootstrap: str, topic: str) -> tuple[Path, Path]:
    folder = WORK / topic
    folder.mkdir()
    file = folder / "streams.yaml"
    file.write_text(STREAMS.format(bootstrap=bootstrap, topic=topic))
    return folder, file


def _committed(file: Path) -> int:
    return _asked(file, "SELECT count(*) FROM kafka_assets.batches WHERE state = 'committed'")


def _rows(file: Path) -> int:
    return _asked(file, "SELECT count(*) FROM records")


def _asked(file: Path, question: str) -> int:
    """Return what a question is answered with, 0 as long as there is nothing to ask."""
    try:
        with kafka_assets.connect(file) as warehouse:
            return int((warehouse.sql(question).fetchone() or (0,))[0])
    except (WarehouseInvalidError, duckdb.CatalogException):
        return 0


@contextmanager
def _reading(file: Path, readers: int) -> Iterator[list[float]]:
    """Have processes read meanwhile; at the end the list has how long each read took, in seconds."""
    waits: list[float] = []
    pipes = []
    for _ in range(readers):
        ours, theirs = _spawn.Pipe()
        _spawn.Process(target=_read, args=(file, theirs), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    yield waits
    for pipe in pipes:
        pipe.send("stop")
    for pipe in pipes:
        waits += pipe.recv()


def _read(file: Path, pipe: Connection) -> None:
    """Child: read until told to stop, then send how long each read took."""
    pipe.send("ready")
    waits = []
    while not pipe.poll(EVERY_SECONDS):
        began = time.monotonic()
        try:
            if _rows(file):
                waits.append(time.monotonic() - began)
        except KafkaAssetsError as refused:
            print(f"a reader was refused: {refused}", file=sys.stderr)
            waits.append(time.monotonic() - began)
    pipe.send(waits)


def _feed(bootstrap: str, topic: str, rate: int) -> None:
    """Child: produce at a rate until killed."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": "20", "compression.type": "lz4"})
    began, sent = time.monotonic(), 0
    while True:
        time.sleep(1 / _BEATS_PER_SECOND)
        due = int((time.monotonic() - began) * rate) - sent
        records = [{"value": value} for value in values(due, _VALUE_BYTES, sent)]
        for partition in range(_PARTITIONS):
            producer.produce_batch(topic, records[partition::_PARTITIONS], partition=partition)
        sent += due
        producer.poll(0)


@contextmanager
def _watched(file: Path) -> Iterator[Holds]:
    """See meanwhile for how long the warehouse of a streams file is held to write."""
    lock = Path(f"{load_config(file).warehouse.path}.lock")
    holds, done = Holds(), threading.Event()

    def watch() -> None:
        since: dict[str, float] = {}
        while not done.wait(_LOOK_SECONDS):
            now = time.monotonic()
            inode = f":{lock.stat().st_ino}" if lock.exists() else "none"
            lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
            writers = {
                words[4]
                for words in lines
                if words[1] == "FLOCK" and words[3] == "WRITE" and words[5].endswith(inode)
            }
            for writer in since.keys() - writers:
                holds.seconds.append(now - since.pop(writer))
            for writer in writers - since.keys():
                since[writer] = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield holds
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    main()

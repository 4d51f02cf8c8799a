"""`python -m benchmarks.sizes`: speed and memory of `ingest` by the size of a record, from 1 KB to 10 MB.

Values that do not compress, the same number of bytes in each topic.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.environments import say
from benchmarks.folders import environment, scratch
from benchmarks.measure import measure
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import create_topic, quiet

WORK = Path(__file__).parent / ".work" / "sizes"
COMMAND = Path(sys.executable).with_name("kafka-assets")
SIZES = (1_000, 2_500, 5_000, 20_000, 100_000, 300_000, 1_000_000, 10_000_000)
PARTITIONS = 4
TIMEOUT = 1800.0
_LARGEST = 11_000_000
_MB = 1_000_000
_MIB = 1024**2

STREAMS = """\
kafka: {{bootstrap.servers: '{bootstrap}'}}
warehouse: {{uri: 'duckdb:///warehouse.duckdb'}}
streams:
  records: {{topics: [{topic}], format: raw}}
"""


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000, help="in each topic (1,000)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of a record's value, in bytes")
    options = parser.parse_args()
    with scratch(WORK), LocalKafka(data_dir=WORK / "kafka") as kafka:
        print(
            f"{'bytes of a record':>17}{'records':>10}{'batches':>9}{'seconds':>9}{'MB/s':>7}{'peak':>10}{'written':>9}"
        )
        for size in options.sizes:
            print(_line(kafka.bootstrap_servers, size, options.megabytes * _MB // size), flush=True)


def _line(bootstrap: str, size: int, count: int) -> str:
    topic = f"of_{size}"
    _fill(bootstrap, topic, size, count)
    folder = WORK / topic
    folder.mkdir()
    (folder / "streams.yaml").write_text(STREAMS.format(bootstrap=bootstrap, topic=topic))
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    command = [COMMAND, "--config", folder / "streams.yaml", "ingest", "--json"]
    cost, answer = measure(command, folder=folder, env=environment(), timeout=TIMEOUT)
    told = json.loads(answer)["streams"]["records"]
    if told["records"] != count:
        raise RuntimeError(f"{told['records']} records of {count} were loaded")
    speed = size * count / told["seconds"] / _MB
    return (
        f"{size:>17,}{count:>10,}{len(told['batches']):>9}{told['seconds']:>9.1f}{speed:>7.0f}"
        f"{cost.peak_pss / _MIB:>6.0f} MiB{cost.written / (size * count):>8.1f}x"
    )


def _fill(bootstrap: str, topic: str, size: int, count: int) -> None:
    create_topic(bootstrap, topic, PARTITIONS, config={"max.message.bytes": str(_LARGEST)})
    noise = random.Random(7).randbytes(2 * size)  # noqa: S311  filler, the same in every run
    config = {
        "bootstrap.servers": bootstrap,
        "message.max.bytes": _LARGEST,
        "queue.buffering.max.kbytes": 200_000,
        "linger.ms": 50,
    }
    producer = Producer(config, logger=quiet)
    for number in range(count):
        start = number * 7919 % size
        while True:
            try:
                producer.produce(
                    topic, noise[start : start + size], key=b"%08d" % number, partition=number % PARTITIONS
                )
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    if left := producer.flush(120):
        raise RuntimeError(f"{left} records did not reach {topic}")
    say(f"{count:,} records of {size:,} bytes produced")


if __name__ == "__main__":
    main()

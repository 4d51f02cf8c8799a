"""What a stream costs and how fresh it is under `dagster dev`, each figure beside the one to reach."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from confluent_kafka import Producer

import kafka_assets
from benchmarks import report
from benchmarks.dagster_dev import DagsterDev, dagster_dev, peak_pss
from benchmarks.data import PARTITIONS, Dataset, add, fill
from benchmarks.environments import say
from benchmarks.folders import environment, scratch
from benchmarks.machine import machine
from benchmarks.measure import measure
from benchmarks.systems import ingest_command, ingest_folder
from kafka_assets.config import Topics, load_config
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import create_topic
from kafka_assets.log import KafkaLog
from kafka_assets.offsets import TopicPartition
from kafka_assets.orchestration.factory import build_definitions_of
from kafka_assets.orchestration.runtime import CLOCK_GRAIN_SECONDS, Runtime
from kafka_assets.planner import Survey, propose, read_state, record, utc_now
from kafka_assets.planning import LogBounds
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
WORK = HERE / ".work" / "live"
_TABLE = dg.AssetKey(["records"])
_LOCATION = ("-m", "kafka_assets.definitions")
_SHORT_INTERVAL = "    interval: 1s\n"
_FEED_SECONDS = 0.7
_IDLE_STREAMS = 10
_SETTLE_SECONDS = 10.0
_ROUNDS = 3
_INGEST_SECONDS = 300.0
_BATCH_BYTES = 256 * 1024**2
_WIDE = 1_000
_VERY_WIDE = 10_000
_MIB = 1024**2

BARE = """\
import dagster as dg

@dg.asset
def nothing(): ...

def sensor(number):
    @dg.sensor(name=f"empty_{number}", target=nothing, minimum_interval_seconds=1,
               default_status=dg.DefaultSensorStatus.RUNNING)
    def empty(context):
        return dg.RunRequest(run_key="once") if number == 0 else dg.SkipReason("nothing to do")
    return empty

defs = dg.Definitions([nothing], sensors=[sensor(n) for n in range(10)], executor=dg.in_process_executor)
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that was measured, and the one to reach.

    Attributes:
        name: What of.
        value: Measured.
        limit: To reach: at most this, or at least.
        unit: Of both; `%` and `MiB` are shown without decimals.
        at_least: Whether more is better.
        note: How it came about.
    """

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> tuple[str, ...]:
        """As cells of a table."""
        digits = 0 if self.unit in ("%", "MiB") else 2
        sign = "≥" if self.at_least else "≤"
        return (
            self.name,
            f"{self.value:,.{digits}f} {self.unit}",
            f"{sign} {self.limit:,.{digits if self.limit % 1 or digits == 0 else 0}f} {self.unit}",
            "ok" if self.ok else "missed",
            self.note,
        )


@dataclass
class Bench:
    """One broker, on which the parts measure in turn.

    Attributes:
        bootstrap: Its address.
        seconds: How long is watched where a figure is one of a time.
        records: Of the backlog.
        empty_worker: Highest memory of a run worker that does nothing, once it is known.
    """

    bootstrap: str
    seconds: float
    records: int
    empty_worker: int = 0
    figures: list[Figure] = field(default_factory=list)

    def latency(self) -> Iterator[Figure]:
        """One record each 0.7 s into a stream with `interval: 1s`."""
        with scratch(WORK / "latency") as folder:
            create_topic(self.bootstrap, "live", PARTITIONS)
            ingest_folder(folder, self.bootstrap, "live", options=_SHORT_INTERVAL)
            with dagster_dev(folder, *_LOCATION) as dev, _fed(self.bootstrap, "live") as fed:
                dev.wait(lambda: bool(_materialized(dev)), "first batch")
                began = time.time()
                time.sleep(self.seconds)
                fed.set()
                until = time.time()
                expected = _end_offsets(self.bootstrap, "live")
                dev.wait(lambda: sum(_records(one) for one in _materialized(dev)) >= expected, "last batch")
                shown = {one.partition_key: one for one in _materialized(dev)}
                created = {
                    one.dagster_run.run_id: one.create_timestamp.timestamp()
                    for one in dev.instance.get_run_records()
                }
            runs = [
                one.timestamp - created[one.run_id] for one in shown.values() if created[one.run_id] > began
            ]
            with kafka_assets.connect(folder / "streams.yaml") as warehouse:
                stamped = warehouse.execute(
                    "SELECT epoch(_kafka_timestamp), _kafka_batch FROM records"
                ).fetchall()
        ages = sorted(shown[batch].timestamp - stamp for stamp, batch in stamped if began < stamp < until)
        yield Figure(
            "RunRequest to materialized, median",
            statistics.median(runs),
            3,
            "s",
            note=f"{len(runs)} runs, from the creation of each",
        )
        note = f"{len(ages)} records, from each one's timestamp to its batch's materialization"
        yield Figure("produced to visible, median", statistics.median(ages), 6, "s", note=note)
        yield Figure("produced to visible, 95th percentile", statistics.quantiles(ages, n=20)[-1], 9, "s")

    def backlog(self) -> Iterator[Figure]:
        """A backlog drained by the sensor, and by `ingest`."""
        data = Dataset("backlog", self.records, 100)
        took = fill(self.bootstrap, data)
        say(f"{data.records:,} records produced in {took:.1f} s")
        with scratch(WORK / "ingest") as folder:
            _, told = measure(
                ingest_command(ingest_folder(folder, self.bootstrap, data.topic)),
                folder=folder,
                env=environment(),
                timeout=_INGEST_SECONDS,
            )
            ingest = json.loads(told)["streams"]["records"]["seconds"]
        with scratch(WORK / "sensor") as folder:
            ingest_folder(folder, self.bootstrap, data.topic)
            with dagster_dev(folder, *_LOCATION) as dev:
                dev.wait(
                    lambda: sum(_records(one) for one in _materialized(dev)) >= data.records,
                    "end of the backlog",
                    _INGEST_SECONDS,
                    # Each look takes a core for a moment, and both are busy; when it ended is in the events.
                    look=1.0,
                )
                ended = max(one.timestamp for one in _materialized(dev))
            with kafka_assets.connect(folder / "streams.yaml") as warehouse:
                began, batches = warehouse.execute(
                    "SELECT epoch(min(planned_at)), count(*) FROM kafka_assets.batches"
                ).fetchall()[0]
        sensor = ended - began
        note = (
            f"{data.records:,} records: sensor {data.records / sensor:,.0f}/s in {batches} runs,"
            f" ingest {data.records / ingest:,.0f}/s"
        )
        yield Figure(
            "backlog by the sensor, to `ingest`", ingest / sensor, 0.5, "x", at_least=True, note=note
        )

    def idle(self) -> Iterator[Figure]:
        """Ten streams with nothing to do, beside ten empty sensors of a bare project."""
        topics = [f"idle_{number}" for number in range(_IDLE_STREAMS)]
        for topic in topics:
            create_topic(self.bootstrap, topic)
            _one_each(self.bootstrap, topic, 1)
        with self._bare() as dev:
            bare = self._share(dev)
        with scratch(WORK / "idle") as folder:
            streams = {topic: {"topics": [topic], "format": "raw"} for topic in topics}
            (folder / "streams.yaml").write_text(
                json.dumps(
                    {
                        "kafka": {"bootstrap.servers": self.bootstrap},
                        "warehouse": {"uri": "duckdb:///warehouse.duckdb"},
                        "streams": streams,
                    }
                )
            )
            with dagster_dev(folder, *_LOCATION) as dev:
                keys = [dg.AssetKey([topic]) for topic in topics]
                dev.wait(lambda: all(_materialized(dev, key) for key in keys), "first batch of each")
                ours = self._share(dev)
        note = f"over {self.seconds:g} s; ten empty sensors of a bare project: {bare:.1f} %"
        yield Figure("ten idle streams, of one core", ours, 15, "%", note=note)

    def planning(self) -> Iterator[Figure]:
        """Ticks over 1,000 topic-partitions, plans over 10,000."""
        with scratch(WORK / "planning") as folder:
            yield from self._ticks(folder)
        with scratch(WORK / "planning") as folder:
            yield _very_wide(folder)

    def memory(self) -> Iterator[Figure]:
        """A run worker with a full batch."""
        if not self.empty_worker:
            with self._bare():
                pass
        data = Dataset("full", _BATCH_BYTES // 1024 + PARTITIONS, 1000)
        fill(self.bootstrap, data)
        with scratch(WORK / "memory") as folder:
            ingest_folder(folder, self.bootstrap, data.topic)
            with dagster_dev(folder, *_LOCATION) as dev:
                peak = peak_pss(dev.run_workers, lambda: _all_ended(dev))
                size = max(one.asset_materialization.metadata["bytes"].value for one in _materialized(dev))
        note = f"a batch of {size / _MIB:.0f} MiB; an empty one takes {self.empty_worker / _MIB:.0f} MiB"
        yield Figure(
            "run worker's memory above an empty one", (peak - self.empty_worker) / _MIB, 512, "MiB", note=note
        )

    def process(self) -> Iterator[Figure]:
        """`kafka-assets ingest` from process start to exit."""
        data = Dataset("few", 1_000, 100)
        fill(self.bootstrap, data)
        with scratch(WORK / "process") as folder:
            command = ingest_command(ingest_folder(folder, self.bootstrap, data.topic))
            costs = []
            for _ in range(1 + _ROUNDS):
                costs.append(measure(command, folder=folder, env=environment(), timeout=_INGEST_SECONDS)[0])
                add(self.bootstrap, data)
        costs = costs[1:]
        note = f"CPU {statistics.median(one.cpu_seconds for one in costs):.1f} s"
        took = statistics.median(one.seconds for one in costs)
        yield Figure("`ingest` of 1,000 new records, start to exit", took, 5, "s", note=note)

    @contextmanager
    def _bare(self) -> Iterator[DagsterDev]:
        """Dagster alone, after a run that does nothing."""
        with scratch(WORK / "bare") as folder:
            (folder / "bare.py").write_text(BARE)
            with dagster_dev(folder, "-f", "bare.py") as dev:
                self.empty_worker = peak_pss(dev.run_workers, lambda: _all_ended(dev))
                yield dev

    def _share(self, dev: DagsterDev) -> float:
        """The share of a core, in percent, that it takes while nothing happens."""
        dev.await_ticks(_IDLE_STREAMS)
        dev.wait(lambda: _all_ended(dev), "end of all runs")
        time.sleep(_SETTLE_SECONDS)
        began, before = time.monotonic(), dev.cpu_seconds()
        time.sleep(self.seconds)
        return 100 * (dev.cpu_seconds() - before) / (time.monotonic() - began)

    def _ticks(self, folder: Path) -> Iterator[Figure]:
        create_topic(self.bootstrap, "wide", _WIDE, timeout=120)
        streams = ingest_folder(folder, self.bootstrap, "wide", options=_SHORT_INTERVAL)
        settings = (folder / "dagster.yaml").read_text()
        (folder / "dagster.yaml").write_text(settings.replace(": .dagster", f": {folder}/.dagster"))
        runtime = Runtime(load_config(streams))
        names = runtime.names(runtime.config.stream("records"))
        definitions = build_definitions_of(runtime)
        sensor = definitions.get_repository_def().get_sensor_def(names.sensor)
        took: dict[bool, list[float]] = {True: [], False: []}
        cursor = None

        def tick() -> tuple[float, Any]:
            nonlocal cursor
            with dg.build_sensor_context(
                instance=instance, instance_ref=instance.get_ref(), definitions=definitions, cursor=cursor
            ) as context:
                began = time.perf_counter()
                answer = sensor.evaluate_tick(context)
                seconds = time.perf_counter() - began
            cursor = answer.cursor
            return seconds, answer

        with dg.DagsterInstance.from_config(str(folder)) as instance:
            for _ in range(1 + _ROUNDS):
                _one_each(self.bootstrap, "wide", _WIDE)
                for new in (True, False):
                    if not new:
                        measure(
                            ingest_command(streams), folder=folder, env=environment(), timeout=_INGEST_SECONDS
                        )
                        # A tick that comes sooner cannot tell by the file's time that nobody has written it since.
                        time.sleep(CLOCK_GRAIN_SECONDS)
                        tick()
                    seconds, answer = tick()
                    took[new].append(seconds)
                    if bool(answer.run_requests) != new:
                        raise RuntimeError(
                            f"a tick that was to plan ({new}) did otherwise: {answer.skip_message}"
                        )
        name = f"a tick with {_WIDE:,} topic-partitions"
        note = f"median of {_ROUNDS}, the sensor's own code"
        yield Figure(
            f"{name}, all with something new", statistics.median(took[True][1:]), 0.3, "s", note=note
        )
        yield Figure(f"{name}, nothing new", statistics.median(took[False][1:]), 0.1, "s", note=note)


def _very_wide(folder: Path) -> Figure:
    """Plan 10,000 topic-partitions twice: the stream's start, and what came after."""
    config = load_config(ingest_folder(folder, "127.0.0.1:1", "wide"))
    stream, warehouse = config.stream("records"), Warehouse.of(config.warehouse)
    took = []
    # Few enough for one batch; an interval later the next.
    for turn, end in enumerate((20, 40)):
        bounds = {
            TopicPartition("wide", number): LogBounds(
                log_start=0, end=end, high_watermark=end, topic_id="wide", leader_epoch=0
            )
            for number in range(_VERY_WIDE)
        }
        now = utc_now() + turn * timedelta(seconds=60)
        began = time.perf_counter()
        # The brokers would be asked only for times to start at, and for records of unknown size.
        state = replace(read_state(stream, warehouse), bytes_per_record=100.0)
        seen = Survey(state, bounds, (), frozenset())
        plan = propose(stream, seen, cast("KafkaLog", None), now=now)
        keys = record(stream, warehouse, seen, plan, now=now, claim=True)
        took.append(time.perf_counter() - began)
        planned = sum(len(batch) for batch in plan.batches)
        if not keys or planned < _VERY_WIDE:
            raise RuntimeError(f"{planned} of {_VERY_WIDE} topic-partitions were planned: {plan.reason}")
    note = "planner and ledger, the stream's start and what follows, the slower of the two"
    return Figure(f"planning {_VERY_WIDE:,} topic-partitions with lag", max(took), 2, "s", note=note)


def _one_each(bootstrap: str, topic: str, partitions: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 100})
    for partition in range(partitions):
        producer.produce(topic, b"one", partition=partition)
    producer.flush(60)
    producer.close()


def _materialized(dev: DagsterDev, key: dg.AssetKey = _TABLE) -> list[Any]:
    return list(dev.instance.fetch_materializations(key, limit=1000).records)


def _records(one: Any) -> int:  # noqa: ANN401 - Dagster's EventLogRecord
    return int(one.asset_materialization.metadata["records"].value)


def _all_ended(dev: DagsterDev) -> bool:
    runs = dev.instance.get_runs()
    return bool(runs) and all(run.is_finished for run in runs)


def _end_offsets(bootstrap: str, topic: str) -> int:
    with KafkaLog({"bootstrap.servers": bootstrap}) as log:
        return sum(one.end for one in log.bounds(log.topic_partitions(Topics((topic,))).partitions).values())


@contextmanager
def _fed(bootstrap: str, topic: str) -> Iterator[threading.Event]:
    """Produce a record now and then into a topic until told to end."""
    end = threading.Event()

    def feed() -> None:
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        number = 0
        while not end.wait(_FEED_SECONDS):
            producer.produce(topic, b"one", partition=number % PARTITIONS)
            producer.flush(10)
            number += 1
        producer.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield end
    finally:
        end.set()
        feeder.join()


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    part.__name__: part
    for part in (Bench.latency, Bench.backlog, Bench.idle, Bench.planning, Bench.memory, Bench.process)
}


def main() -> int:
    """Measure, print one table; with `--write` put it into README.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME", help=", ".join(PARTS)
    )
    parser.add_argument("--records", type=int, default=8_000_000, help="of the backlog (default 8,000,000)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="to watch freshness, and idling (default 60)"
    )
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    # `dagster dev` has a session of its own, and would outlive a process that ends without its last words.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    figures: list[Figure] = []
    with scratch(WORK / "kafka") as data, LocalKafka(data_dir=data) as kafka:
        bench = Bench(kafka.bootstrap_servers, options.seconds, options.records)
        for name in options.only:
            started = time.monotonic()
            for figure in PARTS[name](bench):
                figures.append(figure)
                say("  ".join(figure.row()))
            say(f"({name}: {time.monotonic() - started:.0f} s)")
    heads = ("figure", "measured", "to reach", "", "how")
    table = report.table("Under `dagster dev`", heads, [figure.row() for figure in figures])
    took = (time.monotonic() - began) / 60
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    table += f"\n\nMeasured {stamp} in {took:.0f} minutes on {report.told(machine())}, the broker on the same machine."
    print(table)
    if options.write:
        report.replace(HERE / "README.md", table, "live")
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

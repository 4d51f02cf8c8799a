"""The whole thing on one machine: a local Kafka that is fed, streams that read it, Dagster to watch it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets.cli import commands
from kafka_assets.config import Topics
from kafka_assets.errors import UsageInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_assets.cli.session import Session
    from kafka_assets.dev.broker import LocalKafka

BOOTSTRAP = "KAFKA_BOOTSTRAP_SERVERS"
DEMO_FOLDER = ".demo"
DEMO_ORDERS = 100_000
PARTITIONS = 6
RETENTION_BYTES = str(256 * 1024**2)
"""Of each partition: a log that is fed for days stays small, and drops what was read long ago."""
HEAD = 5

DEMO_STREAMS = """\
kafka:
  bootstrap.servers: ${KAFKA_BOOTSTRAP_SERVERS}
warehouse:
  uri: duckdb:///warehouse.duckdb
streams:
  orders:
    topics: [orders]
    format: utf8
    max_records_per_batch: 40000
"""

DEMO_DAGSTER = """\
storage: {sqlite: {base_dir: .dagster}}
local_artifact_storage:
  module: dagster._core.storage.root
  class: LocalArtifactStorage
  config: {base_dir: .dagster}
telemetry: {enabled: false}
"""


@contextmanager
def _local_kafka(data_dir: Path | None, port: int | None = None) -> Iterator[LocalKafka]:
    """Start the local broker, which all that is started here uses whatever the environment said before."""
    try:
        from kafka_assets.dev.broker import LocalKafka  # noqa: PLC0415  the dev extra may be absent
    except ImportError as missing:
        raise UsageInvalidError(
            f"the local Kafka needs the dev extra ({missing.name} is not installed). Install"
            f" `kafka-assets[dev]`, or point {BOOTSTRAP} at a Kafka of your own and run `dagster dev`."
        ) from missing
    with LocalKafka(data_dir=data_dir, port=port) as kafka:
        os.environ[BOOTSTRAP] = kafka.bootstrap_servers
        yield kafka


def demo(session: Session) -> int:
    """Produce orders into a local Kafka, ingest them by Dagster runs, show the table's head and the proof."""
    from kafka_assets.dev.sample import produce_orders  # noqa: PLC0415
    from kafka_assets.dev.topics import create_topic  # noqa: PLC0415  needs the dev extra

    folder = Path.cwd() / DEMO_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "streams.yaml").write_text(DEMO_STREAMS)
    (folder / "dagster.yaml").write_text(DEMO_DAGSTER)
    os.environ.pop("DAGSTER_HOME", None)
    session.config_path = str(folder / "streams.yaml")
    session.say("starting a local Kafka ...")
    with _local_kafka(None) as kafka:
        create_topic(kafka.bootstrap_servers, "orders", PARTITIONS)
        session.say(f"producing {DEMO_ORDERS:,} orders into topic orders, {PARTITIONS} partitions ...")
        produce_orders(kafka.bootstrap_servers, "orders", DEMO_ORDERS)
        session.say("ingesting them, a Dagster run for each batch ...")
        commands.ingest(session, (), None)
        if session.exit_code == 0:
            commands.head(session, "orders", HEAD)
            commands.verify(session, ())
    session.say(f"the warehouse and the Dagster instance of this demo are in {folder}")
    return session.exit_code


def dev(session: Session, *, rate: int) -> int:
    """Run a local Kafka, its feeder and `dagster dev` until interrupted; all end together."""
    from kafka_assets.dev.sample import feed  # noqa: PLC0415  needs the dev extra
    from kafka_assets.orchestration.execution import open_instance  # noqa: PLC0415  imports Dagster

    folder = session.config.path.parent
    stop = threading.Event()
    with _local_kafka(folder / "data" / "kafka") as kafka, _until_told(stop):
        topics = _topics(session, kafka)
        feeders = [
            threading.Thread(target=feed, args=(kafka.bootstrap_servers, topic, rate, stop), daemon=True)
            for topic in topics
        ]
        for feeder in feeders:
            feeder.start()
        session.say(
            f"local Kafka at {kafka.bootstrap_servers}, {rate} orders a second into {', '.join(topics)}"
        )
        # Made here, before the processes of Dagster would all make it at once.
        open_instance(folder).dispose()
        session.say("opening Dagster; its address follows below, Ctrl-C ends everything")
        process = subprocess.Popen(  # noqa: S603  our own words
            _dagster_dev(folder),
            cwd=folder,
            env={"DAGSTER_HOME": str(folder), **os.environ},
            start_new_session=True,
        )
        try:
            while process.poll() is None and not stop.wait(0.5):
                pass
        finally:
            stop.set()
            _end(process)
            for feeder in feeders:
                feeder.join(timeout=10)
    return process.returncode if process.returncode and process.returncode > 0 else 0


def _topics(session: Session, kafka: LocalKafka) -> list[str]:
    from kafka_assets.dev.topics import create_topic  # noqa: PLC0415  needs the dev extra
    from kafka_assets.log import KafkaLog  # noqa: PLC0415

    wanted = {
        topic
        for stream in session.config.streams.values()
        if isinstance(stream.selection, Topics)
        for topic in stream.selection.names
    }
    with KafkaLog({"bootstrap.servers": kafka.bootstrap_servers}) as log:
        missing = log.topic_partitions(Topics(tuple(sorted(wanted)))).missing
    for topic in missing:
        create_topic(kafka.bootstrap_servers, topic, PARTITIONS, {"retention.bytes": RETENTION_BYTES})
    return sorted(wanted)


def _dagster_dev(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "dagster", "dev"]
    return command if (folder / "workspace.yaml").exists() else [*command, "-m", "kafka_assets.definitions"]


@contextmanager
def _until_told(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the work in order, rather than wherever it stands."""

    def tell(*_: object) -> None:
        stop.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End `dagster dev` as Ctrl-C would; it takes its code server, daemon and runs along."""
    for number, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue


def broker(session: Session, *, port: int | None, data_dir: str | None) -> int:
    """Run the local Kafka alone until interrupted."""
    stop = threading.Event()
    with _local_kafka(Path(data_dir) if data_dir else None, port) as kafka, _until_told(stop):
        if session.as_json:
            session.answer({"bootstrap_servers": kafka.bootstrap_servers})
        else:
            session.console.print(f"{BOOTSTRAP}={kafka.bootstrap_servers}", highlight=False)
        session.say("Ctrl-C stops it")
        stop.wait()
    return 0

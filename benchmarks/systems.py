"""What is compared, and how each is started on a dataset in a folder of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from benchmarks.environments import INGESTR, SPARK, spark_ready
from benchmarks.folders import environment
from benchmarks.measure import Cost, measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.data import Dataset

PEERS = Path(__file__).parent / "peers"
OURS = "kafka-assets"
TIMEOUT = 900.0
_SPARK_BATCH_BYTES = 200_000_000
_SPARK_BATCH_MOST = 1_000_000

STREAMS = """\
kafka:
  bootstrap.servers: {bootstrap}
warehouse:
  uri: duckdb:///warehouse.duckdb
streams:
  records:
    topics: [{topic}]
    format: raw
"""

DAGSTER = """\
storage: {sqlite: {base_dir: .dagster}}
local_artifact_storage:
  module: dagster._core.storage.root
  class: LocalArtifactStorage
  config: {base_dir: .dagster}
telemetry: {enabled: false}
"""


class WrongResultError(RuntimeError):
    """A system did not bring the records that the topic has."""


@dataclass(frozen=True, slots=True)
class Run:
    """One whole process of one system on one dataset.

    Attributes:
        records: How many it brought.
        seconds: What it took by its own clock, after its start-up; the whole process where it has
            no such clock.
        cost: The whole process, seen from outside.
    """

    records: int
    seconds: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class System:
    """Something that brings a topic into a file.

    Attributes:
        name: In tables and on the command line.
        note: What a reader must know about its figures.
        command: The words to run on a broker's address, a dataset and a folder.
        clock: Finds records and seconds in its stdout; None where it tells neither.
        rows: The SQL that counts what it wrote, run in its folder.
        setup: Makes its environment; returns variables for it.
        versions: What it runs on.
    """

    name: str
    note: str
    command: Callable[[str, Dataset, Path], list[str | Path]]
    clock: Callable[[str], tuple[int, float]] | None
    rows: str
    setup: Callable[[], dict[str, str]]
    versions: Callable[[], dict[str, str]]

    def run(self, bootstrap: str, dataset: Dataset, folder: Path, *, before: int = 0) -> Run:
        """Run it to its end and check that the rows are there.

        Args:
            bootstrap: The broker.
            dataset: What the topic got since the last run in this folder.
            folder: Where it keeps all it writes.
            before: Rows that are there already.

        Raises:
            CommandFailedError: It failed.
            WrongResultError: Other rows than records.
        """
        env = environment(**self.setup())
        cost, told = measure(
            self.command(bootstrap, dataset, folder), folder=folder, env=env, timeout=TIMEOUT
        )
        with duckdb.connect() as database:
            database.execute(f"SET file_search_path = '{folder}'")
            for statement in self.rows.split(";"):
                database.execute(statement.format(folder=folder))
            found = (database.fetchone() or (0,))[0] - before
        records, seconds = self.clock(told) if self.clock else (found, cost.seconds)
        if {found, records} != {dataset.records}:
            raise WrongResultError(
                f"{self.name} says {records} records and wrote {found} rows; there are {dataset.records}"
            )
        return Run(records, seconds, cost)


def _own_clock(told: str) -> tuple[int, float]:
    answer = json.loads(told.strip().splitlines()[-1])
    return answer["records"], answer["seconds"]


def _ingest_clock(told: str) -> tuple[int, float]:
    answer = json.loads(told)["streams"]["records"]
    if answer["error"]:
        raise WrongResultError(f"{OURS}: {answer['error']}")
    return answer["records"], answer["seconds"]


def _nothing() -> dict[str, str]:
    return {}


def own_modules() -> dict[str, str]:
    """The variables with which another folder's process finds the modules of this package."""
    return {"PYTHONPATH": str(PEERS.parent.parent)}


def _own_versions() -> dict[str, str]:
    from importlib.metadata import version  # noqa: PLC0415 - beside its only use

    return {name: version(name) for name in (OURS, "dagster", "confluent-kafka", "duckdb", "pyarrow")}


def ingest_folder(folder: Path, bootstrap: str, topic: str, *, options: str = "") -> Path:
    """Write the files of a kafka-assets project with one stream, `records`; return its streams file."""
    streams = folder / "streams.yaml"
    streams.write_text(STREAMS.format(bootstrap=bootstrap, topic=topic) + options)
    (folder / "dagster.yaml").write_text(DAGSTER)
    return streams


def ingest_command(streams: Path) -> list[str | Path]:
    """The words that ingest a project's streams."""
    return [Path(sys.executable).with_name("kafka-assets"), "--config", streams, "ingest", "--json"]


def _ours(bootstrap: str, dataset: Dataset, folder: Path) -> list[str | Path]:
    return ingest_command(ingest_folder(folder, bootstrap, dataset.topic))


def _spark(sink: str) -> Callable[[str, Dataset, Path], list[str | Path]]:
    def command(bootstrap: str, dataset: Dataset, folder: Path) -> list[str | Path]:
        most = 0
        if sink == "duckdb":
            most = min(_SPARK_BATCH_MOST, _SPARK_BATCH_BYTES // dataset.value_bytes)
        return [SPARK.python, PEERS / "spark_job.py", bootstrap, dataset.topic, sink, folder, str(most)]

    return command


def _ingestr_setup() -> dict[str, str]:
    INGESTR.ready()
    return {"DISABLE_TELEMETRY": "true", "RUNTIME__DLTHUB_TELEMETRY": "false"}


def _ingestr(bootstrap: str, dataset: Dataset, folder: Path) -> list[str | Path]:
    source = f"kafka://?bootstrap_servers={bootstrap}&group_id=ingestr"
    words = ["ingest", "--yes", "--progress", "log", "--source-uri", source, "--source-table", dataset.topic]
    return [
        INGESTR.program("ingestr"),
        *words,
        "--dest-uri",
        f"duckdb:///{folder / 'out.duckdb'}",
        "--dest-table",
        "main.records",
    ]


def _group_loop(bootstrap: str, dataset: Dataset, folder: Path) -> list[str | Path]:
    return [sys.executable, PEERS / "group_loop.py", bootstrap, dataset.topic, str(dataset.records), folder]


def _serial_loop(bootstrap: str, dataset: Dataset, folder: Path) -> list[str | Path]:
    return [sys.executable, "-m", "benchmarks.peers.serial_loop", bootstrap, dataset.topic, folder]


_IN_DUCKDB = "ATTACH '{folder}/out.duckdb' AS o (READ_ONLY); SELECT count(*) FROM o.main.records"

SYSTEMS = (
    System(
        OURS,
        "exactly once, rows and offsets in one transaction, a Dagster run a batch, proof kept",
        _ours,
        _ingest_clock,
        "ATTACH '{folder}/warehouse.duckdb' AS o (READ_ONLY); SELECT count(*) FROM o.main.records",
        _nothing,
        _own_versions,
    ),
    System(
        "spark-parquet",
        "Structured Streaming, availableNow, local[2], one batch",
        _spark("parquet"),
        _own_clock,
        "SELECT count(*) FROM read_parquet('{folder}/parquet/*.parquet')",
        spark_ready,
        SPARK.versions,
    ),
    System(
        "spark-duckdb",
        "the same, foreachBatch and toArrow, a transaction each 1,000,000 records (200,000 of 1,000 bytes)",
        _spark("duckdb"),
        _own_clock,
        _IN_DUCKDB,
        spark_ready,
        SPARK.versions,
    ),
    System(
        "ingestr",
        "whole process, on 200,000 records; at least once",
        _ingestr,
        None,
        _IN_DUCKDB,
        _ingestr_setup,
        INGESTR.versions,
    ),
    System(
        "group-loop",
        "poll() one by one, an insert and a commit of offsets every 10,000 records; at least once",
        _group_loop,
        _own_clock,
        _IN_DUCKDB,
        _nothing,
        _nothing,
    ),
    System(
        "serial-loop",
        "the limit of one thread: all into memory, then one insert; no ledger, no proof, no memory bound",
        _serial_loop,
        _own_clock,
        _IN_DUCKDB,
        own_modules,
        _nothing,
    ),
)

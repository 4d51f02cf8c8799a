"""A folder with a streams file and a Dagster instance, worked on by the command line alone."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.process import BaseProcess

SCRIPT = Path(sys.executable).with_name("kafka-assets")
NOWHERE = "127.0.0.1:1"
CLASSES = ("loaded", "filtered", "quarantined", "undeliverable", "lost", "removed", "pending")

DAGSTER = """\
storage: {sqlite: {base_dir: .dagster}}
local_artifact_storage:
  module: dagster._core.storage.root
  class: LocalArtifactStorage
  config: {base_dir: .dagster}
telemetry: {enabled: false}
"""

_fresh = multiprocessing.get_context("forkserver")
_fresh.set_forkserver_preload(["kafka_assets.orchestration.ingest", "kafka_assets.orchestration.execution"])


@dataclass(frozen=True)
class Project:
    """A project's folder and how to use it.

    Attributes:
        folder: Holds streams.yaml, dagster.yaml and, once there is one, the warehouse w.duckdb.
        bootstrap: The brokers the streams file names unless told otherwise.
    """

    folder: Path
    bootstrap: str

    @property
    def file(self) -> Path:
        return self.folder / "streams.yaml"

    @property
    def warehouse(self) -> Path:
        return self.folder / "w.duckdb"

    def write(
        self,
        streams: Mapping[str, Mapping[str, object]],
        *,
        kafka: Mapping[str, object] | None = None,
        uri: str = "duckdb:///w.duckdb",
        lock_timeout: str = "20s",
    ) -> None:
        """Write the streams file; JSON is YAML."""
        document = {
            "kafka": {"bootstrap.servers": self.bootstrap, **(kafka or {})},
            "warehouse": {"uri": uri, "lock_timeout": lock_timeout},
            "streams": streams,
        }
        self.file.write_text(json.dumps(document))

    def __call__(self, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
        """Run a command with --json in this process and return its answer, having checked the exit code."""
        out = io.StringIO()
        code = run([*arguments, "--config", str(self.file), "--json"], out)
        assert code == exit_code, out.getvalue()
        answer: dict[str, Any] = json.loads(out.getvalue())
        return answer

    def text(self, *arguments: str, exit_code: int = 0) -> str:
        """Run a command for people in this process and return what it wrote to stdout."""
        out = io.StringIO()
        code = run([*arguments, "--config", str(self.file)], out)
        assert code == exit_code, out.getvalue()
        return out.getvalue()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the installed command in a session of its own."""
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fork(self, *arguments: str) -> BaseProcess:
        """Start a command in a process that has its imports behind it; the answer is thrown away."""
        process = _fresh.Process(target=_run, args=([*arguments, "--config", str(self.file), "--json"],))
        process.start()
        return process

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Read the warehouse, an empty answer while there is none."""
        with self._opened().reading() as connection:
            return connection.execute(statement).fetchall() if connection else []

    def alter(self, statement: str) -> None:
        """Write into the warehouse behind the project's back."""
        with self._opened().writing() as connection:
            connection.execute(statement).fetchall()

    def offsets(self, table: str = "orders") -> Counter[tuple[str, int, int]]:
        """How often each (topic, partition, offset) is in a table."""
        identity = "_kafka_topic, _kafka_partition, _kafka_offset"
        return Counter(self.query(f"SELECT {identity} FROM {table}"))  # noqa: S608  a test's own table

    def committed(self) -> int:
        """The number of committed batches; 0 while there is no ledger."""
        if not self.query("SELECT 1 FROM duckdb_views() WHERE schema_name = 'kafka_assets' LIMIT 1"):
            return 0
        return int(self.query("SELECT count(*) FROM kafka_assets.batches WHERE state = 'committed'")[0][0])

    def assert_each_once(self, *topics: str, partitions: int, count: int, table: str = "orders") -> None:
        """Every record of topics with `count` in each partition is there once, and the proof holds."""
        expected = {
            (topic, partition, offset)
            for topic in topics
            for partition in range(partitions)
            for offset in range(count)
        }
        assert self.offsets(table) == Counter(expected)
        proof = self("verify")
        assert proof["ok"], proof
        for row in (row for one in proof["streams"].values() for row in one["partitions"]):
            assert sum(row[name] for name in CLASSES) == row["until"] - row["from"]

    def _opened(self) -> Warehouse:
        place = load_config(self.file).warehouse
        return Warehouse.of(place)


def _run(arguments: list[str]) -> None:
    with Path(os.devnull).open("w") as nowhere:
        sys.exit(run(arguments, nowhere))


def error_of(answer: Mapping[str, Any], stream: str | None = None) -> tuple[str, str]:
    """The code and the message of an answer's error, or of one of its streams."""
    error = answer["error"] if stream is None else answer["streams"][stream]["error"]
    return error["code"], error["message"]

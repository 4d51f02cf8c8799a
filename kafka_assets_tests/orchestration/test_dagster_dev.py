from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kafka_assets import coverage, ledger
from kafka_assets.config import load_config
from kafka_assets.formats import get_format
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.orchestration.support import STREAM, write_streams
from kafka_assets_tests.support.kafka import values, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
WAIT = 120.0

CLICK = """
mutation Click($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message }
  }
}
"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
STATS = """
query { assetNodes(assetKeys: [{path: ["orders"]}]) {
  partitionStats { numPartitions numMaterialized numFailed numMaterializing }
} }
"""


class Stack:
    """`dagster dev` on the project's own dagster.yaml, but sooner sure of a death, and its workspace.yaml."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(PROJECT / "workspace.yaml", folder)
        instance = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
        instance["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 20}
        (folder / "dagster.yaml").write_text(json.dumps(instance))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> None:
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(self._port)],
                cwd=self._folder,
                env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(lambda: self.ask(STATS), "the web server", WAIT)

    def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait(60)

    def ask(self, query: str, **variables: Any) -> dict[str, Any] | None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  our own server
                found = json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None
        assert "errors" not in found, found
        return found["data"]

    def stats(self) -> dict[str, int]:
        data = self.ask(STATS)
        nodes = data["assetNodes"] if data else []
        return nodes[0]["partitionStats"] if nodes else {}


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    stack = Stack(folder)
    try:
        stack.start()
        yield stack
    finally:
        stack.end(signal.SIGINT)
        with suppress(ProcessLookupError):
            stack.end(signal.SIGKILL)


@pytest.mark.timeout(400)
def test_the_whole_stack_ingests_replays_backfills_and_survives_a_kill(topic, produce, bootstrap, tmp_path):
    """Batches turn green; a click and a backfill replace rows; after kill -9 nothing is lost or twice."""
    name = topic(2)
    options = {"topics": [name], "max_records_per_batch": 100, "interval": "1s", "batch_timeout": "30s"}
    config = load_config(write_streams(tmp_path, bootstrap, {STREAM: options}))
    warehouse, stream = Warehouse.of(config.warehouse), config.stream(STREAM)

    def committed() -> dict[str, int]:
        """The generation of each committed batch."""
        with warehouse.reading() as connection:
            state = ledger.read_stream(connection, STREAM)
        return {
            batch.batch: batch.generation
            for batch in sorted(state.recently_committed, key=lambda one: one.batch)
        }

    def rows() -> tuple[int, int]:
        with warehouse.reading() as connection:
            if connection is None:
                return 0, 0
            return connection.execute(
                "SELECT count(*), count(DISTINCT (_kafka_partition, _kafka_offset)) FROM orders"
            ).fetchall()[0]

    for partition in range(2):
        produce(name, values(150), partition)
    with running(tmp_path) as stack:
        wait_until(lambda: len(committed()) == 3, "three batches", WAIT)
        assert rows() == (300, 300)
        first, second, third = committed()
        wait_until(lambda: stack.stats().get("numMaterialized") == 3, "three green partitions", WAIT)

        backfill = {"assetSelection": [{"path": ["orders"]}], "partitionNames": [second, third]}
        launched = stack.ask(BACKFILL, params=backfill)
        assert launched
        assert launched["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", launched
        selector = {
            "repositoryLocationName": "kafka_assets",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["orders"]}],
            "assetCheckSelection": [],
        }
        tags = [{"key": "dagster/partition", "value": first}]
        clicked = stack.ask(
            CLICK, params={"selector": selector, "mode": "default", "executionMetadata": {"tags": tags}}
        )
        assert clicked
        assert clicked["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess", clicked
        wait_until(lambda: committed()[first] == 2, "the click replaced its batch", WAIT)
        wait_until(lambda: [committed()[key] for key in (second, third)] == [2, 2], "the backfill", WAIT)
        assert rows() == (300, 300)

        for partition in range(2):
            produce(name, values(50, first=150), partition)
        wait_until(lambda: stack.stats().get("numPartitions", 0) > 3, "a tick that planned", WAIT)
        stack.end(signal.SIGKILL)
        for partition in range(2):
            produce(name, values(50, first=200), partition)
        stack.start()

        wait_until(lambda: rows()[0] == 500, "all records", WAIT)
        # A tick may come between the records of one partition and those of the other: two batches or three.
        batches = committed()
        green = {"numPartitions": len(batches), "numMaterialized": len(batches)}
        wait_until(lambda: green.items() <= stack.stats().items(), f"all green: {green}", WAIT)
        assert stack.stats()["numFailed"] == 0
    assert rows() == (500, 500)
    assert committed() == batches
    assert list(batches.values()) == [2, 2, 2, *[1] * (len(batches) - 3)]
    assert len(batches) in (5, 6)
    with warehouse.reading() as connection:
        proof = coverage.verify(connection, STREAM, get_format(stream.format).columns)
    assert proof.ok
    assert sum(one.loaded for one in proof.partitions) == 500

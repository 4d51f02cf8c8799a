"""Run workers, forked from a process that has imported what they need."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
from dagster._grpc import server

from kafka_assets.orchestration.workers import fork_run_workers
from kafka_assets_tests.orchestration.support import STREAM, write_streams
from kafka_assets_tests.support.imported import tell
from kafka_assets_tests.support.kafka import wait_until


@pytest.fixture
def context(monkeypatch):
    """What this process, were it a code server, would have its run workers started by."""
    monkeypatch.setattr(server.DagsterApiServer, "_mp_ctx", None, raising=False)
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", [])
    forkserver._forkserver._stop()  # another test may have started one
    fork_run_workers()
    yield server.DagsterApiServer._mp_ctx.fget(None)
    forkserver._forkserver._stop()


def imported_in_a_worker(context):
    """What has been imported in a worker before it begins."""
    told = context.SimpleQueue()
    worker = context.Process(target=tell, args=(told,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    return told.get()


def test_a_code_server_forks_its_run_workers_with_the_libraries_imported(context):
    """They have Dagster, DuckDB and Kafka's client from their first moment, and read the streams file themselves."""
    assert imported_in_a_worker(context) == ["confluent_kafka", "dagster", "duckdb", "pyarrow"]


def test_when_the_process_they_are_forked_from_is_killed_the_next_run_starts_another(context):
    """The code server goes on."""
    first = forkserver._forkserver._forkserver_pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{first}/stat").read_text().split()[2] == "Z", "its end")
    assert imported_in_a_worker(context) == ["confluent_kafka", "dagster", "duckdb", "pyarrow"]
    assert forkserver._forkserver._forkserver_pid != first


def test_dagster_starts_its_run_workers_as_is_assumed_here():
    """The attribute set is the one that its code server asks for a process, and is made before code is loaded."""
    made = inspect.getsource(server.DagsterApiServer.__init__)
    assert "self._mp_ctx.Process(" in inspect.getsource(server.DagsterApiServer.StartRun)
    assert made.index("self._mp_ctx = ") < made.index("LoadedRepositories(")
    assert multiprocessing.get_start_method() != "forkserver"


def test_no_other_process_that_loads_the_definitions_starts_one(tmp_path):
    """A notebook, a test or `dagster definitions validate` has nothing to fork."""
    streams = write_streams(tmp_path, "127.0.0.1:1", {STREAM: {"topics": ["orders"]}})
    look = (
        "import kafka_assets.definitions as loaded; from multiprocessing import forkserver;"
        " print(len(list(loaded.defs.assets)), forkserver._forkserver._forkserver_pid)"
    )
    told = subprocess.run(
        [sys.executable, "-c", look],
        env={"KAFKA_ASSETS_CONFIG": str(streams)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    count, pid = told.stdout.split()
    assert (int(count) > 0, pid) == (True, "None")

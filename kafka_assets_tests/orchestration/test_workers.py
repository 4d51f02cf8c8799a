"""Run workers, forked from a process that has imported what they need."""

from __future__ import annotations

import inspect
import multiprocessing
import subprocess
import sys
from multiprocessing import forkserver

from dagster._grpc import server

from kafka_assets.orchestration.workers import fork_run_workers
from kafka_assets_tests.orchestration.support import STREAM, write_streams
from kafka_assets_tests.support.imported import tell


def test_a_code_server_forks_its_run_workers_with_the_libraries_imported(monkeypatch):
    """They have Dagster, DuckDB and Kafka's client from their first moment, and read the streams file themselves."""
    monkeypatch.setattr(server.DagsterApiServer, "_mp_ctx", None, raising=False)
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", [])
    forkserver._forkserver._stop()  # another test may have started one
    fork_run_workers()
    context = server.DagsterApiServer._mp_ctx.fget(None)
    try:
        told = context.SimpleQueue()
        worker = context.Process(target=tell, args=(told,))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        assert told.get() == ["confluent_kafka", "dagster", "duckdb", "pyarrow"]
    finally:
        forkserver._forkserver._stop()


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

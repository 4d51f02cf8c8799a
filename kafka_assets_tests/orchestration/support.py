"""A streams file, a Dagster instance and a warehouse in one folder, driven as the daemon and the UI would."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.snap import snapshot_from_execution_plan

from kafka_assets import coverage, ledger
from kafka_assets.config import load_config
from kafka_assets.formats import get_format
from kafka_assets.orchestration import assets, liveness, sensors
from kafka_assets.orchestration.factory import build_definitions_of
from kafka_assets.orchestration.naming import PARTITION_TAG, RUN_KEY_TAG
from kafka_assets.orchestration.runtime import Runtime
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path

    import pytest

    from kafka_assets.ledger import BatchRow, StreamState

STREAM = "orders"


def write_streams(
    folder: Path, bootstrap: str, streams: Mapping[str, Mapping[str, object]], **kafka: str
) -> Path:
    """Write a streams file; JSON is YAML."""
    file = folder / "streams.yaml"
    file.write_text(
        json.dumps(
            {
                "kafka": {"bootstrap.servers": bootstrap, **kafka},
                "warehouse": {"uri": "duckdb:///w.duckdb", "lock_timeout": "20s"},
                "streams": streams,
            }
        )
    )
    return file


def make_storage(instance: dg.DagsterInstance) -> None:
    """Have Dagster make its databases, each of which it makes when it is first asked."""
    instance.get_runs()
    instance.get_dynamic_partitions("none")
    instance.all_instigator_state()


@dataclass
class Tick:
    """What came of one evaluation of a sensor."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    skipped: str | None = None

    @property
    def run_keys(self) -> list[str]:
        return [str(request.run_key) for request in self.requests]

    @property
    def batches(self) -> list[str]:
        return [str(request.partition_key) for request in self.requests]

    def checks(self, name: str) -> list[dg.AssetCheckEvaluation]:
        return [
            event
            for event in self.events
            if isinstance(event, dg.AssetCheckEvaluation) and event.check_name == name
        ]

    @property
    def materializations(self) -> list[dg.AssetMaterialization]:
        return [event for event in self.events if isinstance(event, dg.AssetMaterialization)]


class Bench:
    """One project folder. Ticks and runs happen in this process, at a clock that can be moved."""

    def __init__(self, file: Path, instance: dg.DagsterInstance, stream: str = STREAM, **build: Any) -> None:
        self.folder = file.parent
        self.instance = instance
        self.config = load_config(file)
        self.stream = self.config.stream(stream)
        self.runtime = Runtime(self.config, **build)
        self.names = self.runtime.names(self.stream)
        self.warehouse = Warehouse.of(self.config.warehouse)
        self.cursor: str | None = None

    @cached_property
    def definitions(self) -> dg.Definitions:
        return dg.Definitions.merge(
            build_definitions_of(self.runtime), dg.Definitions(executor=dg.in_process_executor)
        )

    @cached_property
    def job(self) -> dg.JobDefinition:
        return self.definitions.get_repository_def().get_implicit_global_asset_job_def()

    def evaluate(self) -> Any:
        sensor = self.definitions.get_repository_def().get_sensor_def(self.names.sensor)
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            definitions=self.definitions,
            cursor=self.cursor,
        ) as context:
            return sensor.evaluate_tick(context)

    def tick(self) -> Tick:
        """Evaluate the sensor and store what the daemon stores of it; runs are left to `run`."""
        data = self.evaluate()
        if data.cursor:
            self.cursor = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return Tick(list(data.run_requests or []), list(data.asset_events), data.skip_message)

    def create_run(
        self,
        batch: str,
        tags: Mapping[str, str] | None = None,
        *,
        checks: bool = False,
        parent: dg.DagsterRun | None = None,
    ) -> dg.DagsterRun:
        """Create a run of a partition; with a parent, as Dagster executes that one again, tags and all."""
        selection = frozenset({self.names.asset_key})
        keys = frozenset(self.checks if checks else ())
        job = self.job.get_subset(asset_selection=selection, asset_check_selection=keys)
        tags = {**(parent.tags if parent else {}), **(tags or {}), PARTITION_TAG: batch}
        if parent:
            tags |= {
                "dagster/parent_run_id": parent.run_id,
                "dagster/root_run_id": parent.root_run_id or parent.run_id,
            }
        plan = create_execution_plan(job, tags=tags)
        return self.instance.create_run(
            job_name=job.name,
            run_id=None,
            run_config={},
            status=None,
            tags=tags,
            root_run_id=(parent.root_run_id or parent.run_id) if parent else None,
            parent_run_id=parent.run_id if parent else None,
            step_keys_to_execute=None,
            execution_plan_snapshot=snapshot_from_execution_plan(plan, job.get_job_snapshot_id()),
            job_snapshot=job.get_job_snapshot(),
            parent_job_snapshot=job.get_parent_job_snapshot(),
            asset_selection=selection,
            asset_check_selection=keys,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=None,
            job_code_origin=None,
            asset_graph=job.asset_layer.asset_graph,
        )

    @property
    def checks(self) -> list[dg.AssetCheckKey]:
        return [dg.AssetCheckKey(self.names.asset_key, name) for name in ("coverage", "lag")]

    def execute(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Execute a run to its end, and end with it what its process would take along."""
        execute_run(InMemoryJob(self.job), run, self.instance, raise_on_error=False)
        liveness.release(self.stream.name, run.tags[PARTITION_TAG])
        done = self.instance.get_run_by_id(run.run_id)
        assert done is not None
        return done

    def click(self, batch: str, tags: Mapping[str, str] | None = None, **more: Any) -> dg.DagsterRun:
        """Materialize a partition."""
        return self.execute(self.create_run(batch, tags, **more))

    def run(self, request: dg.RunRequest) -> dg.DagsterRun:
        """Execute what a tick requested."""
        return self.click(str(request.partition_key), {**request.tags, RUN_KEY_TAG: str(request.run_key)})

    def run_all(self, tick: Tick) -> list[dg.DagsterRun]:
        return [self.run(request) for request in tick.requests]

    def state(self) -> StreamState:
        with self.warehouse.reading() as connection:
            return ledger.read_stream(connection, self.stream.name)

    def batch(self, key: str) -> BatchRow:
        with self.warehouse.reading() as connection:
            found = ledger.read_batch(connection, self.stream.name, key)
        assert found is not None
        return found

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.warehouse.reading() as connection:
            assert connection is not None
            return connection.execute(statement).fetchall()

    def rows(self) -> tuple[int, int]:
        """Rows of the table, and how many distinct topic, partition, offset they have."""
        ((rows, distinct),) = self.query(
            "SELECT count(*), count(DISTINCT (_kafka_topic, _kafka_partition, _kafka_offset))"  # noqa: S608
            f" FROM {self.stream.table.quoted}"
        )
        return rows, distinct

    def proof(self) -> coverage.Verification:
        with self.warehouse.reading() as connection:
            return coverage.verify(connection, self.stream.name, get_format(self.stream.format).columns)

    def partition_keys(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(self.names.batches))

    def materialized(self, batch: str) -> list[Mapping[str, dg.MetadataValue]]:
        """The metadata of a batch's materializations, newest first."""
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=self.names.asset_key, asset_partitions=[batch]), limit=100
        )
        return [one.asset_materialization.metadata for one in found.records if one.asset_materialization]

    def events(self, run: dg.DagsterRun, kind: dg.DagsterEventType) -> list[dg.EventLogEntry]:
        found = self.instance.get_records_for_run(run.run_id, of_type=kind).records
        return [record.event_log_entry for record in found]

    def failure(self, run: dg.DagsterRun) -> str:
        (entry,) = self.events(run, dg.DagsterEventType.STEP_FAILURE)
        assert entry.dagster_event is not None
        data = entry.dagster_event.step_failure_data
        assert data.user_failure_data is not None
        return str(data.user_failure_data.description)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have ticks take place so many seconds later than it is."""
    monkeypatch.setattr(sensors, "utc_now", lambda: datetime.now(UTC) + timedelta(seconds=seconds))


@contextmanager
def child(target: Any, *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """A process of its own, and the pipe to it; killed at the end, if it has not ended."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join(30)


def run_in_child(file: Path, home: Path, run_id: str, pause_at: str, pipe: Connection) -> None:
    """Child: execute a run; pause at a point around its commit until told to go on, or to be killed."""
    commit = assets.batches.commit

    def paused(*arguments: Any, **named: Any) -> Any:
        if pause_at == "before commit":
            pipe.send(pause_at)
            pipe.recv()
        done = commit(*arguments, **named)
        if pause_at == "after commit":
            pipe.send(pause_at)
            pipe.recv()
        return done

    def finished(*arguments: Any) -> None:
        finish(*arguments)
        if pause_at == "after finish":
            pipe.send(pause_at)
            pipe.recv()

    finish, assets.finish = assets.finish, finished
    assets.batches.commit = paused
    with dg.DagsterInstance.from_config(str(home)) as instance:
        bench = Bench(file, instance)
        run = instance.get_run_by_id(run_id)
        assert run is not None
        pipe.send(bench.execute(run).status.value)


def hold_warehouse(file: Path, pipe: Connection) -> None:
    """Child: keep the warehouse file until told to stop."""
    warehouse = Warehouse.of(load_config(file).warehouse)
    with warehouse.writing():
        pipe.send(os.getpid())
        pipe.recv()


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

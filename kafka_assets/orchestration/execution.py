"""Runs executed in this process, in every other way like those that the daemon launches."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

# Dagster has no public way to execute a run that belongs to a code location, which is what lets the UI show
# and re-execute it; the dependency is held to one minor version for these.
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.snap import snapshot_from_execution_plan
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import make_new_run_id
from dagster._core.workspace.load import location_origins_from_yaml_paths

from kafka_assets.errors import ConfigInvalidError, UsageInvalidError
from kafka_assets.interrupts import interruptible
from kafka_assets.orchestration.factory import build_definitions_of
from kafka_assets.orchestration.liveness import host_tag, release
from kafka_assets.orchestration.naming import PARTITION_TAG, STREAM_TAG, generation_tag
from kafka_assets.orchestration.runs import newest_key
from kafka_assets.orchestration.storage import keep_what_storage_makes
from kafka_assets.staging import discard_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagster._core.remote_origin import CodeLocationOrigin
    from dagster._core.snap import ExecutionPlanSnapshot

    from kafka_assets.config import StreamConfig
    from kafka_assets.orchestration.naming import Names
    from kafka_assets.orchestration.runtime import Runtime

DEFINITIONS_MODULE = "kafka_assets.definitions"


NO_CHECKS = frozenset[dg.AssetCheckKey]()
RUN_CONFIG: dict[str, object] = {"loggers": {"console": {}}}
"""Chooses the console logger of whoever executes: the quiet one here, the usual one when the UI runs it again."""


_NO_CAPTURE = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}
"""What is printed goes to the terminal: to copy it to Dagster too would start four processes for each run."""


def _quiet(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("kafka_assets.quiet")  # noqa: LOG001  Dagster asks for one that nobody else has
    logger.addHandler(logging.NullHandler())
    return logger


QUIET_LOGGER = dg.LoggerDefinition(
    _quiet, description="Says nothing: the command line shows progress in its own words."
)


def open_instance(folder: Path) -> dg.DagsterInstance:
    """Return the Dagster instance of `DAGSTER_HOME`, else the one that `dagster.yaml` in `folder` describes.

    Relative paths in that file count from the working directory, as for `dagster dev`: be there.

    Raises:
        UsageInvalidError: There is neither.
        ConfigInvalidError: Dagster cannot use it.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or folder)
    settings = home / "dagster.yaml"
    if not os.environ.get("DAGSTER_HOME") and not settings.exists():
        raise UsageInvalidError(
            f"there is no Dagster instance to record runs in: DAGSTER_HOME is not set and {folder} has no"
            " dagster.yaml. Set DAGSTER_HOME to your instance's folder, or put a dagster.yaml beside the streams"
            " file."
        )
    if not (home.is_absolute() and home.is_dir()):
        raise ConfigInvalidError(
            f"DAGSTER_HOME is {str(home)!r}, and Dagster asks for the absolute path of a folder that exists. Nothing"
            " was done. Correct it, or make the folder."
        )
    try:
        keep_what_storage_makes()
        with _one_at_a_time(settings):
            instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_NO_CAPTURE))
            # It makes a database when that is first asked.
            instance.get_run_ids(limit=1)
            instance.get_dynamic_partitions("")
            return instance
    except Exception as error:
        # Of many kinds: Dagster's own, the YAML parser's, its storage's.
        raise ConfigInvalidError(
            f"Dagster cannot use the instance that {settings} describes, so no run could be recorded and nothing"
            f" was done: {error}"
        ) from error


@contextmanager
def _one_at_a_time(settings: Path) -> Iterator[None]:
    """Let one process at a time open an instance: two that make its storage at once leave it broken."""
    if not settings.exists():
        yield
        return
    with settings.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class _StreamJob:
    """The job of one stream's asset alone, and what its runs do: made once, as it takes as long as a small batch."""

    definition: dg.JobDefinition
    plan: ExecutionPlanSnapshot


class _ChosenJob(InMemoryJob):
    """A job of exactly what its runs select, which Dagster would work out anew for each of them."""

    def get_subset(self, **_: object) -> _ChosenJob:
        return self


class RunExecutor:
    """Executes batches of one streams file, one run after another: Dagster's logging allows one a process."""

    def __init__(self, runtime: Runtime, instance: dg.DagsterInstance) -> None:
        self._runtime = runtime
        self._instance = instance
        self._jobs: dict[str, _StreamJob] = {}

    @cached_property
    def _job(self) -> dg.JobDefinition:
        definitions = dg.Definitions.merge(
            build_definitions_of(self._runtime),
            dg.Definitions(executor=dg.in_process_executor, loggers={"console": QUIET_LOGGER}),
        )
        return definitions.get_repository_def().get_implicit_global_asset_job_def()

    @cached_property
    def _origin(self) -> CodeLocationOrigin:
        workspace = self._runtime.config.path.parent / "workspace.yaml"
        if workspace.exists():
            for origin in location_origins_from_yaml_paths([str(workspace)]):
                if (
                    isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin)
                    and origin.loadable_target_origin.module_name == DEFINITIONS_MODULE
                ):
                    return origin
        return ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=DEFINITIONS_MODULE))

    def execute(
        self,
        stream: StreamConfig,
        batch: str,
        tags: dict[str, str] | None = None,
        *,
        generation: int | None = None,
    ) -> dg.DagsterRun:
        """Execute a run of one batch to its end and return it, successful or not.

        Args:
            stream: The batch's stream.
            batch: Its key.
            tags: Of the run.
            generation: Of the batch that the run is to move on from; by default what it has when the run begins.
        """
        names = self._runtime.names(stream)
        self._instance.add_dynamic_partitions(names.batches, [batch])
        job = self._job_of(names)
        tags = {**(tags or {}), PARTITION_TAG: batch, STREAM_TAG: stream.name}
        run = self._create_run(names, job, tags, generation)
        try:
            with interruptible():
                execute_run(_ChosenJob(job.definition), run, self._instance, raise_on_error=False)
        finally:
            release(stream.name, batch)
            discard_kept(self._runtime.warehouse.staging, stream.name, batch)
        finished = self._instance.get_run_by_id(run.run_id)
        if finished is None:
            raise UsageInvalidError(f"run {run.run_id} was deleted from the Dagster instance while it ran")
        return finished

    def _job_of(self, names: Names) -> _StreamJob:
        if names.stream not in self._jobs:
            # The asset alone, without its checks: `verify` proves all batches at once.
            selection = frozenset({names.asset_key})
            job = self._job.get_subset(asset_selection=selection, asset_check_selection=NO_CHECKS)
            plan = create_execution_plan(job, run_config=RUN_CONFIG)
            self._jobs[names.stream] = _StreamJob(
                job, snapshot_from_execution_plan(plan, job.get_job_snapshot_id())
            )
        return self._jobs[names.stream]

    def _create_run(
        self, names: Names, job: _StreamJob, tags: dict[str, str], generation: int | None
    ) -> dg.DagsterRun:
        # From its first moment it is a run of this host, so that one killed before its start counts as dead.
        run_id = make_new_run_id()
        moves_on = {} if generation is None else generation_tag(run_id, generation)
        definition = job.definition
        run = self._instance.create_run(
            job_name=definition.name,
            run_id=run_id,
            run_config=RUN_CONFIG,
            status=None,
            tags={**tags, **moves_on, **host_tag(run_id)},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=job.plan,
            job_snapshot=definition.get_job_snapshot(),
            parent_job_snapshot=definition.get_parent_job_snapshot(),
            asset_selection=frozenset({names.asset_key}),
            asset_check_selection=NO_CHECKS,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=RemoteJobOrigin(
                repository_origin=RemoteRepositoryOrigin(self._origin, SINGLETON_REPOSITORY_NAME),
                job_name=definition.name,
            ),
            job_code_origin=None,
            asset_graph=definition.asset_layer.asset_graph,
        )
        # As a launcher does: Dagster's monitor asks of a run that is starting when it was launched.
        starting = DagsterEvent(dg.DagsterEventType.PIPELINE_STARTING.value, definition.name)
        self._instance.report_dagster_event(starting, run.run_id)
        return run

    def newest_key(self, stream: StreamConfig) -> str | None:
        """Return the newest batch key that Dagster has of a stream."""
        return newest_key(self._instance, self._runtime.names(stream))

    def failure_of(self, run: dg.DagsterRun) -> str:
        """Return what made a run fail, in the words of the step that failed first."""
        records = self._instance.get_records_for_run(
            run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE
        ).records
        for record in records:
            event = record.event_log_entry.dagster_event
            if event is None:
                continue
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error is not None:
                return data.error.message.strip()
        return f"run {run.run_id} ended as {run.status.value}"

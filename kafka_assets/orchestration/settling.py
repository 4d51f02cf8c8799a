"""The runs of batches, as an operator's verbs need them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from kafka_assets.attempts import RunStatus, is_alive
from kafka_assets.batch_lock import holder, is_held
from kafka_assets.orchestration import liveness
from kafka_assets.orchestration.ingest import replay
from kafka_assets.orchestration.prefetch import offer, withdraw
from kafka_assets.orchestration.runs import runs_of
from kafka_assets.planner import utc_now

if TYPE_CHECKING:
    import dagster as dg

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.orchestration.execution import RunExecutor
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.staged import StagedSlice


class SettlingRuns:
    """Looks at the runs of a stream's batches, and executes here the one that settles a batch."""

    def __init__(
        self, stream: StreamConfig, runtime: Runtime, instance: dg.DagsterInstance, executor: RunExecutor
    ) -> None:
        self._stream = stream
        self._runtime = runtime
        self._instance = instance
        self._executor = executor

    def alive(self, batch: BatchRow) -> str | None:
        """Return who is at work on a batch, by its lock and by its runs."""
        now = utc_now()
        place = (self._runtime.warehouse.staging, self._stream.name, batch.batch)
        runs = runs_of(self._instance, self._runtime.names(self._stream), batch.batch, now=now)
        if is_held(*place):
            open_runs = [
                run_id for run_id, run in runs.items() if run.status in (RunStatus.QUEUED, RunStatus.STARTED)
            ]
            by = f" by Dagster run {', '.join(open_runs)}" if open_runs else ""
            return f"{holder(*place) or 'a process of this host'}{by}"
        for run_id, run in runs.items():
            if is_alive(run, now.timestamp(), self._stream.batch_timeout):
                return f"Dagster run {run_id}, {run.status.value},"
        return None

    def hold(self, batch: BatchRow) -> bool:
        """Take the batch's lock for this process."""
        return liveness.hold(self._runtime.warehouse, self._stream.name, batch.batch)

    def release(self, batch: BatchRow) -> None:
        """Let go of it, if it is still held."""
        liveness.release(self._stream.name, batch.batch)

    def run(self, batch: BatchRow, staged: list[StagedSlice]) -> BatchRow:
        """Execute a run that commits what was staged.

        Raises:
            KafkaAssetsError: As the run failed.
        """
        ready: Future[list[StagedSlice]] = Future()
        ready.set_result(staged)
        offer(self._stream.name, batch.batch, batch.generation, ready)
        try:
            return replay(self._stream, self._runtime, self._executor, batch.batch)
        finally:
            withdraw(self._stream.name, batch.batch, batch.generation)

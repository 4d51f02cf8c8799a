"""A stream's sensor: a tick compares ledger, brokers and runs, plans what is new, launches what needs a run.

What to launch comes from the ledger alone, so a tick that died anywhere is finished by the next one. The
cursor holds only what saves work: when lag was last reported, up to where materializations were seen.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets import attempts, ledger
from kafka_assets.batch_lock import is_held
from kafka_assets.batches import waits_for_a_person
from kafka_assets.errors import (
    BrokerAuthError,
    BrokerUnreachableError,
    KafkaAssetsError,
    WarehouseLockedError,
)
from kafka_assets.ledger import PlanConflictError
from kafka_assets.notes import note_plan
from kafka_assets.orchestration.checks import COVERAGE, LAG, lag_of, ledger_evaluation, stop_evaluation
from kafka_assets.orchestration.housekeeping import sweep_stream
from kafka_assets.orchestration.metadata import batch_metadata
from kafka_assets.orchestration.naming import STREAM_TAG, run_key
from kafka_assets.orchestration.runs import newest_key, runs_of, silent_runs
from kafka_assets.planner import propose, record, survey, utc_now
from kafka_assets.planning import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow, StreamState
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.planner import Survey
    from kafka_assets.planning import Plan

TICK_SECONDS = 1
"""The daemon looks every 5 s; a longer minimum would be rounded up. `interval` is applied by the planner."""

LOCK_SECONDS = 2.0
LAG_REPORT_SECONDS = 60.0
EVENT_GRACE = timedelta(seconds=60)
"""How long after its commit a batch's own run may still be about to report it."""

REPORTED_AT_ONCE = 100
"""Committed batches that one tick compares with Dagster's materializations where there are many to compare."""

BURY_SECONDS = 30.0
SWEEP_SECONDS = 3600.0


def build_sensor(stream: StreamConfig, runtime: Runtime) -> dg.SensorDefinition:
    names = runtime.names(stream)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return _Tick(context, stream, runtime).run()

    return dg.SensorDefinition(
        name=names.sensor,
        evaluation_fn=evaluate,
        asset_selection=dg.AssetSelection.assets(names.asset_key),
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if stream.enabled else dg.DefaultSensorStatus.STOPPED,
        description=(
            f"Plans exact offset ranges of stream `{stream.name}`, and launches a run for each batch that"
            " needs one."
        ),
    )


@dataclass(slots=True)
class _Cursor:
    lag_at: float = 0.0
    lag: int = -1
    stopped: bool = False
    shown: bool = False
    seen_until: str = ""
    swept_at: float = 0.0
    buried_at: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> _Cursor:
        """Read a cursor; one that a person edited or that is of another version counts as none."""
        try:
            return cls(**json.loads(text or "{}"))
        except (ValueError, TypeError):
            return cls()


@dataclass
class _Tick:
    context: dg.SensorEvaluationContext
    stream: StreamConfig
    runtime: Runtime
    requests: list[dg.RunRequest] = field(default_factory=list)
    events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = field(
        default_factory=list
    )
    stops: list[Stop] = field(default_factory=list)
    reason: str | None = None

    def __post_init__(self) -> None:
        self.names = self.runtime.names(self.stream)
        self.cursor = _Cursor.parse(self.context.cursor)
        self.now = utc_now()

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        return self.runtime.instance(self.context)

    def run(self) -> dg.SensorResult | dg.SkipReason:
        trouble: KafkaAssetsError | None = None
        try:
            try:
                state, planned = self._plan()
            except WarehouseLockedError:
                raise
            except KafkaAssetsError as error:
                # Batches that are planned already do not wait for the brokers.
                trouble = error
                if isinstance(error, BrokerUnreachableError | BrokerAuthError):
                    self.runtime.drop_log(self.stream)
                state, planned = self.runtime.state(self.stream, timeout=LOCK_SECONDS), {}
            for key, ranges in planned.items():
                self._request(key, 1, ranges)
            self._reconcile([batch for batch in state.open_batches if batch.batch not in planned])
            self._report_unreported(state)
            self._bury_forgotten()
            if trouble is None:
                self._report_coverage(state)
            self._sweep()
        except WarehouseLockedError as locked:
            if not self.requests:
                return dg.SkipReason(f"the warehouse is in use, the next tick looks again: {locked.message}")
        self._report_stops()
        if trouble is not None and not self.requests:
            raise trouble
        if self.requests:
            self.instance.add_dynamic_partitions(
                self.names.batches, [str(request.partition_key) for request in self.requests]
            )
        return dg.SensorResult(
            run_requests=self.requests,
            skip_reason=None if self.requests else self.reason or "nothing to do",
            asset_events=self.events,
            cursor=json.dumps(asdict(self.cursor)),
        )

    def _plan(self) -> tuple[StreamState, dict[str, tuple[PlannedRange, ...]]]:
        log = self.runtime.log(self.stream)
        state = self.runtime.state(self.stream, timeout=LOCK_SECONDS)
        seen = survey(self.stream, self.runtime.warehouse, log, state=state)
        plan = propose(self.stream, seen, log, now=self.now)
        recorded: Plan | None = plan
        self.stops.extend(plan.stops)
        self.reason = plan.reason
        try:
            keys = record(
                self.stream,
                self.runtime.warehouse,
                seen,
                plan,
                now=self.now,
                key_floor=newest_key(self.instance, self.names) if plan.batches else None,
                claim=True,
                timeout=LOCK_SECONDS,
            )
        except PlanConflictError:
            self.reason = "another planner was faster; the next tick looks again"
            keys, recorded = (), None
        self._report_lag(seen, recorded)
        return seen.state, dict(zip(keys, plan.batches, strict=bool(keys)))

    def _request(self, batch: str, attempt: int, ranges: tuple[PlannedRange, ...]) -> None:
        note_plan(self.runtime.warehouse.staging, self.stream.name, batch, ranges)
        self.requests.append(
            dg.RunRequest(
                run_key=run_key(self.stream.name, batch, attempt),
                partition_key=batch,
                asset_selection=[self.names.asset_key],
                asset_check_keys=[dg.AssetCheckKey(self.names.asset_key, COVERAGE)],
                tags={STREAM_TAG: self.stream.name},
            )
        )

    def _reconcile(self, batches: Sequence[BatchRow]) -> None:
        waiting: list[str] = []
        for batch in batches:
            if batch.kind != "live":
                continue
            runs = runs_of(self.instance, self.names, batch.batch, now=self.now)
            decision = attempts.decide(
                attempts.OpenBatch(
                    attempts=batch.attempts,
                    launched_at=batch.launched_at.timestamp() if batch.launched_at else None,
                    lock_held=is_held(self.runtime.warehouse.staging, self.stream.name, batch.batch),
                    blocked=(batch.last_error or "no error was written down")
                    if waits_for_a_person(self.stream, batch)
                    else None,
                    locked_out=(batch.last_error or "").startswith(f"{WarehouseLockedError.code}: "),
                ),
                list(runs.values()),
                now=self.now.timestamp(),
                max_attempts=self.stream.max_attempts,
                batch_timeout=self.stream.batch_timeout,
            )
            match decision:
                case attempts.Launch(attempt, claim):
                    if self._claimed(batch) if claim else self._still_open(batch):
                        self._bury(runs)
                        self._request(batch.batch, attempt, batch.ranges)
                case attempts.Blocked(reason, code):
                    self._block(batch, reason, code)
                case attempts.Wait(reason):
                    waiting.append(f"batch {batch.batch}: {reason}")
        if waiting:
            self.reason = "; ".join(filter(None, (self.reason, *waiting)))

    def _claimed(self, batch: BatchRow) -> bool:
        with self.runtime.warehouse.writing(LOCK_SECONDS) as connection:
            return ledger.claim_attempt(connection, self.stream.name, batch.batch, batch.attempts, self.now)

    def _still_open(self, batch: BatchRow) -> bool:
        """Look again: a run that has committed the batch since lets go of its lock before it ends."""
        with self.runtime.warehouse.reading(LOCK_SECONDS) as connection:
            now = ledger.read_batch(connection, self.stream.name, batch.batch)
        return now is not None and (now.state, now.attempts) == (batch.state, batch.attempts)

    def _bury(self, runs: dict[str, attempts.BatchRun]) -> None:
        """Have Dagster say of dead runs what is so: nothing else would, if their whole host went down.

        The batch is being launched again, so none of its runs is alive.
        """
        for run_id in runs:
            dead = self.instance.get_run_by_id(run_id)
            if dead is not None and not dead.is_finished:
                self.instance.report_run_failed(
                    dead,
                    "The process of this run is gone: its batch's lock is free. The batch runs again.",
                )

    def _bury_forgotten(self) -> None:
        """Have Dagster say so of runs that were killed and whose batch another run has committed.

        Nobody launches that batch again, and a run that stays in progress takes a place from those to come.
        """
        if self.now.timestamp() - self.cursor.buried_at < BURY_SECONDS:
            return
        self.cursor.buried_at = self.now.timestamp()
        silence = EVENT_GRACE.total_seconds()
        for batch, run in silent_runs(self.instance, self.names, now=self.now, seconds=silence):
            if not is_held(self.runtime.warehouse.staging, self.stream.name, batch):
                self.instance.report_run_failed(
                    run,
                    "The process of this run is gone: its batch's lock is free, and it has said nothing since.",
                )

    def _block(self, batch: BatchRow, reason: str, code: str | None) -> None:
        text = batch.last_error or reason
        if code is not None:
            text = f"{code}: {reason}. The last error: {batch.last_error or 'none was written down'}"
            with self.runtime.warehouse.writing(LOCK_SECONDS) as connection:
                ledger.record_failure(connection, self.stream.name, batch.batch, error=text, blocked=True)
        found, _, message = text.partition(": ")
        choice = (
            f"Batch {batch.batch} is blocked; other batches go on. To run it again: materialize that"
            f" partition, or `kafka-assets replay {self.stream.name} {batch.batch}`."
        )
        self.stops.append(Stop(found, batch.ranges[0].range.topic, None, f"{message}\n{choice}"))

    def _report_unreported(self, state: StreamState) -> None:
        """Report batches whose run was killed between its commit and its event."""
        seen_until = _moment(self.cursor.seen_until)
        recent = [batch for batch in state.recently_committed if _committed(batch) > seen_until]
        if len(recent) == ledger.RECENT_BATCHES:
            # There may be more, as with an old copy of Dagster's storage: some each tick, the oldest first.
            with self.runtime.warehouse.reading(LOCK_SECONDS) as connection:
                recent = list(
                    ledger.read_committed(connection, self.stream.name, seen_until, REPORTED_AT_ONCE)
                )
        candidates = [batch for batch in recent if _committed(batch) < self.now - EVENT_GRACE]
        if not candidates:
            return
        keys = [batch.batch for batch in candidates]
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=self.names.asset_key, asset_partitions=keys), limit=1000
        )
        reported = {one.partition_key for one in found.records}
        missing = [batch for batch in candidates if batch.batch not in reported]
        if missing:
            self.instance.add_dynamic_partitions(self.names.batches, sorted(batch.batch for batch in missing))
        self.events.extend(
            dg.AssetMaterialization(
                self.names.asset_key,
                partition=batch.batch,
                metadata=batch_metadata(batch, self.stream.table, outcome="reported from the ledger"),
            )
            for batch in missing
        )
        self.cursor.seen_until = max(_committed(batch) for batch in candidates).isoformat()

    def _report_lag(self, seen: Survey, plan: Plan | None) -> None:
        passed, numbers = lag_of(self.stream, seen, plan)
        due = self.now.timestamp() - self.cursor.lag_at >= LAG_REPORT_SECONDS
        if not due or (numbers["lag"] == self.cursor.lag == 0):
            return
        self.cursor.lag_at, self.cursor.lag = self.now.timestamp(), numbers["lag"]
        self.events.append(
            dg.AssetCheckEvaluation(
                asset_key=self.names.asset_key,
                check_name=LAG,
                passed=passed,
                severity=dg.AssetCheckSeverity.WARN,
                metadata=dict(numbers),
            )
        )
        for key in self.names.topics:
            bounds = [
                one
                for at, one in seen.bounds.items()
                if len(self.names.topics) == 1 or at.topic == key.path[-1]
            ]
            self.events.append(
                dg.AssetObservation(
                    key,
                    metadata={
                        "partitions": len(bounds),
                        "offsets_in_kafka": sum(one.end - one.log_start for one in bounds),
                        "high_watermarks": sum(one.high_watermark for one in bounds),
                    },
                )
            )

    def _report_stops(self) -> None:
        if self.stops:
            self.reason = "stopped by policy: " + "; ".join(
                f"{stop.code}: {stop.message}" for stop in self.stops
            )
            self.events.append(stop_evaluation(self.names.asset_key, self.stops))
            self.cursor.stopped = True

    def _report_coverage(self, state: StreamState) -> None:
        """Report the ledger's part of the proof once there is something to prove, and when a stop is over.

        Never over a proof that somebody asked for.
        """
        first = bool(state.recently_committed) and not self.cursor.shown
        if self.stops or not (self.cursor.stopped or first):
            return
        check = dg.AssetCheckKey(self.names.asset_key, COVERAGE)
        if self.cursor.stopped or self.instance.get_latest_asset_check_evaluation_record(check) is None:
            with self.runtime.warehouse.reading(LOCK_SECONDS) as connection:
                self.events.append(ledger_evaluation(self.names.asset_key, connection, self.stream.name))
        self.cursor.stopped, self.cursor.shown = False, bool(state.recently_committed)

    def _sweep(self) -> None:
        if self.now.timestamp() - self.cursor.swept_at < SWEEP_SECONDS:
            return
        # Another stream's sensor, or a run that is ending, may remove the same files just now.
        with suppress(FileNotFoundError):
            sweep_stream(self.runtime.warehouse, self.stream.name, now=self.now, timeout=LOCK_SECONDS)
        self.cursor.swept_at = self.now.timestamp()


def _moment(text: str) -> datetime:
    """Read a moment of the cursor; none, or one that a person edited, counts as before all."""
    with suppress(ValueError, TypeError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    return datetime.min.replace(tzinfo=UTC)


def _committed(batch: BatchRow) -> datetime:
    assert batch.committed_at is not None  # noqa: S101  the candidates were chosen by it
    return batch.committed_at

"""The Dagster runs of a batch, as far as deciding about another run needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets.attempts import LAUNCH_GRACE, BatchRun, RunStatus
from kafka_assets.orchestration.liveness import host_of, this_host
from kafka_assets.orchestration.naming import PARTITION_TAG, RUN_KEY_TAG, WILL_RETRY_TAG, run_key

if TYPE_CHECKING:
    from datetime import datetime

    from kafka_assets.orchestration.naming import Names

KEYS_LOOKED_AT = 100
_BATCH_KEY = re.compile(r"\d{8}T\d{9}Z")

_STATUS = {
    dg.DagsterRunStatus.QUEUED: RunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED: RunStatus.QUEUED,
    dg.DagsterRunStatus.MANAGED: RunStatus.STARTED,
    dg.DagsterRunStatus.STARTING: RunStatus.STARTED,
    dg.DagsterRunStatus.STARTED: RunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING: RunStatus.STARTED,
    dg.DagsterRunStatus.SUCCESS: RunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE: RunStatus.FAILED,
    dg.DagsterRunStatus.CANCELED: RunStatus.CANCELED,
}
_IN_PROGRESS = [status for status, view in _STATUS.items() if view is RunStatus.STARTED]
_BEING_STARTED = frozenset({dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING})


def runs_of(instance: dg.DagsterInstance, names: Names, batch: str, *, now: datetime) -> dict[str, BatchRun]:
    """Return all runs of a batch, whoever launched them, by run id."""
    records = [
        record
        for record in instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: batch}))
        # Another stream may have a batch of the same key: keys are times.
        if record.dagster_run.asset_selection is None or names.asset_key in record.dagster_run.asset_selection
    ]
    retried = {record.dagster_run.parent_run_id for record in records}
    return {
        record.dagster_run.run_id: _view(
            instance, names, batch, record, now=now, retried=record.dagster_run.run_id in retried
        )
        for record in records
    }


def silent_runs(
    instance: dg.DagsterInstance, names: Names, *, now: datetime, seconds: float
) -> list[tuple[str, dg.DagsterRun]]:
    """Return the runs of a stream in progress on this host that said nothing for so long, with their batches."""
    found = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_IN_PROGRESS)):
        run = record.dagster_run
        batch = run.tags.get(PARTITION_TAG)
        if batch is None or names.asset_key not in (run.asset_selection or ()) or host_of(run) != this_host():
            continue
        last_seen = _last_event(instance, run.run_id) or record.create_timestamp.timestamp()
        if now.timestamp() - last_seen > seconds:
            found.append((batch, run))
    return found


def _view(
    instance: dg.DagsterInstance,
    names: Names,
    batch: str,
    record: dg.RunRecord,
    *,
    now: datetime,
    retried: bool,
) -> BatchRun:
    run = record.dagster_run
    status = _STATUS[run.status]
    created_at = record.create_timestamp.timestamp()
    last_seen = None if record.dagster_run.is_finished else _last_event(instance, run.run_id)
    silent = abs(now.timestamp() - (last_seen or created_at))
    if run.status in _BEING_STARTED and silent > LAUNCH_GRACE:
        # Whoever was about to start it died before it did: nobody will.
        status = RunStatus.FAILED
    here, boot = this_host()
    host, its_boot = host_of(run)
    return BatchRun(
        status=status,
        created_at=created_at,
        attempt=_attempt(names, batch, run.tags.get(RUN_KEY_TAG)),
        same_host=host == here if host else None,
        same_boot=its_boot == boot if its_boot and boot else None,
        last_seen=last_seen,
        ended_at=record.end_time,
        will_retry=run.tags.get(WILL_RETRY_TAG) == "true" and not retried,
        canceled_by_person=status is RunStatus.CANCELED,
    )


def _attempt(names: Names, batch: str, key: str | None) -> int | None:
    head = run_key(names.stream, batch, 0).removesuffix("0")
    if key is None or not key.startswith(head):
        return None
    number = key.removeprefix(head)
    return int(number) if number.isdecimal() else None


def _last_event(instance: dg.DagsterInstance, run_id: str) -> float | None:
    found = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return found[0].event_log_entry.timestamp if found else None


def newest_key(instance: dg.DagsterInstance, names: Names) -> str | None:
    """Return the newest batch key Dagster has: not used again even if the warehouse, with its ledger, is new.

    Keys come in the order of being added, which is about that of planning, and a person may add any text.
    """
    newest = instance.get_paginated_dynamic_partitions(names.batches, limit=KEYS_LOOKED_AT, ascending=False)
    return max(filter(_BATCH_KEY.fullmatch, newest.results), default=None)

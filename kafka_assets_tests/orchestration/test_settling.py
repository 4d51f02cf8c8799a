from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets.batch_lock import BatchLock
from kafka_assets.orchestration.execution import RunExecutor
from kafka_assets.orchestration.liveness import host_tag
from kafka_assets.orchestration.settling import SettlingRuns
from kafka_assets_tests.support.kafka import values

if TYPE_CHECKING:
    from kafka_assets_tests.orchestration.support import Bench


@pytest.fixture
def here(bench, topic, produce) -> Bench:
    """A stream with one open batch."""
    name = topic()
    produce(name, values(5), 0)
    return bench(topics=[name])


def runs_of(here: Bench) -> SettlingRuns:
    return SettlingRuns(here.stream, here.runtime, here.instance, RunExecutor(here.runtime, here.instance))


def test_who_is_at_work_on_a_batch(here):
    """A run that waits in the queue, or whose process holds the lock, is named; a dead one of this host is nobody."""
    (key,) = here.tick().batches
    batch, runs = here.batch(key), runs_of(here)
    assert runs.alive(batch) is None

    run = here.create_run(key)
    assert runs.alive(batch) == f"Dagster run {run.run_id}, queued,"

    here.instance.add_run_tags(run.run_id, host_tag(run.run_id))
    here.instance.report_run_canceled(run)
    assert runs.alive(batch) is None

    with BatchLock(here.warehouse.staging, here.stream.name, key) as lock:
        assert lock.try_acquire()
        assert not runs.hold(batch)
        assert "process " in (runs.alive(batch) or "")
    assert runs.hold(batch)
    runs.release(batch)

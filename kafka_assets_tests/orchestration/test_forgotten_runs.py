"""Runs whose process was killed, and whose batch another run has committed since."""

from __future__ import annotations

import dagster as dg

from kafka_assets.orchestration import execution
from kafka_assets_tests.orchestration.support import later
from kafka_assets_tests.support.kafka import values


def test_a_dead_run_of_a_committed_batch_is_reported_and_takes_no_place(
    topic, produce, bench, instance, monkeypatch
):
    """Nobody launches its batch again, so a later tick says that it is dead; at once it might be ending."""
    name = topic()
    produce(name, values(5))
    project = bench(topics=[name])
    tick = project.tick()
    (batch,) = tick.batches
    with monkeypatch.context() as killed_before_it_begins:
        killed_before_it_begins.setattr(execution, "execute_run", lambda *_, **__: None)
        dead = execution.RunExecutor(project.runtime, instance).execute(project.stream, batch)
    project.run_all(tick)
    project.tick()
    assert instance.get_run_by_id(dead.run_id).status is dg.DagsterRunStatus.STARTING
    later(monkeypatch, 120)
    project.tick()
    assert instance.get_run_by_id(dead.run_id).status is dg.DagsterRunStatus.FAILURE
    assert project.batch(batch).state == "committed"

from __future__ import annotations

import dagster as dg
import pytest

from kafka_assets.orchestration import assets, sensors
from kafka_assets_tests.orchestration.support import STREAM, child, kill, later, run_in_child
from kafka_assets_tests.support.kafka import values


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("the disk is on fire")


def test_a_failing_batch_is_retried_then_blocked_and_a_click_clears_it(bench, topic, produce, monkeypatch):
    """Back-off, next attempt, then a failing check at every tick with the choice; other batches go on."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name], max_attempts=2)
    with monkeypatch.context() as patch:
        patch.setattr(assets.batches, "stage_slice", broken)
        (first,) = here.tick().requests
        assert not here.run(first).is_success
        batch = str(first.partition_key)
        assert here.batch(batch).last_error == "RUN_FAILED: RuntimeError: the disk is on fire"

        waiting = here.tick()
        assert waiting.requests == []
        assert f"batch {batch}: attempt 2 of 2 in" in (waiting.skipped or "")
        later(monkeypatch, 35)
        (second,) = here.tick().requests
        assert second.run_key == f"{STREAM}/{batch}/2"
        assert not here.run(second).is_success

    for seconds in (200, 300):
        later(monkeypatch, seconds)
        tick = here.tick()
        assert tick.requests == []
        (check,) = tick.checks("coverage")
        assert not check.passed
        assert check.description is not None
        assert check.description.startswith("ATTEMPTS_EXHAUSTED: 2 of 2 attempts")
        assert "the disk is on fire" in check.description
        assert f"kafka-assets replay {STREAM} {batch}" in check.description
    assert here.batch(batch).blocked

    produce(name, values(5))
    (other,) = here.tick().requests
    assert other.partition_key != batch
    assert here.run(other).is_success
    assert here.click(batch).is_success
    assert not here.batch(batch).blocked
    assert here.rows() == (10, 10)
    tick = here.tick()
    assert [check.passed for check in tick.checks("coverage")] == [True]
    assert here.tick().checks("coverage") == []


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING"])
def test_a_run_nobody_started_does_not_hold_up_its_batch(bench, topic, produce, monkeypatch, status):
    """If whoever was to start a run died first, it is reported failed, and the batch launched again."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    run = here.create_run(
        str(request.partition_key), {"dagster/run_key": str(request.run_key), **request.tags}
    )

    if status == "STARTING":
        starting = dg.DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, run.job_name)
        here.instance.report_dagster_event(starting, run.run_id)
    assert here.instance.get_run_by_id(run.run_id).status.value == status

    assert "a run of it is alive" in (here.tick().skipped or "")
    later(monkeypatch, 400)
    assert here.tick().run_keys == [f"{STREAM}/{request.partition_key}/2"]
    assert here.instance.get_run_by_id(run.run_id).is_failure


def test_a_cancelled_batch_is_left_to_whoever_cancelled_it(bench, topic, produce, monkeypatch):
    """No run is requested after a person cancelled the last one; the reason says so."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    run = here.create_run(str(request.partition_key), {"dagster/run_key": str(request.run_key)})
    here.instance.report_run_canceled(run)

    later(monkeypatch, 100_000)
    tick = here.tick()
    assert tick.requests == []
    assert "cancelled by a person" in (tick.skipped or "")


def test_a_killed_run_is_launched_again_and_a_living_one_is_not(bench, topic, produce, monkeypatch, home):
    """While its lock is held nothing happens, however long; once its process is gone, the run is dead."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    run = here.create_run(batch, {"dagster/run_key": str(request.run_key)})
    with child(run_in_child, here.config.path, home, run.run_id, "before commit") as (process, pipe):
        assert pipe.recv() == "before commit"
        later(monkeypatch, 100_000)
        assert "a process holds the batch's lock" in (here.tick().skipped or "")
        kill(process.pid)
        process.join(30)

    later(monkeypatch, 35)
    assert here.tick().run_keys == [f"{STREAM}/{batch}/2"]
    assert here.instance.get_run_by_id(run.run_id).is_failure
    assert here.run(sensors.dg.RunRequest(run_key=f"{STREAM}/{batch}/2", partition_key=batch)).is_success
    assert here.rows() == (5, 5)


def test_a_run_that_commits_while_the_tick_looks_is_not_taken_for_dead(
    bench, topic, produce, monkeypatch, home
):
    """It lets go of its lock before it ends: the ledger is asked again before anything is said of it."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    run = here.create_run(batch, {"dagster/run_key": str(request.run_key)})
    before = sensors.survey(here.stream, here.warehouse, here.runtime.log(here.stream))
    with child(run_in_child, here.config.path, home, run.run_id, "after finish") as (_, pipe):
        assert pipe.recv() == "after finish"
        later(monkeypatch, 45)
        with monkeypatch.context() as patch:
            patch.setattr(sensors, "survey", lambda *_, **__: before)
            assert here.tick().requests == []
        assert not here.instance.get_run_by_id(run.run_id).is_finished
        pipe.send("go on")
        assert pipe.recv() == "SUCCESS"


def test_a_run_killed_between_its_commit_and_its_event_is_reported_later(
    bench, topic, produce, monkeypatch, home
):
    """The materialization comes from the ledger once the run can no longer report it itself, key and all."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    run = here.create_run(batch, {"dagster/run_key": str(request.run_key)})
    with child(run_in_child, here.config.path, home, run.run_id, "after commit") as (process, pipe):
        assert pipe.recv() == "after commit"
        kill(process.pid)
        process.join(30)
    here.instance.delete_dynamic_partition(here.names.batches, batch)

    assert here.tick().materializations == []
    later(monkeypatch, 65)
    (reported,) = here.tick().materializations
    assert reported.partition == batch
    assert reported.metadata["rows"].value == 5
    assert reported.metadata["outcome"].value == "reported from the ledger"
    assert here.partition_keys() == [batch]
    later(monkeypatch, 130)
    assert here.tick().materializations == []
    assert here.rows() == (5, 5)


def test_two_runs_of_a_batch_at_once_load_it_once(bench, topic, produce, home):
    """The second to commit finds it committed, ends well and reports it too."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (batch,) = here.tick().batches
    slow = here.create_run(batch)
    with child(run_in_child, here.config.path, home, slow.run_id, "before commit") as (_, pipe):
        assert pipe.recv() == "before commit"
        assert here.click(batch).is_success
        pipe.send("go on")
        assert pipe.recv() == "SUCCESS"
    assert here.rows() == (5, 5)
    assert here.batch(batch).generation == 1
    outcomes = [metadata["outcome"].value for metadata in here.materialized(batch)]
    assert outcomes == ["found committed", "loaded"]

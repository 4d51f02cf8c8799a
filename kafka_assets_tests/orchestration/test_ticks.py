from __future__ import annotations

from functools import partial

import pytest

from kafka_assets import planner
from kafka_assets.ledger import PlanConflictError
from kafka_assets.log import KafkaLog
from kafka_assets.orchestration import runtime, sensors
from kafka_assets_tests.orchestration.support import (
    STREAM,
    Bench,
    child,
    hold_warehouse,
    later,
    write_streams,
)
from kafka_assets_tests.support.kafka import values


def test_a_tick_plans_batches_and_requests_a_run_for_each(bench, topic, produce):
    """Lag of two batches gives two runs in one tick, each of one partition, without checks; the next none."""
    name = topic(2)
    produce(name, values(20), 0)
    here = bench(topics=[name], max_records_per_batch=10)

    tick = here.tick()

    assert len(tick.requests) == 2
    assert tick.run_keys == [f"{STREAM}/{batch}/1" for batch in tick.batches]
    assert here.partition_keys() == tick.batches == sorted(tick.batches)
    assert [batch.batch for batch in here.state().open_batches] == tick.batches
    for request in tick.requests:
        assert request.asset_selection == [here.names.asset_key]
        assert [key.name for key in request.asset_check_keys] == ["coverage"]
        assert not request.run_config
    assert here.tick().requests == []
    assert all(run.is_success for run in here.run_all(tick))
    assert here.rows() == (20, 20)
    assert here.proof().ok


def test_a_tick_without_work_says_why_in_numbers(bench, topic, produce):
    """An empty topic, then batches in flight: the reason names what is waited for and how much of it."""
    name = topic()
    here = bench(topics=[name], max_records_per_batch=10, max_batches_in_flight=1)
    assert here.tick().skipped == "caught up: 0 offsets planned over 1 topic-partitions"

    produce(name, values(25))
    assert len(here.tick().requests) == 1
    skipped = here.tick().skipped
    assert skipped
    assert "1 of 1 batches open, 15 offsets wait" in skipped
    assert "attempt 1 was requested" in skipped


def test_keys_are_never_used_again(bench, topic, produce, tmp_path, instance):
    """With the warehouse gone, new keys are greater than any in Dagster, whatever text a person added."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    instance.add_dynamic_partitions(here.names.batches, ["20991231T235959999Z", "20200101T000000000Z", "zzz"])

    (first,) = here.tick().batches
    (tmp_path / "w.duckdb").unlink()
    (second,) = Bench(here.config.path, instance).tick().batches

    assert first == "21000101T000000000Z"
    assert second == "21000101T000000001Z"


@pytest.mark.parametrize("point", ["plan recorded", "keys added", "not submitted"])
def test_a_tick_that_died_is_finished_by_the_next(bench, topic, produce, monkeypatch, point):
    """Wherever it died, the batch stays as planned, and its first attempt is requested after the grace."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        if point == "plan recorded":
            patch.setattr(here.instance, "add_dynamic_partitions", die)
        elif point == "keys added":
            patch.setattr(sensors, "asdict", die)
        if point == "not submitted":
            here.evaluate()
        else:
            with pytest.raises(Died):
                here.evaluate()

    (planned,) = here.state().open_batches
    assert here.partition_keys() == ([] if point == "plan recorded" else [planned.batch])
    produce(name, values(5))
    assert planned.batch not in here.tick().batches
    later(monkeypatch, 301)
    request = next(one for one in here.tick().requests if one.partition_key == planned.batch)
    assert request.run_key == f"{STREAM}/{planned.batch}/1"
    assert planned.batch in here.partition_keys()
    assert here.run(request).is_success
    assert here.batch(planned.batch).ranges == planned.ranges
    assert here.batch(planned.batch).rows == 5
    assert planned.batch not in here.tick().batches


def test_a_faster_planner_is_not_an_error(bench, topic, produce, monkeypatch):
    """A plan that loses the compare-and-swap launches nothing, and the next tick plans."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])

    def beaten(*_: object, **__: object) -> None:
        raise PlanConflictError("another was faster")

    with monkeypatch.context() as patch:
        patch.setattr(sensors, "record", beaten)
        tick = here.tick()
    assert tick.requests == []
    assert "another planner was faster" in (tick.skipped or "")
    assert len(here.tick().requests) == 1


def test_a_locked_warehouse_skips_the_tick_and_names_the_holder(bench, topic, produce):
    """While another process has the file nothing is planned; the reason says which process."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    here.tick()
    produce(name, values(5))
    with child(hold_warehouse, here.config.path) as (holder, pipe):
        pid = pipe.recv()
        tick = here.tick()
    assert tick.requests == []
    assert tick.skipped
    assert "in use" in tick.skipped
    assert str(pid) in tick.skipped
    assert holder.pid == pid
    assert len(here.tick().requests) == 1


def test_without_brokers_planned_batches_are_launched_still(bench, topic, produce, monkeypatch, instance):
    """What is planned does not wait for the brokers; a tick with nothing to launch fails, naming them."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (batch,) = here.tick().batches
    write_streams(here.folder, "127.0.0.1:1", {STREAM: {"topics": [name]}})
    cut_off = Bench(here.config.path, instance)
    monkeypatch.setattr(runtime, "KafkaLog", partial(KafkaLog, timeout=1.0))

    with pytest.raises(sensors.BrokerUnreachableError, match=r"127\.0\.0\.1:1"):
        cut_off.tick()
    later(monkeypatch, 301)
    assert cut_off.tick().run_keys == [f"{STREAM}/{batch}/1"]


def test_an_error_of_one_stream_leaves_the_client_of_another_alone(bench, topic, monkeypatch):
    """Streams of one cluster share a client, which a failing stream must not close under the others."""
    here = bench(topics=[topic()])
    log = here.runtime.log(here.stream)

    def broken(*_: object, **__: object) -> None:
        raise sensors.BrokerUnreachableError("for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(sensors, "survey", broken)
        with pytest.raises(sensors.BrokerUnreachableError):
            here.evaluate()
    assert log.topic_partitions(here.stream.selection).partitions
    assert here.runtime.log(here.stream) is not log
    assert planner.survey(here.stream, here.warehouse, log).bounds


def test_lag_is_reported_with_the_first_tick_and_then_once_a_minute(bench, topic, produce, monkeypatch):
    """The check says what is planned and what is not; an unchanged lag of nothing is not reported again."""
    name = topic(2)
    produce(name, values(25), 1)
    here = bench(topics=[name], max_records_per_batch=10, max_batches_in_flight=2)

    tick = here.tick()
    (check,) = tick.checks("lag")
    numbers = {key: value.value for key, value in check.metadata.items()}
    assert not check.passed
    assert numbers == {
        "lag": 25,
        "not_planned": 5,
        "planned_not_committed": 20,
        "held_back_by_open_transactions": 0,
    }
    (observed,) = [event for event in tick.events if isinstance(event, sensors.dg.AssetObservation)]
    assert observed.asset_key == sensors.dg.AssetKey(["kafka", name])
    assert observed.metadata["offsets_in_kafka"].value == 25
    assert here.tick().checks("lag") == []
    later(monkeypatch, 61)
    assert len(here.tick().checks("lag")) == 1

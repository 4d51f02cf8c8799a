from __future__ import annotations

import dagster as dg

from kafka_assets_tests.orchestration.support import STREAM, later


def test_a_batch_stopped_by_a_bad_record_is_launched_once_it_may_be_set_aside(
    bench, topic, produce, monkeypatch
):
    """A failing check says the way; with the setting changed and the code reloaded the sensor runs it again."""
    name = topic()
    produce(name, [b"a", b"\xff", b"c"])
    here = bench(topics=[name], format="utf8")
    (first,) = here.tick().requests
    assert not here.run(first).is_success
    batch = str(first.partition_key)
    later(monkeypatch, 3600)
    tick = here.tick()
    assert tick.requests == []
    (check,) = tick.checks("coverage")
    assert not check.passed
    assert (check.description or "").startswith(f"BAD_RECORD: {name}[0]@1: its value is not UTF-8")
    assert "`on_bad_record: quarantine`" in (check.description or "")

    here = bench(topics=[name], format="utf8", on_bad_record="quarantine")
    (second,) = here.tick().requests
    assert second.run_key == f"{STREAM}/{batch}/2"
    assert here.run(second).is_success
    assert (here.rows(), here.proof().ok) == ((2, 2), True)
    (metadata, *_) = here.materialized(batch)
    assert metadata["quarantined"].value == 1
    assert [record.data["quarantined"] for record in metadata["ranges"].records] == [1]
    assert f"kafka-assets quarantine show {STREAM}" in metadata["next"].value
    run = here.click(batch, checks=True)
    assert run.is_success
    (evaluation,) = [
        entry.dagster_event.asset_check_evaluation_data
        for entry in here.events(run, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        if entry.dagster_event.asset_check_evaluation_data.check_name == "coverage"
    ]
    assert evaluation.passed
    assert "1 records of them in quarantine" in evaluation.description


def test_without_bad_records_nothing_of_them_is_told(bench, topic, produce):
    """The materialization counts none and offers nothing to do about them."""
    name = topic()
    produce(name, [b"a"])
    here = bench(topics=[name], format="utf8", on_bad_record="quarantine")
    (request,) = here.tick().requests
    assert here.run(request).is_success
    (metadata,) = here.materialized(str(request.partition_key))
    assert metadata["quarantined"].value == 0
    assert "quarantine" not in metadata["next"].value

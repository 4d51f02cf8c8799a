from __future__ import annotations

import dagster as dg

from kafka_assets.orchestration import failures
from kafka_assets_tests.orchestration.support import child, hold_warehouse
from kafka_assets_tests.support.kafka import delete_records, values

SECRET = "hunter2-never-shown"  # noqa: S105  planted to be looked for


def loaded(bench, topic, produce, count=5, **options):
    """A project whose first batch, of `count` records, is committed; and its key."""
    name = topic()
    produce(name, values(count))
    here = bench(topics=[name], **options)
    (request,) = here.tick().requests
    assert here.run(request).is_success
    return here, str(request.partition_key)


def test_a_materialization_shows_what_was_loaded_and_what_to_click_next(bench, topic, produce):
    """Rows, bytes, seconds, rows a second, ranges as a table, the next clicks; nothing stays in staging."""
    here, batch = loaded(bench, topic, produce, table="lake.orders")

    ((shown),) = here.materialized(batch)

    assert here.names.asset_key == dg.AssetKey(["lake", "orders"])
    assert shown["rows"].value == shown["records"].value == 5
    assert shown["dagster/partition_row_count"].value == 5
    assert shown["bytes"].value == 50
    assert shown["seconds"].value > 0
    assert shown["rows_per_second"].value > 0
    assert shown["outcome"].value == "loaded"
    (row,) = [record.data for record in shown["ranges"].records]
    assert (row["from"], row["until"], row["loaded"]) == (0, 5, 5)
    assert f"Materialize* partition `{batch}`" in shown["next"].value
    statement = shown["next"].value.rpartition("read them: `")[2].partition("`")[0]
    assert len(here.query(statement)) == 5
    assert not (here.warehouse.staging / here.stream.name / batch).exists()


def test_a_click_on_a_committed_batch_replaces_its_rows_and_proves_them(bench, topic, produce):
    """A click's run has the checks too; to execute that run again, tags and all, replaces once more."""
    here, batch = loaded(bench, topic, produce)

    clicked = here.click(batch, checks=True)
    assert clicked.is_success
    assert here.batch(batch).generation == 2
    evaluations = here.events(clicked, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    assert [one.dagster_event.event_specific_data.passed for one in evaluations] == [True, True]
    again = here.click(batch, parent=clicked)
    assert again.is_success
    assert here.batch(batch).generation == 3
    assert here.rows() == (5, 5)
    assert [one["outcome"].value for one in here.materialized(batch)] == ["replaced", "replaced", "loaded"]


def test_a_run_that_began_before_the_commit_of_another_ends_well_and_so_does_its_retry(bench, topic, produce):
    """Nothing is replaced: it finds the batch committed and reports it."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (batch,) = here.tick().batches
    early = here.create_run(batch)
    assert here.click(batch).is_success
    assert here.execute(early).is_success
    early = here.instance.get_run_by_id(early.run_id)
    here.instance.report_run_failed(early, "for the sake of a retry")

    assert here.click(batch, parent=here.instance.get_run_by_id(early.run_id)).is_success
    assert here.batch(batch).generation == 1
    assert here.rows() == (5, 5)
    assert [one["outcome"].value for one in here.materialized(batch)] == [
        "found committed",
        "found committed",
        "loaded",
    ]


def test_a_retry_of_a_failed_replay_replaces(bench, topic, produce, monkeypatch):
    """Whether a run loads or replays is fixed by the first of its retries, whatever others replaced since."""
    here, batch = loaded(bench, topic, produce)
    with monkeypatch.context() as patch:
        patch.setattr("kafka_assets.batches.open_staged", lambda _: 1 / 0)
        failed = here.click(batch)
    assert not failed.is_success
    assert here.click(batch).is_success
    assert here.click(batch, parent=here.instance.get_run_by_id(failed.run_id)).is_success
    assert here.batch(batch).generation == 3
    assert here.rows() == (5, 5)


def test_a_key_the_ledger_does_not_know_fails_and_changes_nothing(bench, topic, produce):
    """Such a partition, added by hand, has no offsets: BATCH_UNKNOWN, without a retry."""
    here, batch = loaded(bench, topic, produce)
    here.instance.add_dynamic_partitions(here.names.batches, ["../by-hand"])

    run = here.click("../by-hand")

    assert not run.is_success
    assert here.failure(run).startswith("BATCH_UNKNOWN: ")
    assert here.events(run, dg.DagsterEventType.STEP_UP_FOR_RETRY) == []
    assert here.rows() == (5, 5)
    assert here.batch(batch).generation == 1
    assert not (here.warehouse.staging / "by-hand").exists()


def test_lost_records_block_the_batch_without_a_retry(bench, topic, produce, bootstrap):
    """Kafka deleted what was planned: DATA_LOST once, then a failing check; other batches go on."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    delete_records(bootstrap, name, {0: 3})

    run = here.run(request)

    assert not run.is_success
    assert here.failure(run).startswith("DATA_LOST: ")
    assert here.events(run, dg.DagsterEventType.STEP_UP_FOR_RETRY) == []
    assert here.batch(batch).blocked
    tick = here.tick()
    assert tick.requests == []
    (check,) = tick.checks("coverage")
    assert not check.passed
    assert "DATA_LOST: " in (check.description or "")
    assert batch in (check.description or "")
    produce(name, values(2))
    assert len(here.tick().requests) == 1


def test_a_locked_file_is_tried_again_within_the_run(bench, topic, produce, monkeypatch):
    """Two more tries, then the run fails and says who has the file."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    monkeypatch.setattr(failures, "RETRY_SECONDS", 0)
    monkeypatch.setattr("kafka_assets.warehouse.Warehouse.of", lambda _: here.warehouse)
    here.warehouse.lock_timeout = 0.1
    with child(hold_warehouse, here.config.path) as (_, pipe):
        pid = pipe.recv()
        run = here.run(request)
    assert not run.is_success
    assert len(here.events(run, dg.DagsterEventType.STEP_UP_FOR_RETRY)) == failures.RETRIES
    assert here.failure(run).startswith("WAREHOUSE_LOCKED: ")
    assert str(pid) in here.failure(run)


def test_no_secret_reaches_dagster_or_the_logs(bench, topic, produce, bootstrap, home, caplog, capfd):
    """A password among the properties is in no file of the instance, log or message, failures included."""
    name = topic()
    produce(name, values(5))
    kafka = {"security.protocol": "PLAINTEXT", "sasl.username": "app", "sasl.password": SECRET}
    here = bench(topics=[name], kafka=kafka)
    first = here.tick()
    assert here.run(first.requests[0]).is_success
    produce(name, values(5))
    (lost,) = here.tick().requests
    delete_records(bootstrap, name, {0: 7})
    assert not here.run(lost).is_success
    tick = here.tick()

    assert tick.checks("coverage")
    shown = [caplog.text, *capfd.readouterr(), str(tick), str(first), repr(here.runtime), repr(here.config)]
    assert not any(SECRET in text for text in shown)
    files = [file for file in home.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET.encode() not in here.config.warehouse.path.read_bytes()

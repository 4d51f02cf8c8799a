"""The warehouse is older or newer than the Dagster instance beside it, the clock goes back, readers never pause."""

from __future__ import annotations

import multiprocessing
import shutil
from datetime import timedelta

import dagster as dg

import kafka_assets
from kafka_assets import batches, ledger
from kafka_assets.orchestration import ingest as ingesting
from kafka_assets.orchestration import sensors
from kafka_assets.planner import utc_now
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.orchestration.conftest import bench, home, instance, new_home
from kafka_assets_tests.orchestration.support import Bench, later
from kafka_assets_tests.support.kafka import values, wait_until

__all__ = ["bench", "home", "instance", "new_home"]


def loaded(here, produce, topic, count=5):
    """Produce records and load them as the daemon does; the batch's key."""
    produce(topic, values(count), 0)
    (request,) = here.tick().requests
    assert here.run(request).is_success
    return str(request.partition_key)


def test_an_old_copy_of_the_warehouse_beside_a_newer_instance(bench, topic, produce, tmp_path):
    """The stream reads again from where the copy stands, under new keys; a click on a key it lacks says so."""
    name = topic()
    here = bench(topics=[name])
    first = loaded(here, produce, name)
    copy = shutil.copy(here.warehouse.path, tmp_path / "copy")
    lost = [loaded(here, produce, name) for _ in range(2)]
    assert here.rows() == (15, 15)
    shutil.copy(copy, here.warehouse.path)
    assert here.rows() == (5, 5)

    failed = here.click(lost[0])
    assert here.failure(failed).startswith("BATCH_UNKNOWN")
    (request,) = here.tick().requests
    assert str(request.partition_key) > max(lost)
    assert here.run(request).is_success
    assert here.rows() == (15, 15)
    assert here.proof().ok
    assert here.partition_keys() == [first, *lost, request.partition_key]
    assert here.click(first).is_success
    assert not here.click(lost[1]).is_success
    assert here.rows() == (15, 15)


def test_an_old_instance_beside_a_newer_warehouse(bench, topic, produce, tmp_path, home, monkeypatch):
    """Keys it lacks are added, what was loaded meanwhile is reported from the ledger, once; nothing is read again."""
    name = topic()
    here = bench(topics=[name])
    first = loaded(here, produce, name)
    shutil.copytree(home, tmp_path / "backup")
    cursor = here.cursor
    missing = [loaded(here, produce, name) for _ in range(3)]
    produce(name, values(5), 0)
    (open_batch,) = here.tick().batches

    with dg.DagsterInstance.from_config(str(tmp_path / "backup")) as older:
        again = Bench(here.config.path, older)
        again.cursor = cursor
        assert again.partition_keys() == [first]
        later(monkeypatch, 400)
        tick = again.tick()
        assert sorted(str(one.partition) for one in tick.materializations) == missing
        assert tick.batches == [open_batch]
        assert sorted(again.partition_keys()) == [first, *missing, open_batch]
        assert again.run(tick.requests[0]).is_success
        assert [len(again.materialized(key)) for key in missing] == [1, 1, 1]
        later(monkeypatch, 800)
        assert again.tick().materializations == []
        assert again.click(missing[1]).is_success
        assert again.rows() == (25, 25)
        assert again.proof().ok


def test_an_old_instance_that_lacks_more_than_one_tick_compares(
    bench, topic, produce, tmp_path, home, monkeypatch
):
    """However many it lacks, tick by tick all are reported, once."""
    monkeypatch.setattr(ledger, "RECENT_BATCHES", 2)
    monkeypatch.setattr(sensors, "REPORTED_AT_ONCE", 2)
    name = topic()
    here = bench(topics=[name])
    loaded(here, produce, name)
    shutil.copytree(home, tmp_path / "backup")
    missing = [loaded(here, produce, name) for _ in range(5)]

    with dg.DagsterInstance.from_config(str(tmp_path / "backup")) as older:
        again = Bench(here.config.path, older)
        later(monkeypatch, 400)
        reported = [[str(one.partition) for one in again.tick().materializations] for _ in range(4)]
        assert reported == [missing[:1], missing[1:3], missing[3:], []]
        assert [len(again.materialized(key)) for key in missing] == [1] * 5
        assert sorted(again.partition_keys())[1:] == missing


def test_the_clock_goes_back(story, bench, topic, produce, monkeypatch):
    """Keys still rise and planning goes on, by `ingest` and by the sensor, whose attempts do too."""
    name = topic()
    here = bench(topics=[name], interval="10s", min_records_per_batch=100, max_batch_delay="1h")
    produce(name, values(5), 0)
    story.command("ingest")
    assert here.rows() == (5, 5)
    for module in (ingesting, batches, sensors):
        monkeypatch.setattr(module, "utc_now", lambda: utc_now() - timedelta(days=400))
    produce(name, values(5), 0)
    story.command("ingest")
    produce(name, values(200), 0)
    (request,) = here.tick().requests
    assert here.run(request).is_success
    keys = [key for (key,) in here.query("SELECT batch FROM kafka_assets.batches ORDER BY planned_at DESC")]
    assert len(keys) == len(set(keys)) == 3
    assert max(keys) == request.partition_key
    assert here.rows() == (210, 210)
    assert here.proof().ok


def _read_for_ever(file, pipe):
    """Child: query without a pause until told to stop; then say how often, and what was seen."""
    seen, count = [], 0
    with kafka_assets.connect(file) as reader:
        while not pipe.poll():
            rows, distinct, whole = reader.execute(
                "SELECT count(*), count(DISTINCT _kafka_offset),"
                " (SELECT coalesce(sum(rows), 0) FROM kafka_assets.batches) FROM orders"
            ).fetchone()
            assert rows == distinct == whole
            count += 1
            if rows not in seen:
                seen.append(rows)
                pipe.send(rows)
    pipe.send((count, seen))


def test_readers_that_never_pause_and_a_writer(story, topic, produce):
    """Both get their turn: ingest ends, and every reader sees whole batches, the last one too."""
    name = topic()
    story.setting(topics=[name], max_records_per_batch=40)
    rows = expected(name, produce(name, values(40), 0), values(40))
    story.ingest()
    spawn = multiprocessing.get_context("spawn")
    readers = []
    for _ in range(2):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_read_for_ever, args=(story.file, theirs), daemon=True)
        process.start()
        readers.append((process, ours))
    for _, pipe in readers:
        assert pipe.recv() == 40
    rows += expected(name, produce(name, values(120, first=40), 0), values(120, first=40))

    assert len(story.ingest().stream["batches"]) == 3
    for process, pipe in readers:
        wait_until(pipe.poll, "a reader saw what came")
        while pipe.recv() != 160:
            pass
        pipe.send("stop")
        count, seen = pipe.recv()
        process.join(30)
        assert process.exitcode == 0
        assert count >= len(seen) > 1
        assert seen == sorted(seen)
        assert all(number % 40 == 0 for number in seen)
    assert story.rows() == rows
    story.proof()

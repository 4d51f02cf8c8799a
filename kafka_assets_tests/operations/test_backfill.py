from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kafka_assets.orchestration import ingest
from kafka_assets_tests.faults.brokers import create_again
from kafka_assets_tests.faults.story import STREAM, expected
from kafka_assets_tests.operations.support import backfill, refusal, reset
from kafka_assets_tests.support.kafka import delete_records, values, wait_until


@pytest.fixture
def latest(story, topic, produce):
    """`latest(30, partitions=2)`: a stream that started behind 30 records a partition and has read 5; its rows."""

    def make(count, partitions=1, **options):
        name = topic(partitions)
        rows = []
        for partition in range(partitions):
            rows += expected(name, produce(name, values(count), partition), values(count))
        story.setting(topics=[name], starting_offsets="latest", max_records_per_batch=10, **options)
        story.ingest()
        for partition in range(partitions):
            rows += expected(name, produce(name, values(5, first=count), partition), values(5, first=count))
        story.ingest()
        assert len(story.rows()) == 5 * partitions
        return name, sorted(rows)

    return make


def test_history_before_a_start_at_the_latest_offset(story, latest):
    """Every record is there once, in batches within the limits, oldest first, each a run."""
    name, rows = latest(25, partitions=2)
    answer = backfill(story, "--from", "earliest").stream
    assert (answer["records"], answer["rows"], answer["undeliverable"], answer["lost"]) == (50, 50, 0, 0)
    assert len(answer["batches"]) == 5
    assert story.rows() == rows
    assert story.proof() == {
        (name, partition, 0): {"from": 0, "until": 30, "loaded": 30} for partition in (0, 1)
    }
    assert story.status()[name, 0]["start"] == 0
    planned = story.query(
        'SELECT from_offset FROM kafka_assets.offset_ranges WHERE "partition" = 0 AND from_offset < 25 ORDER BY batch'
    )
    assert planned == sorted(planned)
    assert backfill(story, "--from", "earliest").stream["batches"] == []


def test_history_step_by_step_newest_first(story, latest, bootstrap):
    """Each call goes further down; what retention took is refused by its offset, and left out of `earliest`."""
    name, rows = latest(30)
    answer = backfill(story, "--from", f"{name}:0:5", "--newest-first").stream
    assert answer["records"] == 25
    starts = dict(story.query("SELECT batch, from_offset FROM kafka_assets.offset_ranges"))
    assert [starts[key] for key in answer["batches"]] == [20, 10, 5]
    delete_records(bootstrap, name, {0: 3})
    assert backfill(story, "--from", f"{name}:0:2", exit_code=3).code == "DATA_LOST"
    assert backfill(story, "--from", "earliest").stream["records"] == 2
    assert story.rows() == rows[3:]
    assert story.proof() == {(name, 0, 0): {"from": 3, "until": 35, "loaded": 32}}


def test_history_of_a_topic_made_again_is_refused(story, latest, bootstrap):
    """It is of another topic; the error says so and nothing is planned."""
    name, _ = latest(3)
    create_again(bootstrap, name)
    assert backfill(story, "--from", "earliest", exit_code=3).code == "TOPIC_RECREATED"
    assert story.status()[name, 0]["incarnation"] in (0, 1)
    assert story.proof() == {(name, 0, 0): {"from": 3, "until": 8, "loaded": 5}}


def test_a_backfill_batch_that_retention_overtakes_is_settled_by_a_reset(
    story, latest, bootstrap, monkeypatch
):
    """It is blocked, `--pending` exits 3, and the reset loads what is left of it."""
    name, _ = latest(10)
    with monkeypatch.context() as nothing_run:
        nothing_run.setattr(ingest, "run_backfill", lambda *_, **__: ingest.Ingested())
        backfill(story, "--from", "earliest")
    delete_records(bootstrap, name, {0: 4})
    assert backfill(story, "--pending", exit_code=3).code == "DATA_LOST"
    assert backfill(story, "--pending", exit_code=3).code == "DATA_LOST"
    answer = reset(story, "--to", "earliest", "--yes")
    assert (answer.stream["changes"], len(answer.stream["settled"])) == ([], 1)
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 15, "loaded": 11, "lost": 4}}
    assert backfill(story, "--pending").stream["batches"] == []


def test_killed_in_the_middle_it_goes_on_with_what_is_pending(story, latest):
    """After SIGKILL some batches are committed and the rest wait; `--pending` runs these, each record once."""
    name, rows = latest(150)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("kafka-assets"), "backfill", STREAM, "--from", "earliest"],
        cwd=story.file.parent,
        env={**os.environ, "KAFKA_ASSETS_CONFIG": str(story.file)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    committed = "SELECT count(*) FROM kafka_assets.batches WHERE kind = 'backfill' AND state = 'committed'"
    try:
        wait_until(lambda: story.query(committed)[0][0] >= 2, "two batches committed")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ((before,),) = story.query(committed)
    assert 2 <= before < 15
    assert story.proof()[name, 0, 0]["pending"] == 150 - 10 * before
    assert story.ingest().stream["batches"] == []

    assert len(backfill(story, "--pending").stream["batches"]) == 15 - before
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 155, "loaded": 155}}


def test_under_a_rate_limit_a_backfill_runs_one_batch_an_interval(story, latest, monkeypatch):
    """A batch takes what the rate gives in an interval, and the next one waits for its turn."""
    waits: list[float] = []
    monkeypatch.setattr(ingest._Drain, "_wait", lambda _, seconds: waits.append(seconds))
    _, rows = latest(12, max_records_per_partition_per_second=5, interval="1s")
    waits.clear()
    assert len(backfill(story, "--from", "earliest").stream["batches"]) == 3
    assert len(waits) <= 2
    assert story.rows() == rows


@pytest.mark.parametrize(
    "arguments", [(), ("--from", "earliest", "--pending"), ("--from", "latest"), ("--from", "x:0")]
)
def test_a_call_without_a_meaning_is_refused(story, arguments):
    """One of `--from` and `--pending`, and an offset to go back to."""
    story.setting(topics=["t"])
    assert refusal(story, "backfill", *arguments) == ("USAGE_INVALID", 2)


def test_without_a_first_offset_there_is_no_history(story, topic, produce):
    """`starting_offsets` says where a stream starts that was never planned."""
    name = topic()
    produce(name, values(3), 0)
    story.setting(topics=[name])
    assert backfill(story, "--from", "earliest", exit_code=2).code == "USAGE_INVALID"
    assert backfill(story, "--pending").stream["batches"] == []

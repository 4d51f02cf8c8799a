from __future__ import annotations

import pytest

from kafka_assets.batch_lock import BatchLock
from kafka_assets.config import load_config
from kafka_assets.dev.topics import delete_topic
from kafka_assets.operations import reset as operation
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.brokers import create_again
from kafka_assets_tests.faults.story import STREAM, expected
from kafka_assets_tests.operations.support import backfill, refusal, reset, typed
from kafka_assets_tests.support.kafka import Record, delete_records, values

NOON = 1_767_268_800_000


def change(name, start, to, skipped, *, partition=0, incarnation=0, backfill=0):
    return {
        "topic": name,
        "partition": partition,
        "incarnation": incarnation,
        "from": start,
        "to": to,
        "skipped": skipped,
        "lost": skipped - backfill,
        "backfill": backfill,
    }


def losses(story):
    return story.query(
        'SELECT topic, incarnation, "partition", from_offset, until_offset FROM kafka_assets.losses ORDER BY ALL'
    )


@pytest.fixture
def overtaken(story, topic, produce, bootstrap):
    """Retention took what lies below offset 8, and the plan stands at 5; returns the topic."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name])
    story.ingest()
    produce(name, values(15, first=5), 0)
    delete_records(bootstrap, name, {0: 8})
    return name


def test_retention_overtook_the_plan(story, overtaken):
    """The stop is over, what is gone is in `losses` once, and ingest goes on behind it."""
    name = overtaken
    assert story.ingest(exit_code=3).code == "DATA_LOST"

    shown = reset(story, "--to", "earliest", exit_code=2)
    assert (shown.stream["applied"], shown.code) == (False, None)
    assert shown.stream["changes"] == [change(name, 5, 8, 3)]
    assert losses(story) == []
    assert story.status()[name, 0]["planned_until"] == 5

    done = reset(story, "--to", "earliest", "--yes")
    assert (done.stream["applied"], done.stream["changes"]) == (True, shown.stream["changes"])
    assert losses(story) == [(name, 0, 0, 5, 8)]
    assert "reset --to earliest" in story.query("SELECT reason FROM kafka_assets.losses")[0][0]
    assert story.status()[name, 0]["committed_until"] == 8

    assert len(story.ingest().stream["batches"]) == 1
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 20, "loaded": 17, "lost": 3}}
    again = reset(story, "--to", "earliest", "--yes")
    assert (again.stream["applied"], again.stream["changes"]) == (True, [])


@pytest.mark.parametrize("place", ["{name}:0:3", "{name}:0:6", "{name}:0:21", "other:0:9", "yesterday"])
def test_a_target_that_makes_no_sense_changes_nothing(story, overtaken, place):
    """Backwards, below the log start, beyond the end, of another topic, or unreadable: refused, `--yes` or not."""
    before = story.query("SELECT * FROM kafka_assets.positions")
    for yes in ([], ["--yes"]):
        why = ("DATA_LOST", 3) if ":6" in place else ("USAGE_INVALID", 2)
        assert refusal(story, "reset", "--to", place.format(name=overtaken), *yes) == why
    assert story.query("SELECT * FROM kafka_assets.positions") == before


def test_an_open_batch_that_retention_overtook_is_settled(story, topic, produce, bootstrap):
    """What Kafka still has of it is loaded by a Dagster run, the rest is lost; blocked by an attempt or not."""
    name = topic(2)
    rows = expected(name, produce(name, values(10), 0), values(10))
    rows += expected(name, produce(name, values(4), 1), values(4))
    story.setting(topics=[name])
    story.tick()
    delete_records(bootstrap, name, {0: 6})
    assert story.ingest(exit_code=3).code == "DATA_LOST"
    assert story.batches() == {"planned": 1, "blocked": 1}

    shown = reset(story, "--to", "earliest", exit_code=2)
    assert shown.stream["changes"] == []
    (settled,) = shown.stream["settles"]
    assert settled["lost"] == [{"topic": name, "partition": 0, "from": 0, "until": 6}]
    assert story.batches() == {"planned": 1, "blocked": 1}

    done = reset(story, "--to", "earliest", "--yes")
    assert done.stream["settled"] == [settled["batch"]]
    assert story.batches() == {"committed": 1}
    assert story.rows() == sorted(row for row in rows if row[1] == 1 or row[2] >= 6)
    assert losses(story) == [(name, 0, 0, 0, 6)]
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 10, "loaded": 4, "lost": 6},
        (name, 1, 0): {"from": 0, "until": 4, "loaded": 4},
    }
    assert story.ingest().stream["batches"] == []


def test_a_topic_made_again_begins_anew_where_the_operator_says(story, topic, produce, bootstrap):
    """Its open batch is booked as lost whole, once, beside a healthy topic's part of it that is loaded."""
    name, healthy = topic(), topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name, healthy])
    story.ingest()
    produce(name, values(7, first=5), 0)
    rows += expected(healthy, produce(healthy, values(3), 0), values(3))
    story.tick()
    create_again(bootstrap, name)
    fresh = values(9, first=100)
    rows += expected(name, produce(name, fresh, 0), fresh)
    assert story.ingest(exit_code=3).code == "TOPIC_RECREATED"

    done = reset(story, "--to", "earliest", "--yes")
    assert done.stream["changes"] == [change(name, 12, 0, 0, incarnation=1)]
    assert losses(story) == [(name, 0, 0, 5, 12)]
    story.ingest()
    assert story.rows() == sorted(rows)
    assert story.proof() == {
        (healthy, 0, 0): {"from": 0, "until": 3, "loaded": 3},
        (name, 0, 0): {"from": 0, "until": 12, "loaded": 5, "lost": 7},
        (name, 0, 1): {"from": 0, "until": 9, "loaded": 9},
    }


def test_what_a_reset_skips_of_a_topic_made_again_is_lost(story, topic, produce, bootstrap):
    """`--to TOPIC:PARTITION:OFFSET` begins the new incarnation at its log start and goes on at the offset."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name])
    story.ingest()
    create_again(bootstrap, name)
    produce(name, values(9, first=100), 0)

    done = reset(story, "--to", f"{name}:0:4", "--yes")
    assert done.stream["changes"] == [change(name, 5, 4, 4, incarnation=1)]
    story.ingest()
    assert losses(story) == [(name, 1, 0, 0, 4)]
    assert story.proof()[name, 0, 1] == {"from": 0, "until": 9, "loaded": 5, "lost": 4}


def test_a_missing_topic_takes_its_open_batch_along(story, topic, produce, bootstrap):
    """Nothing of it can be fetched: the batch is committed without a row, and the topic stays missing."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name])
    story.tick()
    delete_topic(bootstrap, name)
    assert story.ingest(exit_code=3).code == "TOPIC_MISSING"

    assert reset(story, "--to", f"{name}:0:5", "--yes", exit_code=3).code == "TOPIC_MISSING"
    done = reset(story, "--to", "latest", "--yes")
    assert (done.stream["changes"], len(done.stream["settled"])) == ([], 1)
    assert losses(story) == [(name, 0, 0, 0, 5)]
    assert (story.rows(), story.batches()) == ([], {"committed": 1})
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 5, "lost": 5}}
    assert story.ingest(exit_code=3).code == "TOPIC_MISSING"


def test_latest_skips_and_keeps_a_hole(story, topic, produce):
    """Freshness first: the backlog is planned as backfill batches that neither sensor nor ingest run."""
    name = topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name], max_records_per_batch=10)
    story.ingest()
    rows += expected(name, produce(name, values(25, first=5), 0), values(25, first=5))

    shown = reset(story, "--to", "latest", "--keep-hole", exit_code=2)
    assert shown.stream["changes"] == [change(name, 5, 30, 25, backfill=25)]
    done = reset(story, "--to", "latest", "--keep-hole", "--yes")
    assert len(done.stream["batches"]) == 3
    rows += expected(name, produce(name, values(2, first=30), 0), values(2, first=30))
    assert len(story.ingest().stream["batches"]) == 1
    assert len(story.rows()) == 7
    assert story.query(
        "SELECT kind, state, count(*) FROM kafka_assets.batches GROUP BY ALL ORDER BY ALL"
    ) == [
        ("backfill", "planned", 3),
        ("live", "committed", 2),
    ]
    status = story.status()[name, 0]
    assert (status["committed_until"], status["hole"]) == (5, 25)
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 32, "loaded": 7, "pending": 25}}

    answer = backfill(story, "--pending")
    assert answer.stream["batches"] == done.stream["batches"]
    assert (answer.stream["records"], answer.stream["lost"]) == (25, 0)
    assert story.rows() == sorted(rows)
    assert losses(story) == []
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 32, "loaded": 32}}
    assert backfill(story, "--pending").stream["batches"] == []


def test_a_batch_that_is_being_executed_refuses_the_reset(story, topic, produce, bootstrap):
    """Exit 4, naming batch and process, with nothing changed; once it is let go of, the reset does its work."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name])
    story.tick()
    delete_records(bootstrap, name, {0: 5})
    produce(name, values(1, first=5), 0)
    delete_records(bootstrap, name, {0: 6})
    ((key,),) = story.query("SELECT batch FROM kafka_assets.batches")
    with BatchLock(Warehouse.of(load_config(story.file).warehouse).staging, STREAM, key) as lock:
        assert lock.try_acquire()
        refused = reset(story, "--to", "earliest", "--yes", exit_code=4)
        assert (refused.code, refused.stream["applied"]) == ("WAREHOUSE_LOCKED", False)
        assert key in refused.message
        assert "process " in refused.message
        assert story.batches() == {"planned": 1}
        assert story.status()[name, 0]["planned_until"] == 5

    done = reset(story, "--to", "earliest", "--yes")
    assert done.stream["changes"] == [change(name, 5, 6, 1)]
    assert losses(story) == [(name, 0, 0, 0, 5), (name, 0, 0, 5, 6)]
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 6, "lost": 6}}


def test_an_open_batch_that_can_be_fetched_is_nothing_to_a_reset(story, topic, produce):
    """The positions move past it, and ingest runs it as it was planned."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name])
    story.tick()
    produce(name, values(5, first=5), 0)
    done = reset(story, "--to", f"{name}:0:8", "--yes")
    assert (done.stream["changes"], done.stream["settled"]) == ([change(name, 5, 8, 3)], [])
    story.ingest()
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 10, "loaded": 7, "lost": 3}}


def test_a_timestamp_skips_what_is_older(story, topic, produce):
    """The first record at or after it is the next one to be planned, in each topic-partition."""
    name = topic(2)
    story.setting(topics=[name])
    for partition in (0, 1):
        produce(name, [Record(b"x", timestamp_ms=NOON - 60_000)], partition)
    story.ingest()
    for partition in (0, 1):
        seconds = range(-4, 3 - partition)
        produce(name, [Record(b"x", timestamp_ms=NOON + 1000 * second) for second in seconds], partition)
    done = reset(story, "--to", "2026-01-01T11:59:59.5Z", "--yes")
    assert done.stream["changes"] == [change(name, 1, 5, 4), change(name, 1, 5, 4, partition=1)]
    assert refusal(story, "reset", "--to", "2026-01-01T11:59:00Z", "--yes") == ("USAGE_INVALID", 2)


def test_nothing_planned_yet_is_nothing_to_reset(story, topic, produce):
    """Where a stream starts is for the streams file to say."""
    name = topic()
    produce(name, values(3), 0)
    story.setting(topics=[name])
    refused = reset(story, "--to", "latest", "--yes", exit_code=2)
    assert refused.code == "USAGE_INVALID"
    assert "starting_offsets" in refused.message


def test_a_reset_says_to_people_what_it_would_do(story, overtaken, capfd):
    """The table goes to stdout, the offsets concerned and what to type to stderr."""
    code, out = typed(story, "reset", "--to", "latest")
    told = capfd.readouterr().err
    assert code == 2
    assert "skipped" in out
    assert f"15 offsets are booked as lost: {overtaken}[0] [5, 8), {overtaken}[0] [8, 20)" in told
    assert "--yes" in told


def test_a_planner_that_comes_in_between_is_heeded(story, topic, produce, bootstrap, monkeypatch):
    """The reset looks again and moves what it was to move; the batch planned meanwhile is loaded."""
    name = topic(2)
    story.setting(topics=[name], starting_offsets="latest")
    story.ingest()
    produce(name, values(5), 0)
    delete_records(bootstrap, name, {0: 3})
    write = operation.record

    def late(*arguments, **named):
        if not story.batch_keys():
            produce(name, values(4), 1)
            story.tick()
        return write(*arguments, **named)

    monkeypatch.setattr(operation, "record", late)
    done = reset(story, "--to", "earliest", "--yes")
    assert done.stream["changes"] == [change(name, 0, 3, 3)]
    story.ingest()
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 5, "loaded": 2, "lost": 3},
        (name, 1, 0): {"from": 0, "until": 4, "loaded": 4},
    }

from __future__ import annotations

import pytest

from kafka_assets_tests.faults.story import SIPPING, expected
from kafka_assets_tests.support.kafka import Record, delete_records, values, wait_until, watermarks


def test_what_retention_took_before_it_was_planned_stops_that_topic_alone(story, topic, produce, bootstrap):
    """Nothing is passed over in silence: DATA_LOST until an operator chooses, while the healthy topic goes on."""
    short = topic(config={"retention.ms": "1000", "segment.ms": "100"})
    healthy = topic()
    story.setting(topics=[short, healthy])
    story.ingest()
    yesterday, tomorrow = 1_000_000_000_000, 4_000_000_000_000
    produce(short, [Record(b"old", timestamp_ms=yesterday)] * 8, 0)
    wait_until(lambda: watermarks(bootstrap, short) == {0: (8, 8)}, "retention has taken the records")
    rows = expected(healthy, produce(healthy, values(5), 0), values(5))
    kept = produce(short, [Record(b"new", timestamp_ms=tomorrow)] * 2, 0)

    assert (stopped := story.ingest(exit_code=3)).code == "DATA_LOST"
    assert f"{short}[0] [0, 8)" in stopped.message
    assert (story.rows(), story.losses()) == (rows, [])
    assert (shown := story.plan(exit_code=3)).code == "DATA_LOST"
    assert "on_data_loss: skip" in shown.message
    assert "kafka-assets reset" in shown.message

    story.setting(topics=[short, healthy], on_data_loss="skip")
    assert story.ingest().stream["lost"] == 8
    assert story.ingest().stream["lost"] == 0
    assert story.rows() == sorted(rows + expected(short, kept, [b"new"] * 2))
    assert story.losses() == [(short, 0, 0, 8)]
    assert story.proof()[short, 0, 0] == {"from": 0, "until": 10, "loaded": 2, "lost": 8}


def test_what_retention_took_between_plan_and_fetch_blocks_the_batch_until_somebody_chooses(
    story, topic, produce, bootstrap
):
    """The batch is kept as it was planned, later ones go on; replayed under skip it loads what is left."""
    name = topic(2)
    rows = [expected(name, produce(name, values(10), partition), values(10)) for partition in (0, 1)]
    story.setting(topics=[name])
    story.tick()
    (blocked,) = story.batch_keys()
    delete_records(bootstrap, name, {0: 4})
    later = expected(name, produce(name, [b"later"], 0), [b"later"])

    assert (stopped := story.ingest(exit_code=3)).code == "DATA_LOST"
    assert f"{name}[0] [0, 10)" in stopped.message
    assert (story.rows(), story.losses()) == (later, [])
    assert story.batches() == {"planned": 1, "blocked": 1, "committed": 1}
    assert story.status()[name, 0]["hole"] == 10
    assert story.ingest(exit_code=3).stream["batches"] == []

    story.setting(topics=[name], on_data_loss="skip")
    assert story.command("replay", blocked).exit_code == 0
    assert story.rows() == sorted(rows[0][4:] + later + rows[1])
    assert story.losses() == [(name, 0, 0, 4)]
    assert story.proof()[name, 0, 0] == {"from": 0, "until": 11, "loaded": 7, "lost": 4}
    place = story.status()[name, 0]
    assert (place["committed_until"], place["hole"], place["lag"]) == (11, 0, 0)


def test_a_planned_range_that_is_lost_as_a_whole_commits_under_skip(story, topic, produce, bootstrap):
    """All of it is written down as lost, and the stream stands behind it."""
    name = topic()
    produce(name, values(10), 0)
    story.setting(topics=[name], on_data_loss="skip")
    story.tick()
    delete_records(bootstrap, name, {0: 10})

    answer = story.ingest()

    assert (answer.stream["rows"], answer.stream["lost"]) == (0, 10)
    assert story.losses() == [(name, 0, 0, 10)]
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 10, "lost": 10}}
    assert story.status()[name, 0]["committed_until"] == 10


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_retention_overtakes_a_fetch(story, topic, produce, bootstrap, policy):
    """Of a fetch that fails nothing is used; one that skips has each offset in the table or in the losses."""
    name = topic()
    count = 3000
    payloads = values(count, size=1000)
    rows = expected(name, produce(name, payloads, 0, {"batch.size": 20_000}), payloads)
    story.setting(topics=[name], on_data_loss=policy, kafka=SIPPING)
    story.midway(lambda: delete_records(bootstrap, name, {0: 2000}), after=100)

    if policy == "fail":
        assert story.ingest(exit_code=3).code == "DATA_LOST"
        assert (story.rows(), story.losses()) == ([], [])
        assert story.proof() == {(name, 0, 0): {"from": 0, "until": count, "pending": count}}
        return

    answer = story.ingest()
    ((_, _, first, until),) = story.losses()
    assert (100 <= first < until, until) == (True, 2000)
    assert story.rows() == rows[:first] + rows[until:]
    assert answer.stream["lost"] == until - first
    story.proof()


def test_a_start_below_the_log_start_is_a_loss(story, topic, produce, bootstrap):
    """Who names a first offset means it: what is gone from there on is a stop, or under skip written down."""
    name = topic()
    rows = expected(name, produce(name, values(10), 0), values(10))
    delete_records(bootstrap, name, {0: 6})
    start = {"starting_offsets": {name: {0: 2}}}
    story.setting(topics=[name], **start)
    assert (stopped := story.ingest(exit_code=3)).code == "DATA_LOST"
    assert f"{name}[0] [2, 6)" in stopped.message

    story.setting(topics=[name], on_data_loss="skip", **start)
    assert story.ingest().stream["lost"] == 4
    assert story.rows() == rows[6:]
    assert story.losses() == [(name, 0, 2, 6)]
    assert story.proof() == {(name, 0, 0): {"from": 2, "until": 10, "loaded": 4, "lost": 4}}

from __future__ import annotations

from datetime import UTC, datetime

from kafka_assets_tests.faults.brokers import settle
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import Record, Transaction, produce_transaction, values

HANGS = 600.0
"""Seconds until the broker aborts a transaction by itself: longer than any story takes."""


def test_only_what_was_committed_becomes_rows(story, topic, produce, bootstrap):
    """Batches may end anywhere among transactions: committed records are rows, the rest is accounted for."""
    name = topic(2)
    plain, kept, dropped = values(5), values(10, first=100), values(6, first=200)
    rows = expected(name, produce(name, plain, 0), plain)
    with_it = Transaction(bootstrap)
    rows += expected(name, with_it.produce(name, kept, 0), kept)
    rows += expected(name, with_it.produce(name, kept, 1), kept)
    with_it.commit()
    produce_transaction(bootstrap, name, dropped, "abort", 0)
    rows += expected(name, produce(name, plain, 0), plain)
    settle(bootstrap, name)
    story.setting(topics=[name], max_records_per_batch=13)

    answer = story.ingest()

    assert story.rows() == sorted(rows)
    assert (answer.stream["rows"], answer.stream["undeliverable"]) == (len(rows), 9)
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 28, "loaded": 20, "undeliverable": 8},
        (name, 1, 0): {"from": 0, "until": 11, "loaded": 10, "undeliverable": 1},
    }


def test_a_batch_of_aborted_records_alone_commits(story, topic, bootstrap):
    """A batch that holds only what was aborted commits with no rows, and the stream goes on behind it."""
    name = topic()
    produce_transaction(bootstrap, name, values(5), "abort", 0)
    settle(bootstrap, name)
    story.setting(topics=[name])

    answer = story.ingest()

    assert (answer.stream["rows"], answer.stream["undeliverable"]) == (0, 6)
    assert story.rows() == []
    assert story.batches() == {"committed": 1}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 6, "undeliverable": 6}}
    assert story.status()[name, 0]["lag"] == 0


def test_an_open_transaction_is_waited_for_and_read_once_it_ends(story, topic, produce, bootstrap):
    """Nothing at or behind the last stable offset is planned; it is shown as unstable, and comes later."""
    name = topic()
    before, inside, behind = values(5), values(3, first=100), values(2, first=200)
    rows = expected(name, produce(name, before, 0), before)
    open_one = Transaction(bootstrap, timeout=HANGS)
    late = expected(name, open_one.produce(name, inside, 0), inside)
    late += expected(name, produce(name, behind, 0), behind)
    story.setting(topics=[name])

    story.ingest()

    assert story.rows() == rows
    place = story.status()[name, 0]
    assert (place["end"], place["high_watermark"], place["unstable"], place["lag"]) == (5, 10, 5, 0)
    assert f"5 offsets held back by open transactions on {name}[0]" in story.plan().stream["reason"]

    open_one.commit()
    settle(bootstrap, name)
    story.ingest()

    assert story.rows() == sorted(rows + late)
    assert story.status()[name, 0]["unstable"] == 0
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 11, "loaded": 10, "undeliverable": 1}}


def test_a_hanging_transaction_does_not_stop_what_is_stable(story, topic, produce, bootstrap):
    """However long it hangs, other partitions go on, and each tick says how much is held back and where."""
    name = topic(2)
    hanging = Transaction(bootstrap, timeout=HANGS)
    inside = values(3, first=100)
    rows = expected(name, hanging.produce(name, inside, 0), inside)
    story.setting(topics=[name], min_records_per_batch=1000, max_batch_delay="1ms")
    assert story.tick().batches == ()  # from here on it waits for a larger batch
    stable: list[bytes] = []
    for round_ in range(3):
        fresh = values(4, first=10 * round_)
        rows += expected(name, produce(name, fresh, 1), fresh)
        stable += fresh
        planned = story.tick()
        (ranges,) = planned.batches
        assert [str(one.range) for one in ranges] == [f"{name}[1] [{4 * round_}, {4 * round_ + 4})"]
        assert planned.held_back == 3
    reason = story.tick().reason or ""
    assert f"3 offsets held back by open transactions on {name}[0]" in reason

    story.ingest()
    assert [row[3] for row in story.rows()] == stable

    hanging.commit()
    settle(bootstrap, name)
    story.ingest()
    assert story.rows() == sorted(rows)
    story.proof()


def test_a_start_by_time_beside_an_open_transaction_misses_nothing(story, topic, produce, bootstrap):
    """The stream starts no later than the open transaction, whose records may be of that time or later."""
    name = topic()
    start = 1_800_000_000_000
    produce(name, [Record(b"old", timestamp_ms=start - 1000)] * 5, 0)
    open_one = Transaction(bootstrap, timeout=HANGS)
    places = open_one.produce(name, [Record(b"inside", timestamp_ms=start + 1)], 0)
    places += produce(name, [Record(b"behind", timestamp_ms=start + 2)], 0)
    when = datetime.fromtimestamp(start / 1000, UTC).isoformat()
    story.setting(topics=[name], starting_offsets={"timestamp": when})

    assert story.ingest().stream["batches"] == []
    assert story.status()[name, 0]["start"] == 5

    open_one.commit()
    settle(bootstrap, name)
    story.ingest()
    assert story.rows() == expected(name, places, [b"inside", b"behind"])
    assert story.proof() == {(name, 0, 0): {"from": 5, "until": 8, "loaded": 2, "undeliverable": 1}}

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = -1
FIRST_TOO_LARGE = 9_223_372_036_854_776


def at(stamp: int) -> str:
    return (EPOCH + timedelta(milliseconds=stamp)).isoformat()


def test_any_time_a_record_may_have_is_kept(story, topic, produce):
    """Times that go backwards, lie before 1970 or are missing change neither the order nor what is loaded."""
    name = topic()
    stamps = [2_000, 1_000, NEVER, -5_000, 253_402_300_799_000, 1, 1_500]
    payloads = [b"%d" % stamp for stamp in stamps]
    places = produce(
        name, [Record(b"%d" % stamp, timestamp_ms=stamp) for stamp in stamps], 0, {"linger.ms": 0}
    )
    story.setting(topics=[name])

    story.ingest()

    assert story.rows() == expected(name, places, payloads)
    assert story.query(
        "SELECT epoch_ms(_kafka_timestamp), _kafka_timestamp_type FROM orders ORDER BY _kafka_offset"
    ) == [(None, None) if stamp == NEVER else (stamp, "create") for stamp in stamps]
    story.proof()


def test_a_time_that_no_column_holds_blocks_its_batch_alone(story, topic, produce):
    """The record is named, nothing of its batch is loaded, and the batches behind it go on."""
    name = topic()
    stamps = [1_000, 2_000, FIRST_TOO_LARGE, 3_000]
    places = produce(name, [Record(b"x", timestamp_ms=stamp) for stamp in stamps], 0)
    story.setting(topics=[name])
    story.tick()
    later = expected(name, produce(name, [b"later"], 0), [b"later"])

    assert (stopped := story.ingest(exit_code=3)).code == "BAD_RECORD"
    assert f"{name}[0]@{places[2][1]}" in stopped.message
    assert str(FIRST_TOO_LARGE) in stopped.message
    assert story.rows() == later
    assert story.batches() == {"planned": 1, "blocked": 1, "committed": 1}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 5, "loaded": 1, "pending": 4}}


def test_a_start_by_time_takes_all_behind_the_first_such_record(story, topic, produce):
    """The first record of that time or later is where it begins; older ones behind it are read too."""
    name = topic()
    start = 1_700_000_000_000
    stamps = [start - 2, start + 5, start - 1, start, start - 9]
    payloads = [b"%d" % index for index in range(len(stamps))]
    places = produce(
        name,
        [Record(value, timestamp_ms=stamp) for value, stamp in zip(payloads, stamps, strict=True)],
        0,
        {"batch.size": 1},
    )
    story.setting(topics=[name], starting_offsets={"timestamp": at(start)})

    story.ingest()

    assert story.rows() == expected(name, places, payloads)[1:]
    story.proof()


def test_a_start_by_time_beyond_the_last_record_is_the_end(story, topic, produce):
    """What is there is older and not read; whatever comes next is, whichever time it has."""
    name = topic()
    start = 1_700_000_000_000
    produce(name, [Record(b"old", timestamp_ms=start - 1)] * 3, 0)
    story.setting(topics=[name], starting_offsets={"timestamp": at(start)})
    assert story.ingest().stream["batches"] == []

    places = produce(name, [Record(b"new", timestamp_ms=1)], 0)
    story.ingest()

    assert story.rows() == expected(name, places, [b"new"])
    assert story.proof() == {(name, 0, 0): {"from": 3, "until": 4, "loaded": 1}}

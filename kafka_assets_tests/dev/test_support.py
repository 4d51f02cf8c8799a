from __future__ import annotations

from kafka_assets_tests.support.kafka import (
    Record,
    delete_records,
    produce_transaction,
    read_all,
    tombstone,
    values,
    wait_until,
    watermarks,
)


def test_records_arrive_as_they_were_given(bootstrap, topic, produce):
    """Key, value, headers, timestamp and partition of a record come back, a tombstone without a value."""
    name = topic(partitions=3)
    headers = [("a", b"1"), ("a", None)]
    places = produce(
        name, [Record(b"v", b"k", headers, 1_234_567, 2), tombstone(b"k", 1), b"bare"], partition=0
    )
    assert places == [(2, 0), (1, 0), (0, 0)]
    bare, deleted, full = read_all(bootstrap, name)
    assert (full.key(), full.value(), full.headers(), full.timestamp()[1]) == (b"k", b"v", headers, 1_234_567)
    assert (deleted.key(), deleted.value()) == (b"k", None)
    assert bare.value() == b"bare"


def test_transactions_end_as_told(bootstrap, topic):
    """Committed records are read, aborted ones are not, and open ones hold the last stable offset back."""
    name = topic()
    produce_transaction(bootstrap, name, values(3))
    produce_transaction(bootstrap, name, values(3, first=3), "abort")
    held = produce_transaction(bootstrap, name, values(3, first=6), "open")
    assert watermarks(bootstrap, name, committed=True) == {0: (0, 8)}
    assert watermarks(bootstrap, name) == {0: (0, 11)}
    held.abort()
    wait_until(lambda: watermarks(bootstrap, name, committed=True) == {0: (0, 12)}, "the abort's marker")
    assert [message.value() for message in read_all(bootstrap, name)] == values(3)


def test_deleted_records_move_the_log_start(bootstrap, topic, produce):
    """Deleting records up to an offset makes it the log start at once."""
    name = topic()
    produce(name, values(10))
    delete_records(bootstrap, name, {0: 4})
    assert watermarks(bootstrap, name) == {0: (4, 10)}


def test_retention_and_compaction_come_within_seconds(bootstrap, topic, produce):
    """Compaction, and retention of old records, are over while a test waits."""
    roll = {"segment.ms": "100", "segment.bytes": "1048576"}
    compacted = topic(config={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", **roll})
    expired = topic(config={"retention.ms": "1000", **roll})

    def compact() -> bool:
        produce(compacted, [Record(b"new", b"k")])
        return len(read_all(bootstrap, compacted)) < watermarks(bootstrap, compacted)[0][1] - 2

    produce(expired, [Record(b"old", timestamp_ms=1_000_000)])
    produce(compacted, [Record(b"old", b"k")] * 5)
    wait_until(compact, "compaction")
    wait_until(lambda: watermarks(bootstrap, expired)[0][0] == 1, "retention")

from __future__ import annotations

import ctypes
import random
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from confluent_kafka import cimpl
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets import log as log_module
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import admin, create_topic, delete_topic
from kafka_assets.errors import (
    BadRecordError,
    BrokerAuthError,
    ConfigInvalidError,
    DataLostError,
    FetchStalledError,
    LogTruncatedError,
    RangeUnavailableError,
    TopicMissingError,
    TopicRecreatedError,
)
from kafka_assets.fetch import RAW_SCHEMA, FetchCancelledError, RangeReader, read_ranges
from kafka_assets.log import KafkaLog
from kafka_assets.offsets import OffsetRange, PlannedRange, TopicPartition
from kafka_assets_tests.faults.brokers import settle
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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka_assets.evidence import RangeEvidence


def planned(topic: str, partition: int, start: int, until: int, **more) -> PlannedRange:
    return PlannedRange(OffsetRange(topic, partition, start, until), **more)


def fetch(
    bootstrap: str, ranges: Iterable[PlannedRange], **more
) -> tuple[pa.Table, tuple[RangeEvidence, ...]]:
    """Read ranges to their end: the rows, ordered by place, and the evidence."""
    kafka = {"bootstrap.servers": bootstrap, **more.pop("kafka", {})}
    reader = RangeReader(kafka, list(ranges), stall_timeout=more.pop("stall_timeout", 20.0), **more)
    table = pa.Table.from_batches(list(reader), RAW_SCHEMA)
    keys = ["_kafka_topic", "_kafka_partition", "_kafka_offset"]
    return table.sort_by([(key, "ascending") for key in keys]), reader.evidence


def offsets(table: pa.Table) -> list[int]:
    return table["_kafka_offset"].to_pylist()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_range_from_inside_a_batch_is_exact(bootstrap, topic, produce, codec):
    """A range that begins and ends inside compressed batches gives its offsets and no other."""
    name = topic()
    produce(name, values(1000), 0, {"compression.type": codec, "linger.ms": 50})
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, 137, 655)])
    assert offsets(table) == list(range(137, 655))
    assert table["_kafka_value"].to_pylist() == values(518, first=137)
    assert (evidence.records, evidence.gaps, evidence.undeliverable, evidence.lost) == (518, 0, 0, ())
    assert evidence.end_proof == "record"
    assert evidence.bytes == 518 * 10
    assert evidence.offset_sum == sum(range(137, 655))


def test_an_empty_range_ends_at_once(bootstrap, topic, produce):
    """A range without offsets gives no rows, whatever lies around it."""
    name = topic()
    produce(name, values(10), 0)
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, 5, 5)])
    assert table.num_rows == 0
    assert (evidence.records, evidence.undeliverable) == (0, 0)
    assert fetch(bootstrap, []) == (RAW_SCHEMA.empty_table(), ())


def test_the_marker_of_a_transaction_ends_a_range(bootstrap, topic, produce):
    """A commit marker as the last offset of the log is undeliverable, and the range ends behind it."""
    name = topic()
    produce(name, values(3), 0)
    produce_transaction(bootstrap, name, values(4), "commit", 0)
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, 1, 8)])
    assert offsets(table) == [1, 2, 3, 4, 5, 6]
    assert (evidence.records, evidence.gaps, evidence.undeliverable) == (6, 1, 1)
    assert evidence.end_proof in ("position", "eof")


def test_aborted_records_are_undeliverable(bootstrap, topic, produce):
    """Aborted records and markers inside a range are counted as undeliverable, gap by gap."""
    name = topic()
    produce(name, values(3), 0)
    produce_transaction(bootstrap, name, values(5), "abort", 0)
    produce(name, values(2), 0)
    produce_transaction(bootstrap, name, values(1), "commit", 0)
    produce(name, values(1), 0)
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, 0, 14)])
    assert offsets(table) == [0, 1, 2, 9, 10, 11, 13]
    assert (evidence.records, evidence.gaps, evidence.undeliverable) == (7, 2, 7)
    table, (evidence,) = fetch(
        bootstrap, [planned(name, 0, 0, 14)], kafka={"isolation.level": "read_uncommitted"}
    )
    assert offsets(table) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13]
    assert (evidence.gaps, evidence.undeliverable) == (2, 2)


@pytest.mark.parametrize(("start", "until"), [(3, 9), (3, 8), (4, 6), (8, 9)])
def test_a_range_of_aborted_records_alone_ends(bootstrap, topic, produce, start, until):
    """A range that holds nothing deliverable ends without rows, at the end of the log and before it."""
    name = topic()
    produce(name, values(3), 0)
    produce_transaction(bootstrap, name, values(5), "abort", 0)
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, start, until)])
    assert table.num_rows == 0
    assert (evidence.records, evidence.gaps, evidence.undeliverable) == (0, 1, until - start)


@pytest.mark.parametrize("without", ["_on_end", "_look_at_positions"])
def test_either_proof_of_an_end_suffices(bootstrap, topic, produce, monkeypatch, without):
    """The end-of-partition event and the consumer's position each end a range whose rest is undeliverable."""
    monkeypatch.setattr(RangeReader, without, lambda *_: False)
    name = topic(partitions=2)
    produce(name, values(3), 0)
    produce_transaction(bootstrap, name, values(5), "abort", 0)
    produce_transaction(bootstrap, name, values(5), "commit", 1)
    table, evidence = fetch(bootstrap, [planned(name, 0, 1, 9), planned(name, 1, 0, 6)])
    assert table.num_rows == 2 + 5
    assert {one.end_proof for one in evidence} == {"position" if without == "_on_end" else "eof"}


def test_compacted_offsets_are_undeliverable_also_at_the_end(bootstrap, topic, produce):
    """What compaction took out is undeliverable, in the middle of a range and where a range ends."""
    name = topic(
        config={
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": "0",
        }
    )
    produce(
        name, [Record(b"v%d" % index, b"same" if index % 10 else b"k%d" % index) for index in range(50)], 0
    )

    def compacted() -> list[int]:
        # The active segment is left alone: a record more begins another.
        produce(name, [Record(b"roll", b"roll")], 0)
        found = [message.offset() for message in read_all(bootstrap, name)]
        return found if found[:6] == [0, 10, 20, 30, 40, 49] else []

    kept = wait_until(compacted, "the log is compacted")
    for start, until in [(0, 50), (0, 49), (5, 30), (11, 19), (41, 49), (45, 50)]:
        table, (evidence,) = fetch(bootstrap, [planned(name, 0, start, until)])
        expected = [offset for offset in kept if start <= offset < until]
        assert offsets(table) == expected
        assert evidence.records == len(expected)
        assert evidence.undeliverable == until - start - len(expected)


def test_any_range_of_a_log_with_transactions_is_exact(bootstrap, topic, produce):
    """Wherever a range begins and ends among transactions, it gives what a consumer sees there."""
    name = topic()
    choose = random.Random(7)  # noqa: S311  (a log, not a secret)
    for _ in range(12):
        produce(name, values(choose.randint(0, 3)), 0)
        outcome = choose.choice(["commit", "abort"])
        produce_transaction(bootstrap, name, values(choose.randint(1, 4)), outcome, 0)
    seen = [message.offset() for message in read_all(bootstrap, name)]
    end = watermarks(bootstrap, name)[0][1]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, end), min_size=2, max_size=8).map(sorted))
    def check(cuts: list[int]) -> None:
        ranges = [planned(name, 0, *pair) for pair in pairwise(cuts)]
        table, evidence = fetch(bootstrap, ranges)
        assert offsets(table) == [offset for offset in seen if cuts[0] <= offset < cuts[-1]]
        for one in evidence:
            covered = range(one.planned.range.from_offset, one.planned.range.until_offset)
            assert one.records == sum(offset in covered for offset in seen)
            assert one.records + one.undeliverable == len(covered)

    check()


def test_records_keep_keys_headers_nulls_and_timestamps(bootstrap, topic, produce):
    """Empty and NULL stay apart in keys, values and headers; headers keep their order and duplicates."""
    name = topic()
    headers = [("b", b"1"), ("a", None), ("b", b""), ("\N{SNOWMAN}", b"\x00\xff")]
    stamp = 1_700_000_000_123
    produce(
        name,
        [
            Record(b"value", b"key", headers, stamp),
            Record(b"", b"", [], stamp + 1),
            Record(None, None, None, stamp + 2),
            tombstone(b"gone"),
        ],
        0,
    )
    table, (evidence,) = fetch(bootstrap, [planned(name, 0, 0, 4)])
    assert table.schema == RAW_SCHEMA
    assert table["_kafka_key"].to_pylist() == [b"key", b"", None, b"gone"]
    assert table["_kafka_value"].to_pylist() == [b"value", b"", None, None]
    assert table["_kafka_headers"].to_pylist() == [
        [{"key": key, "value": value} for key, value in headers],
        None,
        None,
        None,
    ]
    assert table["_kafka_timestamp"].cast(pa.int64()).to_pylist()[:3] == [
        (stamp + index) * 1000 for index in range(3)
    ]
    assert table["_kafka_timestamp_type"].to_pylist() == ["create"] * 4
    assert table["_kafka_topic"].to_pylist() == [name] * 4
    assert evidence.bytes == len(b"valuekey1\x00\xffgone")
    assert evidence.min_timestamp_ms == stamp


def test_the_broker_s_own_timestamps_are_told_apart(bootstrap, topic, produce):
    """Where the broker stamps the records the type says so."""
    name = topic(config={"message.timestamp.type": "LogAppendTime"})
    produce(name, [Record(b"x", timestamp_ms=5)], 0)
    table, _ = fetch(bootstrap, [planned(name, 0, 0, 1)])
    assert table["_kafka_timestamp_type"].to_pylist() == ["append"]
    assert table["_kafka_timestamp"].cast(pa.int64())[0].as_py() > 1_700_000_000_000_000


def test_a_timestamp_beyond_the_warehouse_is_a_bad_record(bootstrap, topic, produce):
    """A timestamp that no TIMESTAMPTZ can hold is an error that names the record; the largest one is kept."""
    name = topic(config={"message.timestamp.after.max.ms": str(2**63 - 1)})
    largest = 9_223_372_036_854_775
    produce(name, [Record(b"x", timestamp_ms=largest), Record(b"x", timestamp_ms=largest + 1)], 0)
    table, _ = fetch(bootstrap, [planned(name, 0, 0, 1)])
    assert table["_kafka_timestamp"].cast(pa.int64()).to_pylist() == [largest * 1000]
    with pytest.raises(BadRecordError, match=rf"{name}\[0\]@1: .*{largest + 1} ms"):
        fetch(bootstrap, [planned(name, 0, 0, 2)])


def produce_header(bootstrap: str, topic: str, key: bytes) -> None:
    """Produce one record with a header whose key is any bytes, which the Python client cannot."""
    lib = ctypes.CDLL(cimpl.__file__)
    lib.rd_kafka_conf_new.restype = ctypes.c_void_p
    lib.rd_kafka_new.restype = ctypes.c_void_p
    lib.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.rd_kafka_conf_set.argtypes = [ctypes.c_void_p, *[ctypes.c_char_p] * 3, ctypes.c_size_t]
    lib.rd_kafka_producev.argtypes = [ctypes.c_void_p]
    lib.rd_kafka_flush.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.rd_kafka_destroy.argtypes = [ctypes.c_void_p]
    error = ctypes.create_string_buffer(512)
    conf = lib.rd_kafka_conf_new()
    lib.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap.encode(), error, 512)
    producer = lib.rd_kafka_new(0, conf, error, 512)
    topic_tag, value_tag, flags_tag, header_tag, end_tag, copy = 1, 4, 7, 9, 0, 2
    failed = lib.rd_kafka_producev(
        producer,
        ctypes.c_int(topic_tag),
        ctypes.c_char_p(topic.encode()),
        ctypes.c_int(value_tag),
        ctypes.c_char_p(b"x"),
        ctypes.c_size_t(1),
        ctypes.c_int(flags_tag),
        ctypes.c_int(copy),
        ctypes.c_int(header_tag),
        ctypes.c_char_p(key),
        ctypes.c_char_p(b"v"),
        ctypes.c_ssize_t(1),
        ctypes.c_int(end_tag),
    )
    assert failed == 0
    assert lib.rd_kafka_flush(producer, 20_000) == 0
    lib.rd_kafka_destroy(producer)


def test_a_header_key_that_is_not_utf8_is_a_bad_record(bootstrap, topic, produce):
    """A header key that the client cannot hand on is an error that names the record."""
    name = topic()
    produce(name, [Record(b"x", headers=[("fine", b"1")])] * 3, 0)
    produce_header(bootstrap, name, b"bad\xff")
    with pytest.raises(BadRecordError, match=rf"{name}\[0\]@3: .*not UTF-8"):
        fetch(bootstrap, [planned(name, 0, 0, 4)])


def test_large_records_come_through(bootstrap, topic, produce):
    """A record of 10 MB among small ones arrives whole, and batches are cut by bytes."""
    name = topic(config={"max.message.bytes": "12000000"})
    large = b"x" * 10_000_000
    produce(
        name,
        [*values(5), large, large, large, large, large, *values(5)],
        0,
        {"message.max.bytes": 12_000_000},
    )
    reader = RangeReader({"bootstrap.servers": bootstrap}, [planned(name, 0, 0, 15)], stall_timeout=30)
    batches = list(reader)
    assert len(batches) > 1
    table = pa.Table.from_batches(batches)
    assert table["_kafka_value"].to_pylist() == [*values(5), *[large] * 5, *values(5)]
    assert reader.evidence[0].bytes == 50_000_100


def test_batches_have_the_rows_of_a_row_group(bootstrap, topic, produce):
    """All batches but the last have exactly 122,880 rows, however the partitions are mixed."""
    name = topic(partitions=3)
    for partition in range(3):
        produce(name, values(50_000), partition)
    ranges = [planned(name, partition, 10, 50_000) for partition in range(3)]
    batches = list(RangeReader({"bootstrap.servers": bootstrap}, ranges, stall_timeout=30))
    assert [batch.num_rows for batch in batches] == [122_880, 149_970 - 122_880]
    for partition in range(3):
        table = pa.Table.from_batches(batches).filter(pa.compute.field("_kafka_partition") == partition)
        assert offsets(table) == list(range(10, 50_000))


def test_many_topic_partitions_are_read_by_one_reader(bootstrap, topic, produce):
    """Ranges of many partitions of several topics, with records behind them, each end where they should."""
    names = [topic(partitions=40), topic(partitions=40), topic(partitions=20)]
    for name in names:
        count = 20 if name == names[-1] else 40
        produce(
            name, [Record(value, partition=index % count) for index, value in enumerate(values(20 * count))]
        )
    ranges = [
        planned(name, partition, 2 + partition % 3, 12 + partition % 7)
        for name in names
        for partition in range(20 if name == names[-1] else 40)
    ]
    table, evidence = fetch(bootstrap, ranges)
    expected = [
        (one.range.topic, one.range.partition, offset)
        for one in sorted(ranges, key=lambda one: one.range)
        for offset in range(one.range.from_offset, one.range.until_offset)
    ]
    places = zip(*(table[name].to_pylist() for name in table.column_names[:3]), strict=True)
    assert list(places) == expected
    assert [one.planned for one in evidence] == ranges
    assert all(one.records == one.planned.range.size for one in evidence)


def test_several_ranges_of_one_partition_are_read_one_after_the_other(bootstrap, topic, produce):
    """Pieces of one topic-partition, adjoining or apart, each get their own rows and evidence."""
    name = topic()
    produce(name, values(1000), 0)
    pieces = [(500, 600), (0, 100), (100, 200), (900, 1000), (600, 600)]
    table, evidence = fetch(bootstrap, [planned(name, 0, *piece) for piece in pieces])
    assert offsets(table) == [*range(200), *range(500, 600), *range(900, 1000)]
    assert [one.records for one in evidence] == [100, 100, 100, 100, 0]


def test_a_range_beyond_the_end_stalls(bootstrap, topic, produce):
    """A range that the log does not fill fails after the stall timeout, saying where it stands."""
    name = topic()
    produce(name, values(10), 0)
    with pytest.raises(FetchStalledError, match=rf"{name}\[0\] \[5, 20\): .*for 2 s.*offset 10.*ends at 10"):
        fetch(bootstrap, [planned(name, 0, 5, 20)], stall_timeout=2.0)


def test_an_open_transaction_stalls(bootstrap, topic, produce):
    """Records of an open transaction are waited for until the stall timeout, and the message says so."""
    name = topic()
    produce(name, values(3), 0)
    transaction = produce_transaction(bootstrap, name, values(4), "open", 0)
    with pytest.raises(FetchStalledError, match="open transactions, else at 7"):
        fetch(bootstrap, [planned(name, 0, 0, 7)], stall_timeout=1.0)
    transaction.abort()


def test_deleted_records_are_an_error(bootstrap, topic, produce):
    """A range that begins below the log start is an error that names range, position and log start."""
    name = topic()
    produce(name, values(100), 0)
    delete_records(bootstrap, name, {0: 40})
    with pytest.raises(DataLostError, match=rf"{name}\[0\] \[10, 90\).* 10 to 39 .*starts at 40"):
        fetch(bootstrap, [planned(name, 0, 10, 90)])


@pytest.mark.parametrize(("log_start", "lost_until"), [(40, 40), (95, 90)])
def test_deleted_records_are_skipped_where_that_is_the_policy(
    bootstrap, topic, produce, log_start, lost_until
):
    """Under skip the fetch goes on at the log start, and the evidence holds what was lost."""
    name = topic(partitions=2)
    for partition in range(2):
        produce(name, values(100), partition)
    delete_records(bootstrap, name, {0: log_start})
    ranges = [planned(name, 0, 10, 90), planned(name, 1, 0, 100)]
    table, (evidence, other) = fetch(bootstrap, ranges, on_data_loss="skip")
    assert evidence.lost == (OffsetRange(name, 0, 10, lost_until),)
    assert (evidence.records, evidence.undeliverable) == (90 - lost_until, 0)
    assert evidence.end_proof == ("lost" if lost_until == 90 else "record")
    assert other.records == 100
    assert table.num_rows == 190 - lost_until


def test_records_deleted_while_reading_are_skipped_more_than_once(bootstrap, topic, produce):
    """Retention that overtakes a reader twice gives two lost stretches, and no other offset is missing."""
    name = topic()
    count = 6000
    produce(name, [b"x" * 1000] * count, 0, {"batch.size": 20_000})
    kafka = {
        "bootstrap.servers": bootstrap,
        # As little ahead of the reader as there may be.
        "queued.min.messages": "1",
        "queued.max.messages.kbytes": "1",
        "fetch.message.max.bytes": "20000",
        "fetch.queue.backoff.ms": "1",
    }
    cuts = iter([2000, 4000])
    asked = 0

    def stop() -> bool:
        # Called before each look at the queue: the log start moves at two moments of the reading.
        nonlocal asked
        asked += 1
        if asked in (3, 6):
            delete_records(bootstrap, name, {0: next(cuts)})
        return False

    reader = RangeReader(
        kafka, [planned(name, 0, 0, count)], stall_timeout=20, on_data_loss="skip", should_stop=stop
    )
    read = pa.Table.from_batches(list(reader))["_kafka_offset"].to_pylist()
    (evidence,) = reader.evidence
    assert [lost.until_offset for lost in evidence.lost] == [2000, 4000]
    lost = {offset for one in evidence.lost for offset in range(one.from_offset, one.until_offset)}
    assert sorted([*read, *lost]) == list(range(count))
    assert (evidence.records, evidence.undeliverable) == (len(read), 0)


def test_a_log_that_ends_below_the_range_is_truncated(bootstrap, topic, produce):
    """A range that begins above the end of the log is an error of truncation, not of loss."""
    name = topic()
    produce(name, values(10), 0)
    with pytest.raises(LogTruncatedError, match=rf"{name}\[0\] \[15, 20\).*ends at 10"):
        fetch(bootstrap, [planned(name, 0, 15, 20)], on_data_loss="skip")


def test_another_topic_of_the_same_name_is_refused(bootstrap, topic, produce):
    """A range planned on a topic that was created again since is refused, though its offsets are there."""
    name = topic()
    produce(name, values(10), 0)
    with KafkaLog({"bootstrap.servers": bootstrap}) as log:
        topic_id = log.describe([name])[name].topic_id
        assert fetch(bootstrap, [planned(name, 0, 0, 10, topic_id=topic_id)])[0].num_rows == 10
        delete_topic(bootstrap, name)
        wait_until(lambda: name not in log.describe([name]), "the topic is gone")
        with pytest.raises(TopicMissingError, match=name):
            fetch(bootstrap, [planned(name, 0, 0, 10, topic_id=topic_id)])
        create_topic(bootstrap, name)
    produce(name, values(10), 0)
    with pytest.raises(TopicRecreatedError, match=topic_id):
        fetch(bootstrap, [planned(name, 0, 0, 10, topic_id=topic_id)])
    assert fetch(bootstrap, [planned(name, 0, 0, 10)])[0].num_rows == 10


def test_evidence_says_whether_the_topic_s_id_was_seen(bootstrap, topic, produce, monkeypatch):
    """Without an id, of the plan or from the brokers, nothing shows that the records are of the planned topic."""
    name = topic()
    produce(name, values(10), 0)
    with KafkaLog({"bootstrap.servers": bootstrap}) as log:
        topic_id = log.describe([name])[name].topic_id

    def identified(topic_id: str | None) -> bool:
        _, (evidence,) = fetch(bootstrap, [planned(name, 0, 0, 10, topic_id=topic_id)])
        return evidence.identified

    assert identified(topic_id)
    assert not identified(None)
    monkeypatch.setattr(log_module, "_topic_id", lambda _: None)
    assert not identified(topic_id)


def test_a_topic_recreated_while_reading_is_refused(bootstrap, topic, produce):
    """The id is compared behind the last record too: no batch of the reading is then the last one."""
    name = topic()
    produce(name, values(10), 0)
    with KafkaLog({"bootstrap.servers": bootstrap}) as log:
        topic_id = log.describe([name])[name].topic_id
        done = False

        def stop() -> bool:
            nonlocal done
            if not done:
                done = True
                delete_topic(bootstrap, name)
                wait_until(lambda: name not in log.describe([name]), "the topic is gone")
                create_topic(bootstrap, name)
                produce(name, values(20), 0)
            return False

        with pytest.raises(TopicRecreatedError):
            fetch(bootstrap, [planned(name, 0, 0, 10, topic_id=topic_id)], should_stop=stop)


def test_a_missing_partition_is_named(bootstrap, topic):
    """A partition that the topic does not have is an error before anything is read."""
    name = topic()
    with pytest.raises(TopicMissingError, match=rf"{name}\[3\] .*no such partition"):
        fetch(bootstrap, [planned(name, 3, 0, 1)])


def test_a_fetch_stops_when_told(bootstrap, topic):
    """A fetch that is asked to stop ends with an error, though its records have not come."""
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(FetchCancelledError):
        fetch(bootstrap, [planned(topic(), 0, 0, 1)], should_stop=stop.is_set)


def test_properties_that_would_break_exact_ranges_are_refused(bootstrap, topic):
    """A property that has to have its one value is refused by name."""
    with pytest.raises(ConfigInvalidError, match=r"auto\.offset\.reset"):
        fetch(bootstrap, [planned(topic(), 0, 0, 1)], kafka={"auto.offset.reset": "earliest"})


def test_permissions_of_topics_count_and_those_of_groups_do_not():
    """No permission on any group is needed; a topic that may not be read is an error that says so."""
    with LocalKafka(
        properties={
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:nobody",
        }
    ) as kafka:
        bootstrap = kafka.bootstrap_servers
        client = admin(bootstrap)

        def deny(
            kind: ResourceType, name: str, pattern: ResourcePatternType, operation: AclOperation
        ) -> None:
            rule = AclBinding(kind, name, pattern, "User:ANONYMOUS", "*", operation, AclPermissionType.DENY)
            client.create_acls([rule])[rule].result(20)

        for name in ("open", "closed", "hidden"):
            create_topic(bootstrap, name)
        for name in ("open", "closed"):
            produce_transaction(bootstrap, name, values(10), "commit", 0)
        deny(ResourceType.GROUP, "*", ResourcePatternType.LITERAL, AclOperation.ALL)
        deny(ResourceType.TOPIC, "closed", ResourcePatternType.LITERAL, AclOperation.READ)
        deny(ResourceType.TOPIC, "hidden", ResourcePatternType.LITERAL, AclOperation.DESCRIBE)
        assert fetch(bootstrap, [planned("open", 0, 0, 11)])[0].num_rows == 10
        with pytest.raises(BrokerAuthError, match=f"{bootstrap} failed: .*closed"):
            fetch(bootstrap, [planned("closed", 0, 0, 11)])
        with (
            KafkaLog({"bootstrap.servers": bootstrap}) as log,
            pytest.raises(BrokerAuthError, match="hidden"),
        ):
            log.bounds([TopicPartition("hidden", 0)])


def test_a_broker_that_comes_back_ends_no_fetch_and_one_that_does_not_stalls_it():
    """A fetch outlives a broker's restart; without a broker it ends with the last error of the connection."""
    with LocalKafka() as kafka:
        bootstrap = kafka.bootstrap_servers
        create_topic(bootstrap, "orders")
        produce_transaction(bootstrap, "orders", values(10), "commit", 0)
        # A broker killed before it wrote the marker may take longer to write it than a fetch waits.
        settle(bootstrap, "orders")
        outages = iter([lambda: kafka.kill_node(1), lambda: kafka.start_node(1)])
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            if asked in (1, 10):
                next(outages)()
            return False

        kafka_properties = {"reconnect.backoff.max.ms": "200"}
        table, _ = fetch(bootstrap, [planned("orders", 0, 0, 11)], should_stop=stop, kafka=kafka_properties)
        assert table.num_rows == 10

        killed = False

        def kill() -> bool:
            nonlocal killed
            if not killed:
                killed = True
                kafka.kill_node(1)
            return False

        with pytest.raises(FetchStalledError, match="refused"):
            fetch(bootstrap, [planned("orders", 0, 0, 11)], should_stop=kill, stall_timeout=2.0)


def test_exact_ranges_can_be_read_without_a_ledger(bootstrap, topic, produce):
    """The public reader gives exact ranges of several partitions, and may be left before its end."""
    name = topic(partitions=2)
    for partition in range(2):
        produce(name, values(20), partition)
    ranges = [OffsetRange(name, 0, 5, 10), OffsetRange(name, 1, 0, 20)]
    table = pa.Table.from_batches(read_ranges({"bootstrap.servers": bootstrap}, ranges, timeout=20))
    assert table.num_rows == 25
    reading = read_ranges({"bootstrap.servers": bootstrap}, ranges, timeout=20)
    assert next(reading).num_rows == 25
    reading.close()
    assert list(reading) == []


def test_offsets_that_kafka_does_not_have_are_refused_before_the_first_record(bootstrap, topic, produce):
    """A range below the log start, above the end, or of no topic is an error before anything is read."""
    name = topic()
    produce(name, values(20), 0)
    delete_records(bootstrap, name, {0: 5})
    kafka = {"bootstrap.servers": bootstrap}
    for start, until in [(4, 10), (10, 21)]:
        with pytest.raises(RangeUnavailableError, match=rf"{name}\[0\] reaches from 5 to 20"):
            read_ranges(kafka, [OffsetRange(name, 0, start, until)], timeout=20)
    with pytest.raises(TopicMissingError):
        read_ranges(kafka, [OffsetRange("not_there", 0, 0, 1)], timeout=20)

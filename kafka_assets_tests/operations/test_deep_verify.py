"""`verify --deep`: every record that Kafka still has, byte for byte, beside its row."""

from __future__ import annotations

import pytest

from kafka_assets import records
from kafka_assets.config import load_config
from kafka_assets.dev.topics import delete_topic
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.brokers import create_again, settle
from kafka_assets_tests.faults.test_compaction import COMPACTED, KEPT, LAST, RECORDS, compact
from kafka_assets_tests.support.kafka import Record, delete_records, produce_transaction, tombstone, values

CHANGED = "UPDATE orders SET {column} = {value} WHERE _kafka_offset = 3"
MOVED = "UPDATE orders SET _kafka_batch = '{key}' WHERE _kafka_partition = 1 AND _kafka_offset = 0"


def alter(story, statement):
    with Warehouse.of(load_config(story.file).warehouse).writing() as connection:
        connection.execute(statement).fetchall()


def deep(story, exit_code=0):
    answer = story.command("verify", "--deep")
    assert answer.exit_code == exit_code, answer
    return answer.stream


@pytest.fixture(params=["raw", "utf8"])
def loaded(request, story, topic, produce, bootstrap):
    """Two partitions with keys, headers, a tombstone and an aborted transaction, in small batches."""
    name = topic(partitions=2)
    produce(name, [Record(value, key=b"k", headers=[("h", b"1")]) for value in values(5)], 0)
    produce_transaction(bootstrap, name, values(3), "abort", partition=0)
    settle(bootstrap, name)
    produce(name, [tombstone(b"k"), *values(6)], 1)
    story.setting(topics=[name], format=request.param, max_records_per_batch=6)
    story.ingest()
    return name


@pytest.mark.usefixtures("loaded")
def test_a_table_that_is_as_kafka_has_it(story):
    """Nothing differs; the answer says how much was compared."""
    answer = deep(story)
    assert (answer["ok"], answer["problems"], answer["compared"], answer["gone"]) == (True, [], 12, 0)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("_kafka_timestamp", "_kafka_timestamp + INTERVAL 1 MILLISECOND"),
        ("_kafka_timestamp_type", "'append'"),
        ("_kafka_headers", "[{key: 'h', value: '2'::BLOB}]"),
        ("_kafka_headers", "NULL"),
        ("_kafka_key", "NULL"),
    ],
)
def test_a_row_that_was_changed_is_named(story, topic, produce, column, value):
    """Also what the digest does not see, by its topic-partition and offset."""
    name = topic()
    produce(name, [Record(one, key=b"k", headers=[("h", b"1")]) for one in values(5)], 0)
    story.setting(topics=[name], max_records_per_batch=2)
    story.ingest()
    alter(story, CHANGED.format(column=column, value=value))
    problems = deep(story, exit_code=1)["problems"]
    assert [one for one in problems if f"{name}[0]@3 " in one and column in one]
    assert not [one for one in problems if "@" in one and "@3 " not in one]


def test_rows_that_are_missing_or_moved_are_named(story, loaded):
    """A record that Kafka has and the batch that owns it has not."""
    name = loaded
    (key,) = story.query("SELECT max(batch) FROM kafka_assets.batches")[0]
    alter(story, "DELETE FROM orders WHERE _kafka_partition = 0 AND _kafka_offset = 2")
    alter(story, MOVED.format(key=key))
    problems = deep(story, exit_code=1)["problems"]
    missing = [one for one in problems if "the table has no row" in one]
    assert [one.split(" ")[0] for one in missing] == [f"{name}[0]@2", f"{name}[1]@0"]


def test_what_kafka_no_longer_has_is_no_problem(story, topic, produce, bootstrap):
    """Retention and compaction since, and a topic that is another one by now or is gone."""
    name = topic(config={**COMPACTED, "cleanup.policy": "compact,delete"})
    produce(name, RECORDS, 0)
    story.setting(topics=[name], max_records_per_batch=20)
    story.ingest()
    compact(bootstrap, produce, name, KEPT)
    answer = deep(story)
    assert (answer["compared"], answer["gone"]) == (len(KEPT), 0)
    delete_records(bootstrap, name, {0: 20})
    answer = deep(story)
    assert (answer["compared"], answer["gone"]) == (len([at for at in KEPT if at >= 20]), 20)
    create_again(bootstrap, name)
    produce(name, values(LAST), 0)
    answer = deep(story)
    assert (answer["ok"], answer["compared"], answer["gone"]) == (True, 0, LAST)
    delete_topic(bootstrap, name)
    assert deep(story)["gone"] == LAST


def test_what_was_removed_on_purpose_is_not_missed(story, loaded):
    """But the rows that were not removed are."""
    assert story.command("expire", "--where", "_kafka_offset < 2", "--yes").exit_code == 0
    assert deep(story)["compared"] == 12
    alter(story, "DELETE FROM orders WHERE _kafka_partition = 0 AND _kafka_offset = 2")
    assert [one for one in deep(story, exit_code=1)["problems"] if f"{loaded}[0]@2 " in one]


def test_it_compares_in_pieces(story, topic, produce, monkeypatch):
    """However little is held at a time, each record is compared once, and the problems told are bounded."""
    monkeypatch.setattr(records, "BATCH_BYTES", 1000)
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(name, values(400), partition)
    story.setting(topics=[name], max_records_per_batch=300)
    story.ingest()
    assert deep(story)["compared"] == 800
    alter(story, "UPDATE orders SET _kafka_timestamp_type = 'append'")
    problems = deep(story, exit_code=1)["problems"]
    assert len(problems) == len(set(problems)) == 100


def test_without_brokers_the_proof_from_the_table_is_still_given(story, topic, produce):
    """The error is the broker's, and what was proven without it is in the answer."""
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(name, values(2), partition)
    story.setting(topics=[name])
    story.ingest()
    story.setting(topics=[name], kafka={"bootstrap.servers": "127.0.0.1:1"})
    answer = deep(story, exit_code=4)
    assert answer["error"]["code"] == "BROKER_UNREACHABLE"
    assert (answer["ok"], answer["problems"], len(answer["partitions"])) == (False, [], 2)

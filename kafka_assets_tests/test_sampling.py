from __future__ import annotations

import pytest

from kafka_assets.offsets import OffsetRange
from kafka_assets.sampling import bytes_per_record
from kafka_assets_tests.support.kafka import Record, delete_records, values


def test_the_mean_size_is_that_of_keys_headers_and_values(bootstrap, topic, produce):
    """The size that is told is about that of the records, however small they are."""
    name = topic(partitions=2)
    produce(name, [Record(b"v" * 600, b"k" * 100, [("h", b"x" * 50)])] * 40, 0)
    produce(name, [Record(b"v" * 200, b"k" * 100)] * 40, 1)
    logs = [OffsetRange(name, 0, 0, 40), OffsetRange(name, 1, 0, 40)]
    assert bytes_per_record({"bootstrap.servers": bootstrap}, logs) == pytest.approx(525, rel=0.1)


def test_few_of_large_records_are_read(bootstrap, topic, produce):
    """Of records of a megabyte some are enough, and their size is told."""
    name = topic()
    produce(name, [Record(b"v" * 900_000, b"k")] * 60, 0)
    told = bytes_per_record({"bootstrap.servers": bootstrap}, [OffsetRange(name, 0, 0, 60)])
    assert told == pytest.approx(900_000, rel=0.01)


def test_what_is_gone_meanwhile_does_not_stop_it(bootstrap, topic, produce):
    """Records that retention takes just now are passed over; with none left nothing is told."""
    name = topic()
    produce(name, values(100), 0)
    delete_records(bootstrap, name, {0: 10})
    kafka = {"bootstrap.servers": bootstrap}
    assert bytes_per_record(kafka, [OffsetRange(name, 0, 0, 100)]) is not None
    assert bytes_per_record(kafka, [OffsetRange(name, 0, 0, 10)]) is None
    assert bytes_per_record(kafka, []) is None


def test_without_a_topic_nothing_is_told(bootstrap):
    """A topic that is not there is for the fetch to report."""
    assert bytes_per_record({"bootstrap.servers": bootstrap}, [OffsetRange("nowhere", 0, 0, 10)]) is None

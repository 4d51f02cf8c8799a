from __future__ import annotations

import uuid

from kafka_assets_tests.faults.brokers import add_partitions
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import values


def test_partitions_added_later_are_read_from_their_beginning(story, topic, produce, bootstrap):
    """`latest` speaks of the day the stream began: what a partition got before it was noticed is not passed over."""
    name = topic()
    produce(name, values(5), 0)
    story.setting(topics=[name], starting_offsets="latest")
    assert story.ingest().stream["batches"] == []

    add_partitions(bootstrap, name, 3)
    rows = [row for part in range(3) for row in expected(name, produce(name, values(4), part), values(4))]
    story.ingest()

    assert story.rows() == rows
    assert story.proof() == {
        (name, 0, 0): {"from": 5, "until": 9, "loaded": 4},
        (name, 1, 0): {"from": 0, "until": 4, "loaded": 4},
        (name, 2, 0): {"from": 0, "until": 4, "loaded": 4},
    }


def test_topics_that_come_to_match_a_pattern_are_read_from_their_beginning(story, topic, produce):
    """A pattern without a topic is no error; each that comes later is read whole, and only whole names match."""
    stem = f"shop-{uuid.uuid4().hex[:8]}"
    story.setting(topic_pattern=rf"{stem}\..*", starting_offsets="latest")
    assert "nothing to read" in story.plan().stream["reason"]
    assert story.ingest().stream["batches"] == []

    rows = []
    for region in ("east", "west"):
        name = topic(name=f"{stem}.{region}")
        rows += expected(name, produce(name, values(3), 0), values(3))
        other = topic(name=f"{stem}-{region}")
        produce(other, values(3), 0)
        story.ingest()

    assert story.rows() == rows
    story.proof()

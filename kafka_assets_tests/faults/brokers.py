"""What is done to topics and brokers in the stories, beside producing."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.cimpl import NewPartitions, NewTopic

from kafka_assets.dev.topics import admin, create_topic, delete_topic
from kafka_assets_tests.support.kafka import wait_until, watermarks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def settle(bootstrap: str, topic: str) -> None:
    """Wait until the markers of ended transactions are in the log: they come after the answer to the producer."""
    wait_until(
        lambda: watermarks(bootstrap, topic, committed=True) == watermarks(bootstrap, topic),
        f"no transaction is open on {topic}",
    )


def create_again(bootstrap: str, topic: str, partitions: int = 1) -> None:
    """Delete a topic and create another one of its name."""
    delete_topic(bootstrap, topic)
    create_topic(bootstrap, topic, partitions)


def add_partitions(bootstrap: str, topic: str, total: int) -> None:
    """Give a topic more partitions, and wait until they have leaders."""
    client = admin(bootstrap)
    client.create_partitions([NewPartitions(topic, total)])[topic].result(30)
    wait_until(lambda: len(led(bootstrap, topic)) == total, f"{topic} has {total} partitions")


def create_placed(
    bootstrap: str, stem: str, nodes: Sequence[int], config: Mapping[str, str] | None = None
) -> str:
    """Create a topic of one partition whose copies are on these nodes, the first of them leading; its name."""
    topic = f"{stem}_{uuid.uuid4().hex[:8]}"
    client = admin(bootstrap)
    wanted = NewTopic(topic, 1, replica_assignment=[list(nodes)], config=dict(config or {}))
    client.create_topics([wanted])[topic].result(30)
    wait_until(lambda: led(bootstrap, topic) == {0: nodes[0]}, f"node {nodes[0]} leads {topic}")
    return topic


def led(bootstrap: str, topic: str) -> dict[int, int]:
    """Partition -> the node that leads it and can be asked, as far as there is one."""
    found = admin(bootstrap).list_topics(topic, timeout=30).topics[topic].partitions
    try:
        watermarks(bootstrap, topic)
    except KafkaException:
        return {}
    return {number: one.leader for number, one in found.items() if one.leader >= 0}


def in_sync(bootstrap: str, topic: str) -> set[int]:
    """The nodes whose copies of partition 0 are complete."""
    return set(admin(bootstrap).list_topics(topic, timeout=30).topics[topic].partitions[0].isrs)

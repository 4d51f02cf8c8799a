"""Topics of a local Kafka, created and deleted so that the next call sees them as they are."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec  # where it is defined; admin does not export it
from confluent_kafka.cimpl import NewTopic

from kafka_assets.dev.jars import LocalKafkaError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka.admin._metadata import TopicMetadata


# librdkafka reports each refused connection, of which a broker that starts gives many.
quiet = logging.getLogger("kafka_assets.dev.librdkafka")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False


def admin(bootstrap: str) -> AdminClient:
    """A client that says nothing of its own and comes back soon to a broker that restarts."""
    return AdminClient(
        {"bootstrap.servers": bootstrap, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 200},
        logger=quiet,
    )


def latest() -> OffsetSpec:
    """A log's end, for `list_offsets`."""
    spec: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # not annotated there
    return spec


def create_topic(
    bootstrap: str,
    name: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    replication: int = 1,
    *,
    timeout: float = 30.0,
) -> None:
    """Create a topic and wait until each of its partitions has a leader.

    Raises:
        KafkaException: Kafka refused.
        LocalKafkaError: It was not to be seen within the timeout (seconds).
    """
    client = admin(bootstrap)
    topic = NewTopic(name, partitions, replication, config=dict(config or {}))
    client.create_topics([topic], operation_timeout=timeout, request_timeout=timeout)[name].result()

    def led(found: TopicMetadata | None) -> bool:
        if found is None or len(found.partitions) != partitions:
            return False
        # A leader is named a moment before it knows itself, and refuses until then.
        asked = {TopicPartition(name, partition): latest() for partition in range(partitions)}
        for answer in client.list_offsets(asked).values():
            answer.result(timeout)
        return True

    _await(client, name, led, f"{name} was created, but its {partitions} partitions have no leaders", timeout)


def delete_topic(bootstrap: str, name: str, *, timeout: float = 30.0) -> None:
    """Delete a topic and wait until it is gone.

    Raises:
        KafkaException: Kafka refused.
        LocalKafkaError: It was still to be seen after the timeout (seconds).
    """
    client = admin(bootstrap)
    client.delete_topics([name], operation_timeout=timeout, request_timeout=timeout)[name].result()
    _await(client, name, lambda found: found is None, f"{name} was deleted, but is still there", timeout)


def _await(
    client: AdminClient,
    name: str,
    reached: Callable[[TopicMetadata | None], bool],
    otherwise: str,
    timeout: float,
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        trouble = ""
        try:
            found: TopicMetadata = client.list_topics(name, timeout=timeout).topics[name]
            if reached(None if found.error else found):
                return
        except KafkaException as error:
            trouble = f" ({error})"
        if time.monotonic() > deadline:
            raise LocalKafkaError(f"After {timeout:g} s: {otherwise}{trouble}. Is every node up?")
        time.sleep(0.02)

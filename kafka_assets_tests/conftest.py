from __future__ import annotations

import functools
import re
import uuid
from typing import TYPE_CHECKING, Protocol

import pytest

from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.topics import create_topic
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class TopicFactory(Protocol):
    """Makes a topic with a name of its own and returns the name."""

    def __call__(
        self, partitions: int = 1, config: Mapping[str, str] | None = None, name: str | None = None
    ) -> str:
        """Make it; `name` is for a test that needs a certain one."""


@pytest.fixture(scope="session")
def kafka() -> Iterator[LocalKafka]:
    """The Apache Kafka of this session, one node; without it the tests that ask for it fail."""
    with LocalKafka() as started:
        yield started


@pytest.fixture
def bootstrap(kafka: LocalKafka) -> str:
    return kafka.bootstrap_servers


@pytest.fixture
def topic(bootstrap: str, request: pytest.FixtureRequest) -> TopicFactory:
    """`topic(partitions=3, config={...})` makes a topic for this test alone."""
    stem = re.sub(r"\W+", "_", request.node.name)[:80]

    def make(partitions: int = 1, config: Mapping[str, str] | None = None, name: str | None = None) -> str:
        name = name or f"{stem}_{uuid.uuid4().hex[:8]}"
        create_topic(bootstrap, name, partitions, config)
        return name

    return make


@pytest.fixture
def produce(bootstrap: str) -> Callable[..., list[support.Place]]:
    """`produce(topic, records, partition)` of support.kafka, on this session's Kafka."""
    return functools.partial(support.produce, bootstrap)

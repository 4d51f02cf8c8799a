"""What a principal needs: to describe and to read its topics, and nothing else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AclOperation

from kafka_assets import log as log_module
from kafka_assets.config import Topics
from kafka_assets.log import KafkaLog
from kafka_assets_tests.cli.support import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import GuardedKafka

PASSWORD = "read-only-4Ht"  # noqa: S105  of a user made for a test


@pytest.fixture(scope="module", autouse=True)
def user(guarded: GuardedKafka) -> None:
    """The user of this module."""
    guarded.add_user("minimal", PASSWORD)


def test_describe_and_read_suffice(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """A principal that may describe and read the topic, and has no group, can do everything, with topic ids."""
    topic = orders("minimal")
    project.write({"orders": {"topics": [topic]}}, kafka=guarded.scram("minimal", PASSWORD))
    assert project("plan")["streams"]["orders"]["batch"]["records_at_most"] == 20
    (batch,) = project("ingest")["streams"]["orders"]["batches"]
    (row,) = project("status")["streams"]["orders"]["partitions"]
    assert (row["lag"], bool(row["topic_id"])) == (0, True)
    assert project("replay", "orders", batch)["streams"]["orders"]["ranges"][0]["replaced"] == 20
    project.assert_each_once(topic, partitions=1, count=20)


def test_a_pattern_finds_the_topics_that_may_be_seen(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """A pattern means those of its topics that the principal may describe; the others are none of its business."""
    seen, unseen = orders("minimal"), orders()
    stem = seen.rpartition("_")[0]
    assert unseen.startswith(stem)
    project.write({"orders": {"topic_pattern": f"{stem}.*"}}, kafka=guarded.scram("minimal", PASSWORD))
    assert project("ingest")["streams"]["orders"]["rows"] == 20
    project.assert_each_once(seen, partitions=1, count=20)


@pytest.mark.parametrize("command", ["plan", "ingest", "status"])
def test_a_topic_that_may_not_be_seen_is_named(
    command: str, guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """Without Describe on a topic it is BROKER_AUTH, which names the topic and the permissions it takes."""
    topic = orders()
    project.write({"orders": {"topics": [topic]}}, kafka=guarded.scram("minimal", PASSWORD))
    code, message = error_of(project(command, exit_code=4), "orders")
    assert code == "BROKER_AUTH"
    assert topic in message
    assert "Describe and Read" in message


def test_a_topic_that_may_not_be_read_is_named(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """With Describe alone a batch can be planned and not fetched; with Read the same batch goes through."""
    topic = orders("minimal", operations=[AclOperation.DESCRIBE])
    project.write({"orders": {"topics": [topic]}}, kafka=guarded.scram("minimal", PASSWORD))
    project("plan")
    code, message = error_of(project("ingest", exit_code=4), "orders")
    assert code == "BROKER_AUTH"
    assert topic in message
    assert "Topic authorization failed" in message
    guarded.allow("minimal", topic, [AclOperation.READ])
    assert project("ingest")["streams"]["orders"]["rows"] == 20
    project.assert_each_once(topic, partitions=1, count=20)


def test_a_topic_that_may_not_be_read_does_not_hold_up_the_others(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """Of two streams the one that may be read is read."""
    closed, opened = orders(), orders("minimal")
    streams = {"closed": {"topics": [closed]}, "opened": {"topics": [opened]}}
    project.write(streams, kafka=guarded.scram("minimal", PASSWORD))
    answer = project("ingest", exit_code=4)
    assert error_of(answer, "closed")[0] == "BROKER_AUTH"
    assert answer["streams"]["opened"]["rows"] == 20


def test_without_topic_ids_offsets_guard_and_a_warning_says_so_once(
    guarded: GuardedKafka,
    orders: Callable[..., str],
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Brokers that give no topic ids are read all the same: the ids are null, and one warning tells what is missing."""
    topic = orders("minimal")
    monkeypatch.setattr(log_module, "_topic_id", lambda _: None)
    caplog.set_level(logging.WARNING, "kafka_assets")
    project.write({"orders": {"topics": [topic]}}, kafka=guarded.scram("minimal", PASSWORD))
    project("ingest")
    (row,) = project("status")["streams"]["orders"]["partitions"]
    assert row["topic_id"] is None
    project.assert_each_once(topic, partitions=1, count=20)
    (warning,) = (record.getMessage() for record in caplog.records if topic in record.getMessage())
    assert "no topic id" in warning
    monkeypatch.undo()
    with KafkaLog(guarded.scram("minimal", PASSWORD)) as log:
        topic_id = log.topic_partitions(Topics((topic,))).topic_ids[topic]
    assert topic_id

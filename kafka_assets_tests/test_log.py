from __future__ import annotations

import logging
import re
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from kafka_assets.config import Assignment, TopicPattern, Topics
from kafka_assets.dev.topics import create_topic, delete_topic
from kafka_assets.errors import BrokerAuthError, BrokerUnreachableError, ConfigInvalidError, TopicMissingError
from kafka_assets.log import KafkaLog
from kafka_assets.offsets import TopicPartition
from kafka_assets_tests.support.kafka import (
    Record,
    delete_records,
    produce_transaction,
    values,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def log(bootstrap) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": bootstrap}) as opened:
        yield opened


def test_topics_are_found_with_their_partitions_ids_and_those_missing(log, topic):
    """Named topics give every partition and a topic id; a topic that is not there is listed as missing."""
    name = topic(partitions=3)
    found = log.topic_partitions(Topics((name, "not_there")))
    assert found.partitions == tuple(TopicPartition(name, number) for number in range(3))
    assert found.missing == ("not_there",)
    assert found.topic_ids[name]


def test_a_pattern_matches_whole_names_and_never_internal_topics(log, topic):
    """A pattern has to match the whole name, and no topic of Kafka's own."""
    name = topic()
    longer = topic(name=f"{name}.more")
    internal = topic(name=f"__{name}")
    assert log.topic_partitions(TopicPattern(name)).partitions == (TopicPartition(name, 0),)
    both = log.topic_partitions(TopicPattern(f".*{name}.*"))
    assert {one.topic for one in both.partitions} == {name, longer}
    assert internal not in both.topic_ids
    assert log.topic_partitions(TopicPattern("matches nothing")).partitions == ()


def test_an_assignment_takes_the_named_partitions_alone(log, topic):
    """An assignment gives the partitions it names; those that are not there are listed as missing."""
    name = topic(partitions=3)
    found = log.topic_partitions(Assignment({name: (0, 2, 7), "not_there": (0,)}))
    assert found.partitions == (TopicPartition(name, 0), TopicPartition(name, 2))
    assert found.missing == ("not_there", f"{name}[7]")


def test_bounds_tell_log_start_stable_end_and_high_watermark_apart(bootstrap, log, topic, produce):
    """The end of a log under read_committed is below the high watermark while a transaction is open."""
    name = topic()
    place = TopicPartition(name, 0)
    produce(name, values(10), 0)
    delete_records(bootstrap, name, {0: 4})
    transaction = produce_transaction(bootstrap, name, values(5), "open", 0)
    bounds = log.bounds([place])[place]
    assert (bounds.log_start, bounds.end, bounds.high_watermark) == (4, 10, 15)
    assert bounds.topic_id == log.topic_partitions(Topics((name,))).topic_ids[name]
    assert bounds.leader_epoch == 0
    with KafkaLog({"bootstrap.servers": bootstrap, "isolation.level": "read_uncommitted"}) as uncommitted:
        assert uncommitted.bounds([place])[place].end == 15
    transaction.commit()
    wait_until(lambda: log.bounds([place])[place].end == 16, "the marker raises the stable end")


def test_bounds_leave_out_what_is_not_there(log, topic):
    """A topic or partition that is not there has no bounds, and does not spoil those of the others."""
    name = topic()
    wanted = [TopicPartition(name, 0), TopicPartition(name, 5), TopicPartition("not_there", 0)]
    assert set(log.bounds(wanted)) == {TopicPartition(name, 0)}


def test_a_recreated_topic_has_another_id(bootstrap, log, topic):
    """A topic deleted and created again under its name is told apart by its id."""
    name = topic()
    before = log.describe([name])[name].topic_id
    delete_topic(bootstrap, name)
    wait_until(lambda: name not in log.describe([name]), "the topic is gone")
    create_topic(bootstrap, name)
    assert log.describe([name])[name].topic_id not in (None, before)


def test_offsets_are_found_by_time(log, topic, produce):
    """The first offset at or after a time; None beyond the last record; before 1970 the log start."""
    name = topic()
    produce(name, [Record(b"x", timestamp_ms=1_700_000_000_000 + 1000 * index) for index in range(5)], 0)
    place = TopicPartition(name, 0)

    def at(stamp: int) -> int | None:
        return log.offsets_at({place: stamp})[place]

    assert at(1_700_000_001_500) == 2
    assert at(1_700_000_002_000) == 2
    assert at(1_700_000_004_001) is None
    assert at(-5) == 0
    with pytest.raises(TopicMissingError, match=r"not_there\[0\]"):
        log.offsets_at({place: 0, TopicPartition("not_there", 0): 0})


def test_a_thousand_partitions_take_few_requests(log, topic):
    """Bounds of a thousand partitions come in one answer each, not one partition after the other."""
    name = topic(partitions=1000)
    bounds = log.bounds(log.topic_partitions(Topics((name,))).partitions)
    assert len(bounds) == 1000
    assert {(one.log_start, one.end, one.high_watermark) for one in bounds.values()} == {(0, 0, 0)}


def test_an_unreachable_broker_is_named(capfd):
    """Where nothing listens the error names the address, and nothing is written to stderr."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    for ask in (
        lambda log: log.topic_partitions(Topics(("orders",))),
        lambda log: log.topic_partitions(TopicPattern("orders")),
    ):
        with (
            KafkaLog({"bootstrap.servers": address}, timeout=1.0) as log,
            pytest.raises(BrokerUnreachableError, match=address) as caught,
        ):
            ask(log)
        assert "refused" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_silent_broker_is_named():
    """One that accepts connections and says nothing is given up on within the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            KafkaLog({"bootstrap.servers": address}, timeout=1.0) as log,
            pytest.raises(BrokerUnreachableError, match=address),
        ):
            log.bounds([TopicPartition("orders", 0)])


def test_a_broker_that_refuses_credentials_is_an_error_of_authentication(bootstrap):
    """What the broker says to the credentials is repeated at once, the credentials are not."""
    kafka = {
        "bootstrap.servers": bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "the-user-name",
        "sasl.password": "the-password",
    }
    with KafkaLog(kafka) as log:
        for selection in (Topics(("orders",)), TopicPattern("orders")):
            with pytest.raises(BrokerAuthError, match="supported mechanisms") as caught:
                log.topic_partitions(selection)
            assert bootstrap in str(caught.value)
            assert "the-" not in str(caught.value)


@contextmanager
def refusing_tls() -> Iterator[str]:
    """A server that answers whatever comes with the TLS alert `handshake_failure`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_refused_handshake_is_an_error_of_authentication():
    """A TLS handshake that the broker refuses is not waited out, and the message holds no secret."""
    with refusing_tls() as address:
        kafka = {
            "bootstrap.servers": address,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "the-user-name",
            "sasl.password": "the-password",
        }
        with KafkaLog(kafka) as log, pytest.raises(BrokerAuthError, match=address) as caught:
            log.topic_partitions(Topics(("orders",)))
    # librdkafka's words, or OpenSSL's own where the refusal comes after its side of the handshake.
    assert re.search(r"SSL handshake failed|error:\w+:SSL routines", str(caught.value))
    assert "the-" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no.such.property", "hunter2-secret"),
        ("security.protocol", "hunter2-secret"),
        ("sasl.password", "hunter2-secret"),
    ],
)
def test_a_property_that_librdkafka_refuses_is_named_without_its_value(name, value):
    """The error of a refused property names the property, and never repeats what was given for it."""
    kafka = {"bootstrap.servers": "127.0.0.1:1", name: value}
    if name == "sasl.password":
        kafka |= {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "no-such-mechanism"}
        name = "sasl.mechanism"
    with pytest.raises(ConfigInvalidError) as caught:
        KafkaLog(kafka)
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_properties_of_consumers_bring_no_warning(bootstrap, caplog):
    """Properties of consumers serve for questions too, without a complaint in the log."""
    caplog.set_level(logging.DEBUG)
    with KafkaLog({"bootstrap.servers": bootstrap, "fetch.wait.max.ms": "50", "group.id": "mine"}) as log:
        log.topic_partitions(TopicPattern("matches nothing"))
    assert "CONFWARN" not in caplog.text

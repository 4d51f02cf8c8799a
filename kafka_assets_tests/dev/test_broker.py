from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaException

from kafka_assets.dev import broker, jars
from kafka_assets.dev.broker import LocalKafka, LocalKafkaError, create_topic, delete_topic
from kafka_assets.dev.topics import admin
from kafka_assets_tests.support.kafka import produce, read_all, values, wait_until, watermarks

CHILD = """
import multiprocessing, sys, time
from kafka_assets.dev.broker import LocalKafka

kafka = LocalKafka()
kafka.start()
# A forked child holds the pipe to the supervisor open, and outlives its parent.
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
print(kafka.pid, child.pid, flush=True)
# Until it is killed.
time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_broker_answers_and_listens_on_loopback_alone(kafka):
    """A started broker names its one node at its own address, and creates no topic by being asked for it."""
    found = admin(kafka.bootstrap_servers).list_topics("never_created", timeout=30)
    assert [(node.id, f"{node.host}:{node.port}") for node in found.brokers.values()] == [
        (1, kafka.bootstrap_servers)
    ]
    assert kafka.bootstrap_servers.startswith("127.0.0.1:")
    assert found.topics["never_created"].error is not None


def test_topic_is_there_when_created_and_gone_when_deleted(bootstrap, topic):
    """Creating and deleting are over when the call returns, and a second create is Kafka's own error."""
    name = topic(partitions=3)
    assert watermarks(bootstrap, name) == {0: (0, 0), 1: (0, 0), 2: (0, 0)}
    with pytest.raises(KafkaException, match="exists"):
        create_topic(bootstrap, name)
    delete_topic(bootstrap, name)
    assert name not in admin(bootstrap).list_topics(timeout=30).topics


def test_killed_parent_takes_the_broker_along(tmp_path):
    """A kill -9 of the process that started the broker ends it, even while a forked child lives on."""
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=environ)
    with parent:
        pid, child = map(int, parent.stdout.readline().split())
        try:
            assert _runs(pid)
            parent.kill()
            wait_until(lambda: not _runs(pid), "the end of the broker", timeout=30)
            assert _runs(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_given_folder_keeps_records_ports_and_survives_a_kill(tmp_path):
    """With a data_dir the records, the cluster and the address stay; a killed node comes back."""
    with LocalKafka(data_dir=tmp_path) as kafka:
        address = kafka.bootstrap_servers
        cluster = admin(address).list_topics(timeout=30).cluster_id
        create_topic(address, "kept")
        produce(address, "kept", values(10))
    with LocalKafka(data_dir=tmp_path) as kafka:
        assert kafka.bootstrap_servers == address
        assert admin(address).list_topics(timeout=30).cluster_id == cluster
        produce(address, "kept", values(5, first=10))
        kafka.kill_node(1)
        kafka.start_node(1)
        assert [message.value() for message in read_all(address, "kept")] == values(15)


def test_three_nodes_serve_while_one_is_down(tmp_path):
    """With three nodes a replicated topic takes records while one is killed, which then comes back."""
    with LocalKafka(data_dir=tmp_path, nodes=3) as kafka:
        assert len(kafka.bootstrap_servers.split(",")) == len(kafka.pids) == 3
        create_topic(kafka.bootstrap_servers, "replicated", 3, {"min.insync.replicas": "2"}, replication=3)
        kafka.kill_node(2)
        produce(kafka.bootstrap_servers, "replicated", values(30))
        kafka.start_node(2)
        assert sorted(m.value() for m in read_all(kafka.bootstrap_servers, "replicated")) == values(30)
    with pytest.raises(LocalKafkaError, match="holds a Kafka of 3 nodes, not 1"):
        LocalKafka(data_dir=tmp_path).start()


def test_frozen_node_is_silent_until_it_goes_on(kafka):
    """A paused node answers nothing, and answers again when resumed."""
    client = admin(kafka.bootstrap_servers)
    client.list_topics(timeout=30)
    kafka.pause_node(1)
    try:
        with pytest.raises(KafkaException):
            client.list_topics(timeout=0.5)
    finally:
        kafka.resume_node(1)
    assert client.list_topics(timeout=30).brokers.keys() == {1}


def test_failed_start_tells_what_kafka_wrote():
    """A setting that Kafka refuses fails the start with Kafka's own words and leaves no process."""
    kafka = LocalKafka(properties={"num.network.threads": "many"})
    with pytest.raises(LocalKafkaError, match=r"(?s)num\.network\.threads.*KAFKA_BOOTSTRAP_SERVERS"):
        kafka.start()
    assert not kafka.pids


def test_taken_port_is_named(kafka):
    """A port that something else listens on is an error that names it."""
    port = int(kafka.bootstrap_servers.rpartition(":")[2])
    with pytest.raises(LocalKafkaError, match=f"Port {port} of 127.0.0.1 is taken"):
        LocalKafka(port=port).start()


def test_folder_in_use_is_named(tmp_path, monkeypatch):
    """A second Kafka on a folder waits for the first to end, then says that the folder is in use."""
    monkeypatch.setattr(broker, "_FOLDER_SECONDS", 0.1)
    first, second = LocalKafka(tmp_path), LocalKafka(tmp_path)
    first._folder = second._folder = tmp_path
    first._take_folder()
    with pytest.raises(LocalKafkaError, match="Another local Kafka runs on"):
        second._take_folder()
    first.stop()
    second._take_folder()
    second.stop()


def test_jars_out_of_reach_say_what_was_tried(tmp_path, monkeypatch):
    """Without the jars or a way to them the error names what was tried, and one's own Kafka."""
    settings = tmp_path / "jgo.conf"
    settings.write_text("[repositories]\ncentral = http://127.0.0.1:1/maven\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    with pytest.raises(LocalKafkaError) as caught:
        LocalKafka().start()
    for part in (
        "org.apache.kafka:kafka_2.13:4.4.0",
        "http://127.0.0.1:1/maven",
        str(tmp_path / "cache" / "kafka-assets" / "kafka-4.4.0"),
        "KAFKA_BOOTSTRAP_SERVERS=host:port dagster dev",
    ):
        assert part in caught.value.message
    assert [path.name for path in (tmp_path / "cache" / "kafka-assets").iterdir()] == ["kafka-4.4.0.lock"]


def test_java_home_is_used_only_when_new_enough(tmp_path, monkeypatch):
    """JAVA_HOME with Java 17 or newer is taken; an older one is passed over for the packaged Java."""
    executable = tmp_path / "bin" / "java"
    executable.parent.mkdir()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for version, taken in (("1.8.0_392", False), ("11.0.2", False), ("17.0.15", True), ("25", True)):
        executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
        executable.chmod(0o755)
        assert (jars.java() == executable) is taken

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from confluent_kafka import ElectionType, TopicPartition

from kafka_assets import batches
from kafka_assets.dev.topics import admin
from kafka_assets.orchestration import failures
from kafka_assets.slicing import slice_ranges
from kafka_assets_tests.faults.brokers import create_placed, in_sync, led
from kafka_assets_tests.faults.story import SIPPING, expected
from kafka_assets_tests.support.kafka import produce, values, wait_until

if TYPE_CHECKING:
    from kafka_assets.dev.broker import LocalKafka
    from kafka_assets_tests.faults.story import Row

COUNT = 2000
PAYLOADS = values(COUNT, size=1000)


def fill(cluster: LocalKafka, stem: str, nodes: list[int]) -> tuple[str, list[Row]]:
    """Make a topic on these nodes, with more records than a fetch takes in one sip; and the rows they become."""
    topic = create_placed(cluster.bootstrap_servers, stem, nodes)
    return topic, expected(topic, more(cluster, topic), PAYLOADS)


def more(cluster: LocalKafka, topic: str) -> list[tuple[int, int]]:
    return produce(cluster.bootstrap_servers, topic, PAYLOADS, 0, {"batch.size": 20_000})


def test_a_broker_is_killed_in_the_midst_of_a_fetch_and_started_again(cluster, cluster_story, monkeypatch):
    """Where there are copies the fetch goes on from a new leader, where there are none it waits; nothing is lost.

    And when leadership goes back to the old leader, in the midst of the next fetch, that one follows it: also
    where it is cut into slices, most of which begin under a leader that was not known when the plan before ended.
    """
    story, bootstrap = cluster_story, cluster.bootstrap_servers
    copied, rows = fill(cluster, "on_all", [2, 3, 1])
    single, of_single = fill(cluster, "on_two_alone", [2])
    rows += of_single
    story.setting(topics=[copied, single], kafka=SIPPING)
    start = threading.Thread(target=cluster.start_node, args=(2,))
    story.midway(lambda: cluster.kill_node(2), start.start, after=100)

    story.ingest()

    start.join()
    assert story.rows() == rows
    assert story.batches() == {"committed": 1}
    wait_until(lambda: in_sync(bootstrap, copied) == {1, 2, 3}, "the copies are complete")
    assert led(bootstrap, copied)[0] != 2
    rows += expected(copied, more(cluster, copied), PAYLOADS)
    client = admin(bootstrap)

    def lead_again() -> None:
        client.elect_leaders(ElectionType.PREFERRED, [TopicPartition(copied, 0)]).result(30)

    monkeypatch.setattr(batches, "slices_of", lambda batch, _=1: slice_ranges(batch.ranges, 2, smallest=100))
    story.midway(lead_again, after=100)
    story.ingest()

    assert led(bootstrap, copied) == {0: 2}
    assert story.rows() == sorted(rows)
    assert story.proof() == {
        (copied, 0, 0): {"from": 0, "until": 2 * COUNT, "loaded": 2 * COUNT},
        (single, 0, 0): {"from": 0, "until": COUNT, "loaded": COUNT},
    }


def test_a_broker_that_freezes_and_goes_on(cluster, cluster_story):
    """It keeps its connections and says nothing; when it goes on within the stall timeout, so does the fetch."""
    story = cluster_story
    name, rows = fill(cluster, "on_three_alone", [3])
    story.setting(topics=[name], kafka=SIPPING)
    story.midway(lambda: cluster.pause_node(3), lambda: cluster.resume_node(3), after=100)

    story.ingest()

    assert story.rows() == rows
    story.proof()


def test_a_broker_that_stays_frozen_ends_the_fetch_and_a_later_one_makes_up_for_it(
    cluster, cluster_story, monkeypatch
):
    """Beyond the stall timeout the command ends with 4, try again: the batch stays planned, and then it is read."""
    monkeypatch.setattr(failures, "RETRIES", 0)
    story = cluster_story
    name, rows = fill(cluster, "frozen_for_long", [3])
    story.setting(topics=[name], kafka=SIPPING, stall_timeout="1s")
    story.midway(lambda: cluster.pause_node(3), after=100)
    try:
        stalled = story.ingest(exit_code=4)
    finally:
        cluster.resume_node(3)

    assert stalled.code == "FETCH_STALLED"
    assert f"{name}[0] [0, {COUNT})" in stalled.message
    assert story.rows() == []
    assert story.batches() == {"planned": 1, "failed": 1}

    story.setting(topics=[name])
    story.ingest()
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": COUNT, "loaded": COUNT}}

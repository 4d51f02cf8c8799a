from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets_tests.faults.brokers import create_placed, in_sync, led
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import produce, values, wait_until, watermarks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.dev.broker import LocalKafka

UNCLEAN = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}


def lose_the_end(cluster: LocalKafka, topics: Sequence[str], ingest: object) -> None:
    """Have node 2, whose copy lacks what came last, lead the topics on [1, 2]: an unclean leader election."""


def test_a_log_cut_off_below_what_was_read_is_noticed(cluster, cluster_story):
    """A leader that lacks the end takes over. The rows stay, and nothing is read as if it were the same log."""
    story, bootstrap = cluster_story, cluster.bootstrap_servers
    short, regrown, healthy = "cut_short", "cut_and_regrown", "whole"
    for name in (short, regrown):
        create_placed(bootstrap, name, [1, 2], UNCLEAN)
    create_placed(bootstrap, healthy, [3])
    rows = []
    for name in (short, regrown, healthy):
        rows += expected(name, produce(bootstrap, name, values(10), 0), values(10))
    cluster.stop_node(2)
    for name in (short, regrown):
        wait_until(lambda name=name: in_sync(bootstrap, name) == {1}, "node 2 is out of sync")
        rows += expected(name, produce(bootstrap, name, values(10, first=10), 0), values(10, first=10))
    story.setting(topics=[short, regrown, healthy])
    story.ingest()
    assert story.rows() == sorted(rows)

    cluster.kill_node(1)
    cluster.start_node(2)
    for name in (short, regrown):
        wait_until(lambda name=name: led(bootstrap, name) == {0: 2}, "node 2 leads")
        assert watermarks(bootstrap, name) == {0: (0, 10)}
    produce(bootstrap, regrown, values(30, first=100), 0)
    rows += expected(healthy, produce(bootstrap, healthy, values(5), 0), values(5))

    stopped = story.ingest(exit_code=3)
    print(stopped)
    assert stopped.code == "LOG_TRUNCATED"
    print(story.plan(exit_code=3))
    print(story.rows() == sorted(rows), len(story.rows()), len(rows), story.batches())
    print(story.proof())
    print(story.status())
    story.setting(topics=[short, regrown, healthy], on_data_loss="skip")
    print(story.command("ingest"))
    print(story.proof())
    print(story.status())
    assert 0

from __future__ import annotations

from kafka_assets import planner
from kafka_assets_tests.faults.brokers import create_placed, in_sync, led
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import produce, values, wait_until, watermarks

UNCLEAN = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}


def test_a_log_whose_end_was_cut_off_is_not_read_on_as_if_it_were_the_same(
    cluster, cluster_story, monkeypatch
):
    """A leader that lacks the end takes over: shorter than what was read, or grown again with other records.

    The rows stay, the healthy topic goes on, and under skip the log is read anew, as another incarnation.
    """
    monkeypatch.setattr(planner, "TRUNCATION_READ_SECONDS", 0.1)
    story, bootstrap = cluster_story, cluster.bootstrap_servers
    short, regrown = (
        create_placed(bootstrap, stem, [1, 2], UNCLEAN) for stem in ("cut_short", "cut_and_regrown")
    )
    healthy = create_placed(bootstrap, "whole", [3])
    kept, taken_back, instead = values(10), values(10, first=10), values(30, first=100)
    before = [
        row for name in (short, regrown) for row in expected(name, produce(bootstrap, name, kept, 0), kept)
    ]
    common = list(before)
    cluster.stop_node(2)
    for name in (short, regrown):
        wait_until(lambda name=name: in_sync(bootstrap, name) == {1}, "node 2 is out of sync")
        before += expected(name, produce(bootstrap, name, taken_back, 0), taken_back)
    story.setting(topics=[short, regrown, healthy])
    story.ingest()
    assert story.rows() == sorted(before)

    cluster.kill_node(1)
    cluster.start_node(2)
    for name in (short, regrown):
        wait_until(lambda name=name: led(bootstrap, name) == {0: 2}, "node 2 leads")
        assert watermarks(bootstrap, name) == {0: (0, 10)}
    other = expected(regrown, produce(bootstrap, regrown, instead, 0), instead)
    assert story.ingest(exit_code=3).code == "LOG_TRUNCATED"
    later = expected(healthy, produce(bootstrap, healthy, values(5), 0), values(5))

    assert story.ingest(exit_code=3).code == "LOG_TRUNCATED"
    assert story.rows() == sorted(before + later)
    shown = story.plan(exit_code=3)
    assert (shown.code, shown.stream["batch"]) == ("LOG_TRUNCATED", None)
    assert f"{short}[0]: the log ends at 10, and was planned until 20" in shown.message
    assert (
        f"{regrown}[0]: a fetch found by the leader epochs that the log was cut off below 40" in shown.message
    )
    assert story.proof() == {
        (regrown, 0, 0): {"from": 0, "until": 40, "loaded": 20, "pending": 20},
        (short, 0, 0): {"from": 0, "until": 20, "loaded": 20},
        (healthy, 0, 0): {"from": 0, "until": 5, "loaded": 5},
    }

    story.setting(topics=[short, regrown, healthy], on_data_loss="skip")
    assert "is blocked" in story.ingest(exit_code=3).message
    assert story.rows() == sorted(before + later + common + other)
    proof = story.proof()
    assert proof[short, 0, 1] == {"from": 0, "until": 10, "loaded": 10}
    assert proof[regrown, 0, 1] == {"from": 0, "until": 40, "loaded": 40}

from __future__ import annotations

from kafka_assets.dev.topics import create_topic, delete_topic
from kafka_assets_tests.faults.brokers import create_again
from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import values


def test_a_topic_made_again_is_found_by_its_id_though_it_has_outgrown_the_old_one(
    story, topic, produce, bootstrap
):
    """Offsets say nothing then. The rows stay, nothing of the new topic is read, the other topic goes on."""
    name, healthy = topic(), topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name, healthy])
    story.ingest()
    old = story.status()[name, 0]["topic_id"]

    delete_topic(bootstrap, name)
    assert (gone := story.ingest(exit_code=3)).code == "TOPIC_MISSING"
    assert name in gone.message

    create_topic(bootstrap, name)
    produce(name, values(20, first=100), 0)
    rows += expected(healthy, produce(healthy, values(3), 0), values(3))
    assert (stopped := story.ingest(exit_code=3)).code == "TOPIC_RECREATED"
    assert old in stopped.message
    assert story.rows() == sorted(rows)
    shown = story.plan(exit_code=3)
    assert (shown.code, shown.stream["batch"]) == ("TOPIC_RECREATED", None)
    assert "on_topic_recreated: restart" in shown.message
    assert story.proof()[name, 0, 0] == {"from": 0, "until": 5, "loaded": 5}


def test_a_topic_made_again_between_plan_and_fetch_is_not_read_for_the_old_one(
    story, topic, produce, bootstrap
):
    """The same offsets are there, of other records: the batch is blocked, and under restart the new topic begins."""
    name = topic(2)
    produce(name, values(5), 0)
    produce(name, values(5), 1)
    story.setting(topics=[name])
    story.tick()
    create_again(bootstrap, name)
    fresh = values(8, first=100)
    rows = expected(name, produce(name, fresh, 0), fresh)

    assert (stopped := story.ingest(exit_code=3)).code == "TOPIC_RECREATED"
    assert (story.rows(), story.batches()) == ([], {"planned": 1, "blocked": 1})

    story.setting(topics=[name], on_topic_recreated="restart")
    assert (stopped := story.ingest(exit_code=3)).code == "TOPIC_RECREATED"
    assert "is blocked" in stopped.message
    assert story.rows() == rows
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 5, "pending": 5},
        (name, 0, 1): {"from": 0, "until": 8, "loaded": 8},
        (name, 1, 0): {"from": 0, "until": 5, "pending": 5},
    }


def test_under_restart_a_topic_made_again_is_read_from_its_beginning(story, topic, produce, bootstrap):
    """The old rows stay, the new ones are of another incarnation and batch; one partition less is no matter."""
    name = topic(2)
    rows = expected(name, produce(name, values(5), 0), values(5))
    rows += expected(name, produce(name, values(5), 1), values(5))
    story.setting(topics=[name], on_topic_recreated="restart", starting_offsets="earliest")
    story.ingest()
    create_again(bootstrap, name)
    fresh = values(3, first=100)
    rows += expected(name, produce(name, fresh, 0), fresh)

    story.ingest()

    assert story.rows() == sorted(rows)
    assert story.query(
        "SELECT count(*), count(DISTINCT (_kafka_batch, _kafka_topic, _kafka_partition, _kafka_offset)) FROM orders"
    ) == [(13, 13)]
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 5, "loaded": 5},
        (name, 0, 1): {"from": 0, "until": 3, "loaded": 3},
        (name, 1, 0): {"from": 0, "until": 5, "loaded": 5},
    }
    assert story.ingest().stream["batches"] == []

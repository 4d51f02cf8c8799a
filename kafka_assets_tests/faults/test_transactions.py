from __future__ import annotations

from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import Transaction, produce_transaction, values


def test_only_what_was_committed_becomes_rows(story, topic, produce, bootstrap):
    """Batches may end anywhere among transactions: committed records are rows, the rest is accounted for."""
    name = topic(2)
    plain, kept, dropped = values(5), values(10, first=100), values(6, first=200)
    rows = expected(name, produce(name, plain, 0), plain)
    with_it = Transaction(bootstrap)
    rows += expected(name, with_it.produce(name, kept, 0), kept)
    rows += expected(name, with_it.produce(name, kept, 1), kept)
    with_it.commit()
    produce_transaction(bootstrap, name, dropped, "abort", 0)
    rows += expected(name, produce(name, plain, 0), plain)
    story.setting(topics=[name], max_records_per_batch=13)

    answer = story.ingest()

    assert story.rows() == sorted(rows)
    assert (answer.stream["rows"], answer.stream["undeliverable"]) == (len(rows), 9)
    assert story.proof() == {
        (name, 0, 0): {"from": 0, "until": 28, "loaded": 20, "undeliverable": 8},
        (name, 1, 0): {"from": 0, "until": 11, "loaded": 10, "undeliverable": 1},
    }


def test_a_batch_of_aborted_records_alone_commits(story, topic, bootstrap):
    """A batch that holds only what was aborted commits with no rows, and the stream goes on behind it."""
    name = topic()
    produce_transaction(bootstrap, name, values(5), "abort", 0)
    story.setting(topics=[name])

    answer = story.ingest()

    assert (answer.stream["rows"], answer.stream["undeliverable"]) == (0, 6)
    assert story.rows() == []
    assert story.batches() == {"committed": 1}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 6, "undeliverable": 6}}
    assert story.status()[name, 0]["lag"] == 0

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.support import error_of
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import TopicFactory


@pytest.fixture
def loaded(
    project: Project, topic: TopicFactory, produce: Callable[..., list[support.Place]]
) -> tuple[str, list[str]]:
    """A topic of six records and the keys of the two batches that loaded them."""
    name = topic()
    produce(name, support.values(6))
    project.write({"orders": {"topics": [name], "format": "utf8", "max_records_per_batch": 3}})
    return name, project("ingest")["streams"]["orders"]["batches"]


def test_replay_replaces_exactly_the_rows_of_a_batch(project: Project, loaded: tuple[str, list[str]]) -> None:
    """The batch's rows are as Kafka has them again, under the same key; rows of other batches are not touched."""
    name, keys = loaded
    project.alter("UPDATE orders SET value = 'changed'")
    answer = project("replay", "orders", keys[1], keys[1])
    assert answer["streams"]["orders"]["ranges"] == [
        {"topic": name, "partition": 0, "from": 3, "until": 6, "replaced": 3}
    ]
    rows = project.query("SELECT _kafka_offset, value, _kafka_batch FROM orders ORDER BY 1")
    expected = [value.decode() for value in support.values(6)]
    assert [value for _, value, _ in rows] == ["changed"] * 3 + expected[3:]
    assert [key for *_, key in rows] == [key for key in keys for _ in range(3)]
    project("replay", "orders", *keys)
    project.assert_each_once(name, partitions=1, count=6)


def test_replay_keeps_rows_that_kafka_has_no_more(
    project: Project, bootstrap: str, loaded: tuple[str, list[str]]
) -> None:
    """Where retention took a record, the replay is RANGE_UNAVAILABLE, exit 3, every row kept; others go on."""
    name, keys = loaded
    support.delete_records(bootstrap, name, {0: 2})
    before = project.query("SELECT * FROM orders ORDER BY _kafka_offset")
    answer = project("replay", "orders", *keys, exit_code=3)
    code, message = error_of(answer, "orders")
    assert (code, f"{name}[0]" in message) == ("RANGE_UNAVAILABLE", True)
    assert [range_["from"] for range_ in answer["streams"]["orders"]["ranges"]] == [3]
    after = project.query("SELECT * FROM orders ORDER BY _kafka_offset")
    assert after[:3] == before[:3]
    assert len(after) == 6
    assert project("verify")["ok"]


def test_an_unknown_batch_is_refused(project: Project, loaded: tuple[str, list[str]]) -> None:
    """A key the ledger does not know is BATCH_UNKNOWN before any other batch is touched."""
    _, keys = loaded
    project.alter("UPDATE orders SET value = 'changed'")
    code, message = error_of(project("replay", "orders", keys[0], "20200101T000000000Z", exit_code=2))
    assert (code, "20200101T000000000Z" in message) == ("BATCH_UNKNOWN", True)
    assert project.query("SELECT count(*) FROM orders WHERE value = 'changed'") == [(6,)]

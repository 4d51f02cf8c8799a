from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.support import error_of
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.conftest import TopicFactory

    Produce = Callable[..., list[support.Place]]


def test_plan_shows_the_batch_that_ingest_then_loads(
    project: Project, topic: TopicFactory, produce: Produce
) -> None:
    """`plan` names the exact ranges of the next batch, and `ingest` loads just those first."""
    name = topic(partitions=2)
    for partition in (0, 1):
        produce(name, support.values(30), partition)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 20}})
    batch = project("plan")["streams"]["orders"]["batch"]
    assert batch == {
        "ranges": [{"topic": name, "partition": partition, "from": 0, "until": 10} for partition in (0, 1)],
        "records_at_most": 20,
    }
    first, *_ = project("ingest")["streams"]["orders"]["batches"]
    loaded = project.query(
        "SELECT topic, partition, from_offset, until_offset FROM kafka_assets.offset_ranges"  # noqa: S608  a key
        f" WHERE batch = '{first}' ORDER BY ALL"
    )
    assert loaded == [tuple(range_.values()) for range_ in batch["ranges"]]


def test_plan_changes_nothing(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """`plan` leaves every file as it was and makes none, no warehouse either."""
    name = topic()
    produce(name, support.values(3))
    project.write({"orders": {"topics": [name]}})
    before = {file: file.stat().st_mtime_ns for file in project.folder.rglob("*")}
    project("plan")
    assert "at most 3 records" in project.text("plan")
    assert {file: file.stat().st_mtime_ns for file in project.folder.rglob("*")} == before


def test_plan_says_why_there_is_no_batch(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """With nothing to read, `plan` gives the reason in numbers and exits 0."""
    name = topic()
    produce(name, support.values(3))
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    answer = project("plan")["streams"]["orders"]
    assert answer["batch"] is None
    assert answer["error"] is None
    assert "caught up: 3 offsets" in answer["reason"]
    assert "no batch. caught up" in project.text("plan")


def test_a_pattern_that_matches_nothing_is_no_error(project: Project) -> None:
    """A `topic_pattern` without topics has a reason, and every command exits 0."""
    project.write({"orders": {"topic_pattern": r"no\.such\..*"}})
    assert "no topic-partition is there" in project("plan")["streams"]["orders"]["reason"]
    assert project("ingest")["streams"]["orders"]["records"] == 0
    assert project("status")["streams"]["orders"]["partitions"] == []


@pytest.mark.parametrize("command", ["plan", "ingest"])
def test_an_explicit_start_above_the_end_is_refused(
    project: Project, topic: TopicFactory, produce: Produce, command: str
) -> None:
    """A start above the end is CONFIG_INVALID, with the offset, what the log has, and nothing written."""
    name = topic()
    produce(name, support.values(5))
    project.write({"orders": {"topics": [name], "starting_offsets": {name: {0: 6}}}})
    code, message = error_of(project(command, exit_code=2), "orders")
    assert code == "CONFIG_INVALID"
    assert f"{name}[0]" in message
    assert "says 6" in message
    assert "[0, 5)" in message
    assert not project.warehouse.exists()


@pytest.mark.parametrize("command", ["plan", "ingest"])
def test_a_start_at_a_partition_that_is_not_there_is_refused(
    project: Project, topic: TopicFactory, command: str
) -> None:
    """`starting_offsets` for a partition the topic has not is CONFIG_INVALID, nothing written."""
    name = topic()
    project.write({"orders": {"topics": [name], "starting_offsets": {name: {7: 1}}}})
    code, message = error_of(project(command, exit_code=2), "orders")
    assert (code, f"{name}[7]" in message) == ("CONFIG_INVALID", True)
    assert not project.warehouse.exists()


def test_a_start_below_the_log_start_is_lost_data(
    project: Project, bootstrap: str, topic: TopicFactory, produce: Produce
) -> None:
    """A start that retention has passed is DATA_LOST; under `skip` those offsets are booked as lost, once."""
    name = topic()
    produce(name, support.values(20))
    support.delete_records(bootstrap, name, {0: 8})
    options = {"topics": [name], "starting_offsets": {name: {0: 3}}}
    project.write({"orders": options})
    for command in ("plan", "ingest"):
        code, message = error_of(project(command, exit_code=3), "orders")
        assert code == "DATA_LOST"
        assert f"{name}[0] [3, 8)" in message
        assert "on_data_loss: skip" in message
    project.write({"orders": {**options, "on_data_loss": "skip"}})
    answer = project("ingest")["streams"]["orders"]
    assert (answer["records"], answer["lost"]) == (12, 5)
    (row,) = project("verify")["streams"]["orders"]["partitions"]
    assert (row["from"], row["until"], row["loaded"], row["lost"]) == (3, 20, 12, 5)
    assert project.query("SELECT from_offset, until_offset FROM kafka_assets.losses") == [(3, 8)]


def test_a_missing_topic_stops_the_stream(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """An unknown topic is TOPIC_MISSING, exit 3, everywhere it is asked for; the stream's other topic goes on."""
    name = topic()
    produce(name, support.values(4))
    project.write({"orders": {"topics": ["not_there", name]}})
    for command in ("plan", "status"):
        code, message = error_of(project(command, exit_code=3), "orders")
        assert (code, "not_there" in message) == ("TOPIC_MISSING", True)
    answer = project("ingest", exit_code=3)
    assert error_of(answer, "orders")[0] == "TOPIC_MISSING"
    assert answer["streams"]["orders"]["records"] == 4


def test_a_table_of_another_stream_or_of_a_person_is_taken(
    project: Project, topic: TopicFactory, produce: Produce
) -> None:
    """TABLE_TAKEN before anything is planned, said by `plan` too; the table is left as it was."""
    name = topic()
    produce(name, support.values(4))
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    project.alter("CREATE TABLE mine AS SELECT 42 AS answer")
    for table, owner in (("orders", "stream orders"), ("mine", "no stream made it")):
        project.write({"second": {"topics": [name], "table": table}})
        for command in ("plan", "ingest"):
            code, message = error_of(project(command, exit_code=2), "second")
            assert code == "TABLE_TAKEN"
            assert owner in message
    assert project.query("SELECT count(*) FROM orders") == [(4,)]
    assert project.query("SELECT * FROM mine") == [(42,)]
    assert project.query("SELECT count(*) FROM kafka_assets.batches WHERE stream = 'second'") == [(0,)]


def test_a_stream_keeps_its_table(project: Project, topic: TopicFactory, produce: Produce) -> None:
    """Another `table:` for a stream that has rows is CONFIG_INVALID, and the old table stays as it was."""
    name = topic()
    produce(name, support.values(4))
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    produce(name, support.values(1))
    project.write({"orders": {"topics": [name], "table": "elsewhere"}})
    for command in ("plan", "ingest"):
        code, message = error_of(project(command, exit_code=2), "orders")
        assert (code, "elsewhere" in message) == ("CONFIG_INVALID", True)
    assert project.query("SELECT count(*) FROM orders") == [(4,)]

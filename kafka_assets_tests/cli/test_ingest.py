from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from kafka_assets_tests.cli.support import Project, error_of
from kafka_assets_tests.support import kafka as support

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from kafka_assets_tests.conftest import TopicFactory

    Produce = Callable[..., list[support.Place]]


@pytest.fixture
def filled(topic: TopicFactory, produce: Produce) -> Callable[[int, int], str]:
    """`filled(partitions, count)` makes a topic with `count` records in each partition."""

    def make(partitions: int, count: int) -> str:
        name = topic(partitions=partitions)
        for partition in range(partitions):
            produce(name, support.values(count), partition)
        return name

    return make


def test_ingest_loads_every_record_once(project: Project, filled: Callable[[int, int], str]) -> None:
    """All records are in the table once, the answer counts them, and a second call has nothing to do."""
    name = filled(2, 15)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 20}})
    answer = project("ingest")["streams"]["orders"]
    assert answer["batches"] == sorted(set(answer["batches"]))
    assert len(answer["batches"]) == 2
    assert (answer["records"], answer["rows"], answer["undeliverable"], answer["lost"]) == (30, 30, 0, 0)
    assert answer["error"] is None
    project.assert_each_once(name, partitions=2, count=15)
    again = project("ingest")["streams"]["orders"]
    assert (again["batches"], again["records"]) == ([], 0)


def test_each_batch_is_a_dagster_run(
    project: Project, filled: Callable[[int, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance beside the streams file has a successful run and a materialization for each batch."""
    name = filled(1, 4)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 2}})
    batches = project("ingest")["streams"]["orders"]["batches"]
    monkeypatch.chdir(project.folder)
    with dg.DagsterInstance.from_config(str(project.folder)) as instance:
        runs = instance.get_runs()
        assert {run.tags["dagster/partition"] for run in runs} == set(batches)
        assert all(run.is_success for run in runs)
        assert instance.get_materialized_partitions(dg.AssetKey(["orders"])) == set(batches)


def test_one_bad_stream_does_not_stop_the_others(project: Project, filled: Callable[[int, int], str]) -> None:
    """Each stream goes as far as it can, each has its own error, and the worst of them is the exit code."""
    name = filled(1, 3)
    project.write(
        {
            "missing": {"topics": ["not_there"]},
            "broken": {"topics": [name], "starting_offsets": {name: {0: 99}}},
            "unset": {"topics": [name], "kafka": {"client.id": "${NOT_SET_ANYWHERE}"}},
            "good": {"topics": [name]},
        }
    )
    answer = project("ingest", exit_code=2)
    codes = {stream: one["error"] and one["error"]["code"] for stream, one in answer["streams"].items()}
    assert codes == {
        "missing": "TOPIC_MISSING",
        "broken": "CONFIG_INVALID",
        "unset": "CONFIG_INVALID",
        "good": None,
    }
    assert answer["streams"]["good"]["records"] == 3
    assert "error" not in answer
    only = project("ingest", "good")
    assert list(only["streams"]) == ["good"]


def _read_line_with(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"stderr ended without {words!r}")


def test_a_rate_limit_is_waited_for_and_the_ends_are_taken_once(
    project: Project, filled: Callable[[int, int], str], produce: Produce
) -> None:
    """Between two batches `ingest` says on stderr that it waits; what is produced meanwhile is left for later."""
    name = filled(1, 12)
    project.write({"orders": {"topics": [name], "max_records_per_partition_per_second": 1, "interval": "6s"}})
    process = project.start("ingest", "--json")
    assert "max_records_per_partition_per_second" in _read_line_with(process, "waiting")
    produce(name, support.values(5, first=12))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    answer = json.loads(out)["streams"]["orders"]
    assert (len(answer["batches"]), answer["records"]) == (2, 12)
    assert project("status")["streams"]["orders"]["partitions"][0]["lag"] == 5


def test_timeout_keeps_what_is_committed(project: Project, filled: Callable[[int, int], str]) -> None:
    """After `--timeout` the command exits 4 with what it has committed; the next call goes on from there."""
    name = filled(1, 6)
    options = {"topics": [name], "max_records_per_partition_per_second": 1}
    project.write({"orders": {**options, "interval": "3s"}})
    answer = project("ingest", "--timeout", "1500ms", exit_code=4)
    code, message = error_of(answer, "orders")
    assert (code, "--timeout" in message) == ("FETCH_STALLED", True)
    assert answer["streams"]["orders"]["records"] in (0, 3)
    project.write({"orders": {"topics": [name]}})
    project("ingest")
    project.assert_each_once(name, partitions=1, count=6)


def test_transactions(project: Project, bootstrap: str, topic: TopicFactory, produce: Produce) -> None:
    """Aborted records and markers are undeliverable; an open transaction holds back what follows until it ends."""
    name = topic()
    produce(name, support.values(2), 0)
    support.produce_transaction(bootstrap, name, support.values(3), "abort", 0)
    open_one = support.produce_transaction(bootstrap, name, support.values(4), "open", 0)
    produce(name, support.values(1), 0)
    project.write({"orders": {"topics": [name]}})
    answer = project("ingest")["streams"]["orders"]
    assert (answer["records"], answer["undeliverable"]) == (2, 4)
    (row,) = project("status")["streams"]["orders"]["partitions"]
    assert (row["end"], row["high_watermark"], row["unstable"], row["lag"]) == (6, 11, 5, 0)
    assert "5" in str(project("plan")["streams"]["orders"]["reason"])
    open_one.commit()
    answer = project("ingest")["streams"]["orders"]
    assert (answer["records"], answer["undeliverable"]) == (5, 1)
    assert project("verify")["ok"]
    assert sorted(offset for _, _, offset in project.offsets()) == [0, 1, 6, 7, 8, 9, 10]


def test_two_at_once(project: Project, filled: Callable[[int, int], str]) -> None:
    """Two `ingest` of one stream both exit 0, count only what they committed, and load no record twice."""
    name = filled(2, 20)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 10}})
    both = [project.start("ingest", "--json") for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0])["streams"]["orders"] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(answer["records"] for answer in answers) == 40
    first, second = (set(answer["batches"]) for answer in answers)
    assert not first & second
    project.assert_each_once(name, partitions=2, count=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_loses_nothing(
    project: Project, filled: Callable[[int, int], str], number: signal.Signals
) -> None:
    """Ctrl-C exits 130 with a plain word, whatever was going on, and the next call finishes the rest."""
    name = filled(1, 60)
    project.write({"orders": {"topics": [name], "max_records_per_batch": 1}})
    process = project.start("ingest", "--json")
    support.wait_until(project.committed, "a first commit")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "RUN_FAILED" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert 0 < project.committed() < 60
    project.write({"orders": {"topics": [name]}})
    assert project("ingest")["streams"]["orders"]["records"] < 60
    project.assert_each_once(name, partitions=1, count=60)

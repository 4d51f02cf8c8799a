"""What comes from outside is data: records, names, keys of batches, and the streams file itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from kafka_assets.config import load_config
from kafka_assets.errors import ConfigInvalidError, KafkaAssetsError
from kafka_assets.scope import MERGE_TAG, RANGES_TAG
from kafka_assets_tests.cli.support import Project, error_of
from kafka_assets_tests.orchestration.support import Bench
from kafka_assets_tests.support.kafka import Record, produce

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kafka_assets_tests.security.support import GuardedKafka

HOSTILE = [
    "'; DROP TABLE orders; --",
    '"; DROP SCHEMA kafka_assets CASCADE; --',
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb\r\tc",
    "a\0b",
    "$1 $key ? {} %s ${HOME}",
    "[red]x[/blue]\x1b[31m",
    "orders\u202edrow",
    "",
]


def tree(folder: Path) -> set[str]:
    """Every path below a folder and below the one that it is in."""
    return {str(path) for path in folder.parent.rglob("*")}


@pytest.mark.parametrize("kind", ["raw", "utf8"])
def test_records_are_data(
    kind: str, guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """Keys, header names and values that look like SQL, paths or markup come out as they went in."""
    topic = orders("anyone")
    records = [
        Record(text.encode(), key=text.encode(), headers=[(text.replace("\0", ""), text.encode())])
        for text in HOSTILE
    ]
    produce(guarded.bootstrap_servers, topic, records)
    open_one = Project(project.folder, guarded.bootstrap_servers)
    open_one.write({"orders": {"topics": [topic], "format": kind}})
    assert open_one("ingest")["streams"]["orders"]["rows"] == 20 + len(HOSTILE)
    value = "_kafka_value" if kind == "raw" else "encode(value)"
    rows = open_one.query(
        f"SELECT {value}, _kafka_key, _kafka_headers"  # noqa: S608  one of two words
        " FROM orders WHERE _kafka_offset >= 20 ORDER BY _kafka_offset"
    )
    assert rows == [
        (text.encode(), text.encode(), [{"key": text.replace("\0", ""), "value": text.encode()}])
        for text in HOSTILE
    ]
    open_one.text("status")
    open_one.text("plan")
    open_one.assert_each_once(topic, partitions=1, count=20 + len(HOSTILE))


UNPLANNED = ["../../x", "..", ".", "/etc/x", "lock", "'; DROP TABLE orders; --", "a\nb", "*", "x" * 5000]


def test_a_key_that_no_plan_made_reaches_nothing(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """A batch is looked up in the ledger before its key is used for anything, so it can be no path and no SQL."""
    topic = orders()
    open_one = Project(project.folder, guarded.bootstrap_servers)
    open_one.write({"orders": {"topics": [topic]}})
    for planned in (False, True):
        if planned:
            open_one("ingest")
        before = tree(project.folder)
        for key in UNPLANNED:
            answer = open_one("replay", "orders", "--", key, exit_code=2)
            assert (answer.get("error") or answer["streams"]["orders"]["error"])["code"] == "BATCH_UNKNOWN"
        assert {path for path in tree(project.folder) - before if "w.duckdb" not in path} == set()
    open_one.assert_each_once(topic, partitions=1, count=20)


def test_a_partition_that_no_plan_made_reaches_nothing(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """A partition key added by hand in Dagster, a path, fails with BATCH_UNKNOWN, and no folder is made of it."""
    open_one = Project(project.folder, guarded.bootstrap_servers)
    open_one.write({"orders": {"topics": [orders()]}})
    (batch,) = open_one("ingest")["streams"]["orders"]["batches"]
    with dg.DagsterInstance.from_config(str(project.folder)) as instance:
        bench = Bench(project.file, instance)
        before = tree(project.folder)
        for key in ("../../x", "'; DROP TABLE orders; --"):
            instance.add_dynamic_partitions(bench.names.batches, [key])
            assert bench.failure(bench.click(key)).startswith("BATCH_UNKNOWN")
        of_dagster = (f"{project.folder}/storage", f"{project.folder}/.dagster/")
        assert {path for path in tree(project.folder) - before if not path.startswith(of_dagster)} == set()
        for ranges in ("'; DROP TABLE orders; --", "../../x:0:0:5", "orders:0:0:5; x"):
            run = bench.click(batch, {RANGES_TAG: ranges, MERGE_TAG: "'"})
            assert bench.failure(run).startswith("USAGE_INVALID")
    assert open_one("verify")["ok"]


@pytest.mark.parametrize(
    "arguments", [("replay", "../../x", "y"), ("plan", "'; DROP TABLE orders; --"), ("verify", "..")]
)
def test_a_stream_is_one_of_the_file(arguments: tuple[str, ...], project: Project) -> None:
    """A name that the streams file does not have is refused before anything is opened by it."""
    project.write({"orders": {"topics": ["orders"]}})
    before = tree(project.folder)
    assert error_of(project(*arguments, exit_code=2))[0] == "STREAM_UNKNOWN"
    assert tree(project.folder) == before


@pytest.mark.parametrize(
    "stream",
    [
        {'or"ders': {"topics": ["a"]}},
        {"../orders": {"topics": ["a"]}},
        {"orders; --": {"topics": ["a"]}},
        {"örders": {"topics": ["a"]}},
        {"orders\n": {"topics": ["a"]}},
        {"": {"topics": ["a"]}},
        {"orders": {"topics": ["a"], "table": 'x"; DROP TABLE y; --'}},
        {"orders": {"topics": ["a"], "table": "x'y"}},
        {"orders": {"topics": ["a"], "table": "a.b.c"}},
        {"orders": {"topics": ["a"], "table": "x\n"}},
        {"orders": {"topics": ["a"], "table": "read_text('/etc/passwd')"}},
        {"orders": {"topics": ["a"], "table": "kafka_assets_ledger.batches"}},
        {"orders": {"topics": ["a"], "table": "KAFKA_ASSETS.batches"}},
        {"orders": {"topics": ["a"], "table": "information_schema.tables"}},
        {"orders": {"topics": ["../a"]}},
        {"orders": {"topics": ["a'b"]}},
        {"orders": {"topics": ["a\n"]}},
        {"orders": {"assign": {"a/b": [0]}}},
        {"orders": {"topics": ["a"], "starting_offsets": {"a;b": {"0": 1}}}},
    ],
)
def test_a_name_that_is_none_is_refused_at_load(stream: dict[str, object], project: Project) -> None:
    """Names of streams, tables and topics are what they may be, or the file is refused with their place."""
    project.file.write_text(json.dumps({"kafka": {"bootstrap.servers": "a:1"}, "streams": stream}))
    with pytest.raises(ConfigInvalidError) as caught:
        load_config(project.file)
    assert all(problem.startswith("streams") for problem in caught.value.problems)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{}]",
        "!!python/object/new:pathlib.Path [{}]",
        "!!python/name:os.system ''",
        "!!python/module:harm ''",
        "!env HOME",
        "!include /etc/passwd",
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        "{}",
        "kafka: {}",
        "kafka: {{bootstrap.servers: {}}}",
        "streams: {{orders: {}}}",
        "streams: {{orders: {{topics: [{}]}}}}",
        "streams: {{{}: {{topics: [a]}}}}",
        "warehouse: {{uri: {}}}",
        "other: {}",
    ],
)
def test_the_streams_file_is_data(tag: str, place: str, project: Project) -> None:
    """A YAML tag, in any place, runs nothing and reads nothing: it is a problem of the file."""
    target = project.folder / "touched"
    project.file.write_text(place.format(tag.format(target)))
    with pytest.raises(KafkaAssetsError) as caught:
        load_config(project.file)
    assert caught.value.code == "CONFIG_INVALID"
    assert not target.exists()
    assert "root:" not in str(caught.value)


def test_a_warehouse_may_have_any_name(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """The path of the warehouse is quoted where it goes into SQL."""
    topic = orders()
    folder = project.folder / 'it\'s; DROP "x" --'
    folder.mkdir()
    open_one = Project(project.folder, guarded.bootstrap_servers)
    uri = f"duckdb:///{folder.name}/w'); DROP TABLE y; --.duckdb"
    open_one.write({"orders": {"topics": [topic]}}, uri=uri)
    open_one("ingest")
    open_one.assert_each_once(topic, partitions=1, count=20)
    assert (folder / "w'); DROP TABLE y; --.duckdb").is_file()

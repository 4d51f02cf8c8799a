"""`rename`: ledger, table and Dagster keys follow a stream's new name."""

from __future__ import annotations

import io
import json

import dagster as dg
import pytest

from kafka_assets.batch_lock import BatchLock
from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.operations import rename as operation
from kafka_assets.orchestration.naming import PARTITION_TAG, STREAM_TAG
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.orchestration.support import Bench
from kafka_assets_tests.support.kafka import values

NAMES = "SELECT DISTINCT stream FROM kafka_assets_ledger.{table}"
ROWS = "SELECT * FROM kafka_assets_ledger.{table} ORDER BY ALL"
TABLES = ("streams", "positions", "batches", "offset_ranges", "quarantine", "losses", "removals")


class Project:
    """A streams file whose one stream changes its name, and an instance of its own."""

    def __init__(self, folder, bootstrap, topic):
        self.file = folder / "streams.yaml"
        self._bootstrap = bootstrap
        self._topic = topic

    def named(self, name, **options):
        stream = {"topics": [self._topic], "max_records_per_batch": 2, "interval": "1ms", **options}
        document = {
            "kafka": {"bootstrap.servers": self._bootstrap},
            "warehouse": {"uri": "duckdb:///w.duckdb"},
            "streams": {name: stream} if isinstance(name, str) else dict.fromkeys(name, stream),
        }
        for one, given in document["streams"].items():
            document["streams"][one] = {"table": one, **given}
        self.file.write_text(json.dumps(document))

    def __call__(self, *arguments, exit_code=0):
        out = io.StringIO()
        code = run([*arguments, "--json", "--config", str(self.file)], out)
        assert code == exit_code, out.getvalue()
        return json.loads(out.getvalue() or "null")

    def refused(self, *arguments):
        out = io.StringIO()
        code = run([*arguments, "--json", "--config", str(self.file)], out)
        answer = json.loads(out.getvalue())
        return (answer.get("error") or next(iter(answer["streams"].values()))["error"])["code"], code

    def warehouse(self):
        return Warehouse.of(load_config(self.file).warehouse)

    def query(self, statement):
        with self.warehouse().reading() as connection:
            return connection.execute(statement).fetchall()

    def alter(self, statement):
        with self.warehouse().writing() as connection:
            connection.execute(statement).fetchall()

    def streams_of(self, table):
        return {name for (name,) in self.query(NAMES.format(table=table))}


@pytest.fixture
def instance(tmp_path_factory, monkeypatch):
    """An instance of this test alone: it looks at all runs and keys."""
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


@pytest.fixture
def project(tmp_path, monkeypatch, instance, bootstrap, topic, produce):
    """Three batches of two records in stream `old`, a removed row, and one more that is planned."""
    name = topic()
    monkeypatch.setenv("KAFKA_ASSETS_CONFIG", "")
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, bootstrap, name)
    made.named("old")
    produce(name, values(6), 0)
    made("ingest", "old")
    made("expire", "old", "--where", "_kafka_offset = 1", "--yes")
    produce(name, values(2, first=6), 0)
    assert Bench(made.file, instance, "old").tick().batches
    return made


def test_everything_follows(project, instance):
    """Ledger, table, keys and what Dagster shows as materialized; the open batch is run under the new name."""
    keys = [key for (key,) in project.query("SELECT batch FROM kafka_assets.batches ORDER BY 1")]
    project.named("new")
    answer = project("rename", "old", "new")
    assert (answer["streams"]["new"]["table"], answer["streams"]["new"]["batches"]) == ("new", 4)
    for table in TABLES:
        assert project.streams_of(table) <= {"new"}
    assert project.streams_of("removals") == {"new"}
    assert [
        name for (name,) in project.query("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'")
    ] == ["new"]
    assert set(instance.get_dynamic_partitions("new_batches")) == set(keys)
    assert list(instance.get_dynamic_partitions("old_batches")) == []
    assert instance.get_materialized_partitions(dg.AssetKey("new")) == set(keys[:3])

    assert project("ingest", "new")["streams"]["new"]["batches"] == keys[3:]
    project("replay", "new", keys[0])
    assert [at for (at,) in project.query("SELECT _kafka_offset FROM new ORDER BY 1")] == [
        0,
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    (proof,) = project("verify")["streams"]["new"]["partitions"]
    assert (proof["loaded"], proof["removed"], proof["pending"]) == (7, 1, 0)


def test_a_table_that_is_named_stays(project, instance):
    """With `table:` only the stream has another name, and the asset keeps its key and its history."""
    project.named("new", table="old")
    assert project("rename", "old", "new")["streams"]["new"]["table"] == "old"
    assert project.query("SELECT count(*) FROM old") == [(5,)]
    assert len(instance.get_dynamic_partitions("new_batches")) == 4
    assert len(instance.get_materialized_partitions(dg.AssetKey("old"))) == 3
    project("ingest", "new")
    assert project("verify")["ok"]


def test_it_comes_after_the_edit_of_the_file_and_never_onto_another_ledger(project):
    """OLD still in the file, NEW not in it, NEW with a ledger, OLD without one, another table: refused."""
    before = [project.query(ROWS.format(table=table)) for table in TABLES]
    assert project.refused("rename", "old", "new") == ("STREAM_UNKNOWN", 2)
    project.named(("old", "new"))
    assert project.refused("rename", "old", "new") == ("USAGE_INVALID", 2)
    project.named("new")
    assert project.refused("rename", "other", "new") == ("STREAM_UNKNOWN", 2)
    project.named("new", table="third")
    assert project.refused("rename", "old", "new") == ("CONFIG_INVALID", 2)
    project.named("new")
    project.alter("CREATE TABLE NEW (x INTEGER)")
    assert project.refused("rename", "old", "new") == ("TABLE_TAKEN", 2)
    project.alter("DROP TABLE new")
    assert [project.query(ROWS.format(table=table)) for table in TABLES] == before
    project("ingest", "new")
    assert project.refused("rename", "old", "new") == ("USAGE_INVALID", 2)
    assert project.streams_of("batches") == {"old", "new"}


def test_a_run_that_is_alive_is_waited_for(project, instance):
    """A batch's lock that is held, or a run that Dagster has queued: WAREHOUSE_LOCKED, exit 4; a dead one is not."""
    (key,) = project.query("SELECT max(batch) FROM kafka_assets.batches")[0]
    bench = Bench(project.file, instance, "old")
    project.named("new")
    with BatchLock(project.warehouse().staging, "old", key) as lock:
        assert lock.try_acquire()
        assert project.refused("rename", "old", "new") == ("WAREHOUSE_LOCKED", 4)
    queued = bench.create_run(key, {STREAM_TAG: "old", PARTITION_TAG: key})
    assert queued.status is dg.DagsterRunStatus.NOT_STARTED
    assert project.refused("rename", "old", "new") == ("WAREHOUSE_LOCKED", 4)
    instance.report_run_canceled(queued)
    assert project.streams_of("batches") == {"old"}
    project("rename", "old", "new")


@pytest.mark.parametrize("cut", ["_rename_in_ledger", "_follow"])
def test_cut_short_the_same_rename_does_the_rest(project, instance, monkeypatch, cut):
    """Killed before the ledger changed, or before Dagster's keys followed."""
    project.named("new")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(operation, cut, killed)
        project("rename", "old", "new", exit_code=130)
    assert project.streams_of("batches") == ({"old"} if cut == "_rename_in_ledger" else {"new"})
    project("rename", "old", "new")
    assert project.streams_of("batches") == {"new"}
    assert len(instance.get_dynamic_partitions("new_batches")) == 4
    assert list(instance.get_dynamic_partitions("old_batches")) == []
    assert len(instance.get_materialized_partitions(dg.AssetKey("new"))) == 3
    assert project.refused("rename", "old", "new") == ("USAGE_INVALID", 2)

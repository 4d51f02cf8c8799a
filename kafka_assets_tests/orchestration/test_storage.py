"""What is kept of Dagster's storage between its uses."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import dagster as dg
from sqlalchemy import event
from sqlalchemy.pool import Pool

from kafka_assets.orchestration.storage import keep_what_storage_makes

METADATA = "dagster._core.storage.event_log.sqlite.sqlite_event_log.SqlEventLogStorageMetadata"


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def empty() -> None:
    nothing()


def test_each_run_is_in_its_own_database_however_many_there_were(tmp_path):
    """Runs of two instances, more than engines are kept: each has its own events and no other's."""
    keep_what_storage_makes()
    keep_what_storage_makes()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    instances = [dg.DagsterInstance.local_temp(str(folder)) for folder in folders]
    runs = [
        (instance, empty.execute_in_process(instance=instance).run_id)
        for _ in range(6)
        for instance in instances
    ]
    for instance, run_id in runs:
        assert instance.get_run_by_id(run_id).is_success
        events = instance.all_logs(run_id)
        assert {event.run_id for event in events} == {run_id}
        assert events[-1].dagster_event_type == dg.DagsterEventType.PIPELINE_SUCCESS
    for folder, instance in zip(folders, instances, strict=True):
        mine = {run_id for owner, run_id in runs if owner is instance}
        assert mine == {file.stem for file in folder.rglob("*-*.db")}


def test_one_connection_takes_all_events_of_a_run_and_is_closed_after_some_more_runs(tmp_path):
    """A connection for each event would have SQLite sync and remove its log each time; nor do they pile up."""
    keep_what_storage_makes()
    made, open_now = Counter(), {}

    def opened(connection, _):
        file = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        made[file] += 1
        open_now[id(connection)] = file

    def closed(connection, _):
        open_now.pop(id(connection), None)

    event.listen(Pool, "connect", opened)
    event.listen(Pool, "close", closed)
    try:
        instance = dg.DagsterInstance.local_temp(str(tmp_path))
        ids = [empty.execute_in_process(instance=instance).run_id for _ in range(12)]
    finally:
        event.remove(Pool, "connect", opened)
        event.remove(Pool, "close", closed)

    runs = [file for run_id in ids for file in tmp_path.rglob(f"{run_id}.db")]
    assert len(runs) == 12
    # Dagster makes the tables over a second one.
    assert all(made[file] <= 2 for file in runs), made
    assert len(instance.all_logs(ids[-1])) > 5
    still = [file for file in runs if file in open_now.values()]
    assert still == runs[-len(still) :], "the oldest are closed first"
    assert 0 < len(still) < 8


def test_the_database_of_a_run_is_a_copy_of_the_first_ones_when_that_was_empty(tmp_path, monkeypatch):
    """Its tables are not made one by one again, and Dagster finds in it what it would have made."""
    keep_what_storage_makes()
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    first = empty.execute_in_process(instance=instance).run_id
    monkeypatch.setattr(f"{METADATA}.create_all", None)
    second = empty.execute_in_process(instance=instance).run_id

    def schema(run_id):
        (file,) = tmp_path.rglob(f"{run_id}.db")
        with closing(sqlite3.connect(file)) as connection:
            tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            version = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        return tables, version, mode

    assert schema(second) == schema(first)
    assert len(instance.all_logs(second)) == len(instance.all_logs(first))
    assert not list(tmp_path.rglob("*.new"))

"""What is kept of Dagster's storage between its uses."""

from __future__ import annotations

import dagster as dg

from kafka_assets.orchestration.storage import keep_what_storage_makes


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

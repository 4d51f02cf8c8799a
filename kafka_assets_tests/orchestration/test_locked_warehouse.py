"""Others hold the warehouse: what is planned is fetched and staged meanwhile, and committed once they let go."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kafka_assets import batches
from kafka_assets.batch_lock import batch_directory
from kafka_assets.orchestration import failures
from kafka_assets.orchestration.naming import RUN_KEY_TAG
from kafka_assets_tests.orchestration.support import (
    STREAM,
    Bench,
    child,
    hold_warehouse,
    kill,
    later,
    run_in_child,
)
from kafka_assets_tests.support.kafka import delete_records, values, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

BATCH = 100
BATCH_BYTES = 200_000
PATIENT = "300s"
WAIT = 240.0

pytestmark = pytest.mark.timeout(500)


def with_warehouse(here: Bench, **options: object) -> Bench:
    """The same project, its warehouse with these options."""
    settings = json.loads(here.config.path.read_text())
    settings["warehouse"] |= options
    here.config.path.write_text(json.dumps(settings))
    return Bench(here.config.path, here.instance)


def requested(here: Bench, request: dg.RunRequest) -> dg.DagsterRun:
    """The run that the daemon makes of a request."""
    return here.create_run(str(request.partition_key), {RUN_KEY_TAG: str(request.run_key)})


def staged(here: Bench) -> list[str]:
    """The batches that lie in the staging area whole, and are noted."""
    return sorted(note.parent.name for note in (here.warehouse.staging / STREAM).glob("*/0-staged-*"))


def bytes_staged(here: Bench) -> int:
    return sum(file.stat().st_size for file in here.warehouse.staging.glob("*/*/*-*") if file.is_file())


def said(here: Bench, run: dg.DagsterRun, words: str) -> list[str]:
    return [entry.user_message for entry in here.instance.all_logs(run.run_id) if words in entry.user_message]


@contextmanager
def held(here: Bench) -> Iterator[Any]:
    """Another process has the warehouse, until `release()`."""
    with child(hold_warehouse, here.config.path) as (process, pipe):
        pipe.recv()

        def release() -> None:
            pipe.send("let go")
            process.join(30)

        yield release


@pytest.fixture
def planned(bench, topic, produce):
    """`planned(n)`: a project with n batches planned and their runs requested, and its topic."""

    def make(count: int, **warehouse: object) -> tuple[Bench, str, list[dg.RunRequest]]:
        name = topic()
        produce(name, values(count * BATCH, size=1000))
        made = bench(topics=[name], max_records_per_batch=BATCH, max_bytes_per_batch=BATCH_BYTES)
        here = with_warehouse(made, **warehouse)
        requests = here.tick().requests
        assert len(requests) == count
        return here, name, requests

    return make


def test_planned_batches_are_staged_while_the_warehouse_is_locked_and_committed_once_after(planned, home):
    """Runs that start with the file held fetch at once, each waits with files alone, and each commits once."""
    here, _, requests = planned(3, lock_timeout=PATIENT)
    with held(here) as release, ExitStack() as children:
        runs = [requested(here, request) for request in requests]
        pipes = [
            children.enter_context(child(run_in_child, here.config.path, home, run.run_id, "nowhere"))[1]
            for run in runs
        ]
        wait_until(lambda: len(staged(here)) == 3, "three batches staged", WAIT)
        assert here.tick().skipped.startswith("the warehouse is in use")
        release()
        assert [pipe.recv() for pipe in pipes] == ["SUCCESS"] * 3
    assert all(said(here, run, "Fetching meanwhile") and said(here, run, "in files") for run in runs)
    assert here.rows() == (3 * BATCH, 3 * BATCH)
    assert [here.batch(str(one.partition_key)).generation for one in requests] == [1] * 3
    assert here.proof().ok
    assert staged(here) == []
    assert bytes_staged(here) == 0


def test_what_is_staged_stays_below_max_staged_bytes(planned, home):
    """With the area full a run waits before its fetch and says so; once there is room all goes on."""
    limit = 2 * BATCH_BYTES
    here, _, requests = planned(3, max_staged_bytes=limit, lock_timeout=PATIENT)
    with held(here) as release, ExitStack() as children:

        def start(request: dg.RunRequest) -> tuple[dg.DagsterRun, Any]:
            run = requested(here, request)
            return run, children.enter_context(
                child(run_in_child, here.config.path, home, run.run_id, "nowhere")
            )[1]

        first = [start(request) for request in requests[:2]]
        wait_until(lambda: len(staged(here)) == 2, "two batches staged", WAIT)
        last, pipe = start(requests[2])
        wait_until(lambda: said(here, last, "waiting for room"), "the third waits for room", WAIT)
        assert len(staged(here)) == 2
        assert BATCH * 1000 < bytes_staged(here) <= limit
        release()
        assert [one.recv() for one in (*(two for _, two in first), pipe)] == ["SUCCESS"] * 3
    assert "max_staged_bytes" in said(here, last, "waiting for room")[0]
    assert here.rows() == (3 * BATCH, 3 * BATCH)
    assert here.proof().ok


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_the_next_attempt_goes_on_from_what_is_staged(planned, bootstrap, home, monkeypatch, how):
    """A run that ends while it waits leaves its files, and the next needs Kafka no more: it has lost the records."""
    here, name, (request,) = planned(1, lock_timeout="300ms" if how == "timeout" else PATIENT)
    run = requested(here, request)
    with held(here) as release:
        if how == "timeout":
            monkeypatch.setattr(failures, "RETRY_SECONDS", 0)
            assert not here.execute(run).is_success
            assert here.failure(run).startswith("WAREHOUSE_LOCKED: ")
        else:
            with child(run_in_child, here.config.path, home, run.run_id, "nowhere") as (process, _):
                wait_until(lambda: staged(here), "the batch is staged", WAIT)
                kill(process.pid)
                process.join(30)
        assert staged(here) == [request.partition_key]
        release()
    delete_records(bootstrap, name, {0: BATCH})

    later(monkeypatch, 60)
    (again,) = here.tick().requests
    assert again.run_key != request.run_key
    done = here.run(again)

    assert done.is_success
    assert said(here, done, "found staged 100 records")
    assert here.rows() == (BATCH, BATCH)
    assert here.proof().ok
    assert bytes_staged(here) == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "note"])
def test_staged_files_that_are_damaged_are_fetched_again(planned, monkeypatch, damage):
    """A file cut short or gone, or a note that cannot be read, costs a fetch and nothing else."""
    here, _, (request,) = planned(1, lock_timeout="300ms")
    monkeypatch.setattr(failures, "RETRIES", 0)
    with held(here) as release:
        assert not here.run(request).is_success
        release()
    directory = batch_directory(here.warehouse.staging, STREAM, str(request.partition_key))
    (note,) = directory.glob("0-staged-*")
    (file,) = (one for one in directory.iterdir() if one.stat().st_size > BATCH * 1000)
    if damage == "gone":
        file.unlink()
    else:
        damaged = file if damage == "cut" else note
        damaged.write_bytes(damaged.read_bytes()[:-20])

    assert here.click(str(request.partition_key)).is_success
    assert here.rows() == (BATCH, BATCH)
    assert here.proof().ok


def test_what_was_staged_and_does_not_add_up_is_not_used_twice(planned):
    """The ledger refuses it, and the next attempt fetches again."""
    here, _, (request,) = planned(1)
    batch = here.batch(str(request.partition_key))
    batches.stage_slice(here.stream, here.warehouse, batch, batch.ranges, name="run")
    (note,) = batch_directory(here.warehouse.staging, STREAM, batch.batch).glob("0-staged-*")
    note.write_text(note.read_text().replace(f'"records": {BATCH},', f'"records": {BATCH - 1},'))

    refused = here.run(request)
    assert not refused.is_success
    assert here.failure(refused).startswith("RUN_FAILED: ")
    assert here.click(batch.batch).is_success
    assert here.rows() == (BATCH, BATCH)
    assert here.proof().ok


def test_what_other_settings_staged_is_not_used(planned):
    """Another format or isolation level, or a replay: fetched again."""
    here, _, (request,) = planned(1)
    batch = here.batch(str(request.partition_key))
    batches.stage_slice(here.stream, here.warehouse, batch, batch.ranges, name="run")

    def found(stream: Any = here.stream, **change: int) -> bool:
        return (
            batches.staged_before(stream, here.warehouse, replace(batch, **change), batch.ranges) is not None
        )

    assert found()
    assert not found(generation=1)
    assert not found(replace(here.stream, format=replace(here.stream.format, kind="utf8")))
    uncommitted = here.stream.kafka.merged(type(here.stream.kafka)({"isolation.level": "read_uncommitted"}))
    assert not found(replace(here.stream, kafka=uncommitted))


def test_attempts_that_only_waited_for_the_file_block_nothing(planned, monkeypatch):
    """However often others have kept a batch out, it is launched again."""
    here, _, (request,) = planned(1)
    batch = str(request.partition_key)
    with here.warehouse.writing() as connection:
        connection.execute("UPDATE kafka_assets_ledger.batches SET attempts = 5").fetchall()
    for error, launched in (("WAREHOUSE_LOCKED: process 1", True), ("RUN_FAILED: fire", False)):
        with here.warehouse.writing() as connection:
            connection.execute(
                "UPDATE kafka_assets_ledger.batches SET attempts = 5, last_error = $error", {"error": error}
            ).fetchall()
        made = here.create_run(batch, {RUN_KEY_TAG: f"{STREAM}/{batch}/5"})
        here.instance.report_run_failed(made)
        later(monkeypatch, 10_000)
        assert bool(here.tick().requests) == launched

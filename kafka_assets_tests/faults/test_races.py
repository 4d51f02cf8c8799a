"""Two who work on one stream at the same moment, each meeting at the place where it could go wrong.

The other one is a process where its death or its locks matter, and else does its part within this one, at the
place named. Further races stand beside what they are about: in `orchestration` a run killed between its commit
and its event, two runs of one batch, a planner that loses; in `operations` a planner within a reset.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from kafka_assets import batches
from kafka_assets.batch_lock import is_held
from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.orchestration.settling import SettlingRuns
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.story import STREAM, expected
from kafka_assets_tests.orchestration.conftest import bench, home, instance, new_home
from kafka_assets_tests.orchestration.support import Bench, child, later, run_in_child, write_streams
from kafka_assets_tests.support.kafka import delete_records, values, wait_until

__all__ = ["bench", "home", "instance", "new_home"]


class Other:
    """Another run of a stream's batches, which does its steps when it is told to."""

    def __init__(self, file):
        config = load_config(file)
        self.stream, self.warehouse = config.stream(STREAM), Warehouse.of(config.warehouse)
        self._stage = batches.stage_slice
        self._number = 0

    def fetch(self, key):
        batch = batches.read_batch(self.stream, self.warehouse, key)
        self._number += 1
        name = f"other{self._number}"
        return batch, [self._stage(self.stream, self.warehouse, batch, batch.ranges, name=name)]

    def commit(self, fetched):
        batch, staged = fetched
        return batches.commit(self.stream, self.warehouse, batch, staged, run_id="the-other-run").outcome

    def load(self, key):
        return self.commit(self.fetch(key))


def command(file, *words):
    out = io.StringIO()
    code = run([*words, "--json", "--config", str(file)], out)
    return code, json.loads(out.getvalue())["streams"][STREAM]


@pytest.fixture
def overtaken(monkeypatch):
    """`overtaken(times, by)`: so many fetches in this process find, when they are done, that `by` was faster."""

    def arm(times, by):
        stage, left = batches.stage_slice, [by] * times

        def staged(*arguments, **named):
            done = stage(*arguments, **named)
            if left:
                left.pop()()
            return done

        monkeypatch.setattr(batches, "stage_slice", staged)

    return arm


def test_two_sensors_of_one_code_server_in_threads(topic, produce, bootstrap, tmp_path, instance):
    """Those of two streams, and one twice: every batch is planned once, and requested by the tick that planned it."""
    names = {"a": topic(2), "b": topic()}
    options = {"interval": "1ms", "max_records_per_batch": 10, "max_batches_in_flight": 100}
    file = write_streams(
        tmp_path, bootstrap, {stream: {"topics": [name], **options} for stream, name in names.items()}
    )
    here = {stream: Bench(file, instance, stream) for stream in names}
    here["b"].runtime, here["b"].definitions = here["a"].runtime, here["a"].definitions
    requested: dict[str, list[str]] = {"a": [], "b": []}
    together = threading.Barrier(3)

    def tick(stream):
        together.wait()
        return stream, here[stream].evaluate()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            for name in names.values():
                produce(name, values(25), 0)
            for stream, done in pool.map(tick, ("a", "a", "b")):
                requested[stream] += [one.run_key for one in done.run_requests or []]
    for stream, bench_of in here.items():
        requested[stream] += bench_of.tick().run_keys
        planned = [f"{stream}/{batch.batch}/1" for batch in bench_of.state().open_batches]
        assert sorted(requested[stream]) == planned
        assert len(planned) >= 10
        assert bench_of.proof().ok


def test_a_tick_ingest_and_a_click_on_one_batch_within_a_second(bench, topic, produce, home):
    """The daemon's run and a person's, in processes, and `ingest` here: all three end well, each row is there once."""
    name = topic(2)
    produce(name, values(20), 0)
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    runs = [here.create_run(batch, {"dagster/run_key": str(request.run_key)}), here.create_run(batch)]
    file = here.config.path
    produce(name, values(10), 1)
    with (
        child(run_in_child, file, home, runs[0].run_id, "before commit") as (_, daemons),
        child(run_in_child, file, home, runs[1].run_id, "before commit") as (_, persons),
        pytest.MonkeyPatch.context() as patch,
    ):
        assert daemons.recv() == persons.recv() == "before commit"
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("KAFKA_ASSETS_CONFIG", "")
        patch.chdir(file.parent)
        for pipe in (daemons, persons):
            pipe.send("go on")
        code, answer = command(file, "ingest", STREAM)
        assert daemons.recv() == persons.recv() == "SUCCESS"
    assert (code, answer["error"]) == (0, None)
    assert here.rows() == (30, 30)
    assert here.batch(batch).generation == 1
    assert set(answer["batches"]) <= {one.batch for one in here.state().recently_committed}
    assert answer["rows"] == (30 if batch in answer["batches"] else 10)
    assert here.state().open_batches == ()
    assert here.proof().ok
    assert here.tick().requests == []


def test_a_replay_that_the_first_load_overtakes(story, topic, produce, overtaken):
    """It says that another run has loaded the batch meanwhile, and leaves its rows alone."""
    name = topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name])
    story.tick()
    (key,) = story.batch_keys()
    other = Other(story.file)
    overtaken(1, lambda: other.load(key))
    answer = story.command("replay", key)
    assert (answer.code, answer.exit_code) == ("RUN_FAILED", 1)
    assert "committed by run the-other-run while run" in answer.message
    assert story.rows() == rows
    assert story.command("replay", key).stream["ranges"][0]["replaced"] == 5
    assert story.rows() == rows
    story.proof()


def test_a_first_load_that_a_replay_overtakes(story, topic, produce):
    """It ends well without a row written, though the batch has been replaced since, too."""
    name = topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name])
    story.tick()
    (key,) = story.batch_keys()
    other = Other(story.file)
    slow = other.fetch(key)
    for _ in range(2):
        assert story.command("replay", key).exit_code == 0
    assert other.commit(slow) == "found committed"
    assert story.rows() == rows
    assert story.query("SELECT max(generation) FROM kafka_assets_ledger.batches") == [(2,)]
    story.proof()


@pytest.mark.parametrize("times", [1, 2])
def test_a_replay_that_other_replays_overtake(story, topic, produce, overtaken, times):
    """Once, it fetches again and replaces; twice, it gives up. The rows are whole either way."""
    name = topic()
    rows = expected(name, produce(name, values(5), 0), values(5))
    story.setting(topics=[name])
    story.ingest()
    (key,) = story.batch_keys()
    other = Other(story.file)
    overtaken(times, lambda: other.load(key))
    answer = story.command("replay", key)
    assert answer.exit_code == times - 1
    if times == 2:
        assert "replaced by other runs twice" in answer.message
    assert story.rows() == rows
    story.proof()


def test_a_reset_whose_batch_is_loaded_at_the_last_moment(story, topic, produce, bootstrap, monkeypatch):
    """A run that had fetched the batch in time commits it: nothing of it is lost, and the reset moves on behind it."""
    name = topic()
    rows = expected(name, produce(name, values(10), 0), values(10))
    story.setting(topics=[name])
    story.tick()
    (key,) = story.batch_keys()
    other = Other(story.file)
    fetched = other.fetch(key)
    produce(name, values(3, first=10), 0)
    delete_records(bootstrap, name, {0: 12})
    hold = SettlingRuns.hold

    def held(self, batch):
        assert other.commit(fetched) == "loaded"
        return hold(self, batch)

    monkeypatch.setattr(SettlingRuns, "hold", held)
    answer = story.command("reset", "--to", "earliest", "--yes")
    assert story.rows() == rows
    assert (answer.exit_code, answer.stream["error"]) == (0, None)
    assert story.losses() == [(name, 0, 10, 12)]
    story.ingest()
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 13, "loaded": 11, "lost": 2}}


def test_a_reset_that_a_planner_overtakes_says_what_it_has_settled(
    story, topic, produce, bootstrap, monkeypatch
):
    """Once a batch was settled, a refusal at the second look does not say that nothing was changed."""
    name = topic()
    produce(name, values(10), 0)
    story.setting(topics=[name], on_data_loss="skip")
    story.tick()
    (key,) = story.batch_keys()
    produce(name, values(6, first=10), 0)
    delete_records(bootstrap, name, {0: 12})
    hold = SettlingRuns.hold

    def held(self, batch):
        story.tick()
        return hold(self, batch)

    monkeypatch.setattr(SettlingRuns, "hold", held)
    answer = story.command("reset", "--to", f"{name}:0:14", "--yes")
    assert (answer.exit_code, answer.stream["applied"]) == (2, False)
    assert answer.stream["error"]["code"] == "USAGE_INVALID"
    message = answer.stream["error"]["message"]
    assert f"settled as proposed (batches: {key})" in message
    assert "Nothing more was changed." in message
    assert story.losses() == [(name, 0, 0, 10), (name, 0, 10, 12)]
    story.ingest()
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 16, "loaded": 4, "lost": 12}}


def test_a_run_terminated_while_it_waits_for_the_file(bench, topic, produce, home, monkeypatch):
    """It ends as cancelled at once, with no lock and no row left; the batch waits for whoever cancelled it."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (request,) = here.tick().requests
    batch = str(request.partition_key)
    planned = here.create_run(batch, {"dagster/run_key": str(request.run_key)})
    writers = Path(f"{here.warehouse.path}.writers")
    with child(run_in_child, here.config.path, home, planned.run_id, "before commit") as (process, pipe):
        assert pipe.recv() == "before commit"
        with here.warehouse.writing():
            pipe.send("go on")
            wait_until(lambda: _waits(here.instance, planned.run_id), "the run waits for the file")
            here.instance.report_run_canceling(here.instance.get_run_by_id(planned.run_id))
            os.kill(process.pid, signal.SIGTERM)
            wait_until(pipe.poll, "the run ends")
            assert pipe.recv() == "CANCELED"
        assert not _is_locked(writers)
        assert not is_held(here.warehouse.staging, STREAM, batch)
        process.join(30)

    assert here.query("FROM orders") == []
    later(monkeypatch, 100_000)
    tick = here.tick()
    assert (tick.requests, "cancelled by a person" in (tick.skipped or "")) == ([], True)
    assert here.click(batch).is_success
    assert here.rows() == (5, 5)
    assert here.proof().ok


def _waits(instance, run_id):
    return any("was not free within" in entry.user_message for entry in instance.all_logs(run_id))


def _is_locked(path):
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_no_run_key_is_asked_for_twice(bench, topic, produce, monkeypatch):
    """Dagster never runs one a second time, in whatever way it ended: each attempt has its own."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name], max_attempts=4)
    (request,) = here.tick().requests
    keys = [request.run_key]
    for number, end in enumerate(("failed", "succeeded without a commit", "gone")):
        made = here.create_run(str(request.partition_key), {"dagster/run_key": keys[-1]})
        if end == "failed":
            here.instance.report_run_failed(made)
        elif end == "gone":
            here.instance.delete_run(made.run_id)
        else:
            success = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, made.job_name)
            here.instance.report_dagster_event(success, made.run_id)
        later(monkeypatch, 1000 * (number + 1))
        keys += here.tick().run_keys
    batch = request.partition_key
    # A run that was never seen may still be about to come: the same attempt is asked for again.
    assert keys == [f"{STREAM}/{batch}/{attempt}" for attempt in (1, 2, 3, 3)]
    assert here.run(replace_key(request, keys[-1])).is_success
    assert here.rows() == (5, 5)


def replace_key(request, key):
    return dg.RunRequest(run_key=key, partition_key=request.partition_key, tags=dict(request.tags))

"""`ingest` beside other runs of its batches."""

from __future__ import annotations

from contextlib import closing

from kafka_assets import fetcher
from kafka_assets.fetcher import Fetcher
from kafka_assets.orchestration.execution import RunExecutor
from kafka_assets.orchestration.ingest import ingest
from kafka_assets_tests.support.kafka import values


class Silent:
    """Progress that nobody looks at."""

    def total(self, offsets):
        pass

    def advance(self, offsets):
        pass

    def say(self, text):
        pass


class Overtaken(RunExecutor):
    """Executes a batch just after somebody has clicked on it."""

    def __init__(self, bench):
        super().__init__(bench.runtime, bench.instance)
        self._bench = bench

    def execute(self, stream, batch, *args, **options):
        self._bench.instance.add_dynamic_partitions(self._bench.names.batches, [batch])
        assert self._bench.click(batch).is_success
        return super().execute(stream, batch, *args, **options)


def test_a_batch_that_another_run_has_committed_meanwhile_is_left_alone(topic, produce, bench, monkeypatch):
    """Its rows are not replaced, it does not count as work of this call, and what was fetched of it is removed."""
    monkeypatch.setattr(fetcher, "WORTH_A_PROCESS", 1)
    name = topic()
    produce(name, values(6))
    project = bench(topics=[name], max_records_per_batch=3)
    with closing(Fetcher(project.runtime.config.path)) as ahead:
        done = ingest(project.stream, project.runtime, Overtaken(project), fetcher=ahead, progress=Silent())
    assert (done.error, done.batches, done.records) == (None, [], 0)
    keys = project.instance.get_dynamic_partitions(project.names.batches)
    assert [project.batch(key).generation for key in keys] == [1, 1]
    assert not list(project.warehouse.staging.rglob("*-ahead-*"))
    assert project.state().open_batches == ()

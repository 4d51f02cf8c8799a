"""What is kept from one tick to the next, and when it is looked at again."""

from __future__ import annotations

import os

import dagster as dg
import pytest

from kafka_assets.orchestration import runtime
from kafka_assets.orchestration.runtime import CLOCK_GRAIN_SECONDS
from kafka_assets_tests.support.kafka import values


def aged(path):
    """Make a file look as if it was last written a while ago."""
    then = path.stat().st_mtime - 10 * CLOCK_GRAIN_SECONDS
    os.utime(path, (then, then))


def test_a_ledger_that_nobody_wrote_since_is_not_read_again(bench, topic, produce, monkeypatch):
    """The state is that of the last look until the file changes, by whomever."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    (batch,) = here.tick().batches
    aged(here.warehouse.path)
    known = here.runtime.state(here.stream, timeout=5)
    assert [one.batch for one in known.open_batches] == [batch]

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("the file was opened")

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "read_state", unwanted)
        assert here.runtime.state(here.stream, timeout=5) is known
    with here.warehouse.writing() as connection:
        connection.execute("CREATE TABLE another (i INTEGER)")
    aged(here.warehouse.path)
    assert here.runtime.state(here.stream, timeout=5) is not known


def test_a_ledger_written_just_now_is_read_again(bench, topic, produce, monkeypatch):
    """Two writes may leave the same time of change, so a file that is so new is not trusted to be unchanged."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    here.tick()
    monkeypatch.setattr(runtime, "CLOCK_GRAIN_SECONDS", 3600.0)
    assert here.runtime.state(here.stream, timeout=5) is not here.runtime.state(here.stream, timeout=5)


def test_the_instance_is_opened_once_for_all_ticks(bench, topic):
    """A tick that has only the reference, as under the daemon, gets the instance of the one before."""
    here = bench(topics=[topic()])
    opened = []
    for _ in range(2):
        with dg.build_sensor_context(instance_ref=here.instance.get_ref()) as context:
            opened.append(here.runtime.instance(context))
    assert opened[0] is opened[1]
    with dg.build_sensor_context(instance=here.instance) as context:
        assert here.runtime.instance(context) is here.instance
    with dg.build_sensor_context() as context, pytest.raises(dg.DagsterInvariantViolationError):
        here.runtime.instance(context)

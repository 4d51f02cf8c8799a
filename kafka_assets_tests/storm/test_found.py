"""What the machine has found once, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets import batches
from kafka_assets_tests.storm.machine import StormMachine
from kafka_assets_tests.storm.mortal import Fate

if TYPE_CHECKING:
    from collections.abc import Iterator


def _begun(*, start: str, skip: int, restart: int, before: int, ids: bool = False) -> StormMachine:
    """Ten records in one partition of a topic; `ids` is whether the brokers give its id."""
    machine = StormMachine()
    machine.begin(
        partitions=1,
        limit=1000,
        start=start,
        counts=[10],
        seconds=0,
        skip=skip,
        restart=restart,
        without_id=int(ids),
        optimized=0,
        before=before,
    )
    return machine


@pytest.fixture(params=["never", "no longer"])
def unidentified(request: pytest.FixtureRequest) -> Iterator[StormMachine]:
    """A planned batch of a topic that was then created again, without an id, and has grown past the batch."""
    machine = _begun(start="earliest", skip=1, restart=1, before=1, ids=request.param == "no longer")
    machine.change_topic(what="create again", name="a", partitions=1, count=5)
    if request.param == "no longer":
        machine.change_topic(what="ids", name="a", partitions=1, count=0)
    machine.tick(Fate(), drain=True, claim=False)
    machine.produce(number=0, count=15, kind="records")
    yield machine
    machine.teardown()


def test_a_batch_is_not_loaded_from_a_topic_that_came_after_without_an_id(
    unidentified: StormMachine,
) -> None:
    """Once the ledger knows that a topic has begun anew, a range of before is refused if no id tells of it."""
    key = min(unidentified.model.open)
    unidentified._run(key)
    unidentified.promises_hold()
    assert key in unidentified.model.open
    batch = batches.read_batch(unidentified.stream, unidentified.warehouse, key)
    assert (batch.last_error or "").startswith("TOPIC_RECREATED: ")
    planned_without = any(planned.topic_id is None for planned in batch.ranges)
    assert unidentified.reached["run refused before its fetch, TopicRecreatedError"] == int(planned_without)


def test_a_topic_that_vanishes_before_its_start_is_looked_up_is_not_begun_at_its_end() -> None:
    """A start by time is not planned from a look at a topic that is gone by then."""
    machine = _begun(start="time", skip=0, restart=0, before=0)
    try:
        machine.look(stale=0)
        machine.change_topic(what="delete", name="a", partitions=1, count=0)
        machine.plan(which=0, fate=Fate(), drain=False, claim=False)
        machine.promises_hold()
        assert machine.reached["gone before its start was found"] == 1
        assert not machine.model.positions
    finally:
        machine.teardown()


def test_a_reset_books_a_batch_as_lost_once_its_topic_has_begun_anew_without_an_id(
    unidentified: StormMachine,
) -> None:
    """A reset does not read, under a range of before, what the next topic has there, if no id tells of it."""
    key = min(unidentified.model.open)
    unidentified.reset("earliest", keep_hole=False, number=0, part=0, meddled=2, fate=Fate())
    unidentified.promises_hold()
    assert {at.topic: len(lost) for at, lost in unidentified.model.reads[key].lost.items()} == {"a": 10}


def test_a_batch_may_have_ranges_of_one_topic_with_and_without_its_id() -> None:
    """A partition that is added while the brokers keep back the ids is planned beside one whose id was seen."""
    machine = _begun(start="earliest", skip=0, restart=0, before=2, ids=True)
    try:
        machine.change_topic(what="ids", name="a", partitions=1, count=0)
        machine.change_topic(what="add partition", name="a", partitions=1, count=0)
        for number in range(len(machine.kafka.partitions)):
            machine.produce(number=number, count=3, kind="records")
        machine.tick(Fate(), drain=True, claim=False)
        machine.promises_hold()
        (key,) = machine.model.open
        assert {planned[1] for planned in machine.model.plans[key] if planned[0] == "a"} == {None, "a.1"}
        machine._run(key)
        machine.promises_hold()
        assert not machine.model.open
    finally:
        machine.teardown()

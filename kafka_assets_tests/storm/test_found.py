"""What the machine has found once, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.storm.machine import StormMachine
from kafka_assets_tests.storm.mortal import Fate

if TYPE_CHECKING:
    from collections.abc import Iterator


def _begun(*, start: str, skip: int, restart: int, before: int) -> StormMachine:
    """Ten records in one partition of a topic without an id."""
    machine = StormMachine()
    machine.begin(
        partitions=1,
        limit=1000,
        start=start,
        counts=[10],
        seconds=0,
        skip=skip,
        restart=restart,
        without_id=0,
        optimized=0,
        before=before,
    )
    return machine


@pytest.fixture
def unidentified() -> Iterator[StormMachine]:
    """A planned batch of a topic without an id, which was then created again and has grown past the batch."""
    machine = _begun(start="earliest", skip=1, restart=1, before=1)
    machine.change_topic(what="create again", name="a", partitions=1, count=5)
    machine.tick(Fate(), drain=True, claim=False)
    machine.produce(number=0, count=15, kind="records")
    yield machine
    machine.teardown()


def test_a_batch_planned_without_a_topic_id_is_not_loaded_from_the_topic_that_came_after(
    unidentified: StormMachine,
) -> None:
    """Once the ledger knows that a topic has begun anew, a range of before without a topic id is refused."""
    key = min(unidentified.model.open)
    unidentified._run(key)
    unidentified.promises_hold()
    assert key in unidentified.model.open
    assert unidentified.reached["run refused before its fetch, TopicRecreatedError"] == 1


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


def test_a_reset_books_a_batch_planned_without_a_topic_id_as_lost_once_the_topic_has_begun_anew(
    unidentified: StormMachine,
) -> None:
    """A reset does not read, under a range planned without a topic id, what the next topic has there."""
    key = min(unidentified.model.open)
    unidentified.reset("earliest", keep_hole=False, number=0, part=0, meddled=2, fate=Fate())
    unidentified.promises_hold()
    assert {at.topic: len(lost) for at, lost in unidentified.model.reads[key].lost.items()} == {"a": 10}

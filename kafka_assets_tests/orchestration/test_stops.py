from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets.dev.topics import delete_topic
from kafka_assets_tests.support.kafka import values, wait_until

if TYPE_CHECKING:
    from kafka_assets_tests.orchestration.support import Tick


def test_a_missing_topic_is_a_failing_check_at_every_tick_and_the_others_go_on(bench, topic, produce):
    """Once the topic is there, the check passes by the ledger's numbers, and is not reported again."""
    there = topic()
    absent = f"{there}_later"
    produce(there, values(5))
    here = bench(topics=[there, absent])

    tick = here.tick()
    assert len(tick.requests) == 1
    for seen in (tick, here.tick()):
        (check,) = seen.checks("coverage")
        assert not check.passed
        assert check.severity.value == "ERROR"
        assert (check.description or "").startswith("TOPIC_MISSING: ")
        assert absent in (check.description or "")

    topic(name=absent)
    tick = wait_until(lambda: None if failing(seen := here.tick()) else seen, "the topic seen")
    (check,) = tick.checks("coverage")
    assert check.metadata["proved"].value == "the whole stream, from the ledger alone"
    assert here.tick().checks("coverage") == []


def test_a_deleted_topic_stops_its_part_of_the_stream(bench, topic, produce, bootstrap):
    """What it had is committed and stays; the other topic's batches go on, beside a check that fails."""
    kept, deleted = topic(), topic()
    produce(kept, values(5))
    produce(deleted, values(5))
    here = bench(topics=[kept, deleted])
    assert all(run.is_success for run in here.run_all(here.tick()))

    delete_topic(bootstrap, deleted)
    tick = wait_until(lambda: failing(here.tick()), "the deletion seen")
    assert f"TOPIC_MISSING: topic {deleted}" in tick.checks("coverage")[0].description
    produce(kept, values(5))
    tick = here.tick()
    assert len(tick.requests) == 1
    assert here.run(tick.requests[0]).is_success
    assert failing(here.tick())
    assert here.rows() == (15, 15)


def test_the_first_commit_is_proved_by_the_ledger_once(bench, topic, produce):
    """The check shows itself after the first commit, passing; and never over a proof that was asked for."""
    name = topic()
    produce(name, values(5))
    here = bench(topics=[name])
    tick = here.tick()
    assert tick.checks("coverage") == []
    assert all(run.is_success for run in here.run_all(tick))

    (check,) = here.tick().checks("coverage")
    assert check.passed
    assert here.tick().checks("coverage") == []
    here.cursor = None
    assert here.tick().checks("coverage") == []


def failing(tick: Tick) -> Tick | None:
    return tick if any(not check.passed for check in tick.checks("coverage")) else None

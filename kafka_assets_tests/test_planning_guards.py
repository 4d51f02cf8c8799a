from __future__ import annotations

import pytest

from kafka_assets.planning import Loss, Policy
from kafka_assets_tests.planning_cases import RESTART, SKIP, at, log, plan_of, sizes, taken, tp


def codes(plan) -> list[tuple[str, str, int | None]]:
    return [(stop.code, stop.topic, stop.partition) for stop in plan.stops]


def test_the_first_sight_fixes_every_start():
    """A stream's first plan writes where each partition starts, those without a record included."""
    plan = plan_of({}, [100, 50, 0], starts={tp(0): 100, tp(1): 20, tp(2): 0})
    assert plan.positions == {tp(0): at(100, start=100), tp(1): at(50, start=20), tp(2): at(0)}
    assert [taken(batch) for batch in plan.batches] == [{1: (20, 50)}]


def test_a_start_at_the_end_is_fixed_without_a_batch():
    """With `latest` on a quiet topic nothing is read, and the position is written all the same."""
    plan = plan_of({}, [100], starts={tp(0): 100})
    assert plan.batches == ()
    assert plan.positions == {tp(0): at(100, start=100)}


def test_later_partitions_start_at_their_log_start():
    """A partition that appears later is read from the beginning, whatever the stream's starts were."""
    plan = plan_of({tp(0): at(100)}, {tp(0): log(0, 100), tp(1): log(5, 30)}, starts={tp(1): 30})
    assert [taken(batch) for batch in plan.batches] == [{1: (5, 30)}]
    assert plan.positions == {tp(1): at(30, start=5)}
    assert plan.losses == ()


@pytest.mark.parametrize("start", [101, -1])
def test_a_start_outside_of_the_log_s_end_plans_nothing(start):
    """An explicit start above the end is refused for the whole stream, and nothing is written."""
    plan = plan_of({}, [100, 50], starts={tp(0): start, tp(1): 0})
    assert codes(plan) == [("CONFIG_INVALID", "orders", 0)]
    assert (
        f"orders[0]: starting_offsets says {start}, and the log has the offsets [0, 100)"
        in plan.stops[0].message
    )
    assert (plan.batches, plan.positions, plan.losses) == ((), {}, ())
    assert plan.reason == "stopped: CONFIG_INVALID orders[0]"


def test_a_start_in_an_open_transaction_waits_for_it():
    """A start between the last stable offset and the high watermark is in the log: it waits."""
    plan = plan_of({}, {tp(0): log(0, 90, 100)}, starts={tp(0): 95})
    assert plan.stops == ()
    assert plan.positions == {tp(0): at(95, start=95)}
    assert plan.held_back == 10
    assert "10 offsets held back by open transactions on orders[0]" in plan.reason


@pytest.mark.parametrize("positions", [{}, {tp(0): at(40, start=40), tp(1): at(0)}])
def test_lost_offsets_stop_their_partition_only(positions):
    """Offsets that are gone before they were read stop the partition, with numbers and the choice."""
    plan = plan_of(positions, {tp(0): log(60, 100), tp(1): log(0, 50)}, starts={tp(0): 40})
    assert codes(plan) == [("DATA_LOST", "orders", 0)]
    message = plan.stops[0].message
    assert message.startswith("orders[0] [40, 60): Kafka deleted these 20 offsets before they were read")
    assert "reset STREAM --to orders:0:60 --yes" in message
    assert "on_data_loss: skip" in message
    assert [taken(batch) for batch in plan.batches] == [{1: (0, 50)}]
    assert plan.losses == ()
    assert plan.lag == 0


def test_a_start_below_the_log_is_kept_while_it_stops():
    """The start is written, so that the next tick does not take the partition for a later one."""
    plan = plan_of({}, {tp(0): log(60, 100)}, starts={tp(0): 40})
    assert plan.positions == {tp(0): at(40, start=40)}
    assert plan.reason == "stopped: DATA_LOST orders[0]"
    assert codes(plan_of(plan.positions, {tp(0): log(60, 100)})) == [("DATA_LOST", "orders", 0)]


@pytest.mark.parametrize("positions", [{}, {tp(0): at(40, start=40)}])
def test_lost_offsets_are_booked_under_skip(positions):
    """Under `skip` each lost offset is a loss, and reading goes on at the log start."""
    plan = plan_of(positions, {tp(0): log(60, 100)}, starts={tp(0): 40}, policy=SKIP)
    loss = Loss(tp(0), "A", 0, 40, 60, "the log started at 60 when 40 was next to be read")
    assert plan.losses == (loss,)
    assert plan.stops == ()
    assert [taken(batch) for batch in plan.batches] == [{0: (60, 100)}]
    assert plan.positions == {tp(0): at(100, start=40)}


def test_a_loss_is_booked_though_no_batch_can_be_planned():
    """What was lost is written down also while all places are taken or nothing is left to read."""
    full = plan_of({tp(0): at(40)}, {tp(0): log(60, 100)}, policy=SKIP, open_batches=4)
    empty = plan_of({tp(0): at(40)}, {tp(0): log(60, 60)}, policy=SKIP)
    for plan in (full, empty):
        assert [(loss.from_offset, loss.until_offset) for loss in plan.losses] == [(40, 60)]
        assert plan.positions == {tp(0): at(60)}
        assert plan.batches == ()


def test_a_recreated_topic_stops_and_others_go_on():
    """Another topic id under the same name stops the topic with its new partitions; others go on."""
    plan = plan_of(
        {tp(0): at(40), tp(1): at(2), tp(0, "payments"): at(0)},
        {
            **{tp(p): log(0, 100, topic_id="B") for p in range(3)},
            tp(0, "payments"): log(0, 9),
        },
    )
    assert codes(plan) == [("TOPIC_RECREATED", "orders", None)]
    message = plan.stops[0].message
    assert "its id was A and is B" in message
    assert "reset STREAM --to earliest --yes" in message
    assert "on_topic_recreated: restart" in message
    assert set(plan.positions) == {tp(0, "payments")}
    assert sizes(plan) == [9]


def test_a_recreated_topic_restarts_as_a_new_incarnation():
    """Under `restart` all partitions begin the next incarnation at their log start, without a loss."""
    plan = plan_of(
        {tp(0): at(40), tp(1): at(400, incarnation=2)},
        {tp(p): log(3, 10, topic_id="B") for p in range(3)},
        policy=RESTART,
    )
    assert plan.positions == {tp(p): at(10, start=3, incarnation=3, topic_id="B") for p in range(3)}
    assert {(p.incarnation, p.topic_id) for batch in plan.batches for p in batch} == {(3, "B")}
    assert (plan.losses, plan.stops) == ((), ())


def test_a_topic_recreated_with_fewer_partitions_misses_none():
    """Partitions that only the old topic had are gone with it."""
    plan = plan_of({tp(0): at(40), tp(1): at(40)}, {tp(0): log(0, 10, topic_id="B")}, policy=RESTART)
    assert plan.stops == ()
    assert set(plan.positions) == {tp(0)}


def test_recreation_is_noticed_although_the_new_topic_is_longer():
    """A new topic that has overtaken the old offset is not read from there."""
    assert codes(plan_of({tp(0): at(40)}, {tp(0): log(0, 500, topic_id="B")}))[0][0] == "TOPIC_RECREATED"


def test_after_a_reset_of_one_partition_only_the_others_are_stopped():
    """A partition that an operator moved to the new topic goes on; the rest waits for the choice."""
    plan = plan_of(
        {tp(0): at(0, incarnation=1, topic_id="B"), tp(1): at(40)},
        {tp(p): log(0, 10, topic_id="B") for p in range(3)},
    )
    assert codes(plan) == [("TOPIC_RECREATED", "orders", None)]
    assert [taken(batch) for batch in plan.batches] == [{0: (0, 10), 2: (0, 10)}]
    assert {p.incarnation for p in plan.batches[0]} == {1}


@pytest.mark.parametrize("policy", [Policy(), RESTART])
def test_an_id_that_becomes_known_is_adopted(policy):
    """No id, then one: the same topic; the position learns it."""
    plan = plan_of({tp(0): at(40, topic_id=None)}, {tp(0): log(0, 40)}, policy=policy)
    assert plan.positions == {tp(0): at(40)}
    assert plan.stops == ()


@pytest.mark.parametrize("policy", [Policy(), RESTART])
def test_an_id_that_becomes_unknown_is_kept(policy):
    """An id, then none: nothing is known of it, and what was known stays."""
    plan = plan_of({tp(0): at(40)}, {tp(0): log(0, 50, topic_id=None)}, policy=policy)
    assert plan.positions == {tp(0): at(50)}
    assert plan.batches[0][0].topic_id == "A"


def test_no_id_is_not_adopted_by_a_topic_known_to_be_recreated():
    """Where another partition shows a recreation, a position without an id is of the old topic."""
    plan = plan_of(
        {tp(0): at(40), tp(1): at(40, topic_id=None)}, {tp(p): log(0, 90, topic_id="B") for p in (0, 1)}
    )
    assert codes(plan) == [("TOPIC_RECREATED", "orders", None)]
    assert plan.batches == ()


def test_a_truncated_log_stops_its_partition():
    """A log that ends below the plan, confirmed, stops the partition with both offsets and the choice."""
    plan = plan_of([100, 0], [90, 20], truncated=[tp(0)])
    assert codes(plan) == [("LOG_TRUNCATED", "orders", 0)]
    message = plan.stops[0].message
    assert "orders[0]: the log ends at 90, and was planned until 100. 10 or more" in message
    assert "reset STREAM --to orders:0:0 --yes" in message
    assert [taken(batch) for batch in plan.batches] == [{1: (0, 20)}]
    assert set(plan.positions) == {tp(1)}


def test_a_truncated_log_begins_a_new_incarnation_under_skip():
    """Under `skip` the truncated log is read from its start as another incarnation, with no loss."""
    plan = plan_of({tp(0): at(100, epoch=4)}, {tp(0): log(7, 90, epoch=6)}, truncated=[tp(0)], policy=SKIP)
    assert plan.positions == {tp(0): at(90, start=7, incarnation=1, epoch=6)}
    assert plan.losses == ()
    assert plan.stops == ()


def test_an_end_that_goes_backwards_moves_nothing():
    """A stale answer of a new leader never moves a position backwards (SPARK-26267)."""
    plan = plan_of([100], [90], policy=SKIP)
    assert (plan.positions, plan.batches, plan.stops, plan.losses) == ({}, (), (), ())
    assert (
        "orders[0]: the high watermark 90 is below the planned end 100, which is not confirmed" in plan.reason
    )


def test_an_open_transaction_is_waited_for():
    """A last stable offset below the plan holds records back; the reason counts them."""
    plan = plan_of({tp(0): at(100)}, {tp(0): log(0, 90, 120)})
    assert (plan.positions, plan.batches, plan.stops) == ({}, (), ())
    assert plan.held_back == 30
    assert plan.reason == (
        "caught up: 100 offsets planned over 1 topic-partitions;"
        " 30 offsets held back by open transactions on orders[0]"
    )


def test_no_partitions_at_all_reset_nothing():
    """An empty answer of the brokers forgets no position (SPARK-41375)."""
    plan = plan_of([100, 100], {})
    assert (plan.positions, plan.batches, plan.losses) == ({}, (), ())


def test_a_missing_topic_stops_and_others_go_on():
    """A configured topic that is not there is a stop that says what was planned of it."""
    plan = plan_of(
        {tp(0): at(40), tp(1): at(2)}, {tp(0, "payments"): log(0, 9)}, missing_topics=["orders", "refunds"]
    )
    assert codes(plan) == [("TOPIC_MISSING", "orders", None), ("TOPIC_MISSING", "refunds", None)]
    assert "topic orders is not there" in plan.stops[0].message
    assert "42 offsets of it were planned" in plan.stops[0].message
    assert "nothing of it was ever planned" in plan.stops[1].message
    assert sizes(plan) == [9]


def test_a_partition_that_is_gone_stops():
    """A partition that was read and is gone while its topic is there is a stop of that partition."""
    plan = plan_of([40, 40], [50])
    assert codes(plan) == [("TOPIC_MISSING", "orders", 1)]
    assert sizes(plan) == [10]


def test_a_partition_no_longer_assigned_is_ignored():
    """Under `assign` a partition with a position and without bounds is one that is not named any more."""
    assert plan_of([40, 40], [50], whole_topics=False).stops == ()


def test_a_missing_partition_can_be_named():
    """An assigned partition that is not there stops alone, once."""
    plan = plan_of([40, 40], [50], missing_topics=["orders[1]"])
    assert codes(plan) == [("TOPIC_MISSING", "orders", 1)]
    assert plan.stops[0].message.startswith("topic-partition orders[1] is not there")


def test_topics_no_longer_selected_are_ignored():
    """Positions of topics that are neither there nor missing belong to what the stream read before."""
    plan = plan_of({tp(0): at(40), tp(0, "old"): at(7)}, {tp(0): log(0, 50)})
    assert plan.stops == ()
    assert set(plan.positions) == {tp(0)}


def test_the_leader_epoch_follows_the_position():
    """A range carries the epoch under which its start was known to be there, the position that of its end.

    Where the brokers gave none there, an earlier one would say of a later leader's offsets that they were cut off.
    """
    plan = plan_of({tp(0): at(0, epoch=4)}, {tp(0): log(0, 150, epoch=5)})
    assert [batch[0].leader_epoch for batch in plan.batches] == [4, 5]
    assert plan.positions[tp(0)].leader_epoch == 5
    unknown = plan_of({tp(0): at(0, epoch=4)}, {tp(0): log(0, 50)})
    assert unknown.positions[tp(0)].leader_epoch is None


def test_many_stops_are_named_in_short():
    """The reason names a few stops and counts the others."""
    plan = plan_of([0] * 5, {tp(p): log(10, 20) for p in range(5)})
    assert plan.reason == (
        "stopped: DATA_LOST orders[0], DATA_LOST orders[1], DATA_LOST orders[2] and 2 more"
    )

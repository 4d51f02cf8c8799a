from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets.offsets import OffsetRange, first_flaw
from kafka_assets.planning import Limits, LogBounds, Policy, Position, plan, share
from kafka_assets_tests.planning_cases import NOW, tp

# How long an example takes says more of the machine than of the code.
untimed = settings(deadline=None)

ids = st.sampled_from([None, "A", "B"])
limits = st.builds(
    Limits,
    max_records_per_batch=st.integers(1, 60),
    max_records_per_partition_per_second=st.none() | st.floats(0.001, 3),
    max_bytes_per_batch=st.integers(1, 1000),
    bytes_per_record=st.none() | st.floats(0.01, 500),
    min_records_per_batch=st.integers(1, 60),
    max_batches_in_flight=st.integers(1, 6),
)
policies = st.builds(Policy, st.sampled_from(["fail", "skip"]), st.sampled_from(["fail", "restart"]))
keys = st.builds(tp, st.integers(0, 4), st.sampled_from(["orders", "payments"]))


@st.composite
def log_bounds(draw):
    start, end, high = sorted(draw(st.lists(st.integers(0, 300), min_size=3, max_size=3)))
    return LogBounds(start, end, high, draw(ids), draw(st.none() | st.integers(0, 9)))


@st.composite
def known_positions(draw):
    start, until = sorted(draw(st.tuples(st.integers(0, 300), st.integers(0, 300))))
    return Position(draw(ids), draw(st.integers(0, 3)), start, until, draw(st.none() | st.integers(0, 9)))


@st.composite
def situations(draw):
    """Whatever the ledger and the brokers may say, contradictions included."""
    return {
        "positions": draw(st.dictionaries(keys, known_positions(), max_size=8)),
        "bounds": draw(st.dictionaries(keys, log_bounds(), max_size=10)),
        "starts": draw(st.dictionaries(keys, st.integers(0, 320), max_size=8)),
        "limits": draw(limits),
        "policy": draw(policies),
        "now": NOW,
        "last_planned_at": draw(st.none() | st.floats(NOW - 100, NOW)),
        "open_batches": draw(st.integers(0, 6)),
        "missing_topics": draw(st.sets(st.sampled_from(["orders", "payments", "orders[0]"]))),
        "truncated": draw(st.sets(keys)),
        "drain": draw(st.booleans()),
        "blocked_batches": draw(st.integers(0, 11)),
    }


@untimed
@given(situations())
def test_plans_tile_the_log(facts):
    """Losses and ranges follow one another from the old position to the new one, none beyond the end."""
    made = plan(**facts)
    for key, after in made.positions.items():
        before = facts["positions"].get(key)
        same = before is not None and before.incarnation == after.incarnation
        begin = before.planned_until if same else after.start_offset
        pieces = [
            OffsetRange(key.topic, key.partition, loss.from_offset, loss.until_offset)
            for loss in made.losses
            if loss.topic_partition == key
        ]
        planned = [p for batch in made.batches for p in batch if p.range.topic_partition == key]
        assert (
            first_flaw(
                [*pieces, *(p.range for p in planned)],
                OffsetRange(key.topic, key.partition, begin, after.planned_until),
            )
            is None
        )
        assert [p.range for p in planned] == sorted(p.range for p in planned)
        for p in planned:
            assert p.range.size
            assert facts["bounds"][key].log_start <= p.range.from_offset
            assert p.range.until_offset <= facts["bounds"][key].end
            assert (p.incarnation, p.topic_id) == (after.incarnation, after.topic_id)
    named = {p.range.topic_partition for batch in made.batches for p in batch}
    assert named | {loss.topic_partition for loss in made.losses} <= set(made.positions)


@untimed
@given(situations())
def test_positions_never_move_backwards(facts):
    """Whatever the brokers answer, a position moves forwards or to a later incarnation."""
    for key, after in plan(**facts).positions.items():
        before = facts["positions"].get(key)
        if before is not None:
            assert (before.incarnation, before.planned_until) <= (after.incarnation, after.planned_until)
            assert after.incarnation > before.incarnation or after.start_offset == before.start_offset


@untimed
@given(situations())
def test_every_limit_is_kept(facts):
    """A batch exceeds its limit by less than its partitions, and no more are open than may be."""
    made = plan(**facts)
    given_limits = facts["limits"]
    cap = given_limits.records_per_partition
    for batch in made.batches:
        assert batch
        assert sum(p.range.size for p in batch) < given_limits.records + len(batch)
        assert cap is None or all(p.range.size <= cap for p in batch)
    if made.batches:
        assert facts["open_batches"] + len(made.batches) <= given_limits.max_batches_in_flight
        assert cap is None or len(made.batches) == 1


@untimed
@given(situations())
def test_no_batch_always_has_a_reason(facts):
    """There is a reason exactly if there is no batch."""
    made = plan(**facts)
    assert bool(made.reason) is not bool(made.batches)
    assert made.lag >= 0


@untimed
@given(situations())
def test_stopped_partitions_are_not_planned(facts):
    """Of what has a stop no offset is planned or booked as lost."""
    made = plan(**facts)
    stopped = {(stop.topic, stop.partition) for stop in made.stops if stop.code != "TOPIC_RECREATED"}
    named = [p.range.topic_partition for batch in made.batches for p in batch]
    for key in [*named, *(loss.topic_partition for loss in made.losses)]:
        assert (key.topic, key.partition) not in stopped
        assert (key.topic, None) not in stopped


@untimed
@given(situations())
def test_the_same_facts_make_the_same_plan(facts):
    """A plan depends on nothing but its arguments, not on the order of a mapping either."""
    turned = facts | {name: dict(reversed(facts[name].items())) for name in ("positions", "bounds", "starts")}
    assert plan(**facts) == plan(**turned)


@untimed
@given(situations())
def test_a_plan_that_was_written_is_not_made_again(facts):
    """After a plan is written, nothing that it booked or settled comes again."""
    made = plan(**facts)
    written = facts["positions"] | made.positions
    again = plan(**facts | {"positions": written, "truncated": [], "open_batches": 99})
    assert again.losses == ()
    assert again.positions == {}


@untimed
@given(
    st.dictionaries(keys, log_bounds().map(lambda b: replace(b, topic_id="A")), min_size=1, max_size=10),
    limits,
)
def test_draining_comes_to_an_end(bounds, given_limits):
    """Plan after plan reaches every end, and each batch has offsets of every partition with lag."""
    positions, seen = {}, []
    for _ in range(sum(bound.end - bound.log_start for bound in bounds.values()) + 1):
        made = plan(
            positions,
            bounds,
            starts={},
            limits=given_limits,
            policy=Policy(),
            now=NOW,
            last_planned_at=None,
            open_batches=0,
            drain=True,
        )
        if made.batches:
            lagging = {
                key
                for key, bound in bounds.items()
                if (positions[key].planned_until if key in positions else bound.log_start) < bound.end
            }
            assert {p.range.topic_partition for p in made.batches[0]} == lagging
        positions |= made.positions
        seen += [p.range for batch in made.batches for p in batch]
        if not made.batches:
            break
    assert not made.batches
    assert made.lag == 0
    for key, bound in bounds.items():
        own = [r for r in seen if r.topic_partition == key]
        assert first_flaw(own, OffsetRange(key.topic, key.partition, bound.log_start, bound.end)) is None


@untimed
@given(st.lists(st.integers(0, 2**63), max_size=20), st.integers(1, 2**63))
def test_shares_stay_within_lag_and_limit(lags, limit):
    """Each partition with lag gets something and at most its lag, all less than limit + partitions."""
    takes = share(lags, limit)
    assert all(bool(take) is bool(lag) and take <= lag for take, lag in zip(takes, lags, strict=True))
    assert sum(takes) < limit + max(len(lags), 1)

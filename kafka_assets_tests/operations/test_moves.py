from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets.errors import DataLostError, KafkaAssetsError, TopicMissingError, UsageInvalidError
from kafka_assets.offsets import OffsetRange, PlannedRange, first_flaw
from kafka_assets.operations.moves import Sight, Target, chunks, history, move, settlements
from kafka_assets.planning import Limits, LogBounds, Position
from kafka_assets.starting import AtTimestamp, Earliest, Latest
from kafka_assets_tests.planning_cases import at, log, tp
from kafka_assets_tests.test_planning_properties import (
    ids,
    keys,
    known_positions,
    limits,
    log_bounds,
    untimed,
)

EARLIEST, LATEST = Target("earliest", Earliest()), Target("latest", Latest())
NOON = Target("2026-01-01T12:00:00Z", AtTimestamp(1_767_268_800_000))
LIMITS = Limits(max_records_per_batch=40)


def to(offset: int, partition: int = 0) -> Target:
    return Target(f"orders:{partition}:{offset}", None, {tp(partition): offset})


def sight(
    position: Position | None, bound: LogBounds | None, *, truncated=False, found=None, others=None
) -> Sight:
    positions = {tp(0): position} if position else {}
    bounds = {tp(0): bound} if bound else {}
    return Sight(
        positions | (others or {}),
        bounds,
        bounds.keys(),
        {tp(0)} if truncated else (),
        {tp(0): found},
    )


def moved(
    seen: Sight, target: Target, *, keep_hole: bool = False
) -> tuple[int, int, int, list, tuple | None]:
    """Incarnation, from, to, lost stretches and hole of the one change."""
    made = move(seen, target, limits=LIMITS, keep_hole=keep_hole)
    (change,) = made.changes
    assert made.plan.positions[tp(0)].planned_until == change.to_offset
    assert made.plan.positions[tp(0)].incarnation == change.incarnation
    return (
        change.incarnation,
        change.from_offset,
        change.to_offset,
        [(one.from_offset, one.until_offset) for one in change.lost],
        (change.hole.from_offset, change.hole.until_offset) if change.hole else None,
    )


NORMAL = sight(at(50), log(10, 100, 110), found=70)
LOST = sight(at(50), log(60, 100, 110), found=70)
RECREATED = sight(at(50), log(5, 30, topic_id="B"), found=20)
TRUNCATED = sight(at(50), log(5, 30), truncated=True, found=20)


@pytest.mark.parametrize(
    ("seen", "target", "change"),
    [
        (NORMAL, LATEST, (0, 50, 100, [(50, 100)], None)),
        (NORMAL, NOON, (0, 50, 70, [(50, 70)], None)),
        (NORMAL, to(80), (0, 50, 80, [(50, 80)], None)),
        (NORMAL, to(110), (0, 50, 110, [(50, 110)], None)),
        (LOST, EARLIEST, (0, 50, 60, [(50, 60)], None)),
        (LOST, LATEST, (0, 50, 100, [(50, 60), (60, 100)], None)),
        (LOST, to(60), (0, 50, 60, [(50, 60)], None)),
        (RECREATED, EARLIEST, (1, 50, 5, [], None)),
        (RECREATED, LATEST, (1, 50, 30, [(5, 30)], None)),
        (RECREATED, NOON, (1, 50, 20, [(5, 20)], None)),
        (RECREATED, to(12), (1, 50, 12, [(5, 12)], None)),
        (TRUNCATED, EARLIEST, (1, 50, 5, [], None)),
        (TRUNCATED, LATEST, (1, 50, 30, [(5, 30)], None)),
        (TRUNCATED, to(30), (1, 50, 30, [(5, 30)], None)),
    ],
)
def test_where_a_reset_leads(seen, target, change):
    """Forwards within an incarnation, anywhere in a new one; what is passed over is lost, from the log start."""
    assert moved(seen, target) == change


@pytest.mark.parametrize(
    ("seen", "target", "change"),
    [
        (NORMAL, LATEST, (0, 50, 100, [], (50, 100))),
        (LOST, LATEST, (0, 50, 100, [(50, 60)], (60, 100))),
        (LOST, EARLIEST, (0, 50, 60, [(50, 60)], None)),
        (RECREATED, to(12), (1, 50, 12, [], (5, 12))),
    ],
)
def test_a_kept_hole_is_what_the_log_still_has(seen, target, change):
    """With `keep_hole` only what Kafka has deleted is lost."""
    assert moved(seen, target, keep_hole=True) == change


@pytest.mark.parametrize(
    ("seen", "target"),
    [
        (NORMAL, EARLIEST),
        (NORMAL, to(50)),
        (sight(at(100), log(10, 100)), LATEST),
        (sight(at(100), log(10, 90)), LATEST),
        (sight(at(50), None), EARLIEST),
        (NORMAL, Target("1969-01-01T00:00:00Z", AtTimestamp(-1))),
    ],
)
def test_what_is_there_already_is_no_change(seen, target):
    """`earliest` and `latest` leave a position alone that needs no move, a missing topic has none to make."""
    made = move(seen, target, limits=LIMITS)
    assert (made.changes, made.plan.positions, made.plan.losses) == ((), {}, ())


@pytest.mark.parametrize(
    ("seen", "target", "error", "words"),
    [
        (NORMAL, to(49), UsageInvalidError, "`kafka-assets replay`"),
        (NORMAL, to(5), UsageInvalidError, "backwards"),
        (sight(at(50), log(10, 100), found=20), NOON, UsageInvalidError, "means 20"),
        (NORMAL, to(111), UsageInvalidError, "beyond the end"),
        (NORMAL, to(1, partition=7), UsageInvalidError, "does not read"),
        (LOST, to(55), DataLostError, "orders:0:60"),
        (RECREATED, to(4), DataLostError, "below the log start"),
        (RECREATED, to(31), UsageInvalidError, "beyond the end"),
        (sight(at(50), None), to(60), TopicMissingError, "is not there"),
        (sight(None, log(0, 9)), LATEST, UsageInvalidError, "starting_offsets"),
    ],
)
def test_refused_targets(seen, target, error, words):
    """Backwards within an incarnation, outside of the log, or of what the stream does not read: refused, with why."""
    with pytest.raises(error, match=words):
        move(seen, target, limits=LIMITS)


def test_a_partition_that_was_never_planned_has_its_log_start_to_go_from():
    """A new partition of a known stream is moved as from its log start; the others are not touched."""
    seen = Sight({tp(0): at(5)}, {tp(0): log(0, 9), tp(1): log(2, 8)}, {tp(0), tp(1)})
    made = move(seen, to(6, partition=1), limits=LIMITS)
    assert made.plan.positions == {tp(1): at(6, start=2)}
    assert [(one.from_offset, one.until_offset) for one in made.plan.losses] == [(2, 6)]


def ranges_of(*stretches, topic_id="A", incarnation=0) -> tuple[PlannedRange, ...]:
    return tuple(
        PlannedRange(OffsetRange("orders", 0, low, high), incarnation, topic_id) for low, high in stretches
    )


@pytest.mark.parametrize(
    ("seen", "planned", "readable", "gone"),
    [
        (sight(at(50), log(30, 100)), (20, 50), [(30, 50)], [(20, 30)]),
        (sight(at(50), log(60, 100)), (20, 50), [], [(20, 50)]),
        (sight(at(50), log(0, 100, topic_id="B")), (20, 50), [], [(20, 50)]),
        (sight(at(50), None), (20, 50), [], [(20, 50)]),
        (sight(at(50), log(25, 30), truncated=True), (20, 50), [(25, 30)], [(20, 25), (30, 50)]),
        (sight(at(50), log(0, 10), truncated=True), (20, 50), [], [(20, 50)]),
        (sight(at(12, incarnation=1), log(0, 40)), (20, 50), [], [(20, 50)]),
    ],
)
def test_how_an_open_batch_is_settled(seen, planned, readable, gone):
    """What the log still has of the same records is fetched; the rest is lost, and nothing else."""
    (one,) = settlements({"k": ranges_of(planned)}, (), seen)
    assert [(r.range.from_offset, r.range.until_offset) for r in one.readable] == readable
    assert [(r.range.from_offset, r.range.until_offset) for r in one.gone] == gone


def test_a_batch_that_can_be_fetched_is_left_alone_unless_it_was_stopped():
    """Its records may be there again: then all of it is fetched."""
    ranges = {"k": ranges_of((20, 50))}
    assert settlements(ranges, (), NORMAL) == ()
    (one,) = settlements(ranges, ("k",), NORMAL)
    assert (one.readable, one.gone) == (ranges["k"], ())


@pytest.mark.parametrize(
    ("target", "start"),
    [(EARLIEST, 10), (to(25), 25), (NOON, 30), (to(50), None), (to(99), None)],
)
def test_history_goes_down_to_the_target(target, start):
    """From the target to the first offset, no lower than the log start; beyond it there is nothing to do."""
    seen = sight(at(80, start=50), log(10, 100), found=30)
    made = history(seen, target, limits=LIMITS)
    assert {key: position.start_offset for key, position in made.positions.items()} == (
        {} if start is None else {tp(0): start}
    )
    pieces = [one.range for batch in made.batches for one in batch]
    assert first_flaw(pieces, OffsetRange("orders", 0, start or 50, 50)) is None
    assert pieces == sorted(pieces)
    newest = history(seen, target, limits=LIMITS, newest_first=True)
    assert [one.range for batch in newest.batches for one in batch] == sorted(
        (one.range for batch in newest.batches for one in batch), reverse=True
    )
    assert newest.positions == made.positions


def test_history_of_another_log_is_a_stop():
    """What was created again or truncated has no history; an offset that is gone is refused."""
    for seen, code in ((RECREATED, "TOPIC_RECREATED"), (TRUNCATED, "LOG_TRUNCATED")):
        made = history(seen, EARLIEST, limits=LIMITS)
        assert ([stop.code for stop in made.stops], made.batches) == ([code], ())
    with pytest.raises(DataLostError, match="below the log start"):
        history(sight(at(80, start=50), log(10, 100)), to(9), limits=LIMITS)


@st.composite
def sights(draw):
    """Whatever the ledger and the brokers may say."""
    bounds = draw(st.dictionaries(keys, log_bounds(), max_size=8))
    return Sight(
        draw(st.dictionaries(keys, known_positions(), min_size=1, max_size=8)),
        bounds,
        bounds.keys(),
        draw(st.sets(keys)),
        draw(st.dictionaries(keys, st.none() | st.integers(0, 320))),
    )


targets = st.sampled_from([EARLIEST, LATEST, NOON]) | st.dictionaries(
    keys, st.integers(0, 320), min_size=1, max_size=3
).map(lambda places: Target("places", None, places))


@untimed
@given(sights(), targets, limits, st.booleans())
def test_a_move_tiles_what_it_passes_over(seen, target, given_limits, keep_hole):
    """Losses and holes are exactly the offsets between the old place and the new one, and nothing goes backwards."""
    try:
        made = move(seen, target, limits=given_limits, keep_hole=keep_hole)
    except KafkaAssetsError:
        return
    pieces = [
        OffsetRange(
            one.topic_partition.topic, one.topic_partition.partition, one.from_offset, one.until_offset
        )
        for one in made.plan.losses
    ]
    pieces += [one.range for batch in made.plan.batches for one in batch]
    assert {one.topic_partition for one in pieces} <= set(made.plan.positions)
    for change in made.changes:
        key, after = change.topic_partition, made.plan.positions[change.topic_partition]
        before, bound = seen.positions.get(key), seen.bounds[key]
        same = before is not None and before.incarnation == after.incarnation
        begin = before.planned_until if same else after.start_offset
        own = [one for one in pieces if one.topic_partition == key]
        assert first_flaw(own, OffsetRange(key.topic, key.partition, begin, after.planned_until)) is None
        assert change.skipped == after.planned_until - begin
        assert bound.log_start <= after.planned_until <= bound.high_watermark
        assert same is (change.begins is None and before is not None)
        if same:
            assert after.start_offset == before.start_offset
            assert after.planned_until > before.planned_until
        elif before is not None:
            assert after.incarnation > before.incarnation
    for batch in made.plan.batches:
        for one in batch:
            assert keep_hole
            assert one.range.from_offset >= seen.bounds[one.range.topic_partition].log_start


@untimed
@given(sights(), targets, limits)
def test_a_move_that_was_written_is_not_made_again(seen, target, given_limits):
    """The same reset again changes nothing."""
    try:
        made = move(seen, target, limits=given_limits)
    except KafkaAssetsError:
        return
    written = {**seen.positions, **made.plan.positions}
    again = move(replace(seen, positions=written, truncated=()), target, limits=given_limits)
    # What was left alone for want of truncation may be refused or moved no more, but what moved stays.
    assert not {change.topic_partition for change in again.changes} & set(made.plan.positions)


@untimed
@given(
    sights(), st.dictionaries(st.sampled_from("abc"), st.lists(st.tuples(keys, ids), max_size=4)), st.data()
)
def test_settlements_tile_their_batches(seen, batches, data):
    """Each offset of a settled batch is either fetched or lost, and what is fetched is in the log."""
    ranges = {
        key: [
            PlannedRange(OffsetRange(place.topic, place.partition, *sorted(span)), 0, topic_id)
            for place, topic_id in {place: (place, topic_id) for place, topic_id in places}.values()
            for span in [data.draw(st.tuples(st.integers(0, 300), st.integers(0, 300)))]
        ]
        for key, places in batches.items()
    }
    for one in settlements(ranges, (), seen):
        assert one.gone
        for planned in ranges[one.batch]:
            parts = [
                part.range
                for part in (*one.readable, *one.gone)
                if part.range.topic_partition == planned.range.topic_partition
            ]
            assert first_flaw(parts, planned.range) is None
        for part in one.readable:
            bound = seen.bounds[part.range.topic_partition]
            assert part.range.from_offset >= bound.log_start
            assert bound.topic_id in (None, part.topic_id) or part.topic_id is None


@untimed
@given(sights(), targets, limits, st.booleans())
def test_history_tiles_what_lies_before(seen, target, given_limits, newest_first):
    """The batches are exactly the offsets by which the first ones go down, each in the log, none beyond the limits."""
    try:
        made = history(seen, target, limits=given_limits, newest_first=newest_first)
    except KafkaAssetsError:
        return
    pieces = [one for batch in made.batches for one in batch]
    assert {one.range.topic_partition for one in pieces} == set(made.positions)
    for key, after in made.positions.items():
        before = seen.positions[key]
        own = [one.range for one in pieces if one.range.topic_partition == key]
        assert (after.incarnation, after.planned_until) == (before.incarnation, before.planned_until)
        cover = OffsetRange(key.topic, key.partition, after.start_offset, before.start_offset)
        assert first_flaw(own, cover) is None
        assert seen.bounds[key].log_start <= after.start_offset
    for batch in made.batches:
        assert sum(one.range.size for one in batch) < given_limits.records + len(batch)


@settings(deadline=None)
@given(
    st.dictionaries(keys, st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=8),
    limits,
    st.booleans(),
)
def test_chunks_keep_the_order(spans, given_limits, newest_first):
    """Of each topic-partition the batches go upwards, or downwards if the newest are wanted first."""
    ranges = [
        PlannedRange(OffsetRange(key.topic, key.partition, *sorted(span))) for key, span in spans.items()
    ]
    made = chunks(ranges, given_limits, newest_first=newest_first)
    for whole in ranges:
        key = whole.range.topic_partition
        own = [one.range for batch in made for one in batch if one.range.topic_partition == key]
        assert own == sorted(own, reverse=newest_first)
        assert first_flaw(own, whole.range) is None

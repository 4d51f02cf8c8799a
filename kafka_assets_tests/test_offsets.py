from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets.offsets import OffsetRange, Relation, TilingFlaw, TopicPartition, first_flaw, merge

# How long an example takes says more of the machine than of the code.
untimed = settings(deadline=None)


def orders(start: int, end: int, partition: int = 0) -> OffsetRange:
    return OffsetRange("orders", partition, start, end)


ranges = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda ends: orders(min(ends), max(ends)))


def offsets(*given_ranges: OffsetRange) -> list[int]:
    return sorted(o for r in given_ranges for o in range(r.from_offset, r.until_offset))


def test_prints_as_topic_partition_and_half_open_interval():
    """A range prints the way logs and messages show it."""
    assert str(orders(1200, 2400, 3)) == "orders[3] [1200, 2400)"
    assert orders(1200, 2400, 3).topic_partition == TopicPartition("orders", 3)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 2)])
def test_refuses_what_is_no_range(start, end):
    """Negative offsets and an end before the start are errors that name the values."""
    with pytest.raises(ValueError, match=rf"from {start} until {end} for orders\[0\]"):
        orders(start, end)


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        ((10, 20), (10, 20), Relation.SAME),
        ((0, 9), (10, 20), Relation.BEFORE),
        ((0, 10), (10, 20), Relation.ENDS_AT),
        ((30, 40), (10, 20), Relation.AFTER),
        ((20, 40), (10, 20), Relation.BEGINS_AT),
        ((10, 21), (10, 20), Relation.CONTAINS),
        ((5, 25), (10, 20), Relation.CONTAINS),
        ((12, 20), (10, 20), Relation.WITHIN),
        ((5, 15), (10, 20), Relation.OVERLAPS_START),
        ((15, 25), (10, 20), Relation.OVERLAPS_END),
        ((5, 5), (5, 5), Relation.SAME),
        ((5, 5), (7, 7), Relation.BEFORE),
        ((10, 10), (10, 20), Relation.ENDS_AT),
        ((15, 15), (10, 20), Relation.WITHIN),
        ((20, 20), (10, 20), Relation.BEGINS_AT),
    ],
)
def test_names_the_relation_of_two_ranges(first, second, relation):
    """Every pair of ranges has one named relation, empty ranges included, and the other way its converse."""
    assert orders(*first).relation_to(orders(*second)) is relation
    assert orders(*second).relation_to(orders(*first)) is relation.converse


@pytest.mark.parametrize("other", [OffsetRange("orders", 1, 0, 9), OffsetRange("payments", 0, 0, 9)])
def test_ranges_of_different_logs_are_unrelated(other):
    """Equal offsets of another partition or topic have nothing to do with one another."""
    assert orders(0, 9).relation_to(other) is Relation.UNRELATED
    assert orders(0, 9).intersect(other) is None
    assert orders(0, 9).subtract(other) == (orders(0, 9),)


@untimed
@given(ranges, ranges)
def test_the_relation_is_total_and_has_a_converse(a, b):
    """Whatever the two ranges, the relation read from the other side is its converse."""
    assert b.relation_to(a) is a.relation_to(b).converse
    assert a.relation_to(b) is not Relation.UNRELATED


@untimed
@given(ranges, ranges)
def test_intersection_and_difference_part_a_range(a, b):
    """What two ranges share and what the first has alone are together the first, with nothing twice."""
    common = a.intersect(b)
    alone = a.subtract(b)
    assert all(part.size for part in alone)
    assert common is None or common.size
    assert offsets(*alone, *([common] if common else [])) == offsets(a)
    assert set(offsets(*alone)).isdisjoint(offsets(b))


@untimed
@given(ranges, st.data())
def test_a_split_range_tiles_itself(whole, data):
    """The two parts of a split cover the range exactly, wherever it is split."""
    parts = whole.split_at(data.draw(st.integers(whole.from_offset, whole.until_offset)))
    assert first_flaw(parts, whole) is None


@pytest.mark.parametrize("offset", [9, 21])
def test_refuses_to_split_outside(offset):
    """A split outside of the range is an error that names both."""
    with pytest.raises(ValueError, match=rf"orders\[0\] \[10, 20\) cannot be split at {offset}"):
        orders(10, 20).split_at(offset)


@pytest.mark.parametrize(
    ("tiles", "flaw"),
    [
        ([(0, 4), (4, 10)], None),
        ([(4, 10), (0, 4), (4, 4)], None),
        ([], TilingFlaw("gap", orders(0, 10))),
        ([(0, 4), (5, 10)], TilingFlaw("gap", orders(4, 5))),
        ([(2, 10)], TilingFlaw("gap", orders(0, 2))),
        ([(0, 8)], TilingFlaw("gap", orders(8, 10))),
        ([(0, 8), (12, 14)], TilingFlaw("gap", orders(8, 10))),
        ([(0, 6), (4, 10)], TilingFlaw("overlap", orders(4, 6))),
        ([(0, 10), (3, 5)], TilingFlaw("overlap", orders(3, 5))),
        ([(0, 10), (0, 10)], TilingFlaw("overlap", orders(0, 10))),
        ([(0, 12)], TilingFlaw("outside", orders(10, 12))),
        ([(0, 10), (12, 14)], TilingFlaw("outside", orders(12, 14))),
    ],
)
def test_reports_the_first_flaw_of_a_tiling(tiles, flaw):
    """Ranges tile another if each of its offsets is in exactly one; else the lowest flaw is named."""
    assert first_flaw([orders(*tile) for tile in tiles], orders(0, 10)) == flaw


def test_reports_what_lies_below_the_cover():
    """A tile that begins below the range to cover is outside of it."""
    assert first_flaw([orders(3, 8)], orders(5, 8)) == TilingFlaw("outside", orders(3, 5))
    assert str(TilingFlaw("outside", orders(3, 5))) == "outside at orders[0] [3, 5)"


def test_refuses_to_tile_with_another_partition():
    """A range of another topic-partition in a tiling is a mistake of the caller."""
    with pytest.raises(ValueError, match="another topic-partition"):
        first_flaw([orders(0, 10, 1)], orders(0, 10))


@untimed
@given(st.lists(ranges, max_size=5), ranges)
def test_no_flaw_means_that_every_offset_is_covered_once(tiles, cover):
    """The check agrees with counting the offsets one by one."""
    assert (first_flaw(tiles, cover) is None) == (offsets(*tiles) == offsets(cover))


@untimed
@given(st.lists(ranges, max_size=6))
def test_merging_keeps_the_offsets_in_the_fewest_ranges(given_ranges):
    """Merged ranges hold the same offsets, none twice, none empty, no two of them touching."""
    merged = merge(given_ranges)
    assert offsets(*merged) == sorted(set(offsets(*given_ranges)))
    assert all(a.relation_to(b) is Relation.BEFORE for a, b in pairwise(merged))


def test_merging_keeps_logs_apart():
    """Ranges of different topic-partitions are never merged, and come out in order."""
    assert merge([orders(5, 9, 1), orders(0, 5, 0), orders(5, 9, 0), orders(9, 9, 2)]) == (
        orders(0, 9, 0),
        orders(5, 9, 1),
    )

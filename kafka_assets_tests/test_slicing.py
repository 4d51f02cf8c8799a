from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets.offsets import OffsetRange, PlannedRange, first_flaw
from kafka_assets.slicing import slice_ranges

# How long an example takes says more of the machine than of the code.
untimed = settings(deadline=None)


def planned(topic: str, start: int, end: int) -> PlannedRange:
    return PlannedRange(OffsetRange(topic, 1, start, end), incarnation=2, topic_id="id", leader_epoch=7)


def as_tuples(pieces):
    return [(piece.range.topic, piece.range.from_offset, piece.range.until_offset) for piece in pieces]


def ranges_of(sizes):
    return [planned(f"t{i:02}", 100, 100 + size) for i, size in enumerate(sizes)]


size_lists = st.lists(st.integers(0, 3000), max_size=12)


SPARK_TASKS = [
    ([1, 1, 1], 3, [1, 1, 1]),
    ([4], 4, [1, 1, 1, 1]),
    ([4, 20], 4, [4, 6, 7, 7]),
    ([0, 20], 4, [5, 5, 5, 5]),
    ([1, 1000], 4, [1, 333, 333, 334]),
    ([4, 20], 1, [4, 20]),
    ([10], 3, [3, 3, 4]),
    ([10, 10, 1], 6, [3, 3, 4, 3, 3, 4, 1]),
    ([10_000, 15_000, 20_000], 9, [5000] * 9),
    ([500, 12_000, 15_001], 6, [500, 6000, 6000, 5000, 5000, 5001]),
    ([1, 1, 10_000], 6, [1, 1, 2500, 2500, 2500, 2500]),
    ([1, 1, 2], 4, [1, 1, 1, 1]),
]
"""Sizes of ranges, minPartitions and the sizes of the tasks that Spark's own tests expect of them."""


@pytest.mark.parametrize(("sizes", "least", "tasks"), SPARK_TASKS)
def test_no_slice_is_larger_than_the_largest_of_sparks_tasks(sizes, least, tasks):
    """In Spark's cases for minPartitions, SPARK-28489, -30656 and -36576 among them, nothing waits for longer."""
    assert len(tasks) >= min(least, sum(sizes))
    groups = slice_ranges(ranges_of(sizes), len(tasks), smallest=1)
    check_covers([piece for group in groups for piece in group], ranges_of(sizes))
    found = [sum(piece.range.size for piece in group) for group in groups]
    assert len(found) <= len(tasks)
    assert max(found) <= max(tasks)
    if len(set(tasks)) == 1:
        assert found == tasks


@pytest.mark.parametrize(
    ("slices", "given_ranges", "expected"),
    [
        (4, [("t1", 1, 5)], [("t1", 1, 2), ("t1", 2, 3), ("t1", 3, 4), ("t1", 4, 5)]),
        (4, [("t1", 1, 1), ("t2", 1, 21)], [("t2", 1, 6), ("t2", 6, 11), ("t2", 11, 16), ("t2", 16, 21)]),
        (3, [("t1", 1, 11)], [("t1", 1, 4), ("t1", 4, 7), ("t1", 7, 11)]),
        (
            9,
            [("t1", 0, 10000), ("t2", 0, 15000), ("t3", 0, 20000)],
            [
                *(("t1", low, low + 5000) for low in range(0, 10000, 5000)),
                *(("t2", low, low + 5000) for low in range(0, 15000, 5000)),
                *(("t3", low, low + 5000) for low in range(0, 20000, 5000)),
            ],
        ),
        (3, [("t1", 1, 2), ("t2", 1, 2), ("t3", 1, 2)], [("t1", 1, 2), ("t2", 1, 2), ("t3", 1, 2)]),
    ],
)
def test_splits_like_spark_where_spark_splits_evenly(slices, given_ranges, expected):
    """Where Spark's tasks come out even, the slices are exactly its tasks."""
    groups = slice_ranges([planned(*r) for r in given_ranges], slices, smallest=1)
    assert [as_tuples(group) for group in groups] == [[one] for one in expected]


def test_no_slice_waits_for_one_large_partition_among_many():
    """A large topic-partition is cut though there are more of them than slices, where Spark would not cut it."""
    groups = slice_ranges(ranges_of([1000] * 10 + [990_000]), 4, smallest=1000)
    assert [sum(piece.range.size for piece in group) for group in groups] == [250_000] * 4


def check_covers(pieces, given_ranges):
    """Each range is tiled by its pieces, in offset order, and keeps what else was planned with it."""
    wanted = [r for r in given_ranges if r.range.size]
    found = [list(group) for _, group in groupby(pieces, key=lambda piece: piece.range.topic)]
    assert len(found) == len(wanted)
    for whole, parts in zip(wanted, found, strict=True):
        assert [part.range for part in parts] == sorted(part.range for part in parts)
        assert all(part.range.size for part in parts)
        assert first_flaw([part.range for part in parts], whole.range) is None
        assert {(p.incarnation, p.topic_id) for p in parts} == {(2, "id")}
        # Of the first offset alone: those behind it may be of a later leader.
        assert [p.leader_epoch for p in parts] == [7] + [None] * (len(parts) - 1)


@untimed
@given(size_lists, st.integers(1, 9), st.integers(1, 800))
def test_slices_hold_every_offset_once(sizes, slices, smallest):
    """The slices, put together again, tile the ranges; there are no more than asked, and none is empty."""
    groups = slice_ranges(ranges_of(sizes), slices, smallest=smallest)
    check_covers([piece for group in groups for piece in group], ranges_of(sizes))
    assert len(groups) <= slices
    assert all(groups)


@untimed
@given(size_lists, st.integers(1, 9), st.integers(1, 800))
def test_slices_are_even_but_for_the_smallest_piece(sizes, slices, smallest):
    """No slice is larger than its even share by more than a smallest piece at either end."""
    groups = slice_ranges(ranges_of(sizes), slices, smallest=smallest)
    count = min(slices, max(sum(sizes) // smallest, 1))
    for group in groups:
        assert sum(piece.range.size for piece in group) <= sum(sizes) / count + 2 * smallest


@untimed
@given(size_lists, st.integers(1, 9), st.integers(1, 800))
def test_a_range_is_cut_only_where_it_pays(sizes, slices, smallest):
    """A piece smaller than the smallest is a whole range, and fewer ranges are cut than there are slices."""
    pieces = [piece for group in slice_ranges(ranges_of(sizes), slices, smallest=smallest) for piece in group]
    assert all(piece.range.size >= smallest or piece in ranges_of(sizes) for piece in pieces)
    assert len(pieces) < sum(1 for size in sizes if size) + slices


def test_one_large_partition_feeds_all_slices():
    """A topic with one partition is still fetched by all slices."""
    groups = slice_ranges([planned("t", 0, 1_000_000)], 4)
    assert [as_tuples(group) for group in groups] == [
        [("t", low, low + 250_000)] for low in range(0, 1_000_000, 250_000)
    ]


def test_a_small_batch_is_one_slice():
    """Where a second consumer would not pay, there is one slice."""
    assert slice_ranges(ranges_of([10, 20, 30]), 4) == (tuple(ranges_of([10, 20, 30])),)


def test_nothing_to_slice_is_no_slice():
    """Without offsets there is no slice."""
    assert slice_ranges([], 4) == ()
    assert slice_ranges(ranges_of([0, 0]), 4) == ()


def test_refuses_less_than_one():
    """A number of slices or a smallest piece below 1 is an error with the values."""
    with pytest.raises(ValueError, match="got 0 and 20000"):
        slice_ranges([], 0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        slice_ranges([], 1, smallest=0)

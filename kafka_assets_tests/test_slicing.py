from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_assets.offsets import OffsetRange, PlannedRange, first_flaw
from kafka_assets.slicing import slice_ranges, split_ranges

# How long an example takes says more of the machine than of the code.
untimed = settings(deadline=None)


def planned(topic: str, start: int, end: int) -> PlannedRange:
    return PlannedRange(OffsetRange(topic, 1, start, end), incarnation=2, topic_id="id", leader_epoch=7)


def as_tuples(pieces):
    return [(piece.range.topic, piece.range.from_offset, piece.range.until_offset) for piece in pieces]


def ranges_of(sizes):
    return [planned(f"t{i:02}", 100, 100 + size) for i, size in enumerate(sizes)]


size_lists = st.lists(st.integers(0, 3000), max_size=12)


@pytest.mark.parametrize(
    ("least", "given_ranges", "expected"),
    [
        (3, [("t1", 1, 2), ("t2", 1, 2), ("t3", 1, 2)], [("t1", 1, 2), ("t2", 1, 2), ("t3", 1, 2)]),
        (4, [("t1", 1, 5)], [("t1", 1, 2), ("t1", 2, 3), ("t1", 3, 4), ("t1", 4, 5)]),
        (4, [("t1", 1, 5), ("t2", 1, 21)], [("t1", 1, 5), ("t2", 1, 7), ("t2", 7, 14), ("t2", 14, 21)]),
        (4, [("t1", 1, 1), ("t2", 1, 21)], [("t2", 1, 6), ("t2", 6, 11), ("t2", 11, 16), ("t2", 16, 21)]),
        (
            4,
            [("t1", 1, 2), ("t2", 1, 1001)],
            [("t1", 1, 2), ("t2", 1, 334), ("t2", 334, 667), ("t2", 667, 1001)],
        ),
        (1, [("t1", 1, 5), ("t2", 1, 21)], [("t1", 1, 5), ("t2", 1, 21)]),
        (3, [("t1", 1, 11)], [("t1", 1, 4), ("t1", 4, 7), ("t1", 7, 11)]),
        (
            6,
            [("t1", 0, 10), ("t2", 0, 10), ("t3", 0, 1)],
            [
                ("t1", 0, 3),
                ("t1", 3, 6),
                ("t1", 6, 10),
                ("t2", 0, 3),
                ("t2", 3, 6),
                ("t2", 6, 10),
                ("t3", 0, 1),
            ],
        ),
        (
            9,
            [("t1", 0, 10000), ("t2", 0, 15000), ("t3", 0, 20000)],
            [
                *(("t1", low, low + 5000) for low in range(0, 10000, 5000)),
                *(("t2", low, low + 5000) for low in range(0, 15000, 5000)),
                *(("t3", low, low + 5000) for low in range(0, 20000, 5000)),
            ],
        ),
        (
            6,
            [("t1", 0, 500), ("t2", 0, 12000), ("t3", 0, 15001)],
            [
                ("t1", 0, 500),
                ("t2", 0, 6000),
                ("t2", 6000, 12000),
                ("t3", 0, 5000),
                ("t3", 5000, 10000),
                ("t3", 10000, 15001),
            ],
        ),
        (
            6,
            [("t1", 0, 1), ("t2", 0, 1), ("t3", 0, 10000)],
            [("t1", 0, 1), ("t2", 0, 1), *(("t3", low, low + 2500) for low in range(0, 10000, 2500))],
        ),
        (
            4,
            [("t1", 0, 1), ("t2", 0, 1), ("t3", 0, 2)],
            [("t1", 0, 1), ("t2", 0, 1), ("t3", 0, 1), ("t3", 1, 2)],
        ),
    ],
)
def test_splits_like_spark(least, given_ranges, expected):
    """Spark's own cases for minPartitions come out, SPARK-28489, -30656 and -36576 among them."""
    assert as_tuples(split_ranges([planned(*r) for r in given_ranges], least)) == expected


def test_splits_by_the_most_records_first():
    """No piece is larger than the most records of a piece, whatever the least number of pieces."""
    pieces = split_ranges(ranges_of([10, 3, 0]), 1, max_records_per_partition=4)
    assert [piece.range.size for piece in pieces] == [3, 3, 4, 3]
    pieces = split_ranges(ranges_of([10, 3]), 8, max_records_per_partition=4)
    assert len(pieces) >= 8
    assert max(piece.range.size for piece in pieces) <= 4


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
@given(size_lists, st.integers(1, 30), st.none() | st.integers(1, 500))
def test_splitting_drops_and_doubles_no_offset(sizes, least, most):
    """However ranges are split, the pieces tile them."""
    check_covers(split_ranges(ranges_of(sizes), least, most), ranges_of(sizes))


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
    assert split_ranges([], 4) == ()


def test_refuses_less_than_one():
    """A number of slices or pieces below 1 is an error with the values."""
    with pytest.raises(ValueError, match="got 0 and 20000"):
        slice_ranges([], 0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        split_ranges([], 1, 0)

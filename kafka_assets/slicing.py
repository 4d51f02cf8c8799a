"""Cutting planned ranges into pieces that can be fetched side by side."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.offsets import PlannedRange

SMALLEST_PIECE = 20_000
"""Offsets below which another consumer costs more than it saves."""


def slice_ranges(
    ranges: Sequence[PlannedRange], slices: int, *, smallest: int = SMALLEST_PIECE
) -> tuple[tuple[PlannedRange, ...], ...]:
    """Cut ranges into at most `slices` groups of about the same number of offsets.

    The ranges are laid end to end in their order and cut at even distances, so fewer than `slices` of them
    are cut. Where a cut would leave a piece of a range with fewer than `smallest` offsets, it moves to the
    range's nearer end.

    Args:
        ranges: Those of one topic-partition, if several, in offset order. Empty ones are left out.
        slices: At least 1.
        smallest: The least offsets worth a piece; there are no more groups than pieces of that size.

    Returns:
        Groups, none of them empty, that hold every offset once and in the order of `ranges`.

    Raises:
        ValueError: `slices` or `smallest` is less than 1.
    """
    if slices < 1 or smallest < 1:
        raise ValueError(f"slices and smallest must be at least 1, got {slices} and {smallest}")
    filled = [planned for planned in ranges if planned.range.size]
    ends = list(accumulate(planned.range.size for planned in filled))
    total = ends[-1] if ends else 0
    count = min(slices, max(total // smallest, 1))
    cuts = {_snapped(total * i // count, ends, smallest) for i in range(1, count)}
    groups: dict[int, list[PlannedRange]] = {}
    edges = sorted({0, total, *cuts})
    for planned, end in zip(filled, ends, strict=True):
        begin = end - planned.range.size
        inside = edges[bisect_right(edges, begin) : bisect_right(edges, end - 1)]
        shift = planned.range.from_offset - begin
        for low, high in pairwise([begin, *inside, end]):
            piece = replace(planned.range, from_offset=low + shift, until_offset=high + shift)
            groups.setdefault(bisect_right(edges, low), []).append(planned.part(piece))
    return tuple(tuple(group) for group in groups.values())


def _snapped(cut: int, ends: Sequence[int], smallest: int) -> int:
    i = bisect_right(ends, cut)
    begin, end = ends[i - 1] if i else 0, ends[i]
    if min(cut - begin, end - cut) >= smallest:
        return cut
    return begin if cut - begin <= end - cut else end


def split_ranges(
    ranges: Sequence[PlannedRange], min_partitions: int, max_records_per_partition: int | None = None
) -> tuple[PlannedRange, ...]:
    """Split ranges as Spark does for its options minPartitions and maxRecordsPerPartition.

    Each range gets pieces in proportion to its size, large ones more; the number of pieces is about
    `min_partitions`, and never less than the number of ranges. Empty ranges are left out.

    Args:
        ranges: In any order, which is kept.
        min_partitions: At least 1. With no more than there are ranges, none is split for it.
        max_records_per_partition: The most offsets of a piece; ranges are split by it first.

    Raises:
        ValueError: A number is less than 1.
    """
    if min_partitions < 1 or (max_records_per_partition is not None and max_records_per_partition < 1):
        raise ValueError(
            f"min_partitions and max_records_per_partition must be at least 1, got {min_partitions} and"
            f" {max_records_per_partition}"
        )
    filled = tuple(planned for planned in ranges if planned.range.size)
    if max_records_per_partition is not None:
        filled = tuple(
            piece
            for planned in filled
            for piece in _cut(planned, -(-planned.range.size // max_records_per_partition))
        )
    if min_partitions <= len(filled):
        return filled
    total = sum(planned.range.size for planned in filled)
    whole = [p.range.size for p in filled if _parts(p.range.size, total, min_partitions) == 1]
    # What is not split takes no further part: many small ranges would leave the large ones too few pieces.
    rest, wanted = total - sum(whole), max(min_partitions - len(whole), 1)
    return tuple(
        piece
        for planned in filled
        for piece in (
            (planned,)
            if _parts(planned.range.size, total, min_partitions) == 1
            else _cut(planned, _parts(planned.range.size, rest, wanted))
        )
    )


def _parts(size: int, total: int, wanted: int) -> int:
    # Rounds half up, as Java does.
    return max((2 * size * wanted + total) // (2 * total), 1)


def _cut(planned: PlannedRange, parts: int) -> tuple[PlannedRange, ...]:
    """Cut into pieces whose sizes differ by at most 1, the larger ones last; none of them empty."""
    parts = min(parts, planned.range.size)
    edges = [planned.range.from_offset]
    for left in range(parts, 0, -1):
        edges.append(edges[-1] + (planned.range.until_offset - edges[-1]) // left)
    return tuple(
        planned.part(replace(planned.range, from_offset=low, until_offset=high))
        for low, high in pairwise(edges)
    )

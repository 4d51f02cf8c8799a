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
    range's nearer end. Spark's `minPartitions` gives each range whole tasks instead, and cuts none as soon as
    there are as many ranges as tasks: one large topic-partition among small ones is then what all wait for.

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

from __future__ import annotations

import pytest

from kafka_assets.errors import ConfigInvalidError
from kafka_assets.offsets import TopicPartition
from kafka_assets.planning import LogBounds
from kafka_assets.starting import (
    AtOffset,
    AtTimestamp,
    Earliest,
    Latest,
    StartingOffsets,
    resolve_starts,
    timestamps_to_find,
)

ZERO, ONE = TopicPartition("orders", 0), TopicPartition("orders", 1)
BOUNDS = {ZERO: LogBounds(10, 90, 100), ONE: LogBounds(0, 50, 50)}


@pytest.mark.parametrize(
    ("start", "found", "offset"),
    [
        (Earliest(), None, 10),
        (Latest(), None, 90),
        (AtOffset(42), None, 42),
        (AtOffset(5), None, 5),
        (AtOffset(500), None, 500),
        (AtTimestamp(1), 30, 30),
        (AtTimestamp(1), None, 90),
        (AtTimestamp(1), 95, 90),
        (AtTimestamp(-1), None, 10),
    ],
)
def test_resolves_each_kind_of_start(start, found, offset):
    """Earliest is the log start, latest the end; a time is what was found, at most the end taken before."""
    starts = resolve_starts(StartingOffsets(start), {ZERO: BOUNDS[ZERO]}, {ZERO: found})
    assert starts == {ZERO: offset}


def test_those_not_named_start_at_the_default():
    """A mapping may name some partitions only."""
    spec = StartingOffsets(partitions={ONE: AtOffset(7)})
    assert resolve_starts(spec, BOUNDS, {}) == {ZERO: 10, ONE: 7}


def test_asks_only_for_times_that_the_broker_answers():
    """A time before 1970 is not looked up, since the broker reads it as something else."""
    spec = StartingOffsets(AtTimestamp(5), {ONE: AtTimestamp(-5)})
    assert timestamps_to_find(spec, BOUNDS) == {ZERO: 5}


def test_a_partition_that_is_not_there_is_refused():
    """A start for a partition that the topic does not have is an error, not ignored."""
    spec = StartingOffsets(partitions={TopicPartition("orders", 7): Latest()})
    with pytest.raises(
        ConfigInvalidError, match=r"orders\[7\]: the stream reads the partitions 0, 1 of orders"
    ):
        resolve_starts(spec, BOUNDS, {})

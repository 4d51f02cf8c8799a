from __future__ import annotations

import pytest

from kafka_assets.planning import Limits, share
from kafka_assets_tests.planning_cases import NOW, at, log, plan_of, sizes, taken, tp

HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("starts", "ends", "limit", "takes"),
    [
        ([0, 0, 0], [101, 11, 1], 10, [8, 1, 1]),
        ([8, 1, 1], [101, 11, 1], 10, [9, 1, 0]),
        ([17, 2, 1], [101, 11, 1], 10, [9, 1, 0]),
        ([0, 0, 0], [21, 11, 1], 20, [12, 6, 1]),
        ([12, 6, 1], [29, 21, 2], 20, [10, 9, 1]),
        ([0, 0], [5, 5], 1, [1, 1]),
        ([0] * 5, [1000, 1, 1, 1, 1], 3, [2, 1, 1, 1, 1]),
        ([0, 0, 0], [10, 10, 10], 10, [3, 3, 3]),
        ([0, 0], [3, 3], 5, [2, 2]),
        ([0, 0], [10, 20], 100, [10, 20]),
        ([5], [10], HUGE, [5]),
        ([10, 0], [3, 100], 10, [0, 10]),
        ([100, 50, 0], [100, 60, 90], 7, [0, 1, 6]),
    ],
)
def test_shares_a_limit_like_spark(starts, ends, limit, takes):
    """Spark's vectors for maxOffsetsPerTrigger: floor of the share, at least 1; no range without lag."""
    plan = plan_of(starts, ends, limit=limit, drain=True)
    expected = {i: (s, s + n) for i, (s, n) in enumerate(zip(starts, takes, strict=True)) if n}
    assert taken(plan.batches[0]) == expected


def test_drains_a_backlog_like_spark():
    """The backlog of Spark's suite takes 12 batches of the same sizes per partition."""
    plan = plan_of([0, 0, 0], [101, 11, 1], drain=True, limits=Limits(10, max_batches_in_flight=50))
    takes = [
        [
            end - start
            for start, end in (
                taken(batch).get(0, (0, 0)),
                taken(batch).get(1, (0, 0)),
                taken(batch).get(2, (0, 0)),
            )
        ]
        for batch in plan.batches
    ]
    assert takes == [[8, 1, 1], *[[9, 1, 0]] * 10, [3, 0, 0]]


@pytest.mark.parametrize(
    ("lags", "limit", "cap", "takes"),
    [
        ([100, 200, 300], 60, 6000, [10, 20, 30]),
        ([1000, 1000], 100, 5, [5, 5]),
        ([1000, 1000], 100, 10, [10, 10]),
        ([1000], 250, 500, [250]),
        ([1000], 500, 150, [150]),
        ([1000, 10, 0], 1000, None, [990, 9, 0]),
        ([0, 0], 100, None, [0, 0]),
        ([], 100, None, []),
    ],
)
def test_shares_and_caps_like_spark(lags, limit, cap, takes):
    """Spark's vectors for a rate over the stream with a cap on each partition."""
    assert share(lags, limit, cap) == takes


@pytest.mark.parametrize(
    ("rate", "interval", "cap"),
    [(100, 60, 6000), (0.01, 5, 1), (1.99, 1, 1), (33.3, 10, 333), (1e300, 1e300, HUGE)],
)
def test_caps_a_partition_by_rate_and_interval(rate, interval, cap):
    """A partition gives at most trunc(rate x interval), at least 1, and a huge rate is no limit."""
    assert (
        Limits(10, max_records_per_partition_per_second=rate, interval=interval).records_per_partition == cap
    )


@pytest.mark.parametrize(
    ("per_record", "records"),
    [(None, 1000), (0.0, 1000), (1.0, 1000), (100.0, 500), (1e9, 1), (1e-300, 1000)],
)
def test_limits_by_bytes_once_their_size_is_known(per_record, records):
    """Bytes become offsets by the learned size of a record: at least 1, at most the limit by records."""
    assert Limits(1000, max_bytes_per_batch=50_000, bytes_per_record=per_record).records == records


@pytest.mark.parametrize(("most", "records"), [(99, 99), (100, 100), (299, 200)])
def test_limits_by_bytes_take_whole_units(most, records):
    """A batch that its bytes limit has a multiple of the unit, unless it has less than one."""
    limits = Limits(10_000, max_bytes_per_batch=most, bytes_per_record=1.0, unit=100)
    assert limits.records == records


MIB = 1024**2


@pytest.mark.parametrize(
    ("drain", "open_batches", "lag", "expected"),
    [
        (True, 0, 1000, [128, 256, 256, 256]),
        (True, 0, 257, [128, 129]),
        (True, 0, 256, [256]),
        (True, 1, 1000, [256, 256, 256]),
        (False, 0, 2000, [256, 256, 256, 256]),
    ],
)
def test_a_drain_begins_with_a_smaller_batch(drain, open_batches, lag, expected):
    """With nothing open and more than a batch waiting, the first is half as large: the next is fetched meanwhile."""
    limits = Limits(10_000, max_bytes_per_batch=256 * MIB, bytes_per_record=MIB)
    plan = plan_of([0], [lag], limits=limits, drain=drain, open_batches=open_batches)
    assert sizes(plan) == expected


def test_plans_several_batches_that_follow_one_another():
    """A backlog becomes as many batches as may be in flight, each beginning where the last ended."""
    plan = plan_of([0, 0], [1000, 500], limit=300)
    assert [taken(batch) for batch in plan.batches] == [
        {0: (0, 200), 1: (0, 100)},
        {0: (200, 400), 1: (100, 200)},
        {0: (400, 600), 1: (200, 300)},
        {0: (600, 800), 1: (300, 400)},
    ]
    assert {p.partition: position.planned_until for p, position in plan.positions.items()} == {0: 800, 1: 400}
    assert plan.lag == 300
    assert plan.reason is None


def test_open_batches_count_as_in_flight():
    """Only the free places are filled, and with none the reason says how many are open."""
    assert len(plan_of([0], [1000], open_batches=3).batches) == 1
    full = plan_of([0], [1000], open_batches=4)
    assert not full.batches
    assert full.reason == "max_batches_in_flight reached: 4 of 4 batches open, 1000 offsets wait"
    assert full.wait is None


def test_ten_blocked_batches_stop_planning():
    """Blocked batches take no place in flight, up to ten of them."""
    assert len(plan_of([0], [1000], blocked_batches=9).batches) == 4
    stopped = plan_of([0], [1000], blocked_batches=10)
    assert stopped.reason == "10 batches are blocked, and with 10 planning stops: 1000 offsets wait"


def test_with_a_batch_of_lag_the_interval_does_not_matter():
    """With at least a full batch of lag each tick plans, and what is left is planned after the interval."""
    plan = plan_of([0], [250], last_planned_at=NOW - 1.0)
    assert sizes(plan) == [100, 100]
    assert plan.lag == 50
    later = plan_of([200], [250], last_planned_at=NOW - 10.5)
    assert later.reason == "interval of 30 s: 19.5 s left, 50 offsets wait"
    assert later.wait == 19.5
    assert sizes(plan_of([200], [250], last_planned_at=NOW - 30.0)) == [50]


def test_the_first_batch_waits_for_no_interval():
    """Before the first batch there is no interval to wait for, and its tail comes with it."""
    assert sizes(plan_of([0], [250])) == [100, 100, 50]


def test_a_small_batch_waits_for_its_minimum_or_its_delay():
    """Fewer offsets than the minimum wait until the delay since the last plan is over."""
    limits = Limits(100, min_records_per_batch=60)
    early = plan_of([0], [59], limits=limits, last_planned_at=NOW - 50.0)
    assert early.reason == "minimum batch: 59 of 60 offsets, 10.0 s of max_batch_delay left"
    assert early.wait == 10.0
    assert sizes(plan_of([0], [60], limits=limits, last_planned_at=NOW - 50.0)) == [60]
    assert sizes(plan_of([0], [59], limits=limits, last_planned_at=NOW - 60.0)) == [59]


def test_the_first_small_batch_waits_from_its_stream_s_beginning():
    """Without any plan the delay counts from when the stream was first seen, so it comes to an end."""
    limits = Limits(100, min_records_per_batch=60)
    assert plan_of([0], [5], limits=limits, waiting_since=NOW).wait == 60.0
    assert sizes(plan_of([0], [5], limits=limits, waiting_since=NOW - 60.0)) == [5]
    assert sizes(plan_of([0], [5], limits=limits)) == [5]


def test_full_batches_go_before_a_tail_that_waits():
    """A tail smaller than the minimum stays; the full batches before it are planned."""
    plan = plan_of([0], [250], limits=Limits(100, min_records_per_batch=60))
    assert sizes(plan) == [100, 100]
    assert plan.lag == 50


def test_a_minimum_above_the_limit_does_not_starve_the_stream():
    """A batch as large as the limits let it be has no minimum to wait for."""
    limits = Limits(
        100, min_records_per_batch=100, max_bytes_per_batch=50, bytes_per_record=1.0, max_batches_in_flight=1
    )
    assert sizes(plan_of([0], [90], limits=limits, last_planned_at=NOW)) == [50]


def test_draining_waits_for_nothing():
    """Draining plans a small batch at once, whatever interval and minimum."""
    limits = Limits(100, min_records_per_batch=60)
    assert sizes(plan_of([0], [5], limits=limits, last_planned_at=NOW, drain=True)) == [5]


@pytest.mark.parametrize("drain", [False, True])
def test_a_rate_limit_allows_one_batch_an_interval(drain):
    """Under a rate limit there is one batch a plan, each partition capped, and the interval is kept."""
    limits = Limits(1000, max_records_per_partition_per_second=2.5, interval=10.0)
    plan = plan_of([0, 0], [400, 10], limits=limits, drain=drain)
    assert [taken(batch) for batch in plan.batches] == [{0: (0, 25), 1: (0, 10)}]
    assert plan.reason is None
    again = plan_of([25, 10], [400, 10], limits=limits, drain=drain, last_planned_at=NOW - 4.0)
    assert again.reason == "interval of 10 s: 6.0 s left, 375 offsets wait"
    assert again.wait == 6.0


def test_caught_up_says_so_in_numbers():
    """Nothing to read is a reason with what was planned so far."""
    plan = plan_of({tp(0): at(30, start=10), tp(1): at(5)}, [30, 5])
    assert plan.reason == "caught up: 25 offsets planned over 2 topic-partitions"
    assert (plan.batches, plan.positions, plan.lag, plan.wait) == ((), {}, 0, None)


def test_no_topic_is_a_reason():
    """A pattern that matches nothing is no error."""
    assert plan_of([], []).reason == "nothing to read: no topic-partition is there that the stream selects"


def test_does_not_plan_beyond_given_ends():
    """With ends taken once, later records and later partitions are left for later, and nothing is gone."""
    plan = plan_of([0, 0], [100, 100, 100], ends={tp(0): 40}, drain=True)
    assert [taken(batch) for batch in plan.batches] == [{0: (0, 40)}]
    assert set(plan.positions) == {tp(0)}
    assert plan.stops == ()
    done = plan_of([40, 0], [100, 100, 100], ends={tp(0): 40}, drain=True)
    assert done.reason == "caught up: 40 offsets planned over 2 topic-partitions"


def test_a_clock_set_back_does_not_stop_the_stream():
    """A last plan far in the future is not waited for."""
    assert sizes(plan_of([0], [5], last_planned_at=NOW + 90_000.0)) == [5]


def test_offsets_near_the_end_of_64_bits_are_planned():
    """Offsets and limits as large as Kafka allows do not overflow (SPARK-26718)."""
    plan = plan_of(
        {tp(0): at(HUGE - 150), tp(1): at(0)},
        {tp(0): log(0, HUGE), tp(1): log(0, HUGE)},
        limit=HUGE,
        drain=True,
    )
    assert all(p.range.until_offset <= HUGE for batch in plan.batches for p in batch)
    assert plan.positions[tp(0)].planned_until > HUGE - 150


def test_the_order_of_the_mappings_does_not_matter():
    """The same facts in another order make the same plan, its ranges by topic and partition."""
    bounds = {tp(p, t): log(0, 50 * (p + 1)) for t in ("b", "a") for p in (10, 2, 0)}
    positions = {key: at(7) for key in bounds}
    plan = plan_of(positions, bounds)
    assert plan == plan_of(dict(reversed(positions.items())), dict(reversed(bounds.items())))
    order = [(p.range.topic, p.range.partition) for p in plan.batches[0]]
    assert order == [("a", 0), ("a", 2), ("a", 10), ("b", 0), ("b", 2), ("b", 10)]


def test_plans_thousands_of_partitions():
    """Ten thousand topic-partitions with lag, more than the limit, each get their offset in every batch."""
    many = [0] * 10_000
    plan = plan_of(many, [50] * 10_000, limit=1000)
    assert sizes(plan) == [10_000] * 4
    assert plan.lag == 460_000

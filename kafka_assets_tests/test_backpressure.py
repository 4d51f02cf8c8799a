from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kafka_assets.backpressure import Backpressure, CompletedBatch, RateEstimator, current_rate
from kafka_assets.planning import Limits
from kafka_assets_tests.planning_cases import NOW, plan_of, sizes, taken

# How long an example takes says more of the machine than of the code.
untimed = settings(deadline=None)

SPARK = Backpressure()

seconds = st.floats(0.001, 10_000)
counts = st.integers(1, 10**9)
terms = st.builds(
    Backpressure,
    proportional=st.floats(0, 1000),
    integral=st.floats(0, 1000),
    derived=st.floats(0, 1000),
    min_rate=st.floats(0.001, 1e6),
)
updates = st.lists(st.tuples(seconds, counts, seconds, st.floats(0, 10_000)), max_size=20)


def rates_of(terms_given, interval, calls):
    """The answer to each call; times are given as steps."""
    estimator, time, answers = RateEstimator(terms_given, interval), 0.0, []
    for step, offsets, processing, scheduling in calls:
        time += step
        answers.append(estimator.update(time, offsets, processing, scheduling))
    return answers


def completed(*batches):
    """(ready, committed, offsets) of each batch."""
    return [CompletedBatch(*batch) for batch in batches]


@pytest.mark.parametrize(
    ("interval", "calls"),
    [
        (
            1.0,
            [
                ((1.0, 1000, 1.0, 0.0), None),
                ((2.0, 1000, 2.0, 0.0), 500.0),
                ((3.0, 500, 1.0, 1.0), 400.0),
                ((4.0, 400, 0.5, 0.0), 800.0),
                ((5.0, 50, 1.0, 0.0), 100.0),
                ((6.0, 0, 1.0, 0.0), None),
                ((6.5, 300, 0.0, 0.0), None),
                ((7.0, 300, 0.1, 0.0), 3000.0),
            ],
        ),
        (
            10.0,
            [
                ((10.0, 50_000, 25.0, 0.0), None),
                ((25.0, 20_000, 10.0, 5.0), 1800.0),
                ((35.0, 20_000, 8.0, 15.0), 1750.0),
            ],
        ),
    ],
)
def test_estimates_like_spark(interval, calls):
    """Spark's formula and defaults give these rates, one call after the other."""
    estimator = RateEstimator(SPARK, interval)
    assert [estimator.update(*call) for call, _ in calls] == pytest.approx([rate for _, rate in calls])


@pytest.mark.parametrize(
    ("given_terms", "rates"),
    [
        # The batches process 1000, 500 and 2000 a second, and the last one waited for half an interval.
        (Backpressure(proportional=0.5, integral=0), [None, 750.0, 1375.0]),
        (Backpressure(proportional=0, integral=0), [None, 1000.0, 1000.0]),
        (Backpressure(proportional=0, integral=0.1), [None, 1000.0, 900.0]),
        (Backpressure(proportional=0, integral=0, derived=0.5), [None, 750.0, 1625.0]),
        (Backpressure(min_rate=600), [None, 600.0, 1800.0]),
    ],
)
def test_each_term_has_its_weight(given_terms, rates):
    """Every term of the formula counts with its own weight, and the rate never falls below the least."""
    calls = [(1.0, 1000, 1.0, 0.0), (1.0, 500, 1.0, 0.0), (1.0, 2000, 1.0, 0.5)]
    assert rates_of(given_terms, 1.0, calls) == pytest.approx(rates)


def test_what_says_nothing_changes_nothing():
    """A batch without offsets or time, or out of order, leaves the estimate as it was."""
    estimator = RateEstimator(SPARK, 1.0)
    estimator.update(10.0, 1000, 1.0, 0.0)
    for call in ((11.0, 0, 1.0, 0.0), (11.0, 10, 0.0, 0.0), (11.0, 10, -1.0, 0.0), (10.0, 10, 1.0, 0.0)):
        assert estimator.update(*call) is None
    assert estimator.update(11.0, 800, 1.0, 0.0) == 800.0


@untimed
@given(terms, seconds, updates)
def test_never_below_the_least_rate(given_terms, interval, calls):
    """Whatever the terms and the batches, a rate is at least `min_rate`."""
    assert all(
        rate is None or rate >= given_terms.min_rate for rate in rates_of(given_terms, interval, calls)
    )


@untimed
@given(
    terms, seconds, updates, seconds, counts, seconds, st.lists(st.floats(0, 10_000), min_size=2, max_size=2)
)
def test_the_longer_it_waited_the_lower_the_rate(
    given_terms, interval, calls, step, offsets, processing, waits
):
    """Two batches that differ only in how long they waited: the rate after the one that waited less is no less."""
    less, more = sorted(waits)
    first = rates_of(given_terms, interval, [*calls, (step, offsets, processing, less)])[-1]
    second = rates_of(given_terms, interval, [*calls, (step, offsets, processing, more)])[-1]
    assert (first is None) == (second is None)
    assert first is None or first >= second


@untimed
@given(seconds, updates, seconds, st.tuples(counts, counts), seconds)
def test_the_faster_it_processed_the_higher_the_rate(interval, calls, step, offsets, processing):
    """By Spark's terms, of two batches that took the same time the larger one never gives the lower rate."""
    small, large = sorted(offsets)
    wait = interval / 2
    first = rates_of(SPARK, interval, [*calls, (step, small, processing, wait)])[-1]
    second = rates_of(SPARK, interval, [*calls, (step, large, processing, wait)])[-1]
    assume(first is not None)
    assert second >= first or second == pytest.approx(first)


@untimed
@given(seconds, updates)
def test_by_sparks_terms_only_the_last_batch_counts(interval, calls):
    """With P = 1 and D = 0 the formula is the last batch's rate less a fifth of what piled up in an interval."""
    assume(len(calls) > 1)
    _, offsets, processing, scheduling = calls[-1]
    expected = max(offsets / processing * (1 - 0.2 * scheduling / interval), SPARK.min_rate)
    found = rates_of(SPARK, interval, calls)[-1]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-3 * max(o / p for _, o, p, _ in calls))


def test_an_estimate_takes_two_batches():
    """Before that the initial rate holds, or no limit where there is none."""
    one = completed((0.0, 10.0, 5000))
    assert current_rate(SPARK, 30.0, []) is None
    assert current_rate(SPARK, 30.0, one) is None
    assert current_rate(replace(SPARK, initial_rate=70.5), 30.0, one) == 70
    two = [*one, *completed((30.0, 50.0, 4000))]
    assert current_rate(replace(SPARK, initial_rate=70.5), 30.0, two) == 200


def test_batches_that_overlap_share_their_time():
    """A batch that was ready before another was committed counts as having waited until then."""
    # Both were ready at 0: the second one processed 1000 offsets in 5 s, having waited 10 s of an interval of 20.
    assert current_rate(SPARK, 20.0, completed((0.0, 10.0, 500), (0.0, 15.0, 1000))) == 180
    # The same one after a pause, alone: all of its 15 s are its own.
    assert current_rate(SPARK, 20.0, completed((0.0, 10.0, 500), (60.0, 75.0, 3000))) == 200


@untimed
@given(
    terms,
    seconds,
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(-10, 1e6), st.integers(0, 2**62)), max_size=20),
)
def test_any_ledger_gives_a_rate_that_a_plan_can_use(given_terms, interval, batches):
    """Clocks may disagree and batches be empty: the rate is a whole number from 1 up, or none yet."""
    done = completed(*sorted(((at, at + took, size) for at, took, size in batches), key=lambda one: one[1]))
    rate = current_rate(given_terms, interval, done)
    assert rate is None or rate >= max(1, int(given_terms.min_rate))
    assert rate == current_rate(given_terms, interval, done)


@pytest.mark.parametrize(
    ("lags", "rate", "interval", "most", "takes"),
    [
        # A partition without lag has a share of 0 here; Spark's vector says 5 of nothing.
        ([0, 100, 200, 300], 1, 60.0, 100, [0, 10, 20, 30]),
        ([1000, 1000], 1000, 0.1, 50, [5, 5]),
        ([1000, 1000], 1000, 0.1, 100, [10, 10]),
        ([1000], 500, 0.5, 1000, [250]),
        ([1000], 1000, 0.5, 300, [150]),
        ([1000, 10, 0], 100, 10.0, None, [990, 9, 0]),
        ([10, 10, 10], 1, 1.0, None, [1, 1, 1]),
        ([100], 2**63 - 1, 60.0, None, [100]),
    ],
)
def test_a_rate_is_shared_like_sparks(lags, rate, interval, most, takes):
    """A batch takes the rate times the interval in proportion to lag, each partition no more than its own limit."""
    limits = Limits(
        10**9, most, interval=interval, backpressure=True, records_per_second=rate, max_batches_in_flight=9
    )
    plan = plan_of([0] * len(lags), lags, limits=limits)
    assert len(plan.batches) == 1
    assert taken(plan.batches[0]) == {i: (0, take) for i, take in enumerate(takes) if take}


@pytest.mark.parametrize("drain", [False, True])
def test_backpressure_allows_one_batch_an_interval(drain):
    """One batch is planned, the next one an interval later, also to drain; both times the rate is told."""
    limits = Limits(1000, interval=10.0, backpressure=True, records_per_second=20)
    first = plan_of([0], [900], limits=limits, drain=drain)
    assert (sizes(first), first.reason) == ([200], None)
    told = "backpressure: 20 offsets a second, so 200 of {} in a batch each 10 s"
    assert first.limit == told.format(900)
    again = plan_of([200], [900], limits=limits, drain=drain, last_planned_at=NOW - 4)
    assert (again.batches, again.wait, again.limit) == ((), 6.0, None)
    assert again.reason == "interval of 10 s: 6.0 s left, 700 offsets wait; " + told.format(700)
    assert sizes(plan_of([200], [900], limits=limits, drain=drain, last_planned_at=NOW - 10)) == [200]


def test_before_an_estimate_the_other_limits_hold():
    """Without an estimate a batch is as large as records and bytes allow, and still one an interval."""
    limits = Limits(100, interval=10.0, backpressure=True)
    plan = plan_of([0], [900], limits=limits, drain=True)
    assert (sizes(plan), plan.limit) == ([100], None)
    assert plan_of([100], [900], limits=limits, drain=True, last_planned_at=NOW - 4).wait == 6.0


@pytest.mark.parametrize(("rate", "limit"), [(5, True), (10, False), (1000, False)])
def test_a_rate_that_takes_nothing_away_is_not_told(rate, limit):
    """The rate is told only where a batch would be larger without it."""
    limits = Limits(100, interval=10.0, backpressure=True, records_per_second=rate)
    plan = plan_of([0], [900], limits=limits)
    assert (plan.limit is not None) is limit
    assert plan_of([0], [10], limits=limits).limit is None

"""How many offsets a second a stream stands: Spark's PID rate estimator, over batches the ledger has as committed.

Nothing is kept between two estimates: each folds the same recent batches, so that any process, and one started
anew, comes to the same rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_RATE = 2**63 - 1
_LEAST_SECONDS = 1e-6
"""The ledger's times tell no less, and what is divided by less may become infinite."""


@dataclass(frozen=True, slots=True)
class Backpressure:
    """The estimator's terms, with Spark's names and defaults. Rates are offsets a second, of the whole stream.

    Attributes:
        proportional: Weight of the difference between the last rate and that of the last batch.
        integral: Weight of what piled up while batches waited for those before them.
        derived: Weight of how fast that difference changes.
        min_rate: The estimate never falls below it.
        initial_rate: The rate as long as there is no estimate, which takes two batches; None for no limit.
    """

    proportional: float = 1.0
    integral: float = 0.2
    derived: float = 0.0
    min_rate: float = 100.0
    initial_rate: float | None = None


@dataclass(frozen=True, slots=True)
class CompletedBatch:
    """A committed batch. Times are seconds since 1970.

    Attributes:
        ready_at: When its last run was asked for, or it was planned.
        committed_at: When it was committed.
        offsets: The size of its ranges.
    """

    ready_at: float
    committed_at: float
    offsets: int


class RateEstimator:
    """Spark's `PIDRateEstimator`.

    Args:
        terms: The weights and the least rate.
        interval: Seconds between two batches.
    """

    def __init__(self, terms: Backpressure, interval: float) -> None:
        self._terms = terms
        self._interval = interval
        self._time: float | None = None
        self._rate = 0.0
        self._error = 0.0

    def update(self, time: float, offsets: int, processing: float, scheduling: float) -> float | None:
        """Return the rate that follows from one more batch; None from the first, or one that says nothing.

        Args:
            time: When it was done, in seconds.
            offsets: How many it had.
            processing: Seconds it took.
            scheduling: Seconds it waited for those before it.
        """
        if offsets <= 0 or processing <= 0 or (self._time is not None and time <= self._time):
            return None
        last, self._time = self._time, time
        processed = offsets / max(processing, _LEAST_SECONDS)
        if last is None:
            self._rate = processed
            return None
        terms = self._terms
        error = self._rate - processed
        waiting = scheduling * processed / self._interval
        change = (error - self._error) / max(time - last, _LEAST_SECONDS)
        wanted = self._rate - terms.proportional * error - terms.integral * waiting - terms.derived * change
        self._rate, self._error = max(wanted, terms.min_rate), error
        return self._rate


def current_rate(terms: Backpressure, interval: float, batches: Iterable[CompletedBatch]) -> int | None:
    """Return the rate for the next batch, in whole offsets a second; None for no limit yet.

    A stream counts as one server: a batch is at work from when it was ready, or the one before it was committed
    if that was later, and waited until then. So batches that overlap share the time they took together.

    Args:
        terms: The estimator's terms.
        interval: Seconds between two batches.
        batches: In the order of their commits.
    """
    estimator = RateEstimator(terms, interval)
    rate, idle_since = terms.initial_rate, 0.0
    for batch in batches:
        begun = max(batch.ready_at, idle_since)
        found = estimator.update(
            batch.committed_at, batch.offsets, batch.committed_at - begun, begun - batch.ready_at
        )
        rate = rate if found is None else found
        idle_since = max(idle_since, batch.committed_at)
    return None if rate is None else max(int(min(rate, _MAX_RATE)), 1)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_assets.errors import RunFailedError
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.progress import RangeProgress


def progress(start: int, until: int) -> RangeProgress:
    return RangeProgress(PlannedRange(OffsetRange("orders", 0, start, until)))


def run(*offsets: int) -> np.ndarray:
    return np.array(offsets, np.int64)


@given(
    st.sets(st.integers(0, 60)),
    st.integers(0, 50),
    st.integers(0, 20),
    st.lists(st.integers(1, 10), min_size=1),
)
def test_any_log_in_any_runs_is_accounted_for(there, start, size, lengths):
    """Whatever offsets are there, in whatever runs they come, each offset of a range is in one class."""
    until = start + size
    reading = progress(start, until)
    left = sorted(offset for offset in there if offset >= start)
    kept = []
    while left and reading.proof is None:
        length = lengths[len(kept) % len(lengths)]
        now, left = left[:length], left[length:]
        kept += now[: reading.deliver(run(*now))]
    if reading.proof is None:
        reading.finish("eof")
    evidence = reading.evidence()
    expected = sorted(offset for offset in there if start <= offset < until)
    assert kept == expected
    assert evidence.records == len(expected)
    assert evidence.offset_sum == sum(expected)
    missing = sorted(set(range(start, until)) - there)
    assert evidence.undeliverable == len(missing)
    assert evidence.gaps == sum(offset - 1 not in missing for offset in missing)


def test_adjoining_losses_are_one_stretch():
    """Losses one behind the other are one lost stretch; what was passed before them is undeliverable."""
    reading = progress(10, 100)
    reading.deliver(run(10, 11))
    reading.lose(15, 40)
    reading.lose(40, 60)
    reading.deliver(run(60))
    reading.lose(70, 500)
    evidence = reading.evidence()
    assert evidence.lost == (OffsetRange("orders", 0, 15, 60), OffsetRange("orders", 0, 70, 100))
    assert (evidence.records, evidence.gaps, evidence.undeliverable) == (3, 2, 3 + 9)
    assert evidence.end_proof == "lost"


@pytest.mark.parametrize("again", [(10,), (13, 12), (13, 13)])
def test_offsets_that_do_not_rise_are_an_error(again):
    """An offset that comes a second time, or out of order, is never counted."""
    reading = progress(10, 100)
    reading.deliver(run(10, 11))
    with pytest.raises(RunFailedError, match="do not rise"):
        reading.deliver(run(*again))


def test_there_is_no_evidence_of_a_range_that_has_not_ended():
    """A range whose end was not proven has no evidence."""
    reading = progress(10, 100)
    reading.deliver(run(10, 11))
    with pytest.raises(RunFailedError, match="do not add up"):
        reading.evidence()

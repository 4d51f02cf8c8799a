"""Row groups of large records: apart where DuckDB would merge them by their rows, few all the same."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kafka_assets import coverage, ledger, merging
from kafka_assets_tests.warehouse_support import (
    NOW,
    RAW,
    STREAM,
    commit,
    plan_of,
    planned,
    record,
    staged_of,
    state_of,
    warehouse_at,
)

SMALL = 10
LARGE = 4100
EACH = 5


@pytest.fixture
def warehouse(tmp_path):
    return warehouse_at(tmp_path)


def _commit_next(warehouse, size, *, bad=()):
    """Plan a batch and commit it, as a stream with few records does each time; return its key."""
    state = state_of(warehouse)
    number = state.plan_version
    part = [planned("orders", 0, number * EACH, (number + 1) * EACH)]
    now = NOW + timedelta(minutes=number)
    (key,) = record(warehouse, plan_of(state.positions, part), version=number, now=now)
    staged = staged_of(part, bad=bad, value=lambda offset: b"%10d" % offset * (size // 10))
    commit(warehouse, key, [staged], now=now)
    return key


def _row_groups(warehouse, table):
    with warehouse.reading() as con:
        found = con.execute(
            "SELECT row_group_id FROM pragma_storage_info($table)", {"table": table}
        ).fetchall()
    return len(set(found))


def _proven(warehouse):
    with warehouse.reading() as con:
        return coverage.verify(con, STREAM, RAW).problems == ()


@pytest.mark.parametrize(("size", "row_groups"), [(SMALL, 1), (LARGE, 6)])
def test_row_groups_of_large_records_stay_apart(warehouse, size, row_groups):
    """What large records were committed is not written again, whoever else writes; small ones DuckDB merges."""
    for _ in range(6):
        key = _commit_next(warehouse, size)
        with warehouse.writing() as con:
            ledger.record_failure(con, STREAM, key, error="made up", blocked=False)
    assert _row_groups(warehouse, "orders") == row_groups
    assert _proven(warehouse)


def test_a_stream_of_few_large_records_has_few_row_groups(warehouse, monkeypatch):
    """So they cost as much to find and to write beside after many batches as after a few."""
    monkeypatch.setattr(merging, "FANOUT", 4)
    batches = 18
    for _ in range(batches):
        _commit_next(warehouse, LARGE)
    # Those of the first 16 and of the two after them, and in the ledger what was planned when these were merged.
    for table in ("orders", "kafka_assets_ledger.batches", "kafka_assets_ledger.offset_ranges"):
        assert _row_groups(warehouse, table) <= 4
    assert _proven(warehouse)
    with warehouse.reading() as con:
        ((rows, values),) = con.execute(
            "SELECT count(*), count(DISTINCT _kafka_value) FROM orders"
        ).fetchall()
    assert rows == values == batches * EACH


def test_heavy_commits_are_not_written_again(warehouse, monkeypatch):
    """Their row groups are large enough; those of the ledger are merged."""
    monkeypatch.setattr(merging, "MOST_BYTES", merging.FANOUT * EACH * LARGE - 1)
    for _ in range(10):
        _commit_next(warehouse, LARGE)
    assert _row_groups(warehouse, "orders") == 10
    assert _row_groups(warehouse, "kafka_assets_ledger.batches") < 10
    assert _proven(warehouse)


def test_bad_records_are_merged_too(warehouse):
    """The quarantine is written by each commit like the table; what one commit merges it adds to."""
    for number in range(9):
        _commit_next(warehouse, LARGE, bad=[number * EACH])
    assert _row_groups(warehouse, "kafka_assets_ledger.quarantine") == 1
    with warehouse.reading() as con:
        assert ledger.count_quarantined(con, STREAM) == 9
    assert _proven(warehouse)

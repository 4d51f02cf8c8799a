"""What the planner learns from the ledger: the size of a record, and how fast batches are committed."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from kafka_assets import ledger, planner
from kafka_assets.backpressure import Backpressure, CompletedBatch
from kafka_assets.config.properties import KafkaProperties
from kafka_assets.config.values import StreamConfig, TableName, Topics
from kafka_assets.planning import Limits
from kafka_assets_tests import planning_cases
from kafka_assets_tests.warehouse_support import (
    NOW,
    STREAM,
    commit,
    plan_of,
    planned,
    record,
    staged_of,
    state_of,
    warehouse_at,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kafka_assets.warehouse import Warehouse

MIB = 1024**2


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return warehouse_at(tmp_path)


def stream_with(**options: object) -> StreamConfig:
    values = {
        "name": STREAM,
        "selection": Topics(("orders",)),
        "table": TableName(None, "orders"),
        "kafka": KafkaProperties({"bootstrap.servers": "127.0.0.1:1"}),
    }
    return StreamConfig(**{**values, **options})


def batch_of(warehouse, count, each, *, planned_at=NOW, took=1.0, missing=(), claimed=None):
    """Plan and commit the next `count` offsets, each record of so many bytes; returns the key."""
    state = state_of(warehouse)
    low = max((one.planned_until for one in state.positions.values()), default=0)
    part = [planned("orders", 0, low, low + count)]
    (key,) = record(warehouse, plan_of(state.positions, part), version=state.plan_version, now=planned_at)
    if claimed is not None:
        with warehouse.writing() as con:
            assert ledger.claim_attempt(con, STREAM, key, 0, planned_at + timedelta(seconds=claimed))
    staged, rows = staged_of(part, missing=missing)
    (piece,) = staged.ranges
    piece = replace(piece, evidence=replace(piece.evidence, bytes=each * piece.evidence.records))
    done = planned_at + timedelta(seconds=took)
    commit(warehouse, key, [(replace(staged, ranges=(piece,)), rows)], now=done)
    return key


def test_records_that_grow_a_hundredfold_are_heeded_at_once(warehouse):
    """After one batch of larger records the next is planned by their size, however many small ones came before."""
    stream = stream_with(max_bytes_per_batch=100_000)
    for number in range(6):
        batch_of(warehouse, 50, 10, planned_at=NOW + timedelta(minutes=number))
    assert planner.limits_of(stream, state_of(warehouse)).records == 10_000
    batch_of(warehouse, 50, 1000, planned_at=NOW + timedelta(minutes=6))
    assert planner.limits_of(stream, state_of(warehouse)).records == 100


def test_records_that_shrink_a_hundredfold_are_believed_after_three_batches(warehouse):
    """Batches grow again as the last three, and no older ones, have small records; never by a single small batch."""
    stream = stream_with(max_bytes_per_batch=100_000)
    for number in range(4):
        batch_of(warehouse, 50, 1000, planned_at=NOW + timedelta(minutes=number))
    found = []
    for number in range(4, 7):
        batch_of(warehouse, 50, 10, planned_at=NOW + timedelta(minutes=number))
        found.append(planner.limits_of(stream, state_of(warehouse)).records)
    assert found == [149, 294, 10_000]


def test_batches_without_a_record_say_nothing_of_sizes(warehouse):
    """What is known of the size of a record outlives batches in which nothing was deliverable."""
    batch_of(warehouse, 5, 700)
    for number in range(1, 5):
        batch_of(warehouse, 2, 1, planned_at=NOW + timedelta(minutes=number), missing=range(100))
    assert state_of(warehouse).bytes_per_record == 700.0


def test_the_pace_is_read_from_the_ledger(warehouse):
    """A live batch is ready when it was planned or last asked for; a replaced one says nothing of the pace."""
    batch_of(warehouse, 10, 10, took=4.0)
    batch_of(warehouse, 20, 10, planned_at=NOW + timedelta(seconds=30), took=9.0, claimed=2.0)
    again = batch_of(warehouse, 30, 10, planned_at=NOW + timedelta(seconds=60))
    later = NOW + timedelta(hours=1)
    with warehouse.reading() as con:
        row = ledger.read_batch(con, STREAM, again)
        assert len(ledger.read_stream(con, STREAM, paced=True).completed) == 3
    commit(warehouse, again, [staged_of(row.ranges)], generation=1, now=later)
    with warehouse.reading() as con:
        found = ledger.read_stream(con, STREAM, paced=True).completed
        assert ledger.read_stream(con, STREAM).completed == ()
    at = NOW.timestamp()
    assert found == (CompletedBatch(at, at + 4, 10), CompletedBatch(at + 32, at + 39, 20))


def test_every_planner_comes_to_the_same_rate(warehouse, tmp_path):
    """The rate is a function of the ledger alone: another process, or one started anew, has the same."""
    stream = stream_with(backpressure=Backpressure(min_rate=1.0), interval=10.0)
    assert planner.rate_now(stream, warehouse) is None
    batch_of(warehouse, 100, 10)
    batch_of(warehouse, 300, 10, planned_at=NOW + timedelta(seconds=30), took=20.0)
    rates = [
        planner.rate_now(stream, warehouse),
        planner.rate_now(stream, warehouse_at(tmp_path)),
        planner.rate_of(stream, planner.read_state(stream, warehouse)),
        planner.limits_of(stream, planner.read_state(stream, warehouse)).records_per_second,
    ]
    assert rates == [15] * 4
    assert planner.limits_of(stream, planner.read_state(stream, warehouse)).records == 150
    without = stream_with()
    assert planner.rate_now(without, warehouse) is None
    assert not planner.limits_of(without, planner.read_state(without, warehouse)).by_rate


def test_a_rate_to_be_shown_never_fails(warehouse, monkeypatch):
    """Where the file is held by another the rate is not known, and whoever shows it goes on."""
    batch_of(warehouse, 10, 10)
    monkeypatch.setattr(planner, "RATE_SECONDS", 0.05)
    stream = stream_with(backpressure=Backpressure(initial_rate=5.0))
    assert planner.rate_now(stream, warehouse) == 5
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with warehouse.writing():
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(60)
        assert planner.rate_now(stream, warehouse) is None
    finally:
        done.set()
        holder.join()


def test_a_backlog_of_a_day_is_cut_into_batches_near_the_limit_in_bytes():
    """A tick plans as many batches as may be in flight, each within 1 % of 256 MiB, until all of it is planned."""
    limits = Limits(10**9, max_bytes_per_batch=256 * MIB, bytes_per_record=2000.0, max_batches_in_flight=4)
    ends = [86_400 * rate for rate in (1, 20, 300, 300, 301)]
    until = [0] * len(ends)
    batches = ticks = 0
    while True:
        plan = planning_cases.plan_of(until, ends, limits=limits)
        planned_now = planning_cases.sizes(plan)
        if not planned_now:
            break
        ticks += 1
        batches += len(planned_now)
        full = planned_now if plan.lag else planned_now[:-1]
        assert all(0.99 * 256 * MIB <= size * 2000 <= 256 * MIB for size in full), planned_now
        assert len(planned_now) == 4 or not plan.lag
        for tp, position in plan.positions.items():
            until[tp.partition] = position.planned_until
    assert until == ends
    assert batches == -(-sum(ends) * 2000 // (256 * MIB))
    assert ticks == -(-batches // 4)

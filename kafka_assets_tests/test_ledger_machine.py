"""Plans, commits, replays and refusals in any order: the proof holds after each of them."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kafka_assets import coverage, merging, warehouse
from kafka_assets.commits import GenerationMovedError
from kafka_assets.errors import RangeUnavailableError
from kafka_assets.ledger import PlanConflictError
from kafka_assets.offsets import TopicPartition
from kafka_assets.planning import Loss
from kafka_assets_tests import warehouse_support as support
from kafka_assets_tests.warehouse_support import NOW, commit, plan_of, planned, record, staged_of, state_of

sizes = st.lists(st.integers(0, 130), min_size=3, max_size=3)
holes = st.sets(st.integers(0, 400), max_size=8)


class LedgerMachine(RuleBasedStateMachine):
    """One stream of three partitions; `holes` are the offsets that Kafka never delivers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.warehouse = support.warehouse_at(self.folder)
        self.version = 0
        self.now = NOW
        self.rows: dict[str, int] = {}
        self.generations: dict[str, int] = {}

    def teardown(self) -> None:
        self.warehouse._standing.drop()
        shutil.rmtree(self.folder)

    @rule(first=sizes, second=sizes, skipped=st.integers(0, 20), minutes=st.integers(-2, 2))
    def plan(self, first, second, skipped, minutes):
        self.now += timedelta(minutes=minutes)
        positions = state_of(self.warehouse).positions
        batches, losses = [], []
        ends = {place.partition: position.planned_until for place, position in positions.items()}
        incarnation = max((position.incarnation for position in positions.values()), default=0)
        for counts in (first, second):
            ranges = []
            for number, count in enumerate(counts):
                low = ends.get(number, 0)
                if skipped and number == 0 and not losses:
                    losses.append(Loss(TopicPartition("t", 0), None, incarnation, low, low + skipped, "gone"))
                    low += skipped
                if count:
                    ranges.append(planned("t", number, low, low + count, incarnation))
                ends[number] = low + count
            if ranges:
                batches.append(ranges)
        if not batches and not losses:
            return
        plan = plan_of(positions, *batches, losses=losses, start=0)
        keys = record(self.warehouse, plan, version=self.version, now=self.now)
        assert list(keys) == sorted(keys)
        assert all(key not in self.generations for key in keys)
        self.version += 1
        self.generations |= dict.fromkeys(keys, 0)

    @precondition(lambda self: self.version)
    @rule()
    def recreate(self):
        positions = state_of(self.warehouse).positions
        incarnation = next(iter(positions.values())).incarnation + 1
        ranges = [planned("t", number, 0, 10, incarnation) for number in range(3)]
        (key,) = record(self.warehouse, plan_of(positions, ranges), version=self.version, now=self.now)
        self.version += 1
        self.generations[key] = 0

    @precondition(lambda self: self.version)
    @rule(behind=st.integers(1, 3))
    def plan_from_an_old_look(self, behind):
        plan = plan_of(state_of(self.warehouse).positions)
        with pytest.raises(PlanConflictError):
            record(self.warehouse, plan, version=max(self.version - behind, 0))

    @precondition(lambda self: self.generations)
    @rule(data=st.data(), missing=holes, cut=st.integers(1, 3))
    def commit_or_replay(self, data, missing, cut):
        key = data.draw(st.sampled_from(sorted(self.generations)))
        with self.warehouse.reading() as con:
            ranges = support.ledger.read_batch(con, support.STREAM, key).ranges
            held = con.execute(
                "SELECT _kafka_offset FROM orders WHERE _kafka_batch = $key", {"key": key}
            ).fetchall()
        slices = [staged_of(ranges[at::cut], missing=missing) for at in range(cut) if ranges[at::cut]]
        generation = self.generations[key]
        if generation and missing & {offset for (offset,) in held}:
            with pytest.raises(RangeUnavailableError):
                commit(self.warehouse, key, slices, generation=generation)
            return
        row = commit(self.warehouse, key, slices, generation=generation)
        self.generations[key] = row.generation
        self.rows[key] = sum(staged.rows for staged, _ in slices)

    @precondition(lambda self: any(self.generations.values()))
    @rule(data=st.data())
    def commit_from_an_old_look(self, data):
        key = data.draw(st.sampled_from(sorted(key for key, at in self.generations.items() if at)))
        with self.warehouse.reading() as con:
            ranges = support.ledger.read_batch(con, support.STREAM, key).ranges
        with pytest.raises(GenerationMovedError):
            commit(self.warehouse, key, [staged_of(ranges)], generation=self.generations[key] - 1)

    @invariant()
    def proof_holds(self):
        with self.warehouse.reading() as con:
            if con is None:
                return
            assert coverage.verify(con, support.STREAM, support.RAW).problems == ()
            found = con.execute("SELECT _kafka_batch, count(*) FROM orders GROUP BY 1").fetchall()
        assert dict(found) == {key: rows for key, rows in self.rows.items() if rows}


class MergingMachine(LedgerMachine):
    """As if all records were large: DuckDB merges no row groups, and every second commit does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch.object(warehouse, "LARGE_RECORD_BYTES", 1),
            mock.patch.object(merging, "FANOUT", 2),
        ]
        for patch in self.patches:
            patch.start()

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()
        super().teardown()


TestLedger = LedgerMachine.TestCase
TestLedger.__doc__ = "Any order of plans, commits and replays keeps rows and ledger in agreement."
TestMerging = MergingMachine.TestCase
TestMerging.__doc__ = "So it does where rows are written again to merge them."
TestLedger.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMerging.settings = settings(TestLedger.settings, max_examples=4)

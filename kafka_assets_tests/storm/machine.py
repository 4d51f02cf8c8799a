"""A machine that tries to break the promise: every planned offset once, whatever the log does and whoever dies.

It drives the real planner, ledger, staging, commit and operations on a real DuckDB file. Kafka is a model in
memory, and what the table must hold is kept beside it, in plain dictionaries.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kafka_assets import batches, commits, coverage, ledger, planner, planning, sampling
from kafka_assets.config import Latest, StartingOffsets, load_config
from kafka_assets.errors import (
    DataLostError,
    KafkaAssetsError,
    RangeUnavailableError,
    RunFailedError,
    TopicMissingError,
    UsageInvalidError,
    WarehouseLockedError,
)
from kafka_assets.ledger import PlanConflictError
from kafka_assets.offsets import OffsetRange, TopicPartition
from kafka_assets.operations import backfill, expire, replay, reset
from kafka_assets.operations.moves import Target
from kafka_assets.scope import WHOLE, ReplayScope
from kafka_assets.slicing import slice_ranges
from kafka_assets.staging import stage
from kafka_assets.starting import AtTimestamp, Earliest
from kafka_assets.warehouse import CommitUnknownError
from kafka_assets_tests.storm import mortal
from kafka_assets_tests.storm.memory_log import (
    COMPACTED,
    MARKER,
    MemoryKafka,
    MemoryReader,
    Partition,
    Topic,
    timestamp_ms,
)
from kafka_assets_tests.storm.model import Model, Read
from kafka_assets_tests.storm.mortal import Fate, Killed, MortalWarehouse, fates
from kafka_assets_tests.warehouse_support import NOW, RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.offsets import PlannedRange
    from kafka_assets.operations.backfill import History
    from kafka_assets.operations.replay import Replay
    from kafka_assets.operations.reset import Applied
    from kafka_assets.planner import Survey
    from kafka_assets.planning import Plan
    from kafka_assets.staged import StagedSlice
    from kafka_assets_tests.storm.model import Moved

STREAM = "orders"
TOPICS = ("a", "b")
MOST_PARTITIONS = 3
MOST_RUNS = 4
MOST_ROUNDS = 60
POLICY = 3

examples = 0
"""How many the machine has run in this process."""

reached: Counter[str] = Counter()
"""In how many of them something happened, by what it is."""

times: Counter[str] = Counter()
"""How often it happened."""

parts = st.integers(0, 100)
"""A place in a log, in hundredths of it."""

numbers = st.integers(0, 30)
"""Which of several things, counted round."""

scopes = st.sampled_from([0, 0, 0, 1, 2, 5])
"""Which ranges of a batch, as bits; 0 for all."""


weighted: list[str] = []
arguments_of: dict[str, st.SearchStrategy[dict[str, Any]]] = {}


def action(weight: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Declare what may happen next, so many times as often as others.

    Not a `rule`: of those each example has some at random, and most examples would lack a link of the chain.
    """

    def declare(method: Any) -> Any:
        weighted.extend([method.__name__] * weight)
        arguments_of[method.__name__] = st.fixed_dictionaries(arguments)
        return method

    return declare


@dataclass
class Run:
    """A run of a batch, between two steps.

    Attributes:
        run_id: Its id.
        batch: What it has set out from.
        ranges: What it fetches.
        scope: What it replaces.
        outdated: Of the ranges it loads, those of an incarnation that has ended.
        staged: What it has fetched.
    """

    run_id: str
    batch: BatchRow
    ranges: tuple[PlannedRange, ...]
    scope: ReplayScope = WHOLE
    outdated: frozenset[TopicPartition] = frozenset()
    staged: list[StagedSlice] | None = None


@dataclass
class Look:
    """What a planner saw, and the topics that were there, by their true ids."""

    seen: Survey
    true_ids: dict[str, str] = field(default_factory=dict)


@cache
def _stream_file() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "streams.yaml")
        file.write_text(
            f"kafka: {{bootstrap.servers: 'nowhere:1'}}\nstreams: {{{STREAM}: {{topics: [{', '.join(TOPICS)}]}}}}\n"
        )
        return load_config(file)


@cache
def _folder() -> Path:
    """The place of this process's warehouse, one after the other: a file of the same name costs no connection."""
    fast = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    folder = Path(tempfile.mkdtemp(prefix="kafka-assets-storm-", dir=fast if fast.is_dir() else None))
    atexit.register(clean_up)
    return folder


def _warehouse() -> MortalWarehouse:
    folder = _folder()
    return MortalWarehouse(folder / "w.duckdb", lock_timeout=10, staging=folder / "w.duckdb.staging")


def clean_up() -> None:
    """Remove the folder of this process's warehouse, if it has one."""
    if _folder.cache_info().currsize:
        _warehouse()._standing.drop()
        mortal.forget()
        shutil.rmtree(_folder(), ignore_errors=True)
        _folder.cache_clear()


def _is_first_id(topic_id: str) -> bool:
    return topic_id.endswith(".1")


class StormMachine(RuleBasedStateMachine):
    """One stream over two topics."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = _folder()
        self._clear()
        self.warehouse = _warehouse()
        self.warehouse.on_death = self._died
        self.kafka = MemoryKafka()
        self.stream: StreamConfig = replace(
            _stream_file().stream(STREAM), interval=0.0, max_batch_delay=0.0, max_batches_in_flight=6
        )
        self.model = Model()
        self.now = NOW
        self.restless = False
        self.caught_up_at = 0
        self.serial = 0
        self.ids = 0
        self.lives: Counter[str] = Counter()
        self.hidden_once: set[str] = set()
        self.looks: list[Look] = []
        self.runs: list[Run] = []
        self.reached: Counter[str] = Counter()
        self.doing = ""
        # Of a batch, by its topics.
        self.planned_of: dict[str, dict[str, str]] = {}
        self.seen_of: dict[str, str] = {}
        # Topics whose records may be under the offsets of an older one, unseen.
        self.doubtful: set[str] = set()
        # What is staged, and what a commit is about to write.
        self.files: dict[str, Read] = {}
        self.committing: list[StagedSlice] | None = None
        self.checked = -1
        self._patched: list[tuple[Any, str, Any]] = [
            (batches, "RangeReader", self._reader),
            (batches, "stage", self._stage),
            (reset, "stage", self._stage),
            (commits, "commit_batch", self._commit_batch),
            (planner, "record", self._record_as("tick")),
            (reset, "record", self._record_as("reset")),
            (backfill, "record", self._record_as("backfill")),
            (planner, "TRUNCATION_READ_SECONDS", 0.0),
            (sampling, "bytes_per_record", lambda *_: None),
            *((module, "utc_now", lambda: self.now) for module in (batches, reset, backfill, expire)),
        ]
        self._original = [(place, name, getattr(place, name)) for place, name, _ in self._patched]
        self._real_commit, self._real_record = commits.commit_batch, planner.record
        for place, name, stand_in in self._patched:
            setattr(place, name, stand_in)

    def teardown(self) -> None:
        global examples  # noqa: PLW0603  the count of this process
        for place, name, original in self._original:
            setattr(place, name, original)
        self._clear()
        examples += 1
        times.update(self.reached)
        reached.update(self.reached.keys())

    def _clear(self) -> None:
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _reach(self, what: str) -> None:
        self.reached[what] += 1

    def _died(self, how: str) -> None:
        self._reach(f"{self.doing}: {how}")

    # Stand-ins that note what goes through them.

    def _reader(self, _: Any, ranges: Any, *, on_data_loss: str, **__: Any) -> MemoryReader:
        return MemoryReader(self.kafka, ranges, on_data_loss=on_data_loss)

    def _stage(self, reader: Any, *arguments: Any, **named: Any) -> StagedSlice:
        staged = stage(reader, *arguments, **named)
        read = Read()
        for one in reader.evidence:
            at = one.planned.range.topic_partition
            if isinstance(reader, MemoryReader):
                read.values[at] |= reader.values(one.planned.range)
            for stretch in one.lost:
                read.lost[at] |= set(range(stretch.from_offset, stretch.until_offset))
        self.files[staged.path] = read
        return staged

    def _commit_batch(self, *arguments: Any, staged: Any, **named: Any) -> BatchRow:
        self.committing = list(staged)
        return self._real_commit(*arguments, staged=staged, **named)

    def _record_as(self, moved: Moved) -> Callable[..., tuple[str, ...]]:
        def record(stream: Any, warehouse: Any, seen: Survey, plan: Plan, **named: Any) -> tuple[str, ...]:
            before, stale = self.warehouse.commits, seen.state.plan_version != self.model.version
            try:
                return self._real_record(stream, warehouse, seen, plan, **named)
            except PlanConflictError:
                assert stale, "a plan from the latest look was refused"
                self._reach(f"{moved}: plan refused, another was faster")
                raise
            finally:
                if self.warehouse.commits > before:
                    assert not stale, "a plan from an old look was written"
                    self._note_plan(plan, moved, claimed=named.get("claim", False))

        return record

    def _note_plan(self, plan: Plan, moved: Moved, *, claimed: bool) -> None:
        known, starts = set(self.model.plans), self.model.latest
        self.model.note_plan(plan, self.now, moved, claimed=claimed)
        for key in self.model.plans.keys() - known:
            self.planned_of[key] = dict(self.seen_of)
            self._reach(f"batches planned by {moved}")
        for at, position in plan.positions.items():
            if position.incarnation > starts.get(at, position.incarnation):
                why = "truncated" if position.topic_id == self._last_id(at) else "created again"
                self._reach(f"{moved}: new incarnation, {why}")
        if plan.losses:
            self._reach(f"{moved}: losses booked")
        for stop in plan.stops:
            self._reach(f"{moved}: stopped, {stop.code}")

    def _last_id(self, at: TopicPartition) -> str | None:
        incarnation = self.model.latest[at] - 1
        while incarnation >= 0:
            if (before := self.model.positions.get((at.topic, incarnation, at.partition))) is not None:
                return before[0]
            incarnation -= 1
        return None

    @contextmanager
    def _amid(self, doing: str, fate: Fate) -> Iterator[None]:
        self.doing, self.warehouse.fate = doing, fate
        try:
            yield
        finally:
            self.warehouse.fate = Fate()

    # The log.

    @initialize(
        partitions=st.integers(1, 2),
        limit=st.sampled_from([3, 10, 40, 1000]),
        start=st.sampled_from(["earliest", "earliest", "latest", "time"]),
        counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
        seconds=st.integers(-1, 20),
        skip=st.integers(0, 3),
        restart=st.integers(0, 3),
        without_id=st.integers(0, 5),
        optimized=st.integers(0, 3),
        before=st.sampled_from([2, 3, 1, 0]),
    )
    def begin(
        self,
        partitions: int,
        limit: int,
        start: str,
        counts: list[int],
        seconds: int,
        skip: int,
        restart: int,
        without_id: int,
        optimized: int,
        before: int,
    ) -> None:
        self.warehouse.optimize(yes=optimized == 0)
        if without_id == 0:
            self.kafka.without_id |= set(TOPICS)
        for name in TOPICS:
            self._create(name, partitions)
        for number, count in enumerate(counts):
            self._append(*self._log(number), count)
        starts = {
            "earliest": StartingOffsets(),
            "latest": StartingOffsets(default=Latest()),
            "time": StartingOffsets(default=self._time(seconds)),
        }
        self.stream = replace(
            self.stream,
            max_records_per_batch=limit,
            starting_offsets=starts[start],
            on_data_loss="skip" if skip else "fail",
            on_topic_recreated="restart" if restart else "fail",
        )

        if before:
            self.tick(Fate(), drain=True, claim=True)
        if before > 1:
            for key in self.model.open[: before - 1]:
                self._run(key)

    @staticmethod
    def _time(seconds: int) -> AtTimestamp:
        return AtTimestamp(timestamp_ms(seconds) if seconds >= 0 else -1)

    def _create(self, name: str, partitions: int) -> None:
        self.lives[name] += 1
        topic_id = f"{name}.{self.lives[name]}"
        self.kafka.topics[name] = Topic(topic_id, [Partition() for _ in range(partitions)])
        if self.lives[name] > 1:
            self._reach("log: topic created again")
        if name in self.hidden_once:
            self.doubtful.add(topic_id)
        self._note_ids()

    def _note_ids(self) -> None:
        for name in self.kafka.without_id & self.kafka.topics.keys():
            self.hidden_once.add(name)
            topic_id = self.kafka.topics[name].topic_id
            if not _is_first_id(topic_id):
                self.model.alike.add(topic_id)
                self.doubtful.add(topic_id)

    def _value(self, at: TopicPartition, offset: int) -> bytes:
        self.serial += 1
        return f"{self.kafka.topics[at.topic].topic_id}/{at.partition}/{offset}/{self.serial}".encode()

    def _log(self, number: int) -> tuple[TopicPartition, Partition]:
        at = self.kafka.partitions[number % len(self.kafka.partitions)]
        return at, self.kafka.partition(at)

    @action(
        4,
        number=numbers,
        count=st.integers(1, 15),
        kind=st.sampled_from(["records", "records", "commit", "abort", "open", "markers"]),
    )
    def produce(self, number: int, count: int, kind: str) -> None:
        if not self.kafka.topics:
            return
        self.restless = True
        at, log = self._log(number)
        if kind in ("commit", "abort", "open"):
            log.begin(count)
            self._append(at, log, count % 4)
            if kind != "open":
                self._finish(at, log, len(log.transactions) - 1, commits=kind == "commit")
        elif kind == "markers":
            log.append(*[MARKER] * count)
        else:
            self._append(at, log, count)

    def _append(self, at: TopicPartition, log: Partition, count: int) -> None:
        log.append(*(self._value(at, log.end + index) for index in range(count)))

    def _finish(self, at: TopicPartition, log: Partition, transaction: int, *, commits: bool) -> None:
        log.finish(transaction, (lambda offset: self._value(at, offset)) if commits else None)

    @action(
        2,
        what=st.sampled_from(
            ["commit", "abort", "compact", "compact", "retain", "retain", "retain", "truncate", "lead"]
        ),
        number=numbers,
        part=parts,
    )
    def disturb(self, what: str, number: int, part: int) -> None:
        """Something happens to one log."""
        if not self.kafka.partitions:
            return
        self.restless = True
        at, log = self._log(number)
        place = log.log_start + (log.end - log.log_start) * part // 100
        if what in ("commit", "abort"):
            if log.transactions:
                self._finish(at, log, part % len(log.transactions), commits=what == "commit")
        elif what == "compact":
            for offset in list(log.deliverable(log.log_start, log.stable_end))[:: 2 + part % 4]:
                log.entries[offset] = COMPACTED
        elif what == "retain":
            log.retain_from(place)
        elif what == "truncate":
            self._truncate(at, log, place)
        else:
            log.lead()

    def _truncate(self, at: TopicPartition, log: Partition, place: int) -> None:
        log.truncate(place)
        self._reach("log: truncated")
        self.model.truncated.add(f"{self.kafka.topics[at.topic].topic_id}/{at.partition}")

    @action(2, number=numbers, what=st.sampled_from(["retain", "truncate"]), part=st.integers(1, 100))
    def take_unread(self, number: int, what: str, part: int) -> None:
        """Retention, or an unclean leader, takes what is planned and not committed, or not planned yet."""
        ends = self.model.settled_until()
        waiting = [
            (at, ends[place])
            for at, incarnation in self.model.latest.items()
            if at in self.kafka
            and (place := (at.topic, incarnation, at.partition)) in ends
            and self.kafka.partition(at).end > ends[place]
        ]
        if not waiting:
            return
        self.restless = True
        at, settled = waiting[number % len(waiting)]
        log = self.kafka.partition(at)
        if what == "retain":
            log.retain_from(settled + -(-(log.end - settled) * part // 100))
        else:
            until = max(self.model.positions[at.topic, self.model.latest[at], at.partition][2], settled)
            self._truncate(at, log, settled + (until - settled) * (part - 1) // 100)

    def _retain(self, number: int, part: int) -> None:
        if self.kafka.topics:
            _, log = self._log(number)
            log.retain_from(log.log_start + (log.end - log.log_start) * part // 100)

    @action(
        what=st.sampled_from(["add partition", "create again", "create again", "delete", "ids"]),
        name=st.sampled_from(TOPICS),
        partitions=st.integers(1, 2),
        count=st.integers(0, 15),
    )
    def change_topic(self, what: str, name: str, partitions: int, count: int) -> None:
        self.restless = True
        topic = self.kafka.topics.get(name)
        if what == "ids":
            self.kafka.without_id ^= {name}
            self._note_ids()
            self._reach("log: ids given or not")
        elif what == "create again" or topic is None:
            self._create(name, partitions)
            self._append(*self._of(name), count)
        elif what == "delete":
            del self.kafka.topics[name]
        elif len(topic.partitions) < MOST_PARTITIONS:
            topic.partitions.append(Partition())

    def _of(self, name: str) -> tuple[TopicPartition, Partition]:
        at = TopicPartition(name, 0)
        return at, self.kafka.partition(at)

    # The stream.

    @action(
        skip=st.booleans(),
        restart=st.booleans(),
        limit=st.sampled_from([1, 3, 10, 40, 1000]),
        seconds=st.integers(-100, 100),
    )
    def edit_the_streams_file(self, skip: bool, restart: bool, limit: int, seconds: int) -> None:
        """And have the clock go on, or back."""
        self.now += timedelta(seconds=seconds)
        self.stream = replace(
            self.stream,
            on_data_loss="skip" if skip else "fail",
            on_topic_recreated="restart" if restart else "fail",
            max_records_per_batch=limit,
        )

    @action(stale=st.integers(0, 2))
    def look(self, stale: int) -> None:
        """A planner looks, and takes its time."""
        if len(self.looks) < 3:
            self.looks.append(self._look(stale))

    def _look(self, stale: int = 0) -> Look:
        self.kafka.stale_reads = stale
        seen = planner.survey(self.stream, self.warehouse, self.kafka)  # type: ignore[arg-type]  # in memory
        self.kafka.stale_reads = 0
        return Look(seen, self._true_ids())

    def _true_ids(self) -> dict[str, str]:
        return {name: topic.topic_id for name, topic in self.kafka.topics.items()}

    @action(2, which=numbers, fate=fates, drain=st.booleans(), claim=st.booleans())
    def plan(self, which: int, fate: Fate, drain: bool, claim: bool) -> None:
        """A planner plans from what it saw, which another may have done since."""
        if self.looks:
            look = self.looks.pop(which % len(self.looks))
            try:
                self._plan(look, fate, drain=drain, claim=claim)
            except TopicMissingError:
                assert any(at not in self.kafka for at in look.seen.bounds)
                self._reach("gone before its start was found")

    @action(3, fate=fates, drain=st.booleans(), claim=st.booleans())
    def tick(self, fate: Fate, drain: bool, claim: bool) -> None:
        first = not self.model.version
        self._plan(self._look(), fate, drain=drain, claim=claim)
        if first and self.model.version:
            self._start_holds()

    def _start_holds(self) -> None:
        """A start in time leaves out what is older, and nothing else."""
        start = self.stream.starting_offsets.default
        if not isinstance(start, AtTimestamp):
            return
        self._reach("started at a time")
        for (topic, _, partition), (_, first, _) in self.model.positions.items():
            log = self.kafka.partition(TopicPartition(topic, partition))
            assert not any(
                timestamp_ms(offset) >= start.timestamp_ms for offset in log.deliverable(log.log_start, first)
            )
            read = log.deliverable(first, log.stable_end)
            assert all(timestamp_ms(offset) >= start.timestamp_ms for offset in read)

    def _plan(self, look: Look, fate: Fate, *, drain: bool, claim: bool) -> Plan:
        proposed = planner.propose(self.stream, look.seen, self.kafka, now=self.now, drain=drain)  # type: ignore[arg-type]
        self.seen_of = look.true_ids
        with self._amid("tick", fate), suppress(PlanConflictError, Killed, CommitUnknownError):
            planner.record(self.stream, self.warehouse, look.seen, proposed, now=self.now, claim=claim)
        return proposed

    @action(which=numbers, behind=st.integers(0, 1), fate=fates)
    def claim(self, which: int, behind: int, fate: Fate) -> None:
        if not self.model.plans:
            return
        key = sorted(self.model.plans)[which % len(self.model.plans)]
        expected = self.model.attempts[key] - behind
        before, claimed = self.warehouse.commits, None
        with (
            self._amid("claim", fate),
            suppress(Killed, CommitUnknownError),
            self.warehouse.writing() as con,
        ):
            claimed = ledger.claim_attempt(con, STREAM, key, expected, self.now)
        due = behind == 0 and self.model.generations[key] == 0
        assert claimed in (None, due)
        if self.warehouse.commits > before and due:
            self.model.attempts[key] += 1

    # The runs.

    @action(
        3,
        which=numbers,
        whose=st.sampled_from(["open", "replay", "another's"]),
        scope=scopes,
        merge=st.booleans(),
    )
    def start_run(self, which: int, whose: str, scope: int, merge: bool) -> None:
        """Of an open batch, or to replay one, or of a batch that another run is at work on."""
        if len(self.runs) == MOST_RUNS:
            return
        keys = self._keys(replays=whose == "replay")
        if whose == "another's":
            keys = [run.batch.batch for run in self.runs]
        if keys:
            key = keys[which % len(keys)]
            self._start(key, self._scope(key, scope, merge=merge))

    def _keys(self, *, replays: bool) -> list[str]:
        return [key for key, generation in self.model.generations.items() if bool(generation) == replays]

    def _scope(self, key: str, bits: int, *, merge: bool) -> ReplayScope:
        ranges = [OffsetRange(plan[0], *plan[3:]) for plan in self.model.plans[key]]
        chosen = tuple(one for index, one in enumerate(ranges) if bits >> index & 1)
        return ReplayScope(chosen, merge=merge)

    def _start(self, key: str, scope: ReplayScope = WHOLE) -> Run | None:
        """A run reads its batch, and what it is to fetch of it, or ends there."""
        batch = batches.read_batch(self.stream, self.warehouse, key)
        if batch.blocked:
            with self.warehouse.writing() as con:
                ledger.clear_block(con, STREAM, key)
        self.ids += 1
        run = Run(f"run-{self.ids}", batch, (), scope)
        self.runs.append(run)
        try:
            run.ranges = batches.ranges_to_fetch(self.stream, self.warehouse, batch, scope)
        except KafkaAssetsError as error:
            self._reach(f"run refused before its fetch, {type(error).__name__}")
            self._fail(run, error)
            return None
        run.outdated = self._outdated(batch)
        return run

    def _outdated(self, batch: BatchRow) -> frozenset[TopicPartition]:
        latest = self.model.latest
        return frozenset(
            one.range.topic_partition
            for one in batch.ranges
            if one.incarnation < latest[one.range.topic_partition]
        )

    @action(5, which=numbers, slices=st.integers(1, 2), halfway=st.integers(0, 7), part=parts, fate=fates)
    def go_on(self, which: int, slices: int, halfway: int, part: int, fate: Fate) -> None:
        """A run takes its next step, fetch or commit."""
        if not self.runs:
            return
        run = self.runs[which % len(self.runs)]
        if run.staged is not None:
            self._commit(run, fate)
            return
        self._fetch_amid(run, slices, halfway, part)

    @action(
        4,
        which=numbers,
        replays=st.integers(0, 3).map(lambda one: one == 0),
        scope=scopes,
        merge=st.booleans(),
        halfway=st.integers(0, 15),
        part=parts,
        fate=fates,
    )
    def run_whole(
        self, which: int, replays: bool, scope: int, merge: bool, halfway: int, part: int, fate: Fate
    ) -> None:
        """A run from its start to its end."""
        keys = self._keys(replays=replays)
        if keys:
            key = keys[which % len(keys)]
            self._run(key, self._scope(key, scope, merge=merge), halfway=halfway, part=part, fate=fate)

    def _run(
        self,
        key: str,
        scope: ReplayScope = WHOLE,
        *,
        halfway: int = 2,
        part: int = 0,
        fate: Fate | None = None,
    ) -> None:
        run = self._start(key, scope)
        if run is not None:
            self._fetch_amid(run, 1, halfway, part)
            if run.staged is not None:
                self._commit(run, fate or Fate())

    @action(2, which=numbers, merge=st.booleans(), fate=fates)
    def race(self, which: int, merge: bool, fate: Fate) -> None:
        """Two runs of one batch fetch side by side, and commit one after the other."""
        if not self.model.plans:
            return
        key = sorted(self.model.plans)[which % len(self.model.plans)]
        racers = [run for run in (self._start(key, ReplayScope(merge=merge)), self._start(key)) if run]
        for run in racers:
            self._fetch(run)
        for run in racers:
            if run.staged is not None:
                self._commit(run, fate)
                fate = Fate()

    def _fetch_amid(self, run: Run, slices: int, halfway: int, part: int) -> None:
        """Fetch while, perhaps, retention takes something away, or somebody kills the fetcher."""
        if halfway == 0:
            self.kafka.on_halfway = lambda: self._retain(part, part)
        elif halfway == 1:
            self.kafka.on_halfway = self._die
        self._fetch(run, slices)
        self.kafka.on_halfway = None

    def _die(self) -> None:
        self._reach("fetch: killed")
        raise Killed

    def _fetch(self, run: Run, slices: int = 1) -> None:
        pieces = slice_ranges(run.ranges, slices)
        try:
            run.staged = [
                batches.stage_slice(
                    self.stream, self.warehouse, run.batch, piece, name=f"{run.run_id}-{index}"
                )
                for index, piece in enumerate(pieces)
            ]
        except Killed:
            self.runs.remove(run)
        except KafkaAssetsError as error:
            self._reach(f"fetch: {type(error).__name__}")
            self._fail(run, error)

    def _fail(self, run: Run, error: KafkaAssetsError) -> None:
        """What a failing run leaves in the ledger."""
        self.runs.remove(run)
        with self.warehouse.writing() as con:
            ledger.record_failure(
                con,
                STREAM,
                run.batch.batch,
                error=f"{error.code}: {error.message}",
                blocked=error.exit_code == POLICY,
            )

    @action(which=numbers, how=st.sampled_from(["killed", "file cut", "file gone"]))
    def lose(self, which: int, how: str) -> None:
        """A run is killed, and its staged files stay behind; or one of those is damaged."""
        if not self.runs:
            return
        run = self.runs[which % len(self.runs)]
        if how == "killed" or not run.staged:
            self._reach("run: killed between its steps")
            self.runs.remove(run)
            return
        self._reach("run: a staged file is damaged")
        path = Path(run.staged[which % len(run.staged)].path)
        if how == "file cut" and path.exists():
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink(missing_ok=True)

    def _commit(self, run: Run, fate: Fate) -> None:
        began_at, is_at = run.batch.generation, self.model.generations[run.batch.batch]
        before = self.warehouse.commits
        try:
            with self._amid("replay" if began_at else "load", fate):
                outcome = self._write(run)
        except Killed:
            self.runs.remove(run)
        except KafkaAssetsError as failure:
            self._reach(f"{'replay' if began_at else 'load'} refused, {type(failure).__name__}")
            self._refused_rightly(failure, replays=is_at > 0, unknown=fate.unknown)
            self._fail(run, failure)
        else:
            self._reach(outcome)
            assert (self.warehouse.commits > before) == (outcome != "found committed")
            assert (outcome == "found committed") == (began_at == 0 < is_at)
            self.runs.remove(run)

    @staticmethod
    def _refused_rightly(failure: KafkaAssetsError, *, replays: bool, unknown: bool) -> None:
        assert replays or not isinstance(failure, RangeUnavailableError), (
            "a first load was refused as a replay"
        )
        assert not isinstance(failure, RunFailedError) or unknown or "twice" in str(failure), failure

    def _write(self, run: Run) -> str:
        """Commit what a run has staged, and note what is in the file then, however it ends."""
        assert run.staged is not None
        key, before, self.committing = run.batch.batch, self.warehouse.commits, None
        replaces = self.model.generations[key] > 0
        try:
            return batches.commit(
                self.stream, self.warehouse, run.batch, run.staged, run_id=run.run_id, scope=run.scope
            ).outcome
        finally:
            if self.warehouse.commits > before:
                assert self.committing is not None
                fetched = Read.of(self.files[one.path] for one in self.committing)
                if not replaces:
                    self._of_its_topic(run, fetched)
                self._note_losses(key, fetched, replaces=replaces)
                self.model.note_commit(key, fetched, run.scope.ranges, merged=run.scope.merge)

    def _of_its_topic(self, run: Run, fetched: Read) -> None:
        """A range of an incarnation known to have ended is not loaded from the topic that came after it."""
        for at in run.outdated:
            was = self.planned_of[run.batch.batch].get(at.topic)
            assert all(value.split(b"/")[0].decode() == was for value in fetched.values[at].values()), (
                f"{at} of batch {run.batch.batch} was loaded from another topic"
            )

    def _note_losses(self, key: str, fetched: Read, *, replaces: bool) -> None:
        if replaces:
            self._reach("replayed")
            before = self.model.reads[key]
            if any(values.keys() - fetched.values[at].keys() for at, values in before.values.items()):
                self._reach("replayed in part, or with rows that Kafka no longer has")
        elif any(fetched.lost.values()):
            self._reach("loaded, some of it lost")

    # What operators do.

    def _target(self, to: str, number: int, part: int, *, forwards: bool) -> Target:
        if to == "earliest":
            return Target(to, everywhere=Earliest())
        if to == "latest":
            return Target(to, everywhere=Latest())
        if to == "time":
            return Target(to, everywhere=self._time(part // 4 - 1))
        at, log = self._log(number)
        low, high = log.log_start, log.stable_end
        if at in self.model.latest and part % 4:
            _, start, until = self.model.positions[at.topic, self.model.latest[at], at.partition]
            low, high = (min(until, high), high) if forwards else (low, max(low, start))
        return Target(to, partitions={at: low + (high - low) * part // 100})

    @action(
        2,
        to=st.sampled_from(["earliest", "earliest", "latest", "time", "offset"]),
        keep_hole=st.booleans(),
        number=numbers,
        part=parts,
        meddled=st.integers(0, 3),
        fate=fates,
    )
    def reset(self, to: str, keep_hole: bool, number: int, part: int, meddled: int, fate: Fate) -> None:
        """An operator resets, perhaps while a planner plans, or retention goes on."""
        if not self.kafka.partitions:
            return
        target = self._target(to, number, part, forwards=True)
        if meddled == 0:
            self.kafka.on_look = lambda: self._meddle("reset")
        elif meddled == 1:
            self.kafka.on_halfway = lambda: self._retain(part, part)
        applied = self._reset(target, fate, keep_hole=keep_hole)
        halfway, self.kafka.on_halfway = self.kafka.on_halfway, None
        self.kafka.on_look = None
        if applied is not None and (meddled != 1 or halfway is not None):
            self._reach(f"reset to {to}{', hole kept' if keep_hole and applied.holes else ''}")
            self._reset_holds(target, applied, keep_hole=keep_hole, overtaken=meddled == 0)

    def _meddle(self, doing: str) -> None:
        self._plan(self._look(), Fate(), drain=True, claim=False)
        self.doing, self.seen_of = doing, self._true_ids()

    def _reset(self, target: Target, fate: Fate, *, keep_hole: bool = False) -> Applied | None:
        before, self.seen_of = self.warehouse.commits, self._true_ids()
        try:
            with self._amid("reset", fate):
                return reset.apply(
                    self.stream,
                    self.warehouse,
                    self.kafka,  # type: ignore[arg-type]  # in memory
                    target,
                    keep_hole=keep_hole,
                    open_runs=lambda: self,
                )
        except Killed:
            return None
        except KafkaAssetsError as error:
            self._told_rightly(error, fate)
            self._reach(f"reset refused, {type(error).__name__}")
            if isinstance(error, UsageInvalidError | WarehouseLockedError):
                told = "was settled as proposed" in error.message
                assert told or self.warehouse.commits - before <= (self.kafka.on_look is None), (
                    "it was refused half done"
                )
            return None

    @staticmethod
    def _told_rightly(error: KafkaAssetsError, fate: Fate) -> None:
        of_the_operator = isinstance(error, UsageInvalidError | DataLostError)
        assert of_the_operator or error.retryable or fate != Fate(), error

    # As `BatchRuns`.

    def alive(self, batch: BatchRow) -> str | None:
        return next((run.run_id for run in self.runs if run.batch.batch == batch.batch), None)

    def hold(self, _: BatchRow) -> bool:
        return True

    def release(self, _: BatchRow) -> None:
        pass

    def run(self, batch: BatchRow, staged: list[StagedSlice]) -> BatchRow:
        self.ids += 1
        settling = Run(
            f"settling-{self.ids}", batch, batch.ranges, outdated=self._outdated(batch), staged=staged
        )
        assert self._write(settling) == "loaded"
        self._reach("reset: batch settled")
        return batches.read_batch(self.stream, self.warehouse, batch.batch)

    def _reset_holds(self, target: Target, applied: Applied, *, keep_hole: bool, overtaken: bool) -> None:
        """It points where it was told, skips what it was told to, and asked again does nothing more."""
        plan = applied.proposal.moves.plan
        for at, position in plan.positions.items():
            log, wanted = self.kafka.partition(at), target.of(at)
            lost = [(one.from_offset, one.until_offset) for one in plan.losses if one.topic_partition == at]
            if keep_hole or isinstance(wanted, Earliest):
                assert all(high <= log.log_start for _, high in lost), "lost what is there"
            if isinstance(wanted, Latest):
                assert position.planned_until == log.stable_end
            elif isinstance(wanted, AtTimestamp):
                later = [
                    offset
                    for low, high in lost
                    for offset in log.deliverable(low, high)
                    if timestamp_ms(offset) >= wanted.timestamp_ms >= 0
                ]
                assert not later, "skipped what is not older"
            elif not isinstance(wanted, Earliest):
                assert position.planned_until == target.partitions[at]
        # One that found all in place comes before a planner that moved on meanwhile, and writes nothing.
        if applied.error is None and (plan.positions or not overtaken):
            again = reset.propose(self.stream, self.warehouse, self.kafka, target, keep_hole=keep_hole)  # type: ignore[arg-type]
            assert not again.settlements
            assert not again.moves.changes

    @action(
        2,
        to=st.sampled_from(["earliest", "earliest", "time", "offset"]),
        number=numbers,
        part=parts,
        newest_first=st.booleans(),
        meddled=st.integers(0, 3),
        fate=fates,
    )
    def backfill(self, to: str, number: int, part: int, newest_first: bool, meddled: int, fate: Fate) -> None:
        """An operator plans the history, perhaps while a planner plans."""
        if not self.kafka.partitions:
            return
        target = self._target(to, number, part, forwards=False)
        if meddled == 0:
            self.kafka.on_look = lambda: self._meddle("backfill")
        self.seen_of = self._true_ids()
        try:
            with self._amid("backfill", fate):
                history = self._history(target, newest_first=newest_first)
        except Killed:
            return
        except KafkaAssetsError as error:
            self._told_rightly(error, fate)
            return
        finally:
            self.kafka.on_look = None
        if history.keys:
            self._reach("backfill planned")
        assert [self.model.kinds[key] for key in history.keys] == ["backfill"] * len(history.keys)
        self._history_holds(target, history)

    def _history(self, target: Target, *, newest_first: bool) -> History:
        kafka: Any = self.kafka
        return backfill.plan_history(self.stream, self.warehouse, kafka, target, newest_first=newest_first)

    def _history_holds(self, target: Target, history: History) -> None:
        """All that is asked for is planned, where the log is the one that was planned on."""
        stopped = {(stop.topic, stop.partition) for stop in history.stops}
        for at, incarnation in self.model.latest.items():
            if at not in self.kafka or (at.topic, at.partition) in stopped:
                continue
            log, (_, start, _) = (
                self.kafka.partition(at),
                self.model.positions[at.topic, incarnation, at.partition],
            )
            wanted = target.of(at)
            if isinstance(wanted, Earliest):
                assert start <= log.log_start
            elif isinstance(wanted, AtTimestamp):
                before = log.deliverable(log.log_start, start)
                assert not any(timestamp_ms(offset) >= wanted.timestamp_ms for offset in before)
            elif wanted is not None:
                assert start <= target.partitions[at]
        assert not self._history(target, newest_first=False).keys

    @action(
        what=st.sampled_from(["before", "before", "offsets", "place"]),
        name=st.sampled_from(TOPICS),
        number=numbers,
        asks=st.booleans(),
        fate=fates,
    )
    def expire(self, what: str, name: str, number: int, asks: bool, fate: Fate) -> None:
        """Somebody removes rows on purpose, having asked which, or not."""
        matches: Callable[[TopicPartition, int], bool]
        if what == "before":
            moment = timestamp_ms(number)
            predicate = expire.before(datetime.fromtimestamp(moment / 1000, UTC))
            matches = lambda _, offset: timestamp_ms(offset) < moment  # noqa: E731
        elif what == "offsets":
            predicate = f"_kafka_offset % 5 = {number % 5} AND _kafka_topic = '{name}'"
            matches = lambda at, offset: offset % 5 == number % 5 and at.topic == name  # noqa: E731
        else:
            predicate = f"_kafka_partition = {number % 2} AND _kafka_offset < {number} -- of any topic"
            matches = lambda at, offset: at.partition == number % 2 and offset < number  # noqa: E731
        expected, before = self.model.matching(matches), self.warehouse.commits
        if asks:
            asked = expire.expire(self.stream, self.warehouse, predicate, apply=False)
            assert sum(one.rows for one in asked) == expected
        with self._amid("expire", fate), suppress(Killed, CommitUnknownError):
            removed = expire.expire(self.stream, self.warehouse, predicate, apply=True)
            assert sum(one.rows for one in removed) == expected
        if self.warehouse.commits > before and self.model.version:
            self._reach("rows removed" if expected else "removal of no row")
            self.model.note_removal(matches)

    @action(2, number=numbers, part=parts, size=st.integers(1, 12), by=st.integers(0, 2), merge=st.booleans())
    def replay(self, number: int, part: int, size: int, by: int, merge: bool) -> None:
        """An operator replays offsets, or a time, whichever batches have them."""
        latest = sorted(self.model.latest.items())
        if not latest:
            return
        at, incarnation = latest[number % len(latest)]
        _, start, until = self.model.positions[at.topic, incarnation, at.partition]
        low = start + (until - start) * part // 100
        asked = OffsetRange(at.topic, at.partition, low, low + size)
        if by == 0:
            since, end = (datetime.fromtimestamp(timestamp_ms(one) / 1000, UTC) for one in (low, low + size))
            replays = replay.of_times(self.stream, self.warehouse, since, end)
            self._of_times_hold(replays, low, low + size)
        else:
            try:
                replays = replay.of_ranges(self.stream, self.warehouse, [asked])
            except UsageInvalidError:
                assert asked.until_offset > until
                return
            self._of_ranges_hold(replays, asked, incarnation)
        for one in replays:
            whole = len(one.ranges) == len(one.batch.ranges)
            if not whole:
                self._reach("replay of some ranges of a batch")
            self._run(one.batch.batch, ReplayScope(() if whole else one.ranges, merge=merge))

    def _of_ranges_hold(self, replays: Sequence[Replay], asked: OffsetRange, incarnation: int) -> None:
        found = {one.batch.batch: set(one.ranges) for one in replays}
        for key, ranges in self.model.plans.items():
            for topic, _, of, partition, low, high in ranges:
                planned = OffsetRange(topic, partition, low, high)
                if of == incarnation and planned.intersect(asked) is not None:
                    assert planned in found.get(key, ()), f"{planned} meets {asked}"
                elif self.model.generations[key]:
                    assert planned not in found.get(key, ()), f"{planned} does not meet {asked}"

    def _of_times_hold(self, replays: Sequence[Replay], low: int, high: int) -> None:
        found = {one.batch.batch: set(one.ranges) for one in replays}
        latest = self.model.latest
        for key, ranges in self.model.plans.items():
            for topic, _, incarnation, partition, start, until in ranges:
                at = TopicPartition(topic, partition)
                if (
                    self.model.generations[key]
                    and latest[at] == incarnation
                    and any(low <= offset < high for offset in self.model.reads[key].values[at])
                ):
                    assert OffsetRange(topic, partition, start, until) in found.get(key, ())

    @action()
    def prove(self) -> None:
        """Somebody asks for the proof, and looks at the views."""
        if not self.model.version:
            return
        with self.warehouse.reading() as con:
            assert con is not None
            proof = coverage.verify(con, STREAM, RAW)
            positions = con.execute(
                'SELECT topic, incarnation, "partition", committed_until FROM kafka_assets.positions'
            ).fetchall()
            batch_rows = con.execute('SELECT batch, "rows" FROM kafka_assets.batches').fetchall()
            losses = con.execute("SELECT sum(until_offset - from_offset) FROM kafka_assets.losses").fetchall()
        assert proof.problems == ()
        assert {tuple(place): reached for *place, reached in positions} == self.model.settled_until()
        assert {key: count or 0 for key, count in batch_rows} == {
            key: sum(map(len, self.model.reads[key].values.values())) if generation else 0
            for key, generation in self.model.generations.items()
        }
        lost = sum(high - low for _, low, high in self.model.skipped)
        lost += sum(len(gone) for read in self.model.reads.values() for gone in read.lost.values())
        assert int(losses[0][0] or 0) == lost

    @action(operator=st.booleans())
    def catch_up(self, operator: bool) -> None:
        """With nobody dying and the log at rest: all that can be read is in the table afterwards.

        What stops the stream is answered by its policies, or by an operator who resets, as often as it takes.
        """
        if not self.restless or self.model.version == self.caught_up_at:
            return
        self.restless, self.caught_up_at = False, self.model.version
        self.runs.clear()
        for at in self.kafka.partitions:
            while self.kafka.partition(at).transactions:
                self._finish(at, self.kafka.partition(at), 0, commits=True)
        stream = self.stream
        self.stream = replace(
            stream,
            on_data_loss="fail" if operator else "skip",
            on_topic_recreated="fail" if operator else "restart",
            max_records_per_batch=1000,
        )
        idle = 0
        for _ in range(MOST_ROUNDS):
            if operator and self.model.version:
                self._reset(Target("earliest", everywhere=Earliest()), Fate())
            proposed = self._plan(self._look(), Fate(), drain=True, claim=True)
            waiting = self.model.open
            for key in waiting:
                self._run(key)
            moved = proposed.batches or any(self.model.generations[key] for key in waiting)
            idle = 0 if moved else idle + 1
            if idle == 2:
                break
        self._reach("caught up by an operator" if operator else "caught up by policies")
        self._assert_caught_up(proposed, operator=operator)
        self.stream = stream

    def _assert_caught_up(self, proposed: Plan, *, operator: bool) -> None:
        stuck = self.model.open
        assert not (operator and stuck), f"an operator cannot settle {stuck}"
        if len(stuck) >= planning.MAX_BLOCKED:
            return
        assert proposed.lag == 0
        accounted = self.model.accounted()
        for at in self.kafka.partitions:
            log, topic_id = self.kafka.partition(at), self.kafka.topics[at.topic].topic_id
            if f"{topic_id}/{at.partition}" in self.model.truncated or topic_id in self.doubtful:
                continue  # what was truncated and has grown again unseen is told by its epoch, at the fetch
            incarnation = self.model.latest[at]
            _, start, _ = self.model.positions[at.topic, incarnation, at.partition]
            have = accounted[at.topic, incarnation, at.partition]
            for offset, value in log.deliverable(max(log.log_start, start), log.stable_end).items():
                assert have.get(offset, b"nothing") in (None, value), f"{at} offset {offset} is not there"

    @rule(
        choice=st.deferred(
            lambda: st.sampled_from(weighted).flatmap(
                lambda name: st.tuples(st.just(name), arguments_of[name])
            )
        )
    )
    def happens(self, choice: tuple[str, dict[str, Any]]) -> None:
        name, arguments = choice
        getattr(self, name)(**arguments)

    @invariant()
    def promises_hold(self) -> None:
        if self.checked == self.warehouse.commits:
            return
        self.checked = self.warehouse.commits
        with self.warehouse.reading() as con:
            if con is None or not self.model.version:
                assert not self.model.plans
                assert not ledger.read_stream(con, STREAM).known
                return
            self.model.holds(con)

"""A machine that tries to break the promise: every planned offset once, whatever the log does and whoever dies.

It drives the real planner, ledger, staging and commit on a real DuckDB file. Kafka is a model in memory, and
what the table must hold is kept beside it, in plain dictionaries.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kafka_assets import batches, commits, coverage, ledger, planner, planning
from kafka_assets.config import Latest, StartingOffsets, load_config
from kafka_assets.errors import KafkaAssetsError, RangeUnavailableError
from kafka_assets.ledger import PlanConflictError
from kafka_assets.offsets import TopicPartition
from kafka_assets.slicing import slice_ranges
from kafka_assets.staging import stage
from kafka_assets.warehouse import CommitUnknownError, Warehouse
from kafka_assets_tests.storm.memory_log import COMPACTED, MARKER, MemoryKafka, MemoryReader, Partition, Topic
from kafka_assets_tests.warehouse_support import NOW, RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.planner import Survey
    from kafka_assets.planning import Plan
    from kafka_assets.staging import StagedSlice

STREAM = "orders"
TOPICS = ("a", "b")
MOST_PARTITIONS = 3
MOST_RUNS = 4
MOST_ROUNDS = 60
POLICY = 3

Place = tuple[str, int, int]
"""Topic, incarnation, partition."""

examples = 0
"""How many the machine has run in this process."""


class Killed(BaseException):
    """The process is no more: whatever it was doing is abandoned."""


class MortalConnection:
    """The connection of a writer that may die at a statement."""

    def __init__(self, connection: Any, statements: int | None) -> None:
        self._connection = connection
        self._left = statements

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, *arguments: Any) -> Any:
        if self._left is not None:
            if self._left == 0:
                raise Killed
            self._left -= 1
        return self._connection.execute(*arguments)


@dataclass(frozen=True)
class Fate:
    """How the next transaction ends.

    Attributes:
        statements: It dies after so many.
        committed: Its end is lost: it dies, or COMMIT answers with an error, with the transaction in the file
            or without.
        unknown: An error of COMMIT rather than a death.
    """

    statements: int | None = None
    committed: bool | None = None
    unknown: bool = False


class MortalWarehouse(Warehouse):
    """The real one, whose transactions may end as a fate says."""

    fate = Fate()
    commits = 0

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[Any]:
        fate, self.fate = self.fate, Fate()
        with super().writing(timeout) as connection:
            yield MortalConnection(connection, fate.statements)
            if fate.committed is False:
                self._end(fate)
        self.commits += 1
        if fate.committed:
            self._end(fate)

    def _end(self, fate: Fate) -> None:
        if fate.unknown:
            raise CommitUnknownError("COMMIT failed, says the model") from OSError("the model's")
        raise Killed


_deaths = st.one_of(
    st.builds(Fate, statements=st.integers(0, 14)),
    st.builds(Fate, committed=st.booleans(), unknown=st.booleans()),
)
fates = st.integers(0, 3).flatmap(lambda luck: _deaths if luck == 3 else st.just(Fate()))
parts = st.integers(0, 100)
"""A place in a log, in hundredths of it."""

numbers = st.integers(0, 30)
"""Which of several things, counted round."""


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
class Read:
    """What one staged file holds."""

    values: dict[TopicPartition, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    lost: dict[TopicPartition, set[int]] = field(default_factory=lambda: defaultdict(set))


@dataclass
class Run:
    """A run of a batch, between two steps. `generation` is what it has set out from."""

    run_id: str
    batch: BatchRow
    staged: list[StagedSlice] | None = None


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
        shutil.rmtree(_folder(), ignore_errors=True)
        _folder.cache_clear()


class StormMachine(RuleBasedStateMachine):
    """One stream over two topics."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = _folder()
        self._clear()
        self.warehouse = _warehouse()
        self.kafka = MemoryKafka()
        self.stream: StreamConfig = replace(
            _stream_file().stream(STREAM), interval=0.0, max_batch_delay=0.0, max_batches_in_flight=6
        )
        self.now = NOW
        self.restless = False
        self.caught_up_at = 0
        self.serial = 0
        self.ids = 0
        self.looks: list[Survey] = []
        self.runs: list[Run] = []
        self.truncated: set[str] = set()
        # What must be in the file.
        self.plans: dict[str, list[tuple[Any, ...]]] = {}
        self.attempts: dict[str, int] = {}
        self.skipped: list[tuple[Place, int, int]] = []
        self.generations: dict[str, int] = {}
        self.reads: dict[str, Read] = {}
        self.positions: dict[Place, tuple[int, int]] = {}
        self.version = 0
        # What is staged, and what a commit is about to write.
        self.files: dict[str, Read] = {}
        self.committing: list[StagedSlice] | None = None
        self.checked = -1
        self._patched = [
            (batches, "RangeReader", self._reader),
            (batches, "stage", self._stage),
            (batches, "utc_now", lambda: self.now),
            (commits, "commit_batch", self._commit_batch),
            (planner, "TRUNCATION_READ_SECONDS", 0.0),
        ]
        self._original = [(place, name, getattr(place, name)) for place, name, _ in self._patched]
        self._real_commit = commits.commit_batch
        for place, name, stand_in in self._patched:
            setattr(place, name, stand_in)

    def teardown(self) -> None:
        global examples  # noqa: PLW0603  the count of this process
        for place, name, original in self._original:
            setattr(place, name, original)
        self._clear()
        examples += 1

    def _clear(self) -> None:
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    # Stand-ins that note what goes through them.

    def _reader(self, _: Any, ranges: Any, *, on_data_loss: str, **__: Any) -> MemoryReader:
        return MemoryReader(self.kafka, ranges, on_data_loss=on_data_loss)

    def _stage(self, reader: MemoryReader, *arguments: Any, **named: Any) -> StagedSlice:
        staged = stage(reader, *arguments, **named)
        read = Read()
        for one in reader.evidence:
            at = one.planned.range.topic_partition
            read.values[at] |= reader.values(one.planned.range)
            for stretch in one.lost:
                read.lost[at] |= set(range(stretch.from_offset, stretch.until_offset))
        self.files[staged.path] = read
        return staged

    def _commit_batch(self, *arguments: Any, staged: Any, **named: Any) -> BatchRow:
        self.committing = list(staged)
        return self._real_commit(*arguments, staged=staged, **named)

    # The log.

    @initialize(
        partitions=st.integers(1, 2),
        limit=st.sampled_from([3, 10, 40, 1000]),
        latest=st.integers(0, 3),
        counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
        skip=st.integers(0, 3),
        restart=st.integers(0, 3),
    )
    def begin(
        self, partitions: int, limit: int, latest: int, counts: list[int], skip: int, restart: int
    ) -> None:
        for name in TOPICS:
            self._create(name, partitions)
        for number, count in enumerate(counts):
            self._append(*self._log(number), count)
        self.stream = replace(
            self.stream,
            max_records_per_batch=limit,
            starting_offsets=StartingOffsets(default=Latest()) if latest == 0 else StartingOffsets(),
            on_data_loss="skip" if skip else "fail",
            on_topic_recreated="restart" if restart else "fail",
        )

    def _create(self, name: str, partitions: int) -> None:
        self.ids += 1
        self.kafka.topics[name] = Topic(f"{name}{self.ids}", [Partition() for _ in range(partitions)])

    def _value(self, at: TopicPartition, offset: int) -> bytes:
        self.serial += 1
        return f"{self.kafka.topics[at.topic].topic_id}/{at.partition}/{offset}/{self.serial}".encode()

    def _log(self, number: int) -> tuple[TopicPartition, Partition]:
        at = self.kafka.partitions[number % len(self.kafka.partitions)]
        return at, self.kafka.partition(at)

    @action(
        3,
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
            log.truncate(place)
            self.truncated.add(f"{self.kafka.topics[at.topic].topic_id}/{at.partition}")
        else:
            log.lead()

    def _retain(self, number: int, part: int) -> None:
        if self.kafka.topics:
            _, log = self._log(number)
            log.retain_from(log.log_start + (log.end - log.log_start) * part // 100)

    @action(
        what=st.sampled_from(["add partition", "add partition", "create again", "delete"]),
        name=st.sampled_from(TOPICS),
        partitions=st.integers(1, 2),
    )
    def change_topic(self, what: str, name: str, partitions: int) -> None:
        self.restless = True
        topic = self.kafka.topics.get(name)
        if what == "create again" or topic is None:
            self._create(name, partitions)
        elif what == "delete":
            del self.kafka.topics[name]
        elif len(topic.partitions) < MOST_PARTITIONS:
            topic.partitions.append(Partition())

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
        if len(self.looks) == 3:
            return
        self.looks.append(self._survey(stale))

    def _survey(self, stale: int = 0) -> Survey:
        self.kafka.stale_reads = stale
        seen = planner.survey(self.stream, self.warehouse, self.kafka)  # type: ignore[arg-type]  # in memory
        self.kafka.stale_reads = 0
        return seen

    @action(2, which=numbers, fate=fates, drain=st.booleans(), claim=st.booleans())
    def plan(self, which: int, fate: Fate, drain: bool, claim: bool) -> None:
        """A planner plans from what it saw, which another may have done since."""
        if not self.looks:
            return
        self._plan(self.looks.pop(which % len(self.looks)), fate, drain=drain, claim=claim)

    @action(3, fate=fates, drain=st.booleans(), claim=st.booleans())
    def tick(self, fate: Fate, drain: bool, claim: bool) -> None:
        self._plan(self._survey(), fate, drain=drain, claim=claim)

    def _plan(self, seen: Survey, fate: Fate, *, drain: bool, claim: bool) -> Plan:
        proposed = planner.propose(self.stream, seen, self.kafka, now=self.now, drain=drain)  # type: ignore[arg-type]
        changes = bool(proposed.batches or proposed.positions or proposed.losses)
        before = self.warehouse.commits
        self.warehouse.fate = fate if changes else Fate()
        refused = False
        try:
            planner.record(self.stream, self.warehouse, seen, proposed, now=self.now, claim=claim)
        except PlanConflictError:
            refused = True
        except (Killed, CommitUnknownError):
            pass
        self.warehouse.fate = Fate()
        stale = seen.state.plan_version != self.version
        assert not (refused and not stale), "a plan from the latest look was refused"
        if self.warehouse.commits == before:
            return proposed
        assert not stale, "a plan from an old look was written"
        self._note(proposed, claim=claim)
        return proposed

    def _note(self, proposed: Plan, *, claim: bool) -> None:
        self.version += 1
        with self.warehouse.reading() as con:
            assert con is not None
            found = con.execute("SELECT batch FROM kafka_assets.batches ORDER BY batch").fetchall()
        keys = [key for (key,) in found if key not in self.plans]
        assert len(keys) == len(proposed.batches)
        assert not self.plans or not keys or keys[0] > max(self.plans), (
            "a batch key is not greater than all before"
        )
        for key, ranges in zip(keys, proposed.batches, strict=True):
            self.plans[key] = sorted(
                (
                    one.range.topic,
                    one.topic_id,
                    one.incarnation,
                    one.range.partition,
                    one.range.from_offset,
                    one.range.until_offset,
                )
                for one in ranges
            )
            self.generations[key] = 0
            self.attempts[key] = int(claim)
        for loss in proposed.losses:
            at = loss.topic_partition
            place = (at.topic, loss.incarnation, at.partition)
            self.skipped.append((place, loss.from_offset, loss.until_offset))

    @action(which=numbers, behind=st.integers(0, 1), fate=fates)
    def claim(self, which: int, behind: int, fate: Fate) -> None:
        if not self.plans:
            return
        key = sorted(self.plans)[which % len(self.plans)]
        expected = self.attempts[key] - behind
        before, self.warehouse.fate = self.warehouse.commits, fate
        claimed = None
        with suppress(Killed, CommitUnknownError), self.warehouse.writing() as con:
            claimed = ledger.claim_attempt(con, STREAM, key, expected, self.now)
        self.warehouse.fate = Fate()
        due = behind == 0 and self.generations[key] == 0
        assert claimed in (None, due)
        if self.warehouse.commits > before and due:
            self.attempts[key] += 1

    # The runs.

    @action(3, which=numbers, whose=st.sampled_from(["open", "replay", "another's"]))
    def start_run(self, which: int, whose: str) -> None:
        """Of an open batch, or to replay one, or of a batch that another run is at work on."""
        if len(self.runs) == MOST_RUNS:
            return
        keys = [
            key for key, generation in self.generations.items() if bool(generation) == (whose == "replay")
        ]
        if whose == "another's":
            keys = [run.batch.batch for run in self.runs]
        if keys:
            self._start(keys[which % len(keys)])

    def _start(self, key: str) -> Run:
        batch = batches.read_batch(self.stream, self.warehouse, key)
        if batch.blocked:
            with self.warehouse.writing() as con:
                ledger.clear_block(con, STREAM, key)
        self.ids += 1
        self.runs.append(Run(f"run-{self.ids}", batch))
        return self.runs[-1]

    @action(4, which=numbers, slices=st.integers(1, 2), halfway=st.integers(0, 7), part=parts, fate=fates)
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
        3,
        which=numbers,
        replays=st.integers(0, 3).map(lambda one: one == 0),
        halfway=st.integers(0, 15),
        part=parts,
        fate=fates,
    )
    def run_whole(self, which: int, replays: bool, halfway: int, part: int, fate: Fate) -> None:
        """A run from its start to its end."""
        keys = [key for key, generation in self.generations.items() if bool(generation) == replays]
        if not keys:
            return
        run = self._start(keys[which % len(keys)])
        self._fetch_amid(run, 1, halfway, part)
        if run.staged is not None:
            self._commit(run, fate)

    @action(2, which=numbers, fate=fates)
    def race(self, which: int, fate: Fate) -> None:
        """Two runs of one batch fetch side by side, and commit one after the other."""
        if not self.plans:
            return
        key = sorted(self.plans)[which % len(self.plans)]
        racers = [self._start(key), self._start(key)]
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

    @staticmethod
    def _die() -> None:
        raise Killed

    def _fetch(self, run: Run, slices: int = 1) -> None:
        pieces = slice_ranges(run.batch.ranges, slices)
        try:
            run.staged = batches.stage_slices(self.stream, self.warehouse, run.batch, pieces, name=run.run_id)
        except Killed:
            self.runs.remove(run)
        except KafkaAssetsError as error:
            self._fail(run, error)

    def _fail(self, run: Run, error: KafkaAssetsError) -> None:
        """What a failing run leaves in the ledger."""
        self.runs.remove(run)
        with self.warehouse.writing() as con:
            ledger.record_failure(
                con, STREAM, run.batch.batch, error=str(error), blocked=error.exit_code == POLICY
            )

    @action(which=numbers, how=st.sampled_from(["killed", "file cut", "file gone"]))
    def lose(self, which: int, how: str) -> None:
        """A run is killed, and its staged files stay behind; or one of those is damaged."""
        if not self.runs:
            return
        run = self.runs[which % len(self.runs)]
        if how == "killed" or not run.staged:
            self.runs.remove(run)
            return
        path = Path(run.staged[which % len(run.staged)].path)
        if how == "file cut" and path.exists():
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink(missing_ok=True)

    def _commit(self, run: Run, fate: Fate) -> None:
        key = run.batch.batch
        before, self.warehouse.fate, self.committing = self.warehouse.commits, fate, None
        began_at, is_at = run.batch.generation, self.generations[key]
        outcome: str | None = None
        failure: KafkaAssetsError | None = None
        try:
            assert run.staged is not None
            outcome = batches.commit(
                self.stream, self.warehouse, run.batch, run.staged, run_id=run.run_id
            ).outcome
        except Killed:
            pass
        except KafkaAssetsError as error:
            failure = error
        self.warehouse.fate = Fate()
        wrote = self.warehouse.commits > before
        if outcome is not None:
            assert wrote == (outcome != "found committed")
            assert (outcome == "found committed") == (began_at == 0 < is_at)
        if wrote:
            self._note_commit(key)
        if isinstance(failure, RangeUnavailableError):
            assert is_at, "a first load was refused as a replay"
        if failure is not None:
            self._fail(run, failure)
        else:
            self.runs.remove(run)

    def _note_commit(self, key: str) -> None:
        """Keep what has just been committed as what must be there."""
        assert self.committing is not None
        read = Read()
        for one in self.committing:
            for at, values in self.files[one.path].values.items():
                read.values[at] |= values
            for at, offsets in self.files[one.path].lost.items():
                read.lost[at] |= offsets
        before = self.reads.get(key)
        if before is not None:
            kept = (values.keys() <= read.values[at].keys() for at, values in before.values.items())
            assert all(kept), "a replay took rows away"
            # What is gone only now was read, or was never deliverable.
            for at in read.lost:
                read.lost[at] &= before.lost[at]
        self.reads[key] = read
        self.generations[key] += 1

    @action()
    def catch_up(self) -> None:
        """With nobody dying and the log at rest: all that can be read is in the table afterwards."""
        if not self.restless or self.version == self.caught_up_at:
            return
        self.restless, self.caught_up_at = False, self.version
        for at in self.kafka.partitions:
            while self.kafka.partition(at).transactions:
                self._finish(at, self.kafka.partition(at), 0, commits=True)
        policies = self.stream.on_data_loss, self.stream.on_topic_recreated
        self.stream = replace(self.stream, on_data_loss="skip", on_topic_recreated="restart")
        self.stream = replace(self.stream, max_records_per_batch=1000)
        for _ in range(MOST_ROUNDS):
            proposed = self._plan(self._survey(), Fate(), drain=True, claim=True)
            waiting = [key for key, generation in self.generations.items() if not generation]
            for key in waiting:
                run = self._start(key)
                self._fetch(run)
                if run.staged is not None:
                    self._commit(run, Fate())
            if not proposed.batches and not any(self.generations[key] for key in waiting):
                break
        self._assert_caught_up(proposed)
        self.stream = replace(self.stream, on_data_loss=policies[0], on_topic_recreated=policies[1])

    def _assert_caught_up(self, proposed: Plan) -> None:
        stuck = sum(not generation for generation in self.generations.values())
        if stuck >= planning.MAX_BLOCKED:
            return
        assert proposed.lag == 0
        with self.warehouse.reading() as con:
            positions = ledger.read_stream(con, STREAM).positions
        accounted: dict[Place, dict[int, bytes | None]] = defaultdict(dict)
        for place, low, high in self.skipped:
            accounted[place] |= dict.fromkeys(range(low, high))
        for key, ranges in self.plans.items():
            for topic, _, incarnation, partition, low, high in ranges:
                place = (topic, incarnation, partition)
                if not self.generations[key]:
                    accounted[place] |= dict.fromkeys(range(low, high))
                    continue
                at = TopicPartition(topic, partition)
                accounted[place] |= dict.fromkeys(self.reads[key].lost[at])
                accounted[place] |= self.reads[key].values[at]
        for at in self.kafka.partitions:
            log = self.kafka.partition(at)
            if f"{self.kafka.topics[at.topic].topic_id}/{at.partition}" in self.truncated:
                continue  # what was truncated and has grown again unseen is told by its epoch, at the fetch
            position = positions[at]
            have = accounted[at.topic, position.incarnation, at.partition]
            for offset, value in log.deliverable(
                max(log.log_start, position.start_offset), log.stable_end
            ).items():
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

    # What must hold.

    @invariant()
    def promises_hold(self) -> None:
        if self.checked == self.warehouse.commits:
            return
        self.checked = self.warehouse.commits
        with self.warehouse.reading() as con:
            if con is None:
                assert not self.plans
                return
            if not self.version:
                assert not ledger.read_stream(con, STREAM).known
                return
            proof = coverage.verify(con, STREAM, RAW)
            rows = con.execute(
                "SELECT _kafka_batch, _kafka_topic, _kafka_partition, _kafka_offset, _kafka_value FROM orders"
            ).fetchall()
            batch_rows = con.execute(
                "SELECT batch, generation, attempts FROM kafka_assets_ledger.batches"
            ).fetchall()
            ranges = con.execute(
                'SELECT batch, topic, topic_id, incarnation, "partition", from_offset, until_offset, loaded,'
                " undeliverable, lost FROM kafka_assets.offset_ranges"
            ).fetchall()
            losses = con.execute(
                'SELECT topic, incarnation, "partition", from_offset, until_offset FROM kafka_assets.losses'
            ).fetchall()
            positions = con.execute(
                'SELECT topic, incarnation, "partition", start_offset, planned_until, committed_until'
                " FROM kafka_assets.positions"
            ).fetchall()
        assert proof.problems == ()
        assert {key: (generation, attempts) for key, generation, attempts in batch_rows} == {
            key: (generation, self.attempts[key]) for key, generation in self.generations.items()
        }
        self._rows_hold(rows)
        self._plans_hold(ranges)
        self._losses_hold(losses)
        self._positions_hold(positions)

    def _rows_hold(self, rows: list[tuple[Any, ...]]) -> None:
        """Each record once, in the batch it was planned for, as it was in the log, of the topic planned."""
        expected = [
            (key, at.topic, at.partition, offset, value)
            for key, read in self.reads.items()
            for at, values in read.values.items()
            for offset, value in values.items()
        ]
        assert Counter(rows) == Counter(expected)
        ids = {
            (key, topic, partition): topic_id
            for key, ranges in self.plans.items()
            for topic, topic_id, _, partition, _, _ in ranges
        }
        for key, topic, partition, offset, value in rows:
            assert value.decode().startswith(f"{ids[key, topic, partition]}/{partition}/{offset}/")

    def _plans_hold(self, ranges: list[tuple[Any, ...]]) -> None:
        """What was planned is as it was, and each offset of what was committed is in one class."""
        found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for key, *planned, loaded, undeliverable, lost in ranges:
            found[key].append(tuple(planned))
            topic, _, _, partition, low, high = planned
            if not self.generations[key]:
                assert (loaded, undeliverable, lost) == (None, None, None)
                continue
            at = TopicPartition(topic, partition)
            kept, gone = self.reads[key].values[at], self.reads[key].lost[at]
            assert not kept.keys() & gone
            assert (loaded, lost) == (len(kept), len(gone))
            assert undeliverable == high - low - loaded - lost
        assert {key: sorted(planned) for key, planned in found.items()} == self.plans

    def _losses_hold(self, losses: list[tuple[Any, ...]]) -> None:
        """Each lost offset is written down once."""
        booked = Counter(
            (topic, incarnation, partition, offset)
            for topic, incarnation, partition, low, high in losses
            for offset in range(low, high)
        )
        expected = Counter(
            (*place, offset) for place, low, high in self.skipped for offset in range(low, high)
        )
        for key, read in self.reads.items():
            for topic, _, incarnation, partition, _, _ in self.plans[key]:
                gone = read.lost[TopicPartition(topic, partition)]
                expected.update((topic, incarnation, partition, offset) for offset in gone)
        assert booked == expected
        assert all(count == 1 for count in booked.values())

    def _positions_hold(self, positions: list[tuple[Any, ...]]) -> None:
        """Plans and skipped stretches tile what the positions moved over, which never move back."""
        pieces: dict[Place, list[tuple[int, int, bool]]] = defaultdict(list)
        for place, low, high in self.skipped:
            pieces[place].append((low, high, True))
        for key, ranges in self.plans.items():
            for topic, _, incarnation, partition, low, high in ranges:
                pieces[topic, incarnation, partition].append((low, high, self.generations[key] > 0))
        now: dict[Place, tuple[int, int]] = {}
        for topic, incarnation, partition, start, planned_until, committed_until in positions:
            place = (topic, incarnation, partition)
            reached = settled = start
            for low, high, done in sorted(pieces.pop(place, [])):
                assert low == reached
                if done and settled == low:
                    settled = high
                reached = high
            assert (reached, settled) == (planned_until, committed_until)
            was = self.positions.get(place)
            assert was is None or (was[0] == start and was[1] <= planned_until)
            now[place] = (start, planned_until)
        assert not pieces
        assert self.positions.keys() <= now.keys()
        for topic, incarnation, partition in now.keys() - self.positions.keys():
            others = [one for at, one, number in self.positions if (at, number) == (topic, partition)]
            assert incarnation > max(others, default=-1)
        self.positions = now

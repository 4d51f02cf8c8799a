"""What must be in the warehouse, in plain dictionaries, and how the file is held against it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from kafka_assets.offsets import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kafka_assets.offsets import OffsetRange
    from kafka_assets.planning import Plan

Place = tuple[str, int, int]
"""Topic, incarnation, partition."""

Range = tuple[str, str | None, int, int, int, int]
"""Topic, its id, incarnation, partition, first offset, end."""

Moved = Literal["tick", "reset", "backfill"]
Row = tuple[Any, ...]

PLACE = 'topic, incarnation, "partition"'
LEDGER = "kafka_assets_ledger"
ROWS = "SELECT _kafka_batch, _kafka_topic, _kafka_partition, _kafka_offset, _kafka_value FROM orders"
BATCHES = f'SELECT batch, kind, generation, attempts, blocked, "rows" FROM {LEDGER}.batches'  # noqa: S608  constants
RANGES = (
    'SELECT batch, topic, topic_id, incarnation, "partition", from_offset, until_offset, loaded, undeliverable,'  # noqa: S608  constants
    f" lost, removed, offset_sum FROM {LEDGER}.offset_ranges"
)
LOSSES = f"SELECT {PLACE}, from_offset, until_offset FROM {LEDGER}.losses"  # noqa: S608  constants
POSITIONS = f"SELECT {PLACE}, topic_id, start_offset, planned_until FROM {LEDGER}.positions"  # noqa: S608  constants


def _key(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z"


@dataclass
class Read:
    """What became of the offsets of a staged file, or of a batch."""

    values: dict[TopicPartition, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    lost: dict[TopicPartition, set[int]] = field(default_factory=lambda: defaultdict(set))
    removed: dict[TopicPartition, set[int]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def of(cls, pieces: Iterable[Read]) -> Read:
        """Put what several hold together."""
        whole = cls()
        for piece in pieces:
            for at, values in piece.values.items():
                whole.values[at] |= values
            for at, offsets in piece.lost.items():
                whole.lost[at] |= offsets
        return whole


@dataclass(frozen=True)
class Removal:
    """What is removed on purpose, of the batches planned until then."""

    until: str
    matches: Callable[[TopicPartition, int], bool]


@dataclass
class Model:
    """One stream, as it must be in the file.

    Attributes:
        version: How many plans were written.
        plans: The ranges of each batch.
        kinds: Of each batch.
        attempts: Of each batch.
        generations: Of each batch.
        reads: What became of the offsets of each batch that was committed.
        skipped: What no batch has, since it is lost.
        positions: The topic id, the first offset and the end of what is planned.
        removals: What holds for later commits.
        alike: Ids of topics that the ledger cannot tell from one it had before, since none was given.
        truncated: Logs that were, as `<topic id>/<partition>`.
    """

    version: int = 0
    plans: dict[str, list[Range]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)
    skipped: list[tuple[Place, int, int]] = field(default_factory=list)
    positions: dict[Place, tuple[str | None, int, int]] = field(default_factory=dict)
    removals: list[Removal] = field(default_factory=list)
    alike: set[str] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)

    @property
    def latest(self) -> dict[TopicPartition, int]:
        """The latest incarnation of each topic-partition."""
        found: dict[TopicPartition, int] = {}
        for topic, incarnation, partition in self.positions:
            at = TopicPartition(topic, partition)
            found[at] = max(found.get(at, 0), incarnation)
        return found

    @property
    def open(self) -> list[str]:
        """The batches that are not committed."""
        return [key for key, generation in self.generations.items() if not generation]

    def note_plan(self, plan: Plan, now: datetime, moved: Moved, *, claimed: bool) -> None:
        """A plan is in the file."""
        self.version += 1
        for at, position in plan.positions.items():
            place = (at.topic, position.incarnation, at.partition)
            before = self.positions.get(place)
            if before is None:
                assert position.incarnation > self.latest.get(at, -1)
            else:
                topic_id, start, until = before
                assert topic_id in (None, position.topic_id)
                assert position.planned_until >= until
                assert position.start_offset == start or (
                    moved == "backfill" and position.start_offset < start
                )
                assert moved != "backfill" or position.planned_until == until
            self.positions[place] = position.topic_id, position.start_offset, position.planned_until
        for ranges in plan.batches:
            key = self._next_key(now)
            self.plans[key] = sorted(
                (
                    (
                        one.range.topic,
                        one.topic_id,
                        one.incarnation,
                        one.range.partition,
                        one.range.from_offset,
                        one.range.until_offset,
                    )
                    for one in ranges
                ),
                key=str,
            )
            self.kinds[key] = "live" if moved == "tick" else "backfill"
            self.generations[key] = 0
            self.attempts[key] = int(claimed)
        for loss in plan.losses:
            at = loss.topic_partition
            self.skipped.append(
                ((at.topic, loss.incarnation, at.partition), loss.from_offset, loss.until_offset)
            )

    def _next_key(self, now: datetime) -> str:
        """Return a key greater than all before, whatever the clock says."""
        key, last = _key(now), max(self.plans, default="")
        return (
            key
            if key > last
            else _key(datetime.strptime(last, "%Y%m%dT%H%M%S%f%z") + timedelta(milliseconds=1))
        )

    def note_commit(self, key: str, fetched: Read, scope: Sequence[OffsetRange], *, merged: bool) -> None:
        """What was fetched of a batch is in the file: of all its ranges, or of those of a scope."""
        first = not self.generations[key]
        whole = self.reads.setdefault(key, Read())
        for topic, topic_id, _, partition, low, high in self.plans[key]:
            at = TopicPartition(topic, partition)
            if not first and scope and not any(one.topic_partition == at for one in scope):
                assert not fetched.values[at]
                continue
            before, values = whole.values[at], fetched.values[at]
            assert all(low <= offset < high for offset in values)
            removed = {
                offset
                for offset in values
                if any(key <= one.until and one.matches(at, offset) for one in self.removals)
            }
            kept = {offset: value for offset, value in values.items() if offset not in removed}
            if merged and not first:
                kept = {offset: value for offset, value in before.items() if offset not in values} | kept
            assert before.keys() <= kept.keys() | removed, "a replay took rows away"
            # Without a topic id a replay may read another topic where the first one had markers.
            unheard_of = not first and topic_id is not None and not removed <= whole.removed[at]
            assert not unheard_of, "a replay removed what was not removed before"
            assert not kept.keys() & whole.removed[at], "a replay brought back what was removed"
            whole.values[at] = kept
            whole.removed[at] |= removed
            # What is gone only now was read, or was never deliverable.
            whole.lost[at] = fetched.lost[at] if first else fetched.lost[at] & whole.lost[at]
        self.generations[key] += 1

    def matching(self, matches: Callable[[TopicPartition, int], bool]) -> int:
        """Return how many rows match."""
        return sum(
            matches(at, offset)
            for read in self.reads.values()
            for at, values in read.values.items()
            for offset in values
        )

    def note_removal(self, matches: Callable[[TopicPartition, int], bool]) -> None:
        """All rows that match are gone, and those of the batches planned until now do not come back."""
        if self.plans:
            self.removals.append(Removal(max(self.plans), matches))
        for read in self.reads.values():
            for at, values in read.values.items():
                gone = {offset for offset in values if matches(at, offset)}
                read.removed[at] |= gone
                read.values[at] = {offset: value for offset, value in values.items() if offset not in gone}

    def accounted(self) -> dict[Place, dict[int, bytes | None]]:
        """Return the offsets that need not be asked after: with what is in the table, None where nothing is."""
        found: dict[Place, dict[int, bytes | None]] = defaultdict(dict)
        for place, low, high in self.skipped:
            found[place] |= dict.fromkeys(range(low, high))
        for key, ranges in self.plans.items():
            for topic, _, incarnation, partition, low, high in ranges:
                place, at = (topic, incarnation, partition), TopicPartition(topic, partition)
                if not self.generations[key]:
                    found[place] |= dict.fromkeys(range(low, high))
                    continue
                read = self.reads[key]
                found[place] |= dict.fromkeys(read.lost[at] | read.removed[at])
                found[place] |= read.values[at]
        return found

    def settled_until(self) -> dict[Place, int]:
        """Return up to where everything is committed, or lost."""
        found = {place: start for place, (_, start, _) in self.positions.items()}
        for place, pieces in self._pieces().items():
            for low, high, done in pieces:
                if done and found[place] == low:
                    found[place] = high
        return found

    def _pieces(self) -> dict[Place, list[tuple[int, int, bool]]]:
        pieces: dict[Place, list[tuple[int, int, bool]]] = defaultdict(list)
        for place, low, high in self.skipped:
            pieces[place].append((low, high, True))
        for key, ranges in self.plans.items():
            for topic, _, incarnation, partition, low, high in ranges:
                pieces[topic, incarnation, partition].append((low, high, self.generations[key] > 0))
        return {place: sorted(found) for place, found in pieces.items()}

    def holds(self, con: Any) -> None:
        """Hold the file against all of this."""
        self._batches_hold(con.execute(BATCHES).fetchall())
        self._rows_hold(con.execute(ROWS).fetchall())
        self._plans_hold(con.execute(RANGES).fetchall())
        self._losses_hold(con.execute(LOSSES).fetchall())
        self._positions_hold(con.execute(POSITIONS).fetchall())

    def _batches_hold(self, batches: list[Row]) -> None:
        assert sorted(row[:4] for row in batches) == sorted(
            (key, self.kinds[key], generation, self.attempts[key])
            for key, generation in self.generations.items()
        )
        for key, _, generation, _, blocked, rows in batches:
            assert not (generation and blocked)
            assert not generation or rows == sum(map(len, self.reads[key].values.values()))

    def _rows_hold(self, rows: list[Row]) -> None:
        """Each record once, in the batch it was planned for, as it was in the log, of the topic planned."""
        expected = [
            (key, at.topic, at.partition, offset, value)
            for key, read in self.reads.items()
            for at, values in read.values.items()
            for offset, value in values.items()
        ]
        assert Counter(rows) == Counter(expected)
        planned = {
            (key, topic, partition): topic_id
            for key, ranges in self.plans.items()
            for topic, topic_id, _, partition, _, _ in ranges
        }
        records: set[bytes] = set()
        for key, topic, partition, offset, value in rows:
            true_id, number, at, _ = value.decode().split("/")
            assert (int(number), int(at)) == (partition, offset)
            if true_id in self.alike:
                continue
            assert planned[key, topic, partition] in (None, true_id), f"{value} is of another topic"
            assert value not in records or f"{true_id}/{number}" in self.truncated, f"{value} is there twice"
            records.add(value)

    def _plans_hold(self, ranges: list[Row]) -> None:
        """What was planned is as it was, and each offset of what was committed is in one class."""
        found: dict[str, list[Range]] = defaultdict(list)
        for key, *planned, loaded, undeliverable, lost, removed, offset_sum in ranges:
            topic, topic_id, incarnation, partition, low, high = planned
            found[key].append((topic, topic_id, incarnation, partition, low, high))
            if not self.generations[key]:
                assert (loaded, undeliverable, lost, removed, offset_sum) == (None,) * 5
                continue
            at, read = TopicPartition(topic, partition), self.reads[key]
            kept, gone, taken = read.values[at], read.lost[at], read.removed[at]
            assert len(kept.keys() | gone | taken) == len(kept) + len(gone) + len(taken)
            assert (loaded, lost, removed) == (len(kept), len(gone), len(taken))
            assert undeliverable == high - low - loaded - lost - removed
            assert offset_sum == sum(kept)
        assert {key: sorted(planned, key=str) for key, planned in found.items()} == {
            key: sorted(planned, key=str) for key, planned in self.plans.items()
        }

    def _losses_hold(self, losses: list[Row]) -> None:
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

    def _positions_hold(self, positions: list[Row]) -> None:
        """Plans and skipped stretches tile what the positions moved over."""
        assert {tuple(row[:3]): tuple(row[3:]) for row in positions} == self.positions
        assert len(positions) == len(self.positions)
        pieces = self._pieces()
        for place, (_, start, until) in self.positions.items():
            reached = start
            for low, high, _ in pieces.pop(place, []):
                assert low == reached
                reached = high
            assert reached == until
        assert not pieces

"""Room in the staging area: what is fetched and not yet committed stays below `warehouse.max_staged_bytes`.

While the warehouse is locked, batches are fetched and staged until the area is full; further runs wait before
their fetch. Each notes in its batch's directory what it takes or waits for; the note counts as long as the
batch's lock is held, what lies in the area counts in any case.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from kafka_assets.batch_lock import LOCK_NAME, batch_directory, is_held
from kafka_assets.errors import WarehouseLockedError
from kafka_assets.notes import ROOM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from kafka_assets.offsets import OffsetRange, TopicPartition
    from kafka_assets.planning import LogBounds
    from kafka_assets.warehouse import Warehouse

_LOCK = "room.lock"
_LOOK_SECONDS = 0.2
_SAY_SECONDS = 10.0
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Place:
    """What a batch has of the staging area, or waits for.

    Attributes:
        headroom: How far its oldest record is from retention: 0 is next to go, 1 far off or unknown.
        batch: Its key, which begins with when it was planned.
        stream: Its stream.
        bytes: Of its staged files; before they are whole, at most about so many.
        waiting: Whether it waits for room, and has none yet.
        pid: The process that fetches or commits it, 0 if nobody is at work on it.
    """

    headroom: float
    batch: str
    stream: str
    bytes: int
    waiting: bool
    pid: int

    def __str__(self) -> str:
        return f"{self.stream} {self.batch}"

    @property
    def urgency(self) -> tuple[float, str, str]:
        """Whose turn it is: the lowest."""
        return self.headroom, self.batch, self.stream


def headroom_of(ranges: Iterable[OffsetRange], bounds: Mapping[TopicPartition, LogBounds]) -> float:
    """Return how far ranges are from retention: their place between log start and end, of the nearest one.

    A log from which nothing was ever removed, or that is not known, tells nothing: 1.
    """
    shares = [1.0]
    for one in ranges:
        log = bounds.get(one.topic_partition)
        if log is not None and log.log_start > 0:
            shares.append((one.from_offset - log.log_start) / max(1, log.end - log.log_start))
    return max(0.0, min(shares))


class Room:
    """The room that one batch needs, asked for by the process that holds the batch's lock."""

    def __init__(self, warehouse: Warehouse, stream: str, batch: str, *, limit: int) -> None:
        self._warehouse = warehouse
        self._staging = warehouse.staging
        self._stream = stream
        self._batch = batch
        self._limit = limit
        self._note = batch_directory(self._staging, stream, batch) / ROOM

    def try_take(self, size: int) -> bool:
        """Take room for about so many bytes if there is some, beside what this process itself has staged."""
        with self._alone():
            if self._obstacle(size, 1.0, self._places()) is None:
                self._write(size, headroom=1.0, waiting=False)
                return True
        return False

    def take(self, size: int, *, headroom: Callable[[], float], say: Callable[[str], None]) -> None:
        """Take room for about so many bytes, waiting for it; of those that wait the most urgent goes first.

        Where nobody else is at work on what is staged, and the warehouse is free, there is no point in
        waiting: what is fetched then is committed at once.

        Args:
            size: Bytes, as estimated.
            headroom: Asked once if it has to wait: how far the batch is from retention, 0 to 1.
            say: Told what is waited for.

        Raises:
            WarehouseLockedError: There was no room within the warehouse's `lock_timeout`.
        """
        try:
            self._await(size, headroom, say)
        except BaseException:
            self._note.unlink(missing_ok=True)
            raise

    def settle(self, size: int) -> None:
        """Note how many bytes were staged in the end."""
        self._write(size, headroom=1.0, waiting=False)

    def _await(self, size: int, headroom: Callable[[], float], say: Callable[[str], None]) -> None:
        deadline = time.monotonic() + self._warehouse.lock_timeout
        distance: float | None = None
        told, spoke = "", 0.0
        while (obstacle := self._taken(size, distance)) is not None:
            now = time.monotonic()
            if now > deadline:
                raise self._full(obstacle)
            if distance is None:
                distance = headroom()
            if obstacle != told and (not told or now - spoke > _SAY_SECONDS):
                told, spoke = obstacle, now
                say(f"waiting for room in the staging area {self._staging}: {obstacle}")
            time.sleep(_LOOK_SECONDS)

    def _taken(self, size: int, headroom: float | None) -> str | None:
        """Take room, or return what stands in the way; with its headroom known, have others know that it waits."""
        with self._alone():
            # What this process has staged ahead is committed after this batch, so it is not waited for.
            others = [one for one in self._places() if one.pid != os.getpid()]
            obstacle = self._obstacle(size, 1.0 if headroom is None else headroom, others)
            if obstacle is None:
                self._write(size, headroom=1.0, waiting=False)
            elif headroom is not None:
                self._write(size, headroom=headroom, waiting=True)
            return obstacle

    def _obstacle(self, size: int, headroom: float, others: Sequence[Place]) -> str | None:
        mine = Place(headroom, self._batch, self._stream, size, waiting=True, pid=os.getpid())
        first = min((one for one in others if one.waiting), key=lambda one: one.urgency, default=mine)
        if first.urgency < mine.urgency:
            return f"batch {first} goes first: it is nearer to retention, or was planned earlier"
        taken = sorted((one for one in others if not one.waiting), key=lambda one: -one.bytes)
        total = sum(one.bytes for one in taken)
        if (
            not total
            or total + size <= self._limit
            or not (any(one.pid for one in taken) or self._is_locked())
        ):
            return None
        return (
            f"{total / _MIB:.1f} MiB are staged and not yet committed ({len(taken)} batches, the largest of them"
            f" {taken[0]}), and {size / _MIB:.1f} MiB more would pass max_staged_bytes, {self._limit / _MIB:.1f} MiB"
        )

    def _full(self, obstacle: str) -> WarehouseLockedError:
        return WarehouseLockedError(
            f"there was no room in the staging area {self._staging} within {self._warehouse.lock_timeout:.3g} s:"
            f" {obstacle}. Nothing was fetched. It goes on once the warehouse is free and what is staged is committed;"
            " `warehouse.max_staged_bytes` says how much may be staged."
        )

    def _is_locked(self) -> bool:
        try:
            with self._warehouse.writing(0):
                return False
        except WarehouseLockedError:
            return True

    def _places(self) -> list[Place]:
        """Return what the other batches have or wait for."""
        places = []
        for directory in self._staging.glob("*/*/"):
            stream, batch = directory.parent.name, directory.name
            if (stream, batch) == (self._stream, self._batch):
                continue
            lying = _bytes_in(directory)
            noted = _read(directory / ROOM) if is_held(self._staging, stream, batch) else None
            if noted is not None:
                places.append(noted if noted.waiting else replace(noted, bytes=max(noted.bytes, lying)))
            elif lying:
                places.append(Place(1.0, batch, stream, lying, waiting=False, pid=0))
        return places

    def _write(self, size: int, *, headroom: float, waiting: bool) -> None:
        place = Place(headroom, self._batch, self._stream, size, waiting=waiting, pid=os.getpid())
        # On a full disk the fetch itself says so.
        with suppress(OSError):
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(json.dumps(asdict(place)), encoding="utf-8")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._staging.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._staging / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read(note: Path) -> Place | None:
    try:
        return Place(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _bytes_in(directory: Path) -> int:
    total = 0
    for file in directory.glob("*"):
        if file.name not in {LOCK_NAME, ROOM}:
            # A file of a batch that is being committed goes meanwhile.
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total

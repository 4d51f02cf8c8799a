"""Room in the staging area: how much may be staged, and whose turn it is where it is full."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kafka_assets.batch_lock import BatchLock, batch_directory
from kafka_assets.errors import WarehouseLockedError
from kafka_assets.offsets import OffsetRange, TopicPartition
from kafka_assets.planning import LogBounds
from kafka_assets.room import Room, headroom_of
from kafka_assets_tests import warehouse_support as support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from kafka_assets.warehouse import Warehouse

LIMIT = 100
spawn = multiprocessing.get_context("spawn")


def room(warehouse: Warehouse, batch: str) -> Room:
    return Room(warehouse, "orders", batch, limit=LIMIT)


def occupy(folder: Path, batch: str, size: int, headroom: float, patience: float, pipe: Connection) -> None:
    """Child: take room as a run does, saying what it waits for and when it has it; keep it until told to go."""
    warehouse = support.warehouse_at(folder, lock_timeout=patience)
    with BatchLock(warehouse.staging, "orders", batch) as lock:
        assert lock.try_acquire()
        try:
            room(warehouse, batch).take(size, headroom=lambda: headroom, say=pipe.send)
        except WarehouseLockedError as full:
            pipe.send(full.message)
        else:
            pipe.send("in")
        pipe.recv()


@contextmanager
def run(
    warehouse: Warehouse, batch: str, size: int, headroom: float = 1.0, patience: float = 60
) -> Iterator[Any]:
    ours, theirs = spawn.Pipe()
    arguments = (warehouse.path.parent, batch, size, headroom, patience, theirs)
    process = spawn.Process(target=occupy, args=arguments, daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    warehouse = support.warehouse_at(tmp_path)
    with warehouse.writing():
        pass
    return warehouse


def lay(warehouse: Warehouse, batch: str, size: int) -> None:
    """Leave staged files of a batch that nobody is at work on."""
    directory = batch_directory(warehouse.staging, "orders", batch)
    directory.mkdir(parents=True)
    (directory / "0-run-0").write_bytes(b"x" * size)


def test_the_most_urgent_goes_first_when_there_is_room(warehouse):
    """Of those that wait, the one nearest to retention, then the one planned first, whoever came first."""
    with run(warehouse, "1", 80) as has:
        assert has.recv() == "in"
        with (
            run(warehouse, "3", 60) as late,
            run(warehouse, "2", 60) as early,
            run(warehouse, "4", 60, headroom=0.1) as endangered,
        ):
            support.await_true(lambda: len(_waiting(warehouse)) == 3)
            has.send("go")
            for pipe, others in ((endangered, (early, late)), (early, (late,)), (late, ())):
                assert _last_word(pipe) == "in"
                assert "in" not in [word for other in others for word in _words(other)]
                pipe.send("go")


def _words(pipe: Connection) -> list[str]:
    """What was said so far and not yet heard."""
    words = []
    while pipe.poll():
        words.append(pipe.recv())
    return words


def _last_word(pipe: Connection) -> str:
    while True:
        word: str = pipe.recv()
        if not word.startswith("waiting for room"):
            return word


def _waiting(warehouse: Warehouse) -> list[Path]:
    return [one for one in warehouse.staging.glob("orders/*/0-room") if '"waiting": true' in one.read_text()]


def test_there_is_no_room_while_the_warehouse_is_locked(warehouse):
    """What dead runs left counts as long as it lies there: the run waits, then says how full it is."""
    lay(warehouse, "1", 80)
    with warehouse.writing(), run(warehouse, "2", 60, patience=0.5) as waiting:
        assert waiting.recv().startswith("waiting for room in the staging area")
        full = waiting.recv()
    assert "there was no room in the staging area" in full
    assert "max_staged_bytes" in full
    assert "the largest of them orders 1" in full


def test_what_nobody_commits_is_no_obstacle_once_the_warehouse_is_free(warehouse):
    """Files of batches that are blocked may lie there for long; one batch at a time passes the limit then."""
    lay(warehouse, "1", 200)
    with run(warehouse, "2", 60) as first, run(warehouse, "3", 60) as second:
        with warehouse.writing():
            support.await_true(lambda: len(_waiting(warehouse)) == 2)
        assert _last_word(first) == "in"
        assert "in" not in _words(second)
        first.send("go")
        assert _last_word(second) == "in"


def test_a_batch_larger_than_the_limit_has_the_area_for_itself(warehouse):
    """It is not kept out for ever."""
    with run(warehouse, "1", 10 * LIMIT) as large:
        assert large.recv() == "in"
        with run(warehouse, "2", 1) as small:
            assert small.recv().startswith("waiting for room")
            large.send("go")
            assert small.recv() == "in"


def test_what_one_process_has_staged_ahead(warehouse):
    """It counts when more is to be fetched ahead, and is not waited for by the batch that is committed first."""
    ahead = room(warehouse, "2")
    with BatchLock(warehouse.staging, "orders", "2") as lock:
        assert lock.try_acquire()
        assert ahead.try_take(80)
        assert not room(warehouse, "3").try_take(60)
        room(warehouse, "1").take(60, headroom=lambda: 1.0, say=pytest.fail)
        ahead.settle(30)
        assert room(warehouse, "3").try_take(60)
    lay(warehouse, f"ahead-{os.getpid()}", 2 * LIMIT)
    assert room(warehouse, "4").try_take(100)


def test_how_far_from_retention():
    """The place between log start and end of the nearest range; 1 where nothing was ever removed, or unknown."""
    bounds = {
        TopicPartition("a", 0): LogBounds(log_start=100, end=200, high_watermark=200),
        TopicPartition("a", 1): LogBounds(log_start=0, end=200, high_watermark=200),
    }
    assert headroom_of([OffsetRange("a", 0, 150, 160)], bounds) == 0.5
    assert headroom_of([OffsetRange("a", 0, 150, 160), OffsetRange("a", 1, 0, 10)], bounds) == 0.5
    assert headroom_of([OffsetRange("a", 0, 50, 160)], bounds) == 0.0
    assert headroom_of([OffsetRange("a", 1, 0, 10), OffsetRange("b", 0, 0, 10)], bounds) == 1.0

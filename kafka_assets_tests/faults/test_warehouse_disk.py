"""The disk of the warehouse and its staging area is full, at each step of a batch's life."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import TYPE_CHECKING

import pytest

from kafka_assets.batch_lock import BatchLock, holder, is_held
from kafka_assets.errors import DiskFullError
from kafka_assets.notes import ROOM
from kafka_assets.orchestration import assets
from kafka_assets.orchestration import ingest as ingesting
from kafka_assets_tests.faults.conftest import make_dagster_home
from kafka_assets_tests.faults.story import STREAM, expected

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024**2


class Disk:
    """The disk of one story: a small file system where one may be mounted, else a limit to the size of files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        self._mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def leave(self, size: int) -> None:
        """Have so many bytes left, or room for files of that size."""
        if not self._mounted:
            self.limit(size)
            return
        found = os.statvfs(self._folder)
        with (self._folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - size)

    def limit(self, size: int) -> None:
        """Let no file grow beyond that size."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self._limits[1]))

    def clear(self) -> None:
        """Make room."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self._folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.clear()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


@pytest.fixture(scope="module")
def dagster_home(tmp_path_factory):
    """An instance of these stories alone: the file of all others' events is larger than files may be here."""
    return make_dagster_home(tmp_path_factory.mktemp("dagster"))


@pytest.fixture(name="disk")
def small_disk(tmp_path):
    made = Disk(tmp_path)
    yield made
    made.close()


@pytest.fixture
def story(disk, story_on, bootstrap):  # noqa: ARG001  the disk is there first, and goes last
    """A project on the small disk; its Dagster instance is elsewhere."""
    return story_on(bootstrap)


def noise(count, size):
    """Values that no compression makes smaller."""
    return [os.urandom(size) for _ in range(count)]


def files(folder: Path) -> list[str]:
    """What is staged there: neither locks nor the note of the room that a batch asked for."""
    beside = {"lock", "room.lock", ROOM}
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name not in beside)


def refused_for_lack_of_room(story):
    answer = story.ingest(exit_code=1)
    assert answer.code == "DISK_FULL"
    assert "Make room" in answer.message
    return answer


@pytest.mark.parametrize("way", ["leave", "limit"])
def test_no_room_for_the_staged_file(story, disk, topic, produce, monkeypatch, way):
    """DISK_FULL, exit 1; nothing of the file stays, the batch waits as planned and is loaded once there is room."""
    for module in (assets, ingesting):
        monkeypatch.setattr(module, "MEMORY_BYTES", 0, raising=False)
    name = topic()
    payloads = noise(2000, 2000)
    rows = expected(name, produce(name, payloads, 0), payloads)
    story.setting(topics=[name])
    story.tick()
    staging = story.file.parent / "w.duckdb.staging"

    getattr(disk, way)(2 * MIB)
    assert "max_bytes_per_batch" in refused_for_lack_of_room(story).message
    assert files(staging) == []
    assert story.rows() == []
    assert story.batches() == {"planned": 1, "failed": 1}

    disk.clear()
    assert story.ingest().stream["rows"] == 2000
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 2000, "loaded": 2000}}
    assert files(staging) == []


@pytest.mark.parametrize(("count", "size", "left"), [(2000, 2000, 2 * MIB), (130_000, 80, 6 * MIB)])
def test_no_room_for_the_rows(story, disk, topic, produce, count, size, left):
    """Whether few or many of them are written when the room ends, none is in the table; with room all are."""
    name = topic()
    payloads = noise(count, size)
    rows = expected(name, produce(name, payloads, 0), payloads)
    story.setting(topics=[name])
    story.tick()

    disk.leave(left)
    refused_for_lack_of_room(story)
    assert story.rows() == []
    assert story.batches()["planned"] == 1
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": count, "pending": count}}

    disk.clear()
    assert story.ingest().stream["rows"] == count
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": count, "loaded": count}}


def test_no_room_for_the_checkpoint_after_the_commit(story, disk, topic, produce):
    """What is committed is in the log beside the file and counts: exit 0; the next run puts it into the file."""
    name = topic()
    history, payloads = noise(3000, 2000), noise(2000, 2000)
    rows = expected(name, produce(name, history, 0), history)
    story.setting(topics=[name])
    story.ingest()
    rows += expected(name, produce(name, payloads, 0), payloads)
    story.tick()

    disk.leave(6 * MIB)
    answer = story.ingest()
    assert answer.stream["rows"] == 2000
    assert (story.file.parent / "w.duckdb.wal").stat().st_size > 4 * MIB
    assert story.rows() == rows
    assert story.batches() == {"committed": 2}

    disk.clear()
    later = [b"later"]
    rows += expected(name, produce(name, later, 0), later)
    assert story.ingest().stream["rows"] == 1
    assert not (story.file.parent / "w.duckdb.wal").exists()
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 5001, "loaded": 5001}}


def test_no_room_at_all(story, disk, topic, produce):
    """Where neither a file nor a plan can be written it is DISK_FULL too; a batch's lock holds without a word in it."""
    name = topic()
    rows = expected(name, produce(name, [b"one"], 0), [b"one"])
    story.setting(topics=[name])
    staging = story.file.parent / "w.duckdb.staging"
    for more in ([], [b"two"]):
        rows += expected(name, produce(name, more, 0), more)
        disk.leave(0)
        with pytest.raises(DiskFullError, match="Make room"):
            story.tick()
        with BatchLock(staging, STREAM, "batch") as lock:
            assert lock.try_acquire()
            assert is_held(staging, STREAM, "batch")
            assert holder(staging, STREAM, "batch") is None
        disk.clear()
        story.ingest()
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 2, "loaded": 2}}

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import duckdb
import pyarrow as pa
import pytest

from kafka_assets import staging
from kafka_assets.batch_lock import BatchLock, batch_directory, holder, is_held
from kafka_assets.config import FormatConfig
from kafka_assets.digest import DIGEST_FUNCTION, digest_expression
from kafka_assets.errors import BadRecordError, DiskFullError
from kafka_assets.fetch import RangeReader
from kafka_assets.formats import bad as formats_bad
from kafka_assets.formats import get_format
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.records import BAD_SCHEMA
from kafka_assets.staged import StagedSlice
from kafka_assets.staging import (
    StagedDamagedError,
    discard,
    generation_of,
    let_go_of_pages,
    open_staged,
    stage,
    sweep,
)
from kafka_assets_tests.support.kafka import Record, delete_records, values

RAW = get_format(FormatConfig("raw", {}))
UTF8 = get_format(FormatConfig("utf8", {}))


def reader(bootstrap: str, *ranges: tuple[str, int, int, int], **more) -> RangeReader:
    planned = [
        PlannedRange(OffsetRange(*one), incarnation=2, topic_id=None, leader_epoch=0) for one in ranges
    ]
    return RangeReader({"bootstrap.servers": bootstrap}, planned, stall_timeout=20, **more)


def names(directory: Path) -> list[str]:
    return [one.name for one in directory.iterdir()]


@pytest.fixture
def staged(bootstrap, topic, produce, tmp_path) -> StagedSlice:
    name = topic()
    produce(name, values(100), 0)
    return stage(reader(bootstrap, (name, 0, 0, 100)), RAW, tmp_path / "orders" / "key", "0-run-0")


def test_a_slice_comes_back_as_it_was_staged(bootstrap, topic, produce, tmp_path):
    """Rows, evidence and digests of a staged slice survive the file and JSON; no temporary file is left."""
    name = topic(partitions=2)
    produce(
        name, [Record(b"v%d" % index, b"k", [("h", b"%d" % index)], 1000 + index) for index in range(50)], 0
    )
    produce(name, values(50), 1)
    delete_records(bootstrap, name, {1: 10})
    ranges = [(name, 1, 5, 40), (name, 0, 0, 20), (name, 0, 20, 50), (name, 0, 50, 50)]
    given = reader(bootstrap, *ranges, on_data_loss="skip")
    staged = stage(given, UTF8, tmp_path / "s" / "b", "0-run-0-1")
    assert names(tmp_path / "s" / "b") == ["0-run-0-1"]
    assert StagedSlice.from_dict(json.loads(json.dumps(staged.to_dict()))) == staged
    assert [one.evidence for one in staged.ranges] == list(given.evidence)
    assert staged.ranges[0].evidence.lost == (OffsetRange(name, 1, 5, 10),)
    table = open_staged(staged)
    assert table.num_rows == staged.rows == 80
    assert sorted(table.filter(pa.compute.field("_kafka_partition") == 0)["value"].to_pylist()) == sorted(
        f"v{index}" for index in range(50)
    )


@pytest.mark.parametrize("fmt", [RAW, UTF8])
def test_digests_are_those_of_the_loaded_rows(bootstrap, topic, produce, tmp_path, fmt):
    """The digest of each piece, added up, is what a table gives that the rows were loaded into."""
    name = topic()
    produce(name, [Record(b"v%d" % index, b"k" if index % 3 else None) for index in range(100)], 0)
    produce(name, [Record(None, b"tombstone")], 0)
    staged = stage(reader(bootstrap, (name, 0, 0, 60), (name, 0, 60, 101)), fmt, tmp_path, "0-a")
    rows = open_staged(staged)
    columns = ["_kafka_offset", "_kafka_key", fmt.columns[0].name]
    connection = duckdb.connect()
    connection.from_arrow(rows).project(", ".join(columns)).order("hash(_kafka_offset)").create("loaded")
    for piece in staged.ranges:
        within = piece.evidence.planned.range
        there = f"_kafka_offset BETWEEN {within.from_offset} AND {within.until_offset - 1}"
        expression = digest_expression(columns[2:])
        ((found,),) = connection.table("loaded").filter(there).aggregate(expression).fetchall()
        assert piece.digest == found
        assert piece.digest_function == DIGEST_FUNCTION


def test_a_slice_without_rows_is_a_file_too(bootstrap, topic, tmp_path):
    """A slice that delivers nothing is staged with no rows and digests of zero."""
    name = topic()
    staged = stage(reader(bootstrap, (name, 0, 0, 0)), RAW, tmp_path, "0-a")
    assert (staged.rows, staged.ranges[0].digest) == (0, 0)
    assert open_staged(staged).num_rows == 0


def test_rows_are_there_again_after_their_memory_was_given_back(bootstrap, topic, produce, tmp_path):
    """What was read of a staged file takes no memory any more, and reads as before."""
    name = topic()
    produce(name, [Record(b"v" * 1000)] * 2000, 0)
    table = open_staged(stage(reader(bootstrap, (name, 0, 0, 2000)), RAW, tmp_path, "0-a"))
    before = table.to_pylist()
    let_go_of_pages()
    assert table.to_pylist() == before


def test_batches_on_disk_have_the_rows_of_a_row_group(bootstrap, topic, produce, tmp_path):
    """A staged file has record batches of 122,880 rows, the last one excepted."""
    name = topic(partitions=2)
    for partition in range(2):
        produce(name, values(70_000), partition)
    staged = stage(reader(bootstrap, (name, 0, 0, 70_000), (name, 1, 0, 70_000)), RAW, tmp_path, "0-a")
    assert [batch.num_rows for batch in open_staged(staged).to_batches()] == [122_880, 17_120]


def test_a_batch_is_staged_while_the_next_one_is_read(bootstrap, topic, produce, tmp_path, monkeypatch):
    """Neither waits for the other to end, and what is staged is the same as of one after the other."""
    name = topic()
    produce(name, values(100), 0)
    real = reader(bootstrap, (name, 0, 0, 100))
    whole = stage(real, RAW, tmp_path, "0-a")
    reading, staging_one = Event(), Event()

    class TwoBatches(nullcontext):
        ranges, evidence = real.ranges, real.evidence

        def __iter__(self):
            (rows,) = reader(bootstrap, (name, 0, 0, 100))
            yield rows.slice(0, 40)
            reading.set()
            assert staging_one.wait(20)
            yield rows.slice(40)

    def decode(*given):
        staging_one.set()
        assert reading.wait(20)
        return formats_bad.decode(*given)

    monkeypatch.setattr(staging, "decode", decode)
    pieces = stage(TwoBatches(), RAW, tmp_path, "0-b")
    assert pieces.ranges == whole.ranges
    assert open_staged(pieces).to_pylist() == open_staged(whole).to_pylist()


def test_any_altered_byte_and_any_missing_one_is_noticed(staged):
    """A staged file that lacks bytes or has another one anywhere is damaged, and so is one that is gone."""
    path = Path(staged.path)
    whole = path.read_bytes()
    assert open_staged(staged).num_rows == 100
    for place in range(0, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StagedDamagedError, match="altered"):
            open_staged(staged)
    for damaged in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(StagedDamagedError, match=f"has {len(damaged)} bytes"):
            open_staged(staged)
    path.unlink()
    with pytest.raises(StagedDamagedError, match="No such file"):
        open_staged(staged)


def test_a_full_disk_is_an_error_that_says_so(bootstrap, topic, produce, tmp_path):
    """Where no space is left, the error names the file and what it needs, and nothing is left behind."""
    name = topic()
    produce(name, values(100), 0)
    (tmp_path / "0-a.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"0-a\.tmp: it needs .* MiB so far"):
        stage(reader(bootstrap, (name, 0, 0, 100)), RAW, tmp_path, "0-a")
    assert names(tmp_path) == []


def test_nothing_is_left_of_a_slice_that_fails(bootstrap, topic, produce, tmp_path):
    """A record that does not decode ends the staging without a file."""
    name = topic()
    produce(name, [b"fine", b"\xff"], 0)
    with pytest.raises(BadRecordError, match=rf"{name}\[0\]@1"):
        stage(reader(bootstrap, (name, 0, 0, 2)), UTF8, tmp_path, "0-a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_bad_records_are_staged_beside_the_rows(bootstrap, topic, produce, tmp_path, memory_bytes):
    """Each record is once in one of the two, counted and digested by range, and both are checked and discarded."""
    name = topic()
    produce(name, [b"fine", b"\xff", b"fine", b"\xfe\xff"] * 25, 0)
    ranges = [(name, 0, 0, 40), (name, 0, 40, 100)]
    staged = stage(
        reader(bootstrap, *ranges),
        UTF8,
        tmp_path,
        "0-a",
        memory_bytes=memory_bytes,
        on_bad_record="quarantine",
    )
    assert StagedSlice.from_dict(json.loads(json.dumps(staged.to_dict()))) == staged
    assert [one.quarantined for one in staged.ranges] == [20, 30]
    assert [one.evidence.records for one in staged.ranges] == [40, 60]
    rows, bad = open_staged(staged), open_staged(staged.bad)
    assert bad.schema == BAD_SCHEMA
    assert sorted(rows["_kafka_offset"].to_pylist() + bad["_kafka_offset"].to_pylist()) == list(range(100))
    con = duckdb.connect()
    expected = sum(
        con.from_arrow(part).aggregate(digest_expression([column])).fetchall()[0][0]
        for part, column in ((rows, "value"), (bad, "_kafka_value"))
    )
    assert sum(one.digest for one in staged.ranges) == expected
    assert sorted(names(tmp_path)) == ([] if memory_bytes else ["0-a", "0-a-bad"])
    if not memory_bytes:
        assert generation_of(Path(staged.bad.path)) == 0
        Path(staged.bad.path).write_bytes(b"")
        with pytest.raises(StagedDamagedError):
            open_staged(staged.bad)
    discard(staged)
    assert names(tmp_path) == []
    with pytest.raises(StagedDamagedError):
        open_staged(staged.bad)


def test_nothing_is_left_of_bad_records_either(bootstrap, topic, produce, tmp_path, monkeypatch):
    """Where the fetch fails later, the file of the bad records that were seen goes too."""
    name = topic()
    produce(name, [b"\xff"] * 100, 0)
    given = reader(bootstrap, (name, 0, 0, 100))
    monkeypatch.setattr(RangeReader, "evidence", property(lambda _: (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        stage(given, UTF8, tmp_path, "0-a", on_bad_record="quarantine")
    assert names(tmp_path) == []


def test_a_lock_excludes_others_and_tells_who_has_it(tmp_path):
    """A batch's lock is held by one at a time, in one process too, and names its holder while it is held."""
    assert not is_held(tmp_path, "orders", "key")
    lock, other = BatchLock(tmp_path, "orders", "key"), BatchLock(tmp_path, "orders", "key")
    assert lock.try_acquire()
    assert lock.try_acquire()
    assert not other.try_acquire()
    assert is_held(tmp_path, "orders", "key")
    assert holder(tmp_path, "orders", "key").pid == os.getpid()
    lock.release()
    assert not is_held(tmp_path, "orders", "key")
    assert holder(tmp_path, "orders", "key") is None
    assert other.try_acquire()
    other.release()


def hold_in_child(staging: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from kafka_assets.staging import BatchLock\n"
        "lock = BatchLock(Path(sys.argv[1]), 'orders', 'key'); print(lock.try_acquire(), flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(staging)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "True\n"
    return child


def test_a_killed_process_holds_no_lock(tmp_path):
    """A lock is seen from another process, and is free at once when its holder is killed."""
    with hold_in_child(tmp_path) as child:
        assert is_held(tmp_path, "orders", "key")
        assert holder(tmp_path, "orders", "key").pid == child.pid
        assert not BatchLock(tmp_path, "orders", "key").try_acquire()
        child.kill()
        child.wait()
    assert not is_held(tmp_path, "orders", "key")
    with BatchLock(tmp_path, "orders", "key") as lock:
        assert lock.try_acquire()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A child made by fork, and a program it starts, do not hold their parent's lock beyond its release."""
    lock = BatchLock(tmp_path, "orders", "key")
    assert lock.try_acquire()
    to_child, from_parent = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(from_parent)
        os.read(to_child, 1)
        os._exit(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
        assert is_held(tmp_path, "orders", "key")
        lock.release()
        assert not is_held(tmp_path, "orders", "key")
        program.stdin.close()
    os.close(from_parent)
    os.waitpid(pid, 0)


def place(staging: Path, batch: str, name: str, age: float) -> Path:
    directory = batch_directory(staging, "orders", batch)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / name
    file.write_bytes(b"x" * 10)
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return file


def test_a_sweep_takes_what_is_old_and_not_needed(tmp_path):
    """A sweep leaves files that are needed, young, or of a batch that is held, and removes the rest."""
    old = place(tmp_path, "done", "0-run-0", 100)
    half_written = place(tmp_path, "done", "0-run-1.tmp", 100)
    young = place(tmp_path, "mixed", "0-run-0", 5)
    needed = place(tmp_path, "mixed", "1-run-0", 100)
    moved_on = place(tmp_path, "mixed", "0-run-1", 100)
    running = place(tmp_path, "held", "0-run-0", 100)

    def keep(stream: str, batch: str, file: Path) -> bool:
        return stream == "orders" and batch == "mixed" and generation_of(file) == 1

    with BatchLock(tmp_path, "orders", "held") as lock:
        assert lock.try_acquire()
        swept = sweep(tmp_path, keep=keep, older_than=60, now=1_000_000)
    assert (swept.files, swept.bytes) == (3, 30)
    assert [file.exists() for file in (old, half_written, moved_on)] == [False] * 3
    assert [file.exists() for file in (young, needed, running)] == [True] * 3
    assert not batch_directory(tmp_path, "orders", "done").exists()
    sweep(tmp_path, keep=lambda *_: False, older_than=0, now=1_000_000)
    assert names(tmp_path) == []
    assert sweep(tmp_path / "not_there", keep=keep, older_than=0).files == 0

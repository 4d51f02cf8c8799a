"""The warehouse file damaged, swapped, altered, or held by somebody else."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

import kafka_assets
from kafka_assets import commits
from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.errors import WarehouseLockedError
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.story import STREAM, expected
from kafka_assets_tests.support.kafka import delete_records, values, wait_until

COMMANDS = ("plan", "status", "verify", "ingest")

HOLDING = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("held", flush=True)
sys.stdin.read()
"""


def warehouse_of(story):
    return Warehouse.of(load_config(story.file).warehouse)


def file_of(story) -> Path:
    return warehouse_of(story).path


@pytest.fixture
def told(story, topic, produce):
    """A story with ten records loaded: the topic, and the rows so far."""
    name = topic()
    story.setting(topics=[name])
    rows = expected(name, produce(name, values(10), 0), values(10))
    story.ingest()
    return name, rows


def goes_on(story, produce, told):
    """One record more is loaded, and all of it is proven."""
    name, rows = told
    rows += expected(name, produce(name, [b"more"], 0), [b"more"])
    assert story.ingest().exit_code == 0
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": len(rows), "loaded": len(rows)}}


def impatient(story, seconds):
    """Wait so long for the file and no longer."""
    settings = json.loads(story.file.read_text())
    settings["warehouse"]["lock_timeout"] = f"{seconds}s"
    story.file.write_text(json.dumps(settings))


@contextmanager
def held_by_a_program(path, how):
    """A process that has opened the file by DuckDB alone; killed at the end, if it has not ended."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout.readline() == "held\n"
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("how", ["read", "write"])
def test_another_program_keeps_the_file_open(story, told, produce, how):
    """WAREHOUSE_LOCKED, exit 4, names it after `lock_timeout`; a run that still waits when it ends does its work."""
    name, _ = told
    path = file_of(story)
    produce(name, [b"waits"], 0)
    told[1].extend(expected(name, [(0, 10)], [b"waits"]))
    with held_by_a_program(path, how) as program:
        impatient(story, 0.3)
        locked = story.ingest(exit_code=4)
        assert locked.code == "WAREHOUSE_LOCKED"
        assert f"process {program.pid}" in locked.message
        assert "connect()" in locked.message
        assert story.command("status").exit_code == (0 if how == "read" else 4)

        impatient(story, 60)
        kept_out = fcntl.LOCK_SH if how == "read" else fcntl.LOCK_EX
        waiter = threading.Thread(target=_end_once_waited_for, args=(Path(f"{path}.lock"), kept_out, program))
        waiter.start()
        assert story.ingest().stream["rows"] == 1
        waiter.join()
    goes_on(story, produce, told)


def _end_once_waited_for(lock, mode, program):
    """End a program once somebody holds the lock file while the program still has the file itself."""

    def taken():
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    wait_until(taken, "ingest waits for the program")
    program.stdin.close()


def test_what_ingest_could_not_commit_is_not_fetched_again(story, told, produce, bootstrap):
    """The next `ingest` loads what was staged while another program had the file, though Kafka has lost it since."""
    name, rows = told
    rows += expected(name, produce(name, [b"staged"], 0), [b"staged"])
    story.tick()
    impatient(story, 0.3)
    with held_by_a_program(file_of(story), "read"):
        assert story.ingest(exit_code=4).code == "WAREHOUSE_LOCKED"
    delete_records(bootstrap, name, {0: 11})
    impatient(story, 60)
    assert story.ingest().stream["rows"] == 1
    goes_on(story, produce, told)


def test_a_file_cut_short_is_refused_and_left_as_it_is(story, told, produce):
    """WAREHOUSE_INVALID, exit 2, however much is left of it; brought back, the stream goes on."""
    path = file_of(story)
    whole = path.read_bytes()
    for keep in (100, 5000, 20_000, len(whole) // 2):
        os.truncate(path, keep)
        for command in ("verify", "ingest"):
            refused = story.command(command)
            assert (refused.code, refused.exit_code) == ("WAREHOUSE_INVALID", 2), refused
        assert path.read_bytes() == whole[:keep]
        path.write_bytes(whole)
    goes_on(story, produce, told)


def test_altered_bytes_are_found(story, told, produce):
    """Wherever a block of the file was overwritten, whoever reads it is told, and nothing is written."""
    path = file_of(story)
    whole = path.read_bytes()
    met = set()
    for start in range(12_288, len(whole), 262_144):
        altered = bytearray(whole)
        altered[start + 64 : start + 128] = os.urandom(64)
        path.write_bytes(altered)
        answer = story.command("verify")
        met.add((answer.code, answer.exit_code))
        assert path.read_bytes() == altered
    assert ("WAREHOUSE_INVALID", 2) in met
    assert met <= {("WAREHOUSE_INVALID", 2), (None, 0)}  # a block that nothing is in any more is not read
    path.write_bytes(whole)
    goes_on(story, produce, told)


def _ingest_until_killed_after_the_commit(file):
    """Child: die between the commit of the rows and their move from the log into the file."""
    commit_batch = commits.commit_batch

    def last(*arguments, **named):
        Warehouse._detach = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        return commit_batch(*arguments, **named)

    commits.commit_batch = last
    with Path(os.devnull).open("w") as nowhere:
        run(["ingest", STREAM, "--json", "--config", str(file)], nowhere)


def killed_after_the_commit(story):
    process = multiprocessing.get_context("spawn").Process(
        target=_ingest_until_killed_after_the_commit, args=(story.file,)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_log_left_by_kill_9_is_part_of_the_warehouse(story, told, produce):
    """Readers see what it holds, the next run loads nothing of it again; beside an older copy it is refused."""
    name, rows = told
    path = file_of(story)
    log = Path(f"{path}.wal")
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    rows += expected(name, produce(name, [b"in the log"], 0), [b"in the log"])
    killed_after_the_commit(story)
    assert log.exists()

    with kafka_assets.connect(story.file) as reader:
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (11,)
    assert story.batches() == {"committed": 2}
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": 11, "loaded": 11}}

    newest = path.with_name("newest")
    path.rename(newest)
    shutil.copy(copy, path)
    before = log.read_bytes()
    for command in COMMANDS:
        refused = story.command(command)
        assert (refused.code, refused.exit_code) == ("WAREHOUSE_INVALID", 2)
        assert f"move {log} away" in refused.message
    assert (path.read_bytes(), log.read_bytes()) == (copy.read_bytes(), before)
    newest.rename(path)

    assert story.ingest().stream["batches"] == []
    goes_on(story, produce, told)
    assert not log.exists()


def test_a_ledger_of_another_version_is_refused_and_left_as_it_is(story, told, produce):
    """An older one, one without a version, one that lacks a table: WAREHOUSE_INVALID, exit 2, by every command."""
    path = file_of(story)

    def by_hand(statement):
        with duckdb.connect(str(path)) as connection:
            connection.execute(statement)

    for spoil, mend in (
        ("UPDATE {0}.meta SET schema_version = -schema_version",) * 2,
        ("ALTER TABLE {0}.meta RENAME TO m", "ALTER TABLE {0}.m RENAME TO meta"),
        ("ALTER TABLE {0}.positions RENAME TO p", "ALTER TABLE {0}.p RENAME TO positions"),
    ):
        by_hand(spoil.format("kafka_assets_ledger"))
        before = path.read_bytes()
        for command in COMMANDS:
            refused = story.command(command)
            assert (refused.code, refused.exit_code) == ("WAREHOUSE_INVALID", 2), refused
            assert "kafka_assets_ledger" in refused.message
            assert "not touched" in refused.message
        assert path.read_bytes() == before
        by_hand(mend.format("kafka_assets_ledger"))
    goes_on(story, produce, told)


def test_a_table_altered_by_hand_is_said_and_mended(story, told, produce):
    """Nothing is written while it does not fit; repaired, the stream goes on, and a replay brings the values back."""
    name, rows = told

    def by_hand(statement):
        with duckdb.connect(str(file_of(story))) as connection:
            connection.execute(statement)

    def refused(*said):
        for command in ("plan", "ingest", "verify"):
            answer = story.command(command)
            assert (answer.code, answer.exit_code) == ("WAREHOUSE_INVALID", 2), answer
            assert all(one in answer.message for one in said), answer.message

    (key,) = story.batch_keys()
    places = produce(name, [b"waits"], 0)
    by_hand("ALTER TABLE orders DROP COLUMN _kafka_value")
    refused("orders", "_kafka_value is missing")
    by_hand("ALTER TABLE orders ADD COLUMN _kafka_value VARCHAR")
    refused("orders", "_kafka_value is VARCHAR, not BLOB")
    assert story.batch_keys() == [key]

    by_hand("ALTER TABLE orders ALTER _kafka_value TYPE BLOB")
    by_hand("ALTER TABLE orders ADD COLUMN note VARCHAR DEFAULT 'mine'")
    assert story.ingest().stream["rows"] == 1
    unproven = story.command("verify")
    assert (unproven.code, unproven.exit_code) == ("PROOF_FAILED", 1)
    assert f"{name}[0] [0, 10)" in unproven.message
    assert story.command("replay", key).exit_code == 0
    rows += expected(name, places, [b"waits"])
    goes_on(story, produce, told)

    by_hand("ALTER TABLE orders ADD COLUMN strict INTEGER")
    by_hand("UPDATE orders SET strict = 1")
    by_hand("ALTER TABLE orders ALTER strict SET NOT NULL")
    rows += expected(name, produce(name, [b"held up"], 0), [b"held up"])
    assert "strict" in story.ingest(exit_code=1).message
    assert story.rows() == rows[:-1]
    by_hand("ALTER TABLE orders ALTER strict DROP NOT NULL")
    goes_on(story, produce, told)


def test_rows_of_a_foreign_client_are_found(story, told, produce):
    """Doubled, added to a batch, or of none: the proof fails and names them; a replay and a DELETE mend it."""
    name, rows = told
    (key,) = story.batch_keys()

    def by_program(statement):
        program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute(sys.argv[2])"
        subprocess.run([sys.executable, "-c", program, str(file_of(story)), statement], check=True)

    by_program(
        "INSERT INTO orders SELECT * FROM orders WHERE _kafka_offset = 3;"
        "INSERT INTO orders BY NAME SELECT 'x' AS _kafka_topic, 0 AS _kafka_partition, 0 AS _kafka_offset,"
        " 'mine' AS _kafka_batch;"
        "INSERT INTO orders BY NAME SELECT 'no batch'::BLOB AS _kafka_value"
    )
    found = story.command("verify")
    assert (found.code, found.exit_code) == ("PROOF_FAILED", 1)
    problems = "\n".join(found.stream["problems"])
    assert f"batch {key}, {name}[0] [0, 10): the ledger counts 10 rows, the table has 11" in problems
    assert "batch mine, x[0]: the table has 1 rows of it, the ledger knows no such range" in problems
    assert "1 rows have no batch" in problems

    assert story.command("replay", key).exit_code == 0
    by_program("DELETE FROM orders WHERE _kafka_batch IS NULL OR _kafka_batch = 'mine'")
    assert story.rows() == rows
    goes_on(story, produce, told)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_connection_of_ones_own_in_the_process(story, told, produce, read_only):
    """Whoever has the file open beside us is told what to use, and keeps its lock; closed, all goes on."""
    name, rows = told
    path = file_of(story)
    rows += expected(name, produce(name, [b"waits"], 0), [b"waits"])
    with duckdb.connect(str(path), read_only=read_only) as mine:
        for command in COMMANDS:
            refused = story.command(command)
            assert (refused.code, refused.exit_code) == ("WAREHOUSE_LOCKED", 4)
            assert "this process itself" in refused.message
            assert "kafka_assets.connect()" in refused.message
        assert mine.execute("SELECT count(*) FROM orders").fetchall() == [(10,)]
        assert not _another_process_may_write(path)
    assert _another_process_may_write(path)
    assert story.ingest().stream["rows"] == 1
    goes_on(story, produce, told)


def _another_process_may_write(path):
    program = "import duckdb, sys; duckdb.connect(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=False)
    return done.returncode == 0


def _try_to_write(path, pipe):
    """Child: say whether the file can be had."""
    try:
        with Warehouse(path, lock_timeout=0.2, staging=path.with_name("staging")).writing():
            pipe.send("had it")
    except WarehouseLockedError as locked:
        pipe.send(locked.message)


def test_a_connection_of_ones_own_while_we_hold_the_file(story, told, produce):
    """DuckDB refuses it; what we write is committed, and no other process of ours comes in meanwhile."""
    path = file_of(story)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with warehouse_of(story).writing() as connection:
        connection.execute("CREATE TABLE aside AS SELECT 1 AS i").fetchall()
        with pytest.raises(duckdb.Error, match="already attached"):
            duckdb.connect(str(path))
        other = spawn.Process(target=_try_to_write, args=(path, theirs))
        other.start()
        assert f"process {os.getpid()}" in ours.recv()
        other.join()
    assert story.query("FROM aside") == [(1,)]
    goes_on(story, produce, told)

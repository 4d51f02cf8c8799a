"""The warehouse file: made, held, let go of, and what is said when it cannot be had."""

from __future__ import annotations

import fcntl
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from kafka_assets import warehouse as module
from kafka_assets.errors import DiskFullError, WarehouseInvalidError, WarehouseLockedError
from kafka_assets.warehouse import CommitUnknownError, Warehouse
from kafka_assets_tests import warehouse_support as support

spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def warehouse(tmp_path):
    return support.warehouse_at(tmp_path)


@contextmanager
def child(target, *args):
    """A child process and the pipe to it; killed at the end if it is still there."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        if process.is_alive():
            support.kill(process.pid)
        process.join()


@contextmanager
def held_by_child(target, *args):
    with child(target, *args) as (process, pipe):
        pid = pipe.recv()
        yield pid
        if process.is_alive():
            pipe.send("stop")
            process.join()


def make_table(warehouse):
    with warehouse.writing() as con:
        con.execute("CREATE TABLE t (i INTEGER)").fetchall()


def count(warehouse):
    with warehouse.reading() as con:
        return con.execute("SELECT count(*) FROM t").fetchall()[0][0]


def test_reading_what_is_not_there_yields_none_and_makes_nothing(tmp_path):
    """A read of a missing file sees None and leaves no file behind."""
    with support.warehouse_at(tmp_path / "none").reading() as con:
        assert con is None
    assert list(tmp_path.iterdir()) == []


def test_writing_makes_file_and_folders(tmp_path):
    """The first write creates the folders and a file in the older storage format."""
    place = support.warehouse_at(tmp_path / "a" / "b")
    make_table(place)
    assert count(place) == 0
    assert sorted(path.name for path in place.path.parent.iterdir()) == [
        "w.duckdb",
        "w.duckdb.lock",
        "w.duckdb.staging",
        "w.duckdb.turn",
        "w.duckdb.writers",
    ]
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{place.path}' AS w (READ_ONLY)")
        assert "v1.5.0" in str(
            con.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'w'").fetchall()
        )


def test_an_error_rolls_everything_back(warehouse):
    """What was written before an exception is not in the file, and the file is free again."""
    make_table(warehouse)
    with pytest.raises(duckdb.InvalidInputException, match="broken"), warehouse.writing() as con:
        con.execute("INSERT INTO t SELECT 1 / 0 FROM t UNION ALL SELECT error('broken')").fetchall()
    assert count(warehouse) == 0


def test_readers_cannot_write(warehouse):
    """The engine refuses a write on a connection for reading."""
    make_table(warehouse)
    with pytest.raises(duckdb.InvalidInputException, match="read-only"), warehouse.reading() as con:
        con.execute("INSERT INTO t VALUES (1)").fetchall()


def test_one_connection_for_every_instance_of_a_file(tmp_path):
    """Instances of one file, reached by a symbolic link too, share their connection and their mutex."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, other = support.warehouse_at(tmp_path / "real"), support.warehouse_at(tmp_path / "link")
    make_table(one)
    assert count(other) == 0
    assert one._standing is other._standing


def test_a_thread_does_not_wait_for_itself(warehouse):
    """Taking the file twice in one thread is a programming error, told at once."""
    with warehouse.writing(), pytest.raises(RuntimeError, match="already holds"), warehouse.reading():
        pass


def test_threads_take_turns(warehouse):
    """A thread that finds the file held by another one of its process is told so after the timeout."""
    make_table(warehouse)
    said = []

    def look():
        try:
            with warehouse.reading(timeout=0.05):
                said.append("read")
        except WarehouseLockedError as error:
            said.append(str(error))

    with warehouse.writing():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert "another thread of this process" in said[0]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_held_file_names_its_holder(warehouse, tmp_path, mode):
    """Whoever cannot have the file is told the process that has it."""
    make_table(warehouse)
    with held_by_child(support.hold, tmp_path, mode) as pid:
        locked = pytest.raises(WarehouseLockedError, match=rf"process {pid} \(")
        with locked, warehouse.writing(timeout=0.1):
            pass
    with warehouse.writing(timeout=5):
        pass


def await_turn_taken(warehouse):
    """Return once somebody waits for the file with its turn taken."""
    with Path(f"{warehouse.path}.turn").open("rb") as turn:

        def taken():
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(turn, fcntl.LOCK_UN)
            return False

        support.await_true(taken)


def test_readers_of_two_processes_share_the_file(warehouse, tmp_path):
    """A reader does not wait for a reader."""
    make_table(warehouse)
    with held_by_child(support.hold, tmp_path, "read"), warehouse.reading(timeout=0) as con:
        assert con.execute("SELECT count(*) FROM t").fetchall() == [(0,)]


def test_readers_do_not_pass_a_waiting_writer(warehouse, tmp_path):
    """While a writer waits for readers to end, a new reader waits for the writer."""
    make_table(warehouse)
    with (
        held_by_child(support.hold, tmp_path, "read"),
        child(support.hold, tmp_path, "write") as (_, pipe),
    ):
        await_turn_taken(warehouse)
        with pytest.raises(WarehouseLockedError, match="whose turn it is"), warehouse.reading(timeout=0.1):
            pass
        assert not pipe.poll()


def test_a_reader_comes_before_the_next_writer(warehouse, tmp_path):
    """With one writing and another waiting to, a reader has the file before the second."""
    make_table(warehouse)
    with (
        child(support.hold, tmp_path, "write") as (_, one),
        child(support.hold, tmp_path, "write") as (_, other),
    ):
        (first,) = multiprocessing.connection.wait([one, other])
        second = other if first is one else one
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(count, warehouse)
            await_turn_taken(warehouse)
            assert first.recv()
            assert not second.poll()
            first.send("let go")
            assert read.result(60) == 0
            assert second.recv()


def test_the_lock_of_a_killed_process_is_free(warehouse, tmp_path):
    """A process ended by kill -9 leaves no lock and nothing of the open transaction."""
    make_table(warehouse)
    with child(support.hold, tmp_path, "write") as (process, pipe):
        pipe.recv()
        support.kill(process.pid)
        process.join()
        assert count(warehouse) == 0


def test_processes_contend_without_losing_a_write(warehouse, tmp_path):
    """Writers of several processes add up, each having seen what the others wrote."""
    make_table(warehouse)
    processes = [spawn.Process(target=support.append_rows, args=(tmp_path, 40)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    with warehouse.reading() as con:
        assert con.execute("SELECT count(*), count(DISTINCT i), max(i) FROM t").fetchall() == [(80, 80, 80)]


def test_a_foreign_program_is_named_and_waited_for(warehouse):
    """A program that opened the file without the locks is named by its process id; once gone, all is well."""
    make_table(warehouse)
    with held_by_child(support.hold_foreign, warehouse.path) as pid:
        locked = pytest.raises(WarehouseLockedError, match=rf"process {pid} .*connect\(\) takes")
        with locked, warehouse.reading(timeout=0.3):
            pass
    assert count(warehouse) == 0


def test_the_own_process_having_it_open_is_told_what_to_use(warehouse):
    """A connection of one's own to the file is refused with what to use in its place."""
    make_table(warehouse)
    locked = pytest.raises(WarehouseLockedError, match=r"kafka_assets\.connect\(\)")
    with duckdb.connect(str(warehouse.path)), locked, warehouse.writing():
        pass
    assert count(warehouse) == 0


@pytest.mark.parametrize("content", [b"hello", b"hello" * 5000])
@pytest.mark.parametrize("mode", ["reading", "writing"])
def test_a_file_of_something_else_is_refused_and_kept(warehouse, content, mode):
    """A file that is no DuckDB database is an error that names it, and stays as it is."""
    warehouse.path.write_bytes(content)
    with pytest.raises(WarehouseInvalidError, match="not a valid DuckDB"), getattr(warehouse, mode)():
        pass
    assert warehouse.path.read_bytes() == content


def test_a_damaged_file_is_refused(warehouse):
    """A database cut short is an error of the warehouse, not a crash."""
    make_table(warehouse)
    os.truncate(warehouse.path, 5000)
    with pytest.raises(WarehouseInvalidError), warehouse.reading():
        pass


def test_a_newer_storage_version_is_refused(warehouse):
    """A file of a DuckDB that this one does not know is told with the versions."""
    make_table(warehouse)
    content = bytearray(warehouse.path.read_bytes())
    content[12:20] = (12_345).to_bytes(8, "little")
    checksum = 5381
    for at in range(8, 4096, 8):
        checksum ^= int.from_bytes(content[at : at + 8], "little") * 0xBF58476D1CE4E5B9 % 2**64
    content[0:8] = checksum.to_bytes(8, "little")
    warehouse.path.write_bytes(content)
    with pytest.raises(WarehouseInvalidError, match="12345"), warehouse.reading():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A path through a file is an error that names the folder."""
    (tmp_path / "file").write_text("")
    place = support.warehouse_at(tmp_path / "file" / "below")
    with pytest.raises(WarehouseInvalidError, match=r"file/below.*cannot be made"), place.writing():
        pass
    with place.reading() as con:
        assert con is None


def test_a_directory_in_its_place_is_refused(warehouse):
    """A directory of the file's name is an error of the warehouse."""
    warehouse.path.mkdir()
    (warehouse.path / "something").write_text("")
    with pytest.raises(WarehouseInvalidError), warehouse.writing():
        pass


def test_an_empty_file_is_taken_for_none(warehouse):
    """What `touch` leaves is replaced by a database."""
    warehouse.path.touch()
    with warehouse.reading() as con:
        assert con is None
    make_table(warehouse)
    assert count(warehouse) == 0


def test_a_log_without_its_file_is_refused(warehouse):
    """A write-ahead log whose database is missing is not written over."""
    log = Path(f"{warehouse.path}.wal")
    log.write_bytes(b"commits")
    with pytest.raises(WarehouseInvalidError, match=r"w\.duckdb\.wal"), warehouse.writing():
        pass
    assert log.read_bytes() == b"commits"


def test_what_a_killed_creation_left_is_removed(warehouse):
    """The next creation removes the half-made file of one that was killed."""
    stale = Path(f"{warehouse.path}.new-123")
    stale.write_bytes(b"half")
    make_table(warehouse)
    assert not stale.exists()


def test_creation_survives_kill_9(tmp_path):
    """Killed at any moment, a creation leaves no file, or one that opens."""
    for round_ in range(4):
        folder = tmp_path / str(round_)
        folder.mkdir()
        with child(support.create_over_and_over, folder) as (process, pipe):
            for _ in range(3 + round_):
                pipe.recv()
            support.kill(process.pid)
            process.join()
        for place in folder.iterdir():
            with support.warehouse_at(place).writing() as con:
                con.execute("CREATE TABLE IF NOT EXISTS t AS SELECT 1 AS i").fetchall()
            assert count(support.warehouse_at(place)) == 1


def test_a_commit_left_in_the_log_is_read(warehouse, tmp_path):
    """A process killed between COMMIT and the checkpoint leaves a log; readers see what was committed."""
    make_table(warehouse)
    process = spawn.Process(target=_die_before_detach, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Path(f"{warehouse.path}.wal").exists()
    assert count(warehouse) == 1


def _die_before_detach(folder):
    warehouse = support.warehouse_at(folder)
    warehouse._detach = lambda: os.kill(os.getpid(), signal.SIGKILL)
    with warehouse.writing() as con:
        con.execute("INSERT INTO t VALUES (1)").fetchall()


class FailingConnection:
    """A connection one statement of which fails."""

    def __init__(self, con, statement, error):
        self._con = con
        self._statement = statement
        self._error = error

    def execute(self, sql, *args):
        """Run a statement, or fail."""
        if sql.startswith(self._statement):
            raise self._error
        return self._con.execute(sql, *args)

    def __getattr__(self, name):
        return getattr(self._con, name)


def fail(warehouse, statement, error):
    warehouse._standing.connection = FailingConnection(warehouse._connection(), statement, error)


def test_a_failing_commit_is_unknown(warehouse):
    """An error from COMMIT is told as unknown, and the next use has a new connection."""
    make_table(warehouse)
    fail(warehouse, "COMMIT", duckdb.FatalException("checkpoint failed"))
    with pytest.raises(CommitUnknownError, match="ledger"), warehouse.writing() as con:
        con.execute("INSERT INTO t VALUES (1)").fetchall()
    assert count(warehouse) in {0, 1}


def test_failing_to_let_go_after_the_commit_is_unknown_too(warehouse):
    """Where the checkpoint after COMMIT fails, the rows are there though an error was raised."""
    make_table(warehouse)
    fail(warehouse, "DETACH", duckdb.IOException("No space left on device"))
    with pytest.raises(CommitUnknownError) as raised, warehouse.writing() as con:
        con.execute("INSERT INTO t VALUES (1)").fetchall()
    assert isinstance(raised.value.__cause__, DiskFullError)
    assert count(warehouse) == 1


def _raise_after_insert(con, error):
    con.execute("INSERT INTO t VALUES (1)").fetchall()
    raise error


def test_a_full_disk_has_its_own_error(warehouse):
    """What the engine says of a full disk becomes DISK_FULL, with nothing written."""
    make_table(warehouse)
    with pytest.raises(DiskFullError, match="Make room"), warehouse.writing() as con:
        _raise_after_insert(con, duckdb.IOException("Could not write file: No space left on device"))
    assert count(warehouse) == 0


def test_a_fatal_error_makes_a_new_connection(warehouse):
    """After the engine called itself dead, the next use has another one."""
    make_table(warehouse)
    before = warehouse._standing.connection
    with pytest.raises(duckdb.FatalException), warehouse.writing():
        raise duckdb.FatalException("database has been invalidated")
    assert count(warehouse) == 0
    assert warehouse._standing.connection is not before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_has_nor_frees_the_lock(warehouse):
    """A child forked while the file is held queues up like others and does not prolong the lock."""
    make_table(warehouse)
    ours, childs = multiprocessing.Pipe()
    with warehouse.writing() as con:
        con.execute("INSERT INTO t VALUES (1)").fetchall()
        pid = os.fork()
        if pid == 0:
            try:
                with warehouse.reading(timeout=0.1):
                    childs.send("has it")
            except WarehouseLockedError:
                childs.send("refused")
                childs.recv()
            finally:
                os._exit(0)
        said = ours.recv()
    try:
        with warehouse.writing(timeout=0) as con:
            assert con.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    finally:
        support.kill(pid)
        os.waitpid(pid, 0)
    assert said == "refused"


def test_network_file_systems_are_refused_unless_allowed(warehouse, monkeypatch):
    """A file on NFS is refused with the variable that allows it, and allowed with it."""
    monkeypatch.setattr(module, "_file_system", lambda _: "nfs4")
    with (
        pytest.raises(WarehouseInvalidError, match=rf"nfs4.*{module.ALLOW_NETWORK_FS}=1"),
        warehouse.writing(),
    ):
        pass
    monkeypatch.setenv(module.ALLOW_NETWORK_FS, "1")
    make_table(warehouse)


def test_the_innermost_mount_counts(tmp_path):
    """The type is that of the longest mount point above the path, blanks in it included."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n/dev/b /data/my\\040disk xfs rw 0 0\n"
    )
    found = [
        module._file_system(Path(path), mounts) for path in ("/database/w", "/data/w", "/data/my disk/w")
    ]
    assert found == ["ext4", "nfs4", "xfs"]


def test_spill_directories_of_dead_processes_go(warehouse):
    """A new connection removes what a killed process of this host left of its spill files."""
    staging = warehouse.staging
    process = spawn.Process(target=os.getpid)
    process.start()
    process.join()
    mine = module._spill_directory(staging)
    dead = mine.with_name(mine.name.replace(str(os.getpid()), str(process.pid)))
    dead.mkdir(parents=True)
    mine.mkdir()
    module._spill_directory(staging)
    assert (dead.exists(), mine.exists()) == (False, True)


def test_holder_tells_no_arguments(warehouse, monkeypatch):
    """The lock file names the program and not its arguments, which may be anything."""
    monkeypatch.setattr("sys.argv", ["/x/dagster/__main__.py", "--password=s3cret"])
    make_table(warehouse)
    word = Path(f"{warehouse.path}.lock").read_text()
    assert '"command": "dagster"' in word
    assert "s3cret" not in word


def test_limits_and_time_zone_are_set(warehouse):
    """Memory and spill directory are bounded, times are UTC, and nothing is downloaded."""
    make_table(warehouse)
    with warehouse.writing() as con:
        limit, spill, zone, install, bar = con.execute(
            "SELECT current_setting('memory_limit'), current_setting('temp_directory'),"
            " current_setting('TimeZone'), current_setting('autoinstall_known_extensions'),"
            " current_setting('enable_progress_bar')"
        ).fetchall()[0]
    assert limit == "953.6 MiB"
    assert spill.startswith(str(warehouse.staging))
    assert (zone, install, bar) == ("UTC", False, False)


def test_repr_names_the_file(tmp_path):
    """A warehouse prints as its path."""
    assert str(tmp_path / "w.duckdb") in repr(
        Warehouse(tmp_path / "w.duckdb", lock_timeout=1, staging=tmp_path)
    )

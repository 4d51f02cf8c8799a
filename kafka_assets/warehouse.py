"""The warehouse file: who may hold it, for how long, and what an error says about it.

DuckDB lets one process write a file or many read it, and refuses the others at once. Processes of this
package queue up instead, on locks of two files beside it: whoever wants the file takes `<file>.turn`, then
`<file>.lock` (both shared to read, exclusive to write), then lets go of the turn. The turn keeps overlapping
readers from starving a writer. Writers first queue up on `<file>.writers`, which they keep until they are done:
so those who want to read while one writes come before the next that wants to write. In one process a mutex
lets one thread at a time have the file.

The file is attached to a standing in-memory connection for as long as it is held, and never opened by other
means: closing any descriptor of a file drops the POSIX locks this process has on it, DuckDB's among them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import logging
import os
import random
import re
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from kafka_assets import ledger_sql as sql
from kafka_assets.errors import DiskFullError, KafkaAssetsError, WarehouseInvalidError, WarehouseLockedError
from kafka_assets.records import HUGE_RECORD_BYTES, LARGE_RECORD_BYTES, ROW_GROUP_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_assets.config import WarehouseConfig

logger = logging.getLogger(__name__)

CATALOG = "_kafka_assets_file"
"""The name the file is attached under."""

STORAGE_VERSION = "v1.5.0"
"""Of new files: what DuckDB 2.0 writes by default cannot be read by 1.5."""

MEMORY_LIMIT = "1GB"

ALLOW_NETWORK_FS = "KAFKA_ASSETS_ALLOW_NETWORK_FS"

_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs", "gpfs", "fuse.sshfs"}
)
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.025
_FOREIGN_PAUSE = 0.1
_VECTOR_ROWS = 2048
_ROW_GROUP_BYTES = 32 * 1024**2
_MUCH_LOG = 128 * 1024**2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CommitUnknownError(KafkaAssetsError):
    """COMMIT, or letting go of the file after it, failed: the transaction may be in the file or not.

    Read the ledger to know. `__cause__` is the error itself, translated where it has an error class here.
    """

    retryable = True


class _CommitUnknownDiskFullError(CommitUnknownError, DiskFullError):
    """As its bases: for want of room."""


class _Standing:
    """What a process has of one file: the mutex, the connection and the descriptors of the lock files."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.owner: int | None = None
        self.connection: duckdb.DuckDBPyConnection | None = None
        self.descriptors: set[int] = set()

    def drop(self) -> None:
        """Close the connection and with it the file, whatever state they are in."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(duckdb.Error, RuntimeError):
                connection.close()

    def forget_in_child(self) -> None:
        """Give a forked child a clean start; the parent keeps its locks and its connection."""
        if self.connection is not None:
            # Destroying it joins threads that only the parent has, and crashes.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        for descriptor in self.descriptors:
            with suppress(OSError):
                os.close(descriptor)
        self.__init__()  # type: ignore[misc]  # a child has one thread: nobody else looks on


_standings: dict[Path, _Standing] = {}


def _forget_in_child() -> None:
    for standing in _standings.values():
        standing.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)


class Warehouse:
    """A DuckDB file and the way into it.

    Instances of one file share their process's connection and mutex, so any number may be made.

    Args:
        path: The file; need not exist. Symbolic links are followed.
        lock_timeout: Seconds to wait for the file where a call names no timeout.
        staging: Directory beside which DuckDB may spill to disk.
        memory_limit: DuckDB's, where no record is huge; None for what it takes by default.
    """

    def __init__(
        self, path: Path, *, lock_timeout: float, staging: Path, memory_limit: str | None = MEMORY_LIMIT
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.lock_timeout = lock_timeout
        self.staging = staging
        self.memory_limit = memory_limit
        self._standing = _standings.setdefault(self.path, _Standing())

    @classmethod
    def of(cls, config: WarehouseConfig, *, memory_limit: str | None = MEMORY_LIMIT) -> Warehouse:
        """Return the warehouse of a streams file."""
        return cls(
            config.path, lock_timeout=config.lock_timeout, staging=config.staging, memory_limit=memory_limit
        )

    def __repr__(self) -> str:
        return f"Warehouse({str(self.path)!r})"

    @contextmanager
    def reading(self, timeout: float | None = None) -> Iterator[duckdb.DuckDBPyConnection | None]:
        """Hold the file, shared with other readers; its database is the connection's default, read-only.

        Yields:
            The connection, or None where the file does not exist yet.

        Raises:
            WarehouseLockedError: Others held the file for longer than the timeout (seconds).
            WarehouseInvalidError: The file is no database this DuckDB can read.
        """
        if not self._exists():
            yield None
            return
        with (
            self._held(fcntl.LOCK_SH, timeout) as deadline,
            self._attached(deadline, "READ_ONLY") as connection,
        ):
            yield connection

    @contextmanager
    def writing(
        self, timeout: float | None = None, *, bytes_per_record: float = 0.0
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the file alone, inside one transaction: committed at the end, rolled back on any error.

        The file and the folders above it are created if missing. Results must be fetched to their end.

        Args:
            timeout: Seconds to wait for the file.
            bytes_per_record: On the mean, of those that are to be written.

        Raises:
            WarehouseLockedError: Others held the file for longer than the timeout (seconds).
            WarehouseInvalidError: The file cannot be created, or is no database this DuckDB can write.
            DiskFullError: No space left; rolled back.
            CommitUnknownError: The transaction may have been committed or not.
        """
        self._make_folders()
        with self._held(fcntl.LOCK_EX, timeout) as deadline:
            if not self._exists():
                self._create()
            attached = self._attached(deadline, "READ_WRITE", bytes_per_record)
            with attached as connection, self._transaction(connection):
                yield connection

    def _exists(self) -> bool:
        try:
            # An empty file is what `touch` and `mktemp` leave; DuckDB takes it for damage.
            return self.path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise WarehouseInvalidError(
                f"the warehouse file {self.path} cannot be looked at: {error}."
            ) from error

    def _make_folders(self) -> None:
        for folder in (self.path.parent, self.staging):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _not_made(
                    error,
                    f"the folder {folder}, which the warehouse {self.path} needs, cannot be made: {error.strerror}."
                    " Nothing was written. Make it, or name another place in `warehouse.uri`.",
                ) from error

    @contextmanager
    def _held(self, mode: int, timeout: float | None) -> Iterator[float]:
        """Hold the mutex and the lock files; yields the moment (monotonic) until which one may wait."""
        seconds = self.lock_timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        standing = self._standing
        if standing.owner == threading.get_ident():
            raise RuntimeError(f"this thread already holds {self.path}; it would wait for itself")
        if not standing.mutex.acquire(timeout=max(seconds, 0)):
            raise self._locked(seconds, "another thread of this process")
        standing.owner = threading.get_ident()
        try:
            with self._queued(mode, deadline, seconds):
                yield deadline
        finally:
            standing.owner = None
            standing.mutex.release()

    @contextmanager
    def _queued(self, mode: int, deadline: float, seconds: float) -> Iterator[None]:
        _refuse_network_file_system(self.path)
        with (
            self._first_of_writers(deadline, seconds) if mode == fcntl.LOCK_EX else nullcontext(),
            self._sidecar("turn", mode) as turn,
            self._sidecar("lock", mode) as lock,
        ):
            if not _poll(turn, mode, deadline):
                raise self._locked(seconds, f"the one whose turn it is, {_holder(turn)}")
            try:
                _sign(turn)
                if not _poll(lock, mode, deadline):
                    raise self._locked(seconds, _holder(lock))
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)
            try:
                _sign(lock)
                yield
            finally:
                # Closing would not do: a child forked meanwhile may have a copy of the descriptor.
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _first_of_writers(self, deadline: float, seconds: float) -> Iterator[None]:
        with self._sidecar("writers", fcntl.LOCK_EX) as writers:
            if not _poll(writers, fcntl.LOCK_EX, deadline):
                raise self._locked(seconds, f"a writer, {_holder(writers)}")
            try:
                _sign(writers)
                yield
            finally:
                fcntl.flock(writers, fcntl.LOCK_UN)

    @contextmanager
    def _sidecar(self, kind: str, mode: int) -> Iterator[int]:
        name = f"{self.path}.{kind}"
        try:
            try:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except PermissionError:
                if mode != fcntl.LOCK_SH:
                    raise
                # Who may only read the folder can still take a lock that others made.
                descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _not_made(
                error,
                f"the lock file {name} cannot be opened: {error.strerror}. Without it the warehouse is not"
                f" touched. Give this account the right to write in {self.path.parent}, or name another"
                " place in `warehouse.uri`.",
            ) from error
        self._standing.descriptors.add(descriptor)
        try:
            yield descriptor
        finally:
            self._standing.descriptors.discard(descriptor)
            os.close(descriptor)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = self._standing.connection
        if connection is None:
            connection = duckdb.connect(
                ":memory:",
                config={
                    "temp_directory": str(_spill_directory(self.staging)),
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                },
            )
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")
            self._standing.connection = connection
        return connection

    def _create(self) -> None:
        """Make the file under another name first: killed half-way, none of its own name is left."""
        if Path(f"{self.path}.wal").exists():
            raise WarehouseInvalidError(
                f"the warehouse {self.path} is missing but its write-ahead log {self.path}.wal is there, with commits"
                " that belong to the missing file. Bring the file back, or move the log away to start anew."
            )
        for stale in self.path.parent.glob(f"{glob.escape(self.path.name)}.new-*"):
            stale.unlink(missing_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new-{os.getpid()}")
        connection = self._connection()
        try:
            connection.execute(
                f"ATTACH {literal(str(fresh))} AS {CATALOG} (TYPE duckdb, STORAGE_VERSION {literal(STORAGE_VERSION)})"
            )
            connection.execute(f"CHECKPOINT {CATALOG}")
            connection.execute(f"DETACH {CATALOG}")
        except duckdb.Error as error:
            self._standing.drop()
            raise _translated(error) or WarehouseInvalidError(
                f"the warehouse {self.path} cannot be created: {error}"
            ) from error
        fresh.rename(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _attached(
        self, deadline: float, access: str, bytes_per_record: float = 0.0
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._attach(deadline, f"{access}, ROW_GROUP_SIZE {_row_group_rows(bytes_per_record)}")
        try:
            # One thread has one row group in memory; a commit of small ones asks for two.
            connection.execute("SET threads = 1" if access == "READ_WRITE" else "RESET threads")
            connection.execute(f"USE {CATALOG}")
            largest = bytes_per_record
            # A file without a ledger, or with an older one, has none.
            with suppress(duckdb.CatalogException, duckdb.BinderException):
                ((found,),) = connection.execute(sql.LARGEST_RECORDS).fetchall()
                largest = max(largest, found)
            connection.execute("RESET GLOBAL max_vacuum_tasks")
            prepare_for_records(connection, largest)
            yield connection
        except BaseException as error:
            if isinstance(error, duckdb.FatalException):
                self._standing.drop()
            with suppress(duckdb.Error, RuntimeError):
                self._detach()
            translated = _translated(error) or self._damage(error)
            if translated is not None:
                raise translated from error
            raise
        try:
            self._detach()
        except (duckdb.Error, RuntimeError) as error:
            if access == "READ_ONLY":
                logger.warning("letting go of %s failed, so the connection was dropped: %s", self.path, error)
                return
            raise _unknown(f"letting go of {self.path} after the commit failed", error) from (
                _translated(error) or error
            )

    def _attach(self, deadline: float, options: str) -> duckdb.DuckDBPyConnection:
        if _is_open_here(self.path):
            raise self._open_in_this_process()
        began = time.monotonic()
        while True:
            connection = self._connection()
            try:
                self._limit_memory(connection)
                # Until it is known how large the records are: attaching may write what is in the log.
                connection.execute("SET GLOBAL max_vacuum_tasks = 0")
                connection.execute(f"ATTACH {literal(str(self.path))} AS {CATALOG} (TYPE duckdb, {options})")
            except duckdb.Error as error:
                if isinstance(error, duckdb.FatalException):
                    self._standing.drop()
                text = str(error)
                if "Unique file handle conflict" in text or "different configuration" in text:
                    raise self._open_in_this_process() from error
                if "Could not set lock" not in text:
                    raise _translated(error) or self._unusable(text) from error
                pause = random.uniform(0.2, 1) * _FOREIGN_PAUSE  # noqa: S311  jitter, not a secret
                if time.monotonic() + pause > deadline:
                    raise self._locked(time.monotonic() - began, _foreign_holder(text)) from error
                time.sleep(pause)
            except BaseException:
                # An interrupt may have left the file attached.
                self._standing.drop()
                raise
            else:
                return connection

    def _limit_memory(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Set the limit, but have room for what a killed commit left in the write-ahead log: all of it at once."""
        limit = self.memory_limit
        with suppress(OSError):
            if Path(f"{self.path}.wal").stat().st_size > _MUCH_LOG:
                limit = None
        connection.execute("RESET memory_limit" if limit is None else f"SET memory_limit = {literal(limit)}")

    def _open_in_this_process(self) -> WarehouseLockedError:
        return WarehouseLockedError(
            f"this process itself has {self.path} open, outside of kafka_assets. Two ways into one file would"
            " undo its locks, so nothing was done. Close that connection, and read the warehouse with"
            " kafka_assets.connect(), which holds the file only while a query runs."
        )

    def _damage(self, error: BaseException) -> WarehouseInvalidError | None:
        """Return the error for a file whose damage shows only where it is read."""
        text = str(error)
        # A query may read other files too, of which the engine says the like.
        signs = ("Corrupt database file", f'Could not read enough bytes from file "{self.path}"')
        if not isinstance(error, duckdb.Error) or not any(sign in text for sign in signs):
            return None
        return WarehouseInvalidError(
            f"the warehouse {self.path} is damaged: {text.rstrip('.')}. Nothing was written. Bring the file back"
            " from a copy; what was loaded since is read again from Kafka."
        )

    def _unusable(self, text: str) -> WarehouseInvalidError:
        choice = "Name another file in `warehouse.uri`, or move this one away."
        if "replaying WAL" in text:
            choice = (
                f"If the file is a copy that was brought back, move {self.path}.wal away: it belongs to the one"
                " that was replaced."
            )
        return WarehouseInvalidError(
            f"the warehouse {self.path} cannot be used: {text.rstrip('.')}. It was not touched. {choice}"
        )

    def _detach(self) -> None:
        connection = self._standing.connection
        if connection is None:
            return
        try:
            connection.execute("USE memory")
            connection.execute(f"DETACH {CATALOG}")
        except BaseException:
            self._standing.drop()
            raise

    @contextmanager
    def _transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        connection.execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            try:
                connection.execute("ROLLBACK")
            except (duckdb.Error, RuntimeError):
                self._standing.drop()
            raise
        try:
            connection.execute("COMMIT")
        except (duckdb.Error, RuntimeError) as error:
            self._standing.drop()
            raise _unknown(f"the commit to {self.path} failed", error) from (_translated(error) or error)
        except BaseException:
            self._standing.drop()
            raise

    def _locked(self, seconds: float, holder: str) -> WarehouseLockedError:
        return WarehouseLockedError(
            f"the warehouse file {self.path} was not free within {seconds:.3g} s: held by {holder}. Nothing"
            " was changed. Try again when it is free; `warehouse.lock_timeout` says how long to wait."
        )


def prepare_for_records(connection: duckdb.DuckDBPyConnection, bytes_per_record: float) -> None:
    """Make DuckDB fit for large records, until the file is let go; any smaller ones change nothing.

    At a checkpoint it merges row groups by how many rows they have: large records would make a row group of
    gigabytes, written again by one commit after the other. So row groups stay apart, and `merging` merges them by their
    bytes. It has the values of 2,048 neighbouring rows of a row group in memory at once: where records are huge, it may
    take the memory that it takes by default, as a batch may be larger than it was planned to be.

    Args:
        connection: Given by `Warehouse.reading()` or `Warehouse.writing()`.
        bytes_per_record: On the mean.
    """
    if bytes_per_record >= LARGE_RECORD_BYTES:
        connection.execute("SET GLOBAL max_vacuum_tasks = 0")
    if bytes_per_record >= HUGE_RECORD_BYTES:
        connection.execute("RESET memory_limit")


def are_row_groups_apart(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tell whether DuckDB is kept from merging row groups."""
    ((tasks,),) = connection.execute("SELECT current_setting('max_vacuum_tasks')").fetchall()
    return int(tasks) == 0


def _row_group_rows(bytes_per_record: float) -> int:
    """Return of how many records a row group is to be.

    A commit that does not fill one goes through DuckDB's log and is written twice.
    """
    if bytes_per_record < LARGE_RECORD_BYTES:
        return ROW_GROUP_ROWS
    return max(int(_ROW_GROUP_BYTES / bytes_per_record) // _VECTOR_ROWS, 1) * _VECTOR_ROWS


def literal(text: str) -> str:
    """Return text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _translated(error: BaseException) -> KafkaAssetsError | None:
    if isinstance(error, duckdb.Error | RuntimeError) and any(
        os.strerror(number) in str(error) for number in _NO_SPACE
    ):
        return DiskFullError(
            f"no space is left on the disk of the warehouse or of its staging directory ({error}). What was"
            " committed before is safe. Make room; the batch is then loaded by its next attempt."
        )
    return None


def _unknown(what: str, error: duckdb.Error | RuntimeError) -> CommitUnknownError:
    told = f"{what}: {error}. The ledger in it says whether the transaction is there."
    if _translated(error) is None:
        return CommitUnknownError(told)
    return _CommitUnknownDiskFullError(f"{told} Make room, and try again.")


def _not_made(error: OSError, message: str) -> KafkaAssetsError:
    if error.errno in _NO_SPACE:
        return DiskFullError(f"{message} Make room, and try again.")
    return WarehouseInvalidError(message)


def _is_open_here(path: Path) -> bool:
    """Whether this process has a file open; where the system does not tell, no.

    DuckDB takes a second way into a file that is only read, and closing one of the two drops the lock of both.
    """
    for descriptor in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            if descriptor.readlink() == path:
                return True
    return False


def _poll(descriptor: int, mode: int, deadline: float) -> bool:
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(random.uniform(0.5, 1) * pause)  # noqa: S311  jitter, not a secret
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True


def _sign(descriptor: int) -> None:
    """Leave word of who holds the lock. Of several readers the last one is named."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path(sys.executable)
    # Arguments stay out: they may hold what is nobody's business.
    command = program.parent.name if program.name == "__main__.py" else program.name
    word = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(word).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        word = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {word['pid']} ({word['command']}) on {word['host']} since {word['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that left no word of itself"


def _foreign_holder(message: str) -> str:
    found = re.search(r"lock is held in (.+?) \(PID (\d+)\)", message)
    name = f"process {found[2]} ({found[1]})" if found else f"a process DuckDB does not name ({message})"
    return f"{name}, which opened it without the locks that kafka_assets.connect() takes"


def _refuse_network_file_system(path: Path) -> None:
    if os.environ.get(ALLOW_NETWORK_FS) == "1":
        return
    kind = _file_system(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise WarehouseInvalidError(
            f"the warehouse {path} lies on a network file system ({kind}), where file locks may not hold"
            " between hosts and two writers would damage it. Put it on a local disk, or, if only this host uses"
            f" it, set {ALLOW_NETWORK_FS}=1."
        )


def _file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Return the type of the file system that holds a path; None where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        _, mounted, found, *_ = line.split(" ")
        mounted = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mounted)
        if path.is_relative_to(mounted) and len(mounted) >= best:
            best, kind = len(mounted), found
    return kind


def _spill_directory(staging: Path) -> Path:
    """Return a directory of this process alone: DuckDB names its spill files alike in every process.

    Directories of dead processes of this host are removed.
    """
    prefix = f"duckdb-{socket.gethostname()}-"
    for left in staging.glob(f"{glob.escape(prefix)}*"):
        pid = left.name.removeprefix(prefix)
        if pid.isdecimal() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return staging / f"{prefix}{os.getpid()}"

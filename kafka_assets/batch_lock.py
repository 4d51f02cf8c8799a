"""The lock of a batch: held by whoever executes it, freed by the end of that process, kill -9 included."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_NAME = "lock"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COMMAND_LENGTH = 200
# A look at whether it is held takes the lock for a moment, and must not make an executor think it is taken.
_TRIES = 5
_TRY_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: Its host's name.
        pid: Its process id there.
        boot_id: Of the host's start it belongs to.
        command: What it runs, shortened.
        since: When it took the lock, seconds since the epoch.
    """

    host: str
    pid: int
    boot_id: str
    command: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command})"


class BatchLock:
    """An exclusive lock on `<staging>/<stream>/<batch>/lock`.

    Two of these exclude each other in one process too. A child made by fork does not have it.
    """

    def __init__(self, staging: Path, stream: str, batch: str) -> None:
        self._path = batch_directory(staging, stream, batch) / LOCK_NAME
        self._descriptor: int | None = None
        _all_locks.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def try_acquire(self) -> bool:
        """Take the lock, without waiting; True if this object has it now."""
        if self._descriptor is not None:
            return True
        for tried in range(_TRIES):
            if tried:
                time.sleep(_TRY_SECONDS)
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                # Swept between the two calls.
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    self._descriptor, descriptor = descriptor, -1
                    self._sign()
                    return True
            except (BlockingIOError, FileNotFoundError):
                # Taken, or swept between the opening and the locking.
                pass
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return False

    def release(self) -> None:
        """Let go of the lock, if this object has it."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def discard(self) -> None:
        """Let go of the lock, if this object has it, and remove its file, and its directory if empty."""
        if self._descriptor is not None:
            # Before the release: whoever opened it meanwhile finds, once it has the lock, that it is gone.
            self._path.unlink(missing_ok=True)
            self.release()
            with suppress(OSError):
                self._path.parent.rmdir()

    def _sign(self) -> None:
        assert self._descriptor is not None  # noqa: S101  set by the caller
        me = Holder(
            socket.gethostname(), os.getpid(), boot_id(), " ".join(sys.argv)[:_COMMAND_LENGTH], time.time()
        )
        # On a full disk the lock holds all the same, by nobody that can be named.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(me)).encode(), 0)

    def _forget(self) -> None:
        # In a forked child: closing drops no lock as long as the parent has the file open.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_all_locks: weakref.WeakSet[BatchLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_all_locks):
        lock._forget()  # noqa: SLF001  of this module


os.register_at_fork(after_in_child=_forget_all)


def batch_directory(staging: Path, stream: str, batch: str) -> Path:
    """Return the directory of a batch's staged files and of its lock."""
    return staging / stream / batch


def boot_id() -> str:
    """Return what tells one start of this host from another; `unknown` where the system does not say."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"


def is_held(staging: Path, stream: str, batch: str) -> bool:
    """Whether some process of this host has the batch's lock; changes nothing."""
    with _locked_by_another(batch_directory(staging, stream, batch) / LOCK_NAME) as (held, _):
        return held


def holder(staging: Path, stream: str, batch: str) -> Holder | None:
    """Return who has the batch's lock; None if nobody has, or its signature cannot be read."""
    with _locked_by_another(batch_directory(staging, stream, batch) / LOCK_NAME) as (held, text):
        if held:
            with suppress(ValueError, TypeError):
                return Holder(**json.loads(text))
    return None


@contextmanager
def _locked_by_another(path: Path) -> Iterator[tuple[bool, bytes]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False, b""
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield True, os.pread(descriptor, 4096, 0)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        yield False, b""
    finally:
        os.close(descriptor)

"""Who executes a batch just now: a lock that dies with its process, and where that process lives."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets.batch_lock import BatchLock
from kafka_assets.orchestration.naming import HOST_TAG

if TYPE_CHECKING:
    import dagster as dg

    from kafka_assets.warehouse import Warehouse

_held: dict[tuple[str, str], BatchLock] = {}


@cache
def this_host() -> tuple[str, str]:
    """Return the host's name and the id of its current boot, empty where the system tells none."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname(), boot.read_text().strip() if boot.exists() else ""


def host_tag(run_id: str) -> dict[str, str]:
    """Return the tag that says where a run executes."""
    return {HOST_TAG: "/".join((*this_host(), run_id))}


def host_of(run: dg.DagsterRun) -> tuple[str, str]:
    """Return host and boot id of where a run executes; empty as long as no process has taken it up.

    A run that executes another one again starts with the tags of that one, so the tag names its run.
    """
    host, boot, run_id = run.tags.get(HOST_TAG, "//").rsplit("/", 2)
    return (host, boot) if run_id == run.run_id else ("", "")


def hold(warehouse: Warehouse, stream: str, batch: str) -> bool:
    """Take the batch's lock for this process, until `release`, `finish` or the process's end.

    Returns False where another process has it: the batch may still be executed here, since only one commit of
    the two can win, but nobody should count on this process being seen as alive.
    """
    lock = _held.get((stream, batch)) or BatchLock(warehouse.staging, stream, batch)
    # Also of one that was held: a forked child has lost it.
    if not lock.try_acquire():
        return False
    _held[stream, batch] = lock
    return True


def release(stream: str, batch: str) -> None:
    """Let go of the batch's lock, if this process has it."""
    lock = _held.pop((stream, batch), None)
    if lock is not None:
        lock.release()


def finish(stream: str, batch: str) -> None:
    """After its commit: let go of the batch's lock and remove its file and its empty staging directory."""
    lock = _held.pop((stream, batch), None)
    if lock is not None:
        lock.discard()

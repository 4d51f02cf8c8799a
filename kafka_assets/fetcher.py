"""`python -m kafka_assets.fetcher STREAMS_FILE`: the process that fetches batches ahead of their commits.

To fetch is to hold the interpreter's lock nearly all the time, and so is to record a run. In one process each
made the other four times as slow; two interpreters do not meet. A line of JSON comes in for each fetch and one
goes out; the process ends with the pipe it reads from.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from kafka_assets import memory
from kafka_assets.batches import KnownBatch, stage_slice
from kafka_assets.config import load_config
from kafka_assets.digest import RangeDigests
from kafka_assets.errors import KafkaAssetsError, error_from_text
from kafka_assets.fetch import FetchCancelledError
from kafka_assets.offsets import PlannedRange
from kafka_assets.staged import StagedSlice
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kafka_assets.ledger import BatchRow


WORTH_A_PROCESS = 200_000
"""Offsets to fetch from which on a process that fetches ahead is worth its start."""

_ENVIRONMENT = {
    # What one message set gives back the next one takes; the kernel would have to clear it in between. For glibc's
    # malloc; others do not know these.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2),
    "MALLOC_ARENA_MAX": "2",
    # Its threads wait for work by turning round and round, and there is no matrix here.
    "OPENBLAS_NUM_THREADS": "1",
}


class Fetcher:
    """The process, as those that have it fetch see it; it is started when first asked to, and again once it has ended.

    Args:
        streams_file: Of the streams whose batches are fetched.
    """

    def __init__(self, streams_file: Path) -> None:
        self._streams_file = streams_file
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._fetching = False
        self._closed = False

    def start_for(self, offsets: int) -> bool:
        """Have the process started, if so many offsets are worth it; return whether they are."""
        if offsets < WORTH_A_PROCESS:
            return False
        with self._lock:
            self._start()
        return True

    def fetch(self, batch: BatchRow, *, name: str) -> list[StagedSlice]:
        """Fetch a batch into one staged file; waits for it. One fetch at a time.

        Raises:
            KafkaAssetsError: As the fetch did.
            FetchCancelledError: The process is gone.
        """
        task = {
            "stream": batch.stream,
            "batch": batch.batch,
            "generation": batch.generation,
            "name": name,
            "ranges": [planned.to_row() for planned in batch.ranges],
        }
        with self._lock:
            process = self._start()
            self._fetching = True
        try:
            answer = _ask(process, json.dumps(task)) if process else ""
        finally:
            self._fetching = False
        if not answer:
            raise FetchCancelledError(f"the process that fetched batch {batch.batch} ahead is gone")
        found = json.loads(answer)
        if "error" in found:
            raise error_from_text(found["error"])
        return [StagedSlice.from_dict(found["staged"])]

    def cancel(self) -> None:
        """End the process if it is fetching: the fetch raises `FetchCancelledError`."""
        with self._lock:
            if self._fetching:
                self._end()

    def close(self) -> None:
        """End the process, whatever it is doing, for good."""
        with self._lock:
            self._closed = True
            self._end()

    def _start(self) -> subprocess.Popen[str] | None:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None and not self._closed:
            self._process = subprocess.Popen(  # noqa: S603  this very interpreter
                [sys.executable, "-m", "kafka_assets.fetcher", str(self._streams_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **_ENVIRONMENT},
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    # What was still to be written has no reader.
                    continue


def _ask(process: subprocess.Popen[str], line: str) -> str:
    if process.stdin is None or process.stdout is None:
        return ""
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):
        # Killed, or closed by another thread.
        return ""


def main(arguments: Sequence[str]) -> None:
    """Serve fetches until the input ends, which also ends a fetch that is under way."""
    # Ctrl-C is the starter's to answer; it reaches the whole group of processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        # What a library prints is no answer.
        os.dup2(2, 1)
        config = load_config(arguments[0])
        memory.keeps = True
        warehouse = Warehouse.of(config.warehouse)
        # Opens what digests are made with, before the first fetch waits for it.
        RangeDigests((), ()).close()
        gone = threading.Event()
        tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sys.stdin, tasks, gone), daemon=True).start()
        while line := tasks.get():
            task: dict[str, Any] = json.loads(line)
            try:
                staged = stage_slice(
                    config.stream(task["stream"]),
                    warehouse,
                    KnownBatch(task["stream"], task["batch"], task["generation"]),
                    [PlannedRange.from_row(row) for row in task["ranges"]],
                    name=task["name"],
                    should_stop=gone.is_set,
                )
                answer: dict[str, Any] = {"staged": staged.to_dict()}
            except KafkaAssetsError as error:
                answer = {"error": f"{error.code}: {error.message}"}
            except Exception as error:  # noqa: BLE001  the starter reports it; this process has nobody to tell
                answer = {"error": f"RUN_FAILED: {type(error).__name__}: {error}"}
            out.write(f"{json.dumps(answer)}\n")
            out.flush()


def _listen(source: TextIO, tasks: queue.SimpleQueue[str | None], gone: threading.Event) -> None:
    for line in source:
        tasks.put(line)
    gone.set()
    tasks.put(None)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Kill -9 at random moments, with records coming in all the while; then count what was lost and doubled."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.data import PARTITIONS, values
from benchmarks.environments import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TICK_SECONDS = 0.1
_READY_SECONDS = 60.0
_VALUE_BYTES = 100
_TOLD_EVERY = 10
_TAIL = 4000


class Feed(threading.Thread):
    """Produces so many records a second into a topic until stopped."""

    def __init__(self, bootstrap: str, topic: str, rate: int) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": "20"}
        )
        self._topic = topic
        self._each = max(1, round(rate * _TICK_SECONDS / PARTITIONS))
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Produce evenly over the partitions."""
        number = 0
        while not self._stop_now.wait(_TICK_SECONDS):
            for partition in range(PARTITIONS):
                for at, value in enumerate(values(self._each, _VALUE_BYTES, number)):
                    key = b"%08d" % (number + at)
                    self._producer.produce(self._topic, value, key, partition=partition)
                number += self._each
            self._producer.poll(0)

    def stop(self) -> None:
        """End, with all that was produced in the topic."""
        self._stop_now.set()
        self.join()
        self._producer.flush(60)
        self._producer.close()


@dataclass(frozen=True, slots=True)
class Lives:
    """How a system lives and where it is killed.

    Attributes:
        command: Starts it.
        says_ready: Whether a line of its stdout tells that it works; the moments count from there, else from
            its start.
        moments: From and until when it is killed, in seconds.
    """

    command: Sequence[str | Path]
    says_ready: bool
    moments: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What N kills did.

    Attributes:
        kills: How often it was killed.
        records: Records in the topic.
        lost: Records that are not in the table.
        doubled: Rows beyond one a record.
    """

    kills: int
    records: int
    lost: int
    doubled: int


def endure(lives: Lives, kills: int, folder: Path, env: Mapping[str, str], name: str) -> int:
    """Start and kill a system so often; return how often it was killed.

    Raises:
        RuntimeError: It failed by itself in one of its lives.
    """
    moment = random.Random(f"{name} {kills}")  # noqa: S311 - the same moments in every run
    words = folder / "last-words"
    killed = 0
    while killed < kills:
        with words.open("wb") as told:
            process = subprocess.Popen(
                lives.command, cwd=folder, env=env, stdout=told, stderr=told, stdin=subprocess.DEVNULL
            )
        try:
            if lives.says_ready:
                _await_ready(process, words, name)
            process.wait(timeout=moment.uniform(*lives.moments))
        except subprocess.TimeoutExpired:
            killed += 1
            if killed % _TOLD_EVERY == 0:
                say(f"{name}: {killed} of {kills} kills")
        finally:
            process.kill()
            process.wait()
        if process.returncode > 0:
            raise RuntimeError(
                f"{name} ended with {process.returncode} after {killed} kills:\n{_tail(words.read_bytes())}"
            )
    return killed


def _await_ready(process: subprocess.Popen[bytes], words: Path, name: str) -> None:
    """Wait until a process has said that it works, or has ended.

    Raises:
        TimeoutError: It did neither.
    """
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and b"ready\n" not in words.read_bytes():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} was not ready within {_READY_SECONDS:g} s")
        time.sleep(0.01)


def _tail(told: bytes) -> str:
    return told.decode(errors="replace")[-_TAIL:]


def count(bootstrap: str, topic: str, database: Path, columns: tuple[str, str], kills: int) -> Outcome:
    """Compare a table, `records`, with its topic, whose offsets have no gaps."""
    partition, offset = columns
    with duckdb.connect(str(database), read_only=True) as connection:
        rows, distinct = connection.execute(
            f'SELECT count(*), count(DISTINCT ("{partition}", "{offset}")) FROM records'  # noqa: S608 - our own names
        ).fetchone() or (0, 0)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "count"})
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, each))[1] for each in range(PARTITIONS)]
    consumer.close()
    return Outcome(kills, sum(ends), sum(ends) - distinct, rows - distinct)


def undisturbed(command: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> tuple[float, str]:
    """Run a command to its end; return the seconds it took and what it printed.

    Raises:
        RuntimeError: It ended with another code than 0.
    """
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{_tail(done.stdout + done.stderr)}")
    return seconds, done.stdout.decode()

"""Kill -9, over and over, in the middle of whatever is being done; then count what was lost and doubled."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import yaml

from kafka_assets.dev.topics import create_topic
from kafka_assets_tests.storm import lives, points
from kafka_assets_tests.storm.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import ForkServerProcess

PROJECT = Path(__file__).parents[2]
STREAM = "orders"
PARTITIONS = 3
RATE = 150
LIFE_SECONDS = 2.0
POINT_SECONDS = 10.0
START_SECONDS = 120.0
TICK_SECONDS = 30.0
TAIL = 3000
RUN_WORKER = "spawn_main"
"""In the command of the processes that a code server starts for runs."""
TOKEN = "KAFKA_ASSETS_STORM_TOKEN"  # noqa: S105  marks the processes of a storm

AT_POINTS = [*points.PLAN, *points.FETCH, *points.STAGE, *points.COMMIT, *points.INGEST]
AT_WORKER_POINTS = [*points.WORKER, *points.FETCH, *points.STAGE, *points.COMMIT]
AT_TICK_POINTS = [*points.PLAN, *points.TICK]

_forks = multiprocessing.get_context("forkserver")


class StormError(AssertionError):
    """Something did what it must never do."""


@dataclass(frozen=True)
class Shares:
    """How many kills of each kind: of the command line, of run workers, of the other processes of Dagster."""

    cli: int
    workers: int
    services: int

    @classmethod
    def of(cls, kills: int) -> Shares:
        services = kills // 40
        workers = kills // 5
        return cls(kills - workers - services, workers, services)


@dataclass
class Outcome:
    """What came of it; `at` counts the kills by their place."""

    at: Counter[str] = field(default_factory=Counter)
    records: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return self.at.total()

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.problems)

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills in {self.seconds:,.0f} s, {self.records:,} records: {self.lost} lost,"
            f" {self.doubled} doubled, {self.wrong} with another value or never committed,"
            f" {len(self.problems)} problems in the proof"
        )


class Storm:
    """One project folder, a topic that is fed, and whoever is killed there.

    Args:
        folder: An empty folder.
        bootstrap: A Kafka of which a topic is used.
        seed: Of the moments.
        say: Told how far it is.
    """

    def __init__(self, folder: Path, bootstrap: str, *, seed: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.bootstrap = bootstrap
        self.topic = f"storm_{uuid.uuid4().hex[:8]}"
        self.outcome = Outcome()
        self._choice = random.Random(seed)  # noqa: S311  moments, not secrets
        self._say = say
        self._nonce = 0
        self._token = uuid.uuid4().hex
        self._armed = folder / "armed"
        create_topic(bootstrap, self.topic, PARTITIONS)
        self._write_streams(max_records_per_batch=60, max_batches_in_flight=10)
        shutil.copy(PROJECT / "workspace.yaml", folder)
        instance = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
        instance["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 20}
        # Each that is killed keeps its place for a minute.
        instance["concurrency"] = {"runs": {"max_concurrent_runs": 12}}
        (folder / "dagster.yaml").write_text(json.dumps(instance))
        self._feed = Feed(bootstrap, self.topic, partitions=PARTITIONS, rate=RATE)

    def _write_streams(self, **limits: int) -> None:
        stream = {"topics": [self.topic], "interval": "1s", "max_attempts": 1000, **limits}
        document = {
            "kafka": {"bootstrap.servers": self.bootstrap},
            "warehouse": {"uri": "duckdb:///w.duckdb"},
            "streams": {STREAM: stream},
        }
        (self.folder / "streams.yaml").write_text(json.dumps(document))

    def run(self, shares: Shares) -> Outcome:
        """Kill so often, drain, compare.

        Raises:
            StormError: A process ended by itself with an error.
        """
        began = time.monotonic()
        self._feed.transact()
        self._feed.start()
        try:
            self.kill_commands(shares.cli)
            if shares.workers or shares.services:
                self.kill_dagster(shares.workers, shares.services)
        finally:
            self._feed.stop()
        self.settle()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # The command line.

    def kill_commands(self, kills: int) -> None:
        """Kill `ingest` and `replay`, sometimes two at once, at named points and at random moments."""
        _forks.set_forkserver_preload([lives.__name__])
        names = self._shuffled(AT_POINTS)
        done = 0
        while done < kills:
            name = next(names) if self._choice.random() < 0.7 else None
            many = min(kills - done, 2 if self._choice.random() < 0.25 else 1)
            self._end_lives([self._begin(name) for _ in range(many)], name)
            done += many
            self._tell(done, kills, "commands")

    def _begin(self, name: str | None) -> ForkServerProcess:
        command = ["ingest"]
        everywhere = name is None or name in points.FETCH or name in points.COMMIT
        if everywhere and self._choice.random() < 0.2 and (committed := self._committed()):
            command = ["replay", STREAM, self._choice.choice(committed)]
        files = name in points.STAGE or self._choice.random() < 0.3
        process = _forks.Process(
            target=lives.live, args=(self.folder, command), kwargs={"files": files, "again": True}
        )
        process.start()
        return process

    def _committed(self) -> list[str]:
        """Some committed batches, as Dagster's own folder would not tell: from the ledger."""
        from kafka_assets import connect  # noqa: PLC0415  one file, one way into it

        if not (self.folder / "w.duckdb").exists():
            return []
        with connect(self.folder / "streams.yaml") as reader:
            found = reader.query(
                "SELECT batch FROM kafka_assets.batches WHERE state = 'committed' ORDER BY batch DESC LIMIT 20"
            )
            return [batch for (batch,) in found.fetchall()]

    def _end_lives(self, processes: Sequence[ForkServerProcess], name: str | None) -> None:
        if name is not None:
            self._arm(name)
            deadline = time.monotonic() + POINT_SECONDS
            while time.monotonic() < deadline and all(one.is_alive() for one in processes):
                time.sleep(0.01)
            dead = points.disarm(self._armed)
        else:
            dead = None
        for process in processes:
            # At a random moment, the other one of two included.
            if process.pid != dead:
                process.join(self._choice.uniform(0.0, LIFE_SECONDS))
                process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                raise StormError(f"a command ended with {process.exitcode}:\n{self._words('words')}")
            self.outcome.at[str(name) if process.pid == dead else "command, at a random moment"] += 1

    # Dagster.

    def kill_dagster(self, workers: int, services: int) -> None:
        """Kill run workers, and now and then the daemon, the code server or everything, under `dagster dev`."""
        worker_points, tick_points = self._shuffled(AT_WORKER_POINTS), self._shuffled(AT_TICK_POINTS)
        each = -(-workers // (services + 1))
        try:
            while workers or services:
                self._start_dagster()
                for _ in range(min(each, workers)):
                    self._kill_worker(next(worker_points))
                    workers -= 1
                    self._tell(workers, 0, "run workers left")
                if services:
                    self._kill_service(next(tick_points))
                    services -= 1
                    self._tell(services, 0, "services left")
                self._kill_all()
        finally:
            self._kill_all()

    def _start_dagster(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "hook"), str(PROJECT)]),
            points.ARMED: str(self._armed),
            points.FILES: str(self._choice.randrange(2)),
            TOKEN: self._token,
        }
        for foreign in ("DAGSTER_HOME", "KAFKA_ASSETS_CONFIG"):
            env.pop(foreign, None)
        with (self.folder / "dagster-words").open("ab") as output:
            self._dagster = subprocess.Popen(
                [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(_free_port())],
                cwd=self.folder,
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._await(lambda: self._pids(RUN_WORKER), START_SECONDS, "a run worker")

    def _kill_worker(self, name: str) -> None:
        if self._choice.random() < 0.6:
            self._arm(name)
            deadline = time.monotonic() + POINT_SECONDS
            while time.monotonic() < deadline and self._armed.exists():
                time.sleep(0.02)
            if points.disarm(self._armed):
                self.outcome.at[f"run worker, {name}"] += 1
                return
        while True:
            pids = self._await(lambda: self._pids(RUN_WORKER), START_SECONDS, "a run worker")
            time.sleep(self._choice.uniform(0, 3))
            with suppress(ProcessLookupError):
                os.kill(self._choice.choice(pids), signal.SIGKILL)
                self.outcome.at["run worker, at a random moment"] += 1
                return

    def _kill_service(self, name: str) -> None:
        which = self._choice.choice(["daemon", "code server at a point", "code server", "everything"])
        if which == "code server at a point":
            self._arm(name)
            deadline = time.monotonic() + TICK_SECONDS
            while time.monotonic() < deadline and self._armed.exists():
                time.sleep(0.02)
            if points.disarm(self._armed):
                self.outcome.at[f"code server, {name}"] += 1
                return
            which = "code server"
        time.sleep(self._choice.uniform(0, 5))
        if which == "everything":
            self._kill_all()
        else:
            words = "dagster._daemon" if which == "daemon" else "grpc"
            pids = self._await(lambda: self._pids(words), START_SECONDS, which)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.outcome.at[f"{which}, at a random moment"] += 1

    def _pids(self, words: str = "") -> list[int]:
        """The processes of this storm's Dagster whose command has these words."""
        found = []
        mark = f"{TOKEN}={self._token}".encode()
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (
                    mark in (place / "environ").read_bytes()
                    and words.encode() in (place / "cmdline").read_bytes()
                ):
                    found.append(int(place.name))
        return found

    def _kill_all(self) -> None:
        """Kill what is left of Dagster, as a power cut would."""
        while pids := self._pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._dagster.wait(0.1)
        points.disarm(self._armed)

    # The end.

    def settle(self) -> None:
        """Drain what is left, prove it, and compare the table with what was produced."""
        self._write_streams(max_records_per_batch=1_000_000)
        self._command("ingest")
        proof = self._command("verify")["streams"][STREAM]
        self.outcome.problems += proof["problems"]
        expected = self._feed.committed
        with duckdb.connect(str(self.folder / "w.duckdb"), read_only=True) as con:
            rows = con.execute("SELECT _kafka_partition, _kafka_offset, _kafka_value FROM orders").fetchall()
        found = {(partition, offset): value for partition, offset, value in rows}
        self.outcome.records = len(expected)
        self.outcome.lost = len(expected.keys() - found.keys())
        self.outcome.doubled = len(rows) - len(found)
        self.outcome.wrong = sum(expected.get(place) != value for place, value in found.items())

    def _command(self, *words: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).with_name("kafka-assets")), *words, "--json"]
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DAGSTER_HOME", "KAFKA_ASSETS_CONFIG")
        }
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, check=False)
        if done.returncode not in (0, 1):
            raise StormError(
                f"{words} ended with {done.returncode}:\n{done.stdout[-TAIL:]!r}\n{done.stderr[-TAIL:]!r}"
            )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    # Small things.

    def _shuffled(self, names: Sequence[str]) -> Iterator[str]:
        while True:
            yield from self._choice.sample(names, len(names))

    def _arm(self, name: str) -> None:
        self._nonce += 1
        points.arm(self._armed, name, self._choice.choice([1, 1, 1, 2, 3]), self._nonce)

    def _await(self, look: Callable[[], list[int]], seconds: float, what: str) -> list[int]:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise StormError(f"no {what} within {seconds:g} s:\n{self._words('dagster-words')}")
            time.sleep(0.05)
        return found

    def _words(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")[-TAIL:]

    def _tell(self, done: int, kills: int, what: str) -> None:
        if done % 25 == 0:
            self._say(
                f"{done:,}{f' of {kills:,}' if kills else ''} {what}; {self.outcome.kills:,} kills so far"
            )


def _free_port() -> int:
    import socket  # noqa: PLC0415  for this alone

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Kill -9, over and over, in the middle of whatever is being done; then count what was lost and doubled."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import yaml

from kafka_assets.dev.topics import create_topic
from kafka_assets_tests.storm import points
from kafka_assets_tests.storm.dagster_dev import CODE_SERVER, DAEMON, PROJECT, RUN_WORKER, DagsterDev
from kafka_assets_tests.storm.feed import Feed
from kafka_assets_tests.storm.outcome import TAIL, Outcome, StormError, forks, words_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import ForkServerProcess

STREAM = "orders"
PARTITIONS = 3
RATE = 150
LIFE_SECONDS = 2.0
POINT_SECONDS = 60.0
"""How long a point is waited for. On a quiet machine all are met within a few."""
MOST_CALLS = 3

AT_POINTS = [*points.PLAN, *points.FETCH, *points.STAGE, *points.COMMIT, *points.INGEST]
AT_WORKER_POINTS = [*points.WORKER, *points.FETCH, *points.STAGE, *points.COMMIT]
AT_TICK_POINTS = [*points.PLAN, *points.TICK]
AT_A_POINT = "code server, at a point"
SERVICES = [AT_A_POINT, "daemon", AT_A_POINT, "code server", AT_A_POINT, "everything", "fork server"]
PLACES = {
    *(f"command, {name}" for name in AT_POINTS),
    "command, at a random moment",
    *(f"run worker, {name}" for name in AT_WORKER_POINTS),
    "run worker, at a random moment",
    *(f"code server, {name}" for name in AT_TICK_POINTS),
    *(f"{name}, at a random moment" for name in SERVICES if name != AT_A_POINT),
}


@dataclass(frozen=True)
class Shares:
    """How many kills of each kind: of the command line, of run workers, of the other processes of Dagster."""

    cli: int
    workers: int
    services: int

    def part(self, number: int, of: int) -> Shares:
        """Return what one of several has to do that share these; those of Dagster, which compute most, every other."""

        def share(count: int, number: int, of: int) -> int:
            return count // of + (number < count % of)

        cli = share(self.cli, number, of)
        if of > 1 and number % 2 == 0:
            return Shares(cli, 0, 0)
        each = (number // 2, max(1, of // 2))
        return Shares(cli, share(self.workers, *each), share(self.services, *each))


class Deck:
    """Names in a random order, over and over; each taken by one of several that share it.

    Args:
        names: What is dealt.
        seed: The same for all that share it.
        number: Of the one who takes.
        of: How many share it.
    """

    def __init__(self, names: Sequence[str], *, seed: int, number: int, of: int) -> None:
        self._dealt = itertools.islice(_shuffled(names, seed), number, None, of)
        self._missed: list[str] = []
        self._again: str | None = None

    def take(self) -> str:
        self._again = self._missed.pop() if self._missed else None
        return self._again or next(self._dealt)

    def missed(self, name: str) -> None:
        """It did not come to that: it is dealt once more."""
        if name != self._again:
            self._missed.append(name)


def _shuffled(names: Sequence[str], seed: int) -> Iterator[str]:
    choice = random.Random(seed)  # noqa: S311  an order, not a secret
    while True:
        yield from choice.sample(names, len(names))


class Storm:
    """One project folder, a topic that is fed, and whoever is killed there.

    Args:
        folder: An empty folder.
        bootstrap: A Kafka of which a topic is used.
        seed: Of the moments, and of what is shared with others.
        say: Told how far it is.
        number: Of this one among those that go on side by side.
        of: How many they are.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        *,
        seed: int,
        say: Callable[[str], None],
        number: int = 0,
        of: int = 1,
    ) -> None:
        self.folder = folder
        self.bootstrap = bootstrap
        self.topic = f"storm_{uuid.uuid4().hex[:8]}"
        self.outcome = Outcome(places=set(PLACES))
        self._choice = random.Random(f"{seed}/{number}")  # noqa: S311  moments, not secrets
        self._number = number
        self._say = say
        self._nonce = 0
        self._armed = folder / "armed"
        self._points, self._worker_points, self._tick_points, self._services = (
            Deck(names, seed=seed, number=at, of=among)
            for names, at, among in (
                (AT_POINTS, number, of),
                *(
                    (names, number // 2, max(1, of // 2))
                    for names in (AT_WORKER_POINTS, AT_TICK_POINTS, SERVICES)
                ),
            )
        )
        create_topic(bootstrap, self.topic, PARTITIONS)
        shutil.copy(PROJECT / "workspace.yaml", folder)
        instance = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
        instance["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 60}
        # Each that is killed keeps its place for half a minute.
        instance["concurrency"] = {"runs": {"max_concurrent_runs": 8}}
        (folder / "dagster.yaml").write_text(json.dumps(instance))
        self._feed = Feed(bootstrap, self.topic, partitions=PARTITIONS, rate=RATE)
        self._dagster = DagsterDev(folder, {points.ARMED: str(self._armed), points.FILES: points.SOME})

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
        self._make_storage()
        self._feed.transact()
        self._feed.start()
        # Dagster takes up what commands left, or the other way about.
        kinds = (self.kill_commands, self.kill_dagster)
        try:
            for kill in kinds if self._number % 4 < 2 else reversed(kinds):
                kill(shares)
        finally:
            self._feed.stop()
        self.settle()
        return self.outcome

    def _make_storage(self) -> None:
        """Undisturbed: Dagster itself, killed between its SQLite file and the tables in it, never makes them again."""
        from kafka_assets_tests.storm import said  # noqa: PLC0415  imports Dagster

        process = forks().Process(target=said.begin, args=(self.folder,))
        process.start()
        process.join()
        if process.exitcode:
            raise StormError(f"Dagster made no storage:\n{words_in(self.folder)}")

    # The command line.

    def kill_commands(self, shares: Shares) -> None:
        """Kill `ingest` and `replay`, sometimes two at once, at named points and at random moments."""
        self._write_streams(max_records_per_batch=60, max_batches_in_flight=10)
        left = shares.cli
        while left:
            name = self._points.take() if self._choice.random() < 0.7 else None
            many = min(left, 2 if self._choice.random() < 0.25 else 1)
            self._end_lives([self._begin(name) for _ in range(many)], name)
            left -= many
            self._tell(left, "commands")

    def _begin(self, name: str | None) -> ForkServerProcess:
        from kafka_assets_tests.storm import lives  # noqa: PLC0415  imports Dagster

        command = ["ingest"]
        everywhere = name is None or name in points.FETCH or name in points.COMMIT
        if everywhere and self._choice.random() < 0.2 and (committed := self._committed()):
            command = ["replay", STREAM, self._choice.choice(committed)]
        files = name in points.STAGE or self._choice.random() < 0.3
        process = forks().Process(
            target=lives.live, args=(self.folder, command), kwargs={"files": files, "again": True}
        )
        process.start()
        return process

    def _committed(self) -> list[str]:
        """Some committed batches, as Dagster's own folder would not tell: from the ledger."""
        from kafka_assets import connect  # noqa: PLC0415  one file, one way into it

        # The first command may have been killed before there was a file, or a ledger in it.
        if not (self.folder / "w.duckdb").exists():
            return []
        with suppress(duckdb.CatalogException), connect(self.folder / "streams.yaml") as reader:
            found = reader.query(
                "SELECT batch FROM kafka_assets.batches WHERE state = 'committed' ORDER BY batch DESC LIMIT 20"
            )
            return [batch for (batch,) in found.fetchall()]
        return []

    def _end_lives(self, processes: Sequence[ForkServerProcess], name: str | None) -> None:
        dead = None
        if name is not None:
            # In a command that goes on for ever each is met again.
            self._arm(name, self._choice.randint(1, MOST_CALLS))
            self._await(lambda: not all(one.is_alive() for one in processes))
            dead = points.disarm(self._armed)
            if dead is None:
                self._points.missed(name)
        for process in processes:
            # At a random moment, the other one of two included.
            if process.pid != dead:
                process.join(self._choice.uniform(0.0, LIFE_SECONDS))
                process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                raise StormError(f"a command ended with {process.exitcode}:\n{words_in(self.folder)}")
            self.outcome.at[f"command, {name if process.pid == dead else 'at a random moment'}"] += 1

    # Dagster.

    def kill_dagster(self, shares: Shares) -> None:
        """Kill run workers, and now and then the daemon, the code server or everything, under `dagster dev`."""
        workers, services = shares.workers, shares.services
        each = -(-workers // (services + 1))
        self._write_streams(max_records_per_batch=200, max_batches_in_flight=60)
        try:
            while workers or services:
                self._dagster.start()
                for _ in range(min(each, workers)):
                    self._kill_worker(self._worker_points.take() if self._choice.random() < 0.6 else None)
                    workers -= 1
                    self._tell(workers, "run workers")
                if services:
                    self._kill_service(self._services.take())
                    services -= 1
                    self._tell(services, "services")
                self._kill_all()
        finally:
            self._kill_all()

    def _kill_worker(self, name: str | None) -> None:
        if name is not None:
            # Of most of them there is one call in a run.
            calls = self._choice.randint(1, MOST_CALLS) if name in points.OFTEN else 1
            if self._dead_at(name, calls, RUN_WORKER):
                self.outcome.at[f"run worker, {name}"] += 1
                return
            self._worker_points.missed(name)
        while True:
            self._dagster.await_workers()
            # No condition: any moment of its life is to be met.
            time.sleep(self._choice.uniform(0, 3))
            workers = self._dagster.workers()
            if workers and self._dagster.kill(self._choice.choice(workers)):
                self.outcome.at["run worker, at a random moment"] += 1
                return

    def _kill_service(self, which: str) -> None:
        if which == AT_A_POINT:
            name = self._tick_points.take()
            if self._dead_at(name, 1, CODE_SERVER):
                self.outcome.at[f"code server, {name}"] += 1
                return
            self._tick_points.missed(name)
            which = "code server"
        # No condition: any moment of its life is to be met.
        time.sleep(self._choice.uniform(0, 5))
        if which == "everything":
            self._kill_all()
        else:
            words = {"daemon": DAEMON, "code server": CODE_SERVER, "fork server": RUN_WORKER}[which]
            for pid in set(self._dagster.await_any(words)) - set(self._dagster.workers()):
                self._dagster.kill(pid)
        self.outcome.at[f"{which}, at a random moment"] += 1

    def _dead_at(self, name: str, calls: int, who: str) -> bool:
        self._arm(name, calls, who)
        self._await(lambda: not self._armed.exists())
        return points.disarm(self._armed) is not None

    def _kill_all(self) -> None:
        self._dagster.kill_all()
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

    def _arm(self, name: str, calls: int, who: str = "") -> None:
        self._nonce += 1
        points.arm(self._armed, name, calls, self._nonce, who)

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + POINT_SECONDS
        while time.monotonic() < deadline and not condition():
            # Between two looks: nothing tells of a process of another process that dies.
            time.sleep(0.02)

    def _tell(self, left: int, what: str) -> None:
        self._feed.check()
        if left % 25 == 0:
            self._say(f"{self.outcome.kills:,} kills so far, {left:,} of {what} left")

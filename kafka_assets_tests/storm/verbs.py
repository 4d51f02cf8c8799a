"""The operator's verbs killed before each step of theirs: said again, they must lead where they lead undisturbed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from kafka_assets.dev.topics import create_topic
from kafka_assets_tests.storm import said
from kafka_assets_tests.storm.outcome import Outcome, StormError, forks, words_in
from kafka_assets_tests.support.kafka import delete_records, produce, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

STREAM, RENAMED = "orders", "bills"
PARTITIONS = 2
NOTHING_TO_RENAME = 2


class Scene:
    """A project folder, and what is done there before a verb is said."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.folder = folder
        self.topic = f"verbs_{uuid.uuid4().hex[:8]}"
        self.bootstrap = bootstrap
        folder.mkdir()
        (folder / "dagster.yaml").write_text(
            # One file for the events of all runs: it is copied for each kill.
            "telemetry: {enabled: false}\n"
            "event_log_storage:\n  module: dagster._core.storage.event_log\n"
            "  class: ConsolidatedSqliteEventLogStorage\n  config: {base_dir: .dagster}\n"
        )
        create_topic(bootstrap, self.topic, PARTITIONS)
        self.setting()

    def setting(self, stream: str = STREAM, **options: object) -> None:
        options = {"topics": [self.topic], "interval": "1ms", "max_records_per_batch": 14, **options}
        document = {
            "kafka": {"bootstrap.servers": self.bootstrap},
            "warehouse": {"uri": "duckdb:///w.duckdb"},
            "streams": {stream: options},
        }
        (self.folder / "streams.yaml").write_text(json.dumps(document))

    def produce(self, count: int, first: int = 0) -> None:
        for partition in range(PARTITIONS):
            produce(self.bootstrap, self.topic, values(count, first=first), partition)

    def say(self, *command: str) -> None:
        code = _in_child(said.say, self.folder, command, None)
        if code:
            raise StormError(f"{command} ended with {code}:\n{words_in(self.folder)}")

    def plan(self) -> None:
        if _in_child(said.plan, self.folder):
            raise StormError(f"nothing was planned:\n{words_in(self.folder)}")

    def keys(self) -> list[str]:
        with duckdb.connect(str(self.folder / "w.duckdb"), read_only=True) as connection:
            return [key for (key,) in connection.execute("SELECT batch FROM kafka_assets.batches").fetchall()]


def _replay(scene: Scene) -> tuple[str, ...]:
    scene.produce(10)
    scene.say("ingest", STREAM)
    return ("replay", STREAM, *sorted(scene.keys()))


def _backfill(scene: Scene) -> tuple[str, ...]:
    scene.setting(starting_offsets="latest")
    scene.produce(10)
    scene.say("ingest", STREAM)
    scene.produce(3, first=10)
    scene.say("ingest", STREAM)
    return ("backfill", STREAM, "--from", "earliest")


def _expire(scene: Scene) -> tuple[str, ...]:
    scene.produce(10)
    scene.say("ingest", STREAM)
    return ("expire", STREAM, "--where", "_kafka_offset % 3 = 1", "--yes")


def _reset(scene: Scene) -> tuple[str, ...]:
    scene.produce(5)
    scene.say("ingest", STREAM)
    scene.produce(5, first=5)
    scene.plan()
    scene.produce(5, first=10)
    delete_records(scene.bootstrap, scene.topic, {0: 8, 1: 12})
    return ("reset", STREAM, "--to", "latest", "--yes")


def _reset_keeping(scene: Scene) -> tuple[str, ...]:
    return (*_reset(scene), "--keep-hole")


def _rename(scene: Scene) -> tuple[str, ...]:
    scene.produce(10)
    scene.say("ingest", STREAM)
    scene.say("expire", STREAM, "--where", "_kafka_offset = 1", "--yes")
    scene.produce(2, first=10)
    scene.plan()
    scene.setting(RENAMED)
    return ("rename", STREAM, RENAMED)


@dataclass(frozen=True)
class Verb:
    """How the project is brought to where it is said; what else is said after it was said again; of which stream."""

    prepare: Callable[[Scene], tuple[str, ...]]
    then: tuple[tuple[str, ...], ...] = ()
    stream: str = STREAM


_PENDING = ("backfill", STREAM, "--pending")
_ALL_AGAIN = ("replay", STREAM, "--since", "1990-01-01T00:00:00Z")
VERBS = {
    "replay": Verb(_replay),
    "backfill": Verb(_backfill, (_PENDING,)),
    "expire": Verb(_expire, (_ALL_AGAIN,)),
    "reset": Verb(_reset),
    "reset --keep-hole": Verb(_reset_keeping, (_PENDING,)),
    "rename": Verb(_rename, stream=RENAMED),
}


class Verbs:
    """Says each verb in copies of a folder, killed before one step after the other.

    Args:
        folder: An empty folder.
        bootstrap: A Kafka.
        seed: Of the order of the steps.
    """

    def __init__(self, folder: Path, bootstrap: str, *, seed: int) -> None:
        self.outcome = Outcome()
        self._folder = folder
        self._bootstrap = bootstrap
        self._choice = random.Random(seed)  # noqa: S311  an order, not a secret
        self._scenes: dict[str, _Prepared] = {}

    def run(self, kills: int) -> Outcome:
        """Kill so often, each step once before any is met again."""
        for name, verb in VERBS.items():
            self._scenes[name] = _Prepared(self._folder / name.replace(" ", ""), self._bootstrap, verb)
        self.outcome.places = {
            f"{name}, before {step}" for name, one in self._scenes.items() for step in one.steps
        }
        steps = [(name, number) for name, one in self._scenes.items() for number in range(len(one.steps))]
        for number, (name, step) in zip(range(kills), self._dealt(steps), strict=False):
            self._kill(name, step, self._folder / f"kill-{number}")
        return self.outcome

    def _dealt(self, steps: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        while True:
            yield from self._choice.sample(steps, len(steps))

    def _kill(self, name: str, step: int, folder: Path) -> None:
        verb, scene = VERBS[name], self._scenes[name]
        place = f"{name}, before {scene.steps[step]}"
        shutil.copytree(scene.folder, folder)
        code = _in_child(said.say, folder, scene.command, step)
        if code != -signal.SIGKILL:
            raise StormError(f"{place}: it was not reached, {code}:\n{words_in(folder)}")
        self.outcome.at[place] += 1
        codes, found = _end(folder, verb, scene.command)
        rows, wanted = (Counter(map(tuple, seen["rows"])) for seen in (found, scene.wanted))
        self.outcome.lost += (wanted - rows).total()
        self.outcome.doubled += (rows - wanted).total()
        # Only of a rename that was done to its end is it said that there is nothing left to rename.
        if any(codes) and (name, codes) != ("rename", [NOTHING_TO_RENAME]):
            self.outcome.problems.append(f"{place}, step {step}: said again it ended with {codes}")
        differing = [key for key, value in scene.wanted.items() if found[key] != value]
        self.outcome.problems += [
            f"{place}, step {step}: {key} came to {found[key]}, not {scene.wanted[key]}" for key in differing
        ]
        if not differing:
            shutil.rmtree(folder)


class _Prepared:
    """A folder in which a verb may be said, its steps, and what comes of it when nobody dies."""

    def __init__(self, folder: Path, bootstrap: str, verb: Verb) -> None:
        scene = Scene(folder, bootstrap)
        self.folder = folder
        self.command = verb.prepare(scene)
        undisturbed = folder.with_name(f"{folder.name}-undisturbed")
        shutil.copytree(folder, undisturbed)
        code = _in_child(said.say, undisturbed, self.command, None)
        if code:
            raise StormError(f"{self.command} ended with {code}:\n{words_in(undisturbed)}")
        self.steps: list[str] = json.loads((undisturbed / said.STEPS).read_text())
        _, self.wanted = _end(undisturbed, verb, None)


def _end(folder: Path, verb: Verb, again: tuple[str, ...] | None) -> tuple[list[int], dict[str, Any]]:
    """Say it again and what is said after it; return the exit codes, and what is there in the end."""
    commands = [*([again] if again else []), *verb.then]
    if _in_child(said.finish, folder, verb.stream, commands):
        raise StormError(f"{commands} in {folder} came to no end:\n{words_in(folder)}")
    answer = json.loads((folder / said.ANSWER).read_text())
    return answer["codes"], answer["seen"]


def _in_child(target: Callable[..., None], *arguments: object) -> int | None:
    process = forks().Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode

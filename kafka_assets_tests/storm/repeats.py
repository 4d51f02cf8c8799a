"""The fault tests over and over: one that fails once in a while fails here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kafka_assets.dev.broker import LocalKafka

PROJECT = Path(__file__).parents[2]
FAULTS = "kafka_assets_tests/faults"
REPEATS = "KAFKA_ASSETS_REPEATS"
"""Environment variable: how often each fault test is run."""

REPORT = "KAFKA_ASSETS_REPEATS_REPORT"
"""Environment variable: the file that gets a line of JSON for each test that ended: repetition, name, failure."""

BOOTSTRAP = "KAFKA_ASSETS_REPEATS_BOOTSTRAP"
"""Environment variable: the Kafka that all workers share."""

TAIL = 3000


@dataclass(frozen=True)
class Repeated:
    """How often all of them were run, and what failed, each a text."""

    repeats: int
    green: int
    failures: tuple[str, ...]


def repeat(times: int, workers: int) -> Repeated:
    """Run each fault test so often, on so many workers, in a process of its own.

    One process for all repetitions: what starts and imports, brokers above all, would take as long as the tests.
    A repetition is green if each of its tests has run and none has failed.
    """
    with tempfile.TemporaryDirectory(prefix="kafka-assets-repeats-") as folder, LocalKafka() as kafka:
        report = Path(folder) / "report"
        report.touch()
        environment = {
            **os.environ,
            REPEATS: str(times),
            REPORT: str(report),
            BOOTSTRAP: kafka.bootstrap_servers,
        }
        command = [sys.executable, "-m", "pytest", FAULTS, "-n", str(workers), "--dist", "loadgroup", "-q"]
        # With another one in the place of a worker that crashed, `loadgroup` may wait for ever.
        command += ["--max-worker-restart", "0"]
        command += ["-p", "no:cacheprovider", "-o", "tmp_path_retention_policy=failed"]
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
        )
        ended = [json.loads(line) for line in report.read_text().splitlines()]
    names = {name for _, name, _ in ended}
    passed = [
        {name for number, name, failure in ended if number == each and not failure} for each in range(times)
    ]
    failures = [f"repetition {number}, {name}:\n{failure}" for number, name, failure in ended if failure]
    if len(ended) < max(1, len(names)) * times:
        failures.append(
            f"some have not run, and pytest ended with {done.returncode}:\n{done.stdout[-TAIL:]}\n{done.stderr[-TAIL:]}"
        )
    green = sum(bool(names) and each == names for each in passed)
    return Repeated(times, green, tuple(failures))

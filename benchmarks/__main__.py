"""Every system in turn on the same topics, as whole processes; benchmarks/README.md tells what for."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import report
from benchmarks.book import Book, Job
from benchmarks.data import Dataset, add, fill
from benchmarks.environments import say
from benchmarks.folders import scratch
from benchmarks.machine import machine
from benchmarks.systems import OURS, SYSTEMS, System
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.jars import KAFKA_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
WORK = HERE / ".work" / "bench"
RESULTS = HERE / "results.json"
_ROUNDS = 2
_SMALL_RECORDS = 1_000
_SMALL_SYSTEMS = (OURS, "spark-parquet")
_SLICE_SYSTEMS = (OURS, "ingestr")


def main() -> None:
    """Run the benchmarks; write results.json, results.svg and the tables of README.md."""
    options = _options()
    systems = [system for system in SYSTEMS if system.name in options.systems]
    for system in systems:
        system.setup()
    if options.setup:
        return
    began = time.monotonic()
    backlogs = _backlogs(options.scale, systems) if options.job != "small" else []
    few = Dataset("few", _SMALL_RECORDS, 100)
    small = Job("small", few, tuple(system for system in systems if system.name in _SMALL_SYSTEMS))
    if options.job == "backlog":
        small = replace(small, systems=())
    with scratch(WORK), LocalKafka(data_dir=WORK / "kafka") as kafka:
        book = Book(kafka.bootstrap_servers)
        for job in backlogs:
            took = fill(kafka.bootstrap_servers, job.dataset)
            say(f"{job.name}: {job.dataset.records:,} records produced in {took:.1f} s")
        for _ in range(options.rounds):
            for job in backlogs:
                for system in job.systems:
                    with scratch(WORK / "run") as folder:
                        book.run(job, system, folder)
        for system in small.systems:
            _small(book, small, system, kafka.bootstrap_servers, options.rounds)
    results = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began),
        "scale": options.scale,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": {"Apache Kafka": KAFKA_VERSION, **{system.name: system.versions() for system in systems}},
        "jobs": [book.backlog(job) for job in backlogs],
        "small": book.small(small),
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(report.tables(results))
    if options.output == RESULTS:
        report.write(results, HERE)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [system.name for system in SYSTEMS]
    add_option = parser.add_argument
    add_option("--scale", type=float, default=1.0, help="share of the records, e.g. 0.1 (default 1)")
    add_option("--rounds", type=int, default=_ROUNDS, help=f"runs of each; the median counts ({_ROUNDS})")
    add_option("--job", choices=("all", "backlog", "small"), default="all")
    add_option("--systems", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add_option("--setup", action="store_true", help="only set up the peers' environments")
    add_option("--output", type=Path, default=RESULTS, help="another file leaves README.md as it is")
    return parser.parse_args()


def _backlogs(scale: float, systems: Sequence[System]) -> list[Job]:
    full = tuple(system for system in systems if system.name != "ingestr")
    part = tuple(system for system in systems if system.name in _SLICE_SYSTEMS)
    return [
        Job("100 B", Dataset("values_100", round(8_000_000 * scale), 100), full),
        Job("1 KB", Dataset("values_1000", round(800_000 * scale), 1000), full),
        # So slow a peer would take the whole time on all of it.
        Job("slice", Dataset("values_slice", round(200_000 * min(5 * scale, 1)), 100), part),
    ]


def _small(book: Book, job: Job, system: System, bootstrap: str, rounds: int) -> None:
    """A thousand new records in a topic that was read before, each round with new ones."""
    dataset = replace(job.dataset, topic=f"few_{system.name}")
    own = replace(job, dataset=dataset)
    with scratch(WORK / "run") as folder:
        fill(bootstrap, dataset)
        book.run(own, system, folder, counts=False)
        for number in range(1, rounds + 1):
            add(bootstrap, dataset)
            book.run(own, system, folder, before=number * dataset.records)


if __name__ == "__main__":
    main()

"""`python -m benchmarks`: every system in turn on the same topics, as whole processes; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report
from benchmarks.data import PARTITIONS, Dataset, add, fill
from benchmarks.environments import say
from benchmarks.machine import machine
from benchmarks.measure import CommandFailedError
from benchmarks.systems import OURS, SYSTEMS, Run, System, WrongResultError
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.jars import KAFKA_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
WORK = HERE / ".work"
RESULTS = HERE / "results.json"
_SMALL_RECORDS = 1_000
_SMALL_SYSTEMS = (OURS, "spark-parquet")
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A dataset and the systems that run on it.

    Attributes:
        name: In results.
        title: For people.
        dataset: What is read.
        systems: By whom.
    """

    name: str
    title: str
    dataset: Dataset
    systems: tuple[System, ...]


def _jobs(scale: float, systems: Sequence[System]) -> list[Job]:
    full = tuple(system for system in systems if system.name != "ingestr")
    slice_only = tuple(system for system in systems if system.name in (OURS, "ingestr"))
    return [
        Job("100B", "records of 100 bytes", Dataset("small_values", round(8_000_000 * scale), 100), full),
        Job("1KB", "records of 1,000 bytes", Dataset("large_values", round(800_000 * scale), 1000), full),
        Job(
            "slice",
            "records of 100 bytes",
            Dataset("slice_values", round(200_000 * min(scale * 5, 1)), 100),
            slice_only,
        ),
    ]


def main() -> None:
    """Run the benchmarks and write results.json, results.svg and the tables of README.md."""
    options = _options()
    systems = [system for system in SYSTEMS if system.name in options.systems]
    for system in systems:
        system.setup()
    if options.setup:
        return
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    began = time.monotonic()
    measured: dict[tuple[str, str], list[Run]] = {}
    failures: dict[tuple[str, str], str] = {}
    jobs = _jobs(options.scale, systems)
    try:
        with LocalKafka(data_dir=WORK / "kafka") as kafka:
            if options.job in ("all", "backlog"):
                _backlogs(kafka.bootstrap_servers, jobs, options.rounds, measured, failures)
            if options.job in ("all", "small"):
                small = [system for system in systems if system.name in _SMALL_SYSTEMS]
                _small(kafka.bootstrap_servers, small, options.rounds, measured, failures)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    results = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began),
        "scale": options.scale,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": {"Apache Kafka": KAFKA_VERSION, **{system.name: system.versions() for system in systems}},
        "jobs": [
            *(
                {
                    "name": j.name,
                    "title": j.title,
                    "records": j.dataset.records,
                    "systems": _summary(j, measured, failures),
                }
                for j in jobs
                if options.job in ("all", "backlog")
            ),
        ],
        "small": _small_summary(measured, failures) if options.job in ("all", "small") else {},
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(report.tables(results))
    if options.output == RESULTS:
        report.write(results, HERE)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--scale", type=float, default=1.0, help="share of the records, e.g. 0.1 (default 1)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=_ROUNDS,
        help=f"runs of each system; the median counts (default {_ROUNDS})",
    )
    parser.add_argument("--job", choices=("all", "backlog", "small"), default="all")
    parser.add_argument(
        "--systems", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--setup", action="store_true", help="only set up the peers' environments")
    parser.add_argument("--output", type=Path, default=RESULTS, help="another file leaves README.md as it is")
    return parser.parse_args()


def _backlogs(
    bootstrap: str,
    jobs: Sequence[Job],
    rounds: int,
    measured: dict[tuple[str, str], list[Run]],
    failures: dict[tuple[str, str], str],
) -> None:
    for job in jobs:
        took = fill(bootstrap, job.dataset)
        say(f"{job.dataset.records:,} {job.title} produced in {took:.1f} s")
    for number in range(1, rounds + 1):
        for job in jobs:
            for system in job.systems:
                with _Folder() as folder:
                    _measure(
                        system, bootstrap, job.dataset, folder, (job.name, system.name), measured, failures
                    )
                say(f"round {number}: {job.name} {system.name}: {_told(job, system, measured, failures)}")


def _small(
    bootstrap: str,
    systems: Sequence[System],
    rounds: int,
    measured: dict[tuple[str, str], list[Run]],
    failures: dict[tuple[str, str], str],
) -> None:
    """A thousand new records in a topic that was ingested before, each round with new ones."""
    for system in systems:
        dataset = Dataset(f"few_{system.name}", _SMALL_RECORDS, 100)
        key = ("small", system.name)
        with _Folder() as folder:
            fill(bootstrap, dataset)
            _measure(system, bootstrap, dataset, folder, ("first", system.name), {}, failures)
            for number in range(1, rounds + 1):
                add(bootstrap, dataset)
                _measure(
                    system,
                    bootstrap,
                    dataset,
                    folder,
                    key,
                    measured,
                    failures,
                    before=number * dataset.records,
                )
        runs = measured.get(key, [])
        say(f"small: {system.name}: {', '.join(f'{run.cost.seconds:.1f} s' for run in runs) or failures}")


def _measure(
    system: System,
    bootstrap: str,
    dataset: Dataset,
    folder: Path,
    key: tuple[str, str],
    measured: dict[tuple[str, str], list[Run]],
    failures: dict[tuple[str, str], str],
    *,
    before: int = 0,
) -> None:
    """Run a system; a failure becomes part of the result, so that the others still run."""
    try:
        measured.setdefault(key, []).append(system.run(bootstrap, dataset, folder, before=before))
    except (CommandFailedError, WrongResultError) as failed:
        failures[key] = str(failed)
        say(str(failed))


class _Folder:
    """A scratch folder on the project's own disk, removed with all that was written into it."""

    def __enter__(self) -> Path:
        self._path = WORK / "run"
        self._path.mkdir()
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path)


def _told(
    job: Job, system: System, measured: dict[tuple[str, str], list[Run]], failures: dict[tuple[str, str], str]
) -> str:
    key = (job.name, system.name)
    if key in failures:
        return "failed"
    run = measured[key][-1]
    return f"{run.records / run.seconds:,.0f} records/s, whole process {run.cost.seconds:.1f} s"


def _summary(
    job: Job, measured: dict[tuple[str, str], list[Run]], failures: dict[tuple[str, str], str]
) -> dict[str, Any]:
    medians = {
        system.name: statistics.median(run.seconds for run in measured[job.name, system.name])
        for system in job.systems
        if measured.get((job.name, system.name))
    }
    answer: dict[str, Any] = {}
    for system in job.systems:
        key = (job.name, system.name)
        if key in failures:
            answer[system.name] = {"error": failures[key]}
            continue
        seconds = medians[system.name]
        answer[system.name] = {
            "note": system.note,
            "seconds": round(seconds, 3),
            "records_per_second": round(job.dataset.records / seconds),
            "ratio": round(medians[OURS] / seconds, 3) if OURS in medians else None,
            **_costs(measured[key]),
        }
    return answer


def _small_summary(
    measured: dict[tuple[str, str], list[Run]], failures: dict[tuple[str, str], str]
) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name in _SMALL_SYSTEMS:
        failed = failures.get(("small", name)) or failures.get(("first", name))
        if failed:
            answer[name] = {"error": failed}
        elif ("small", name) in measured:
            answer[name] = {"records": _SMALL_RECORDS, **_costs(measured["small", name])}
    return answer


def _costs(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "process_seconds": round(statistics.median(run.cost.seconds for run in runs), 3),
        "cpu_seconds": round(statistics.median(run.cost.cpu_seconds for run in runs), 2),
        "peak_pss": max(run.cost.peak_pss for run in runs),
        "written": round(statistics.median(run.cost.written for run in runs)),
        "runs": [asdict(run) for run in runs],
    }


if __name__ == "__main__":
    main()

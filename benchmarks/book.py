"""What was measured: every run of every system on every job, and their medians."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.environments import say
from benchmarks.measure import CommandFailedError
from benchmarks.systems import OURS, Run, System, WrongResultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.data import Dataset


@dataclass(frozen=True, slots=True)
class Job:
    """A dataset and the systems that read it.

    Attributes:
        name: In results.
        dataset: What is read.
        systems: By whom.
    """

    name: str
    dataset: Dataset
    systems: tuple[System, ...]


class Book:
    """Runs systems and keeps what came out; a failure is a result too, so that the others still run."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._runs: dict[tuple[str, str], list[Run]] = {}
        self._failures: dict[tuple[str, str], str] = {}

    def run(self, job: Job, system: System, folder: Path, *, before: int = 0, counts: bool = True) -> None:
        """Run a system on a job in a folder.

        Args:
            job: What it reads.
            system: The system.
            folder: Where it keeps all it writes.
            before: Rows that are there already.
            counts: Whether the figures are kept; a failure always is.
        """
        key = (job.name, system.name)
        try:
            run = system.run(self._bootstrap, job.dataset, folder, before=before)
        except (CommandFailedError, WrongResultError) as failed:
            self._failures[key] = str(failed)
            say(f"{job.name}: {system.name} failed: {failed}")
            return
        if counts:
            self._runs.setdefault(key, []).append(run)
            rate = run.records / run.seconds
            say(f"{job.name}: {system.name}: {rate:,.0f} records/s, whole process {run.cost.seconds:.1f} s")

    def backlog(self, job: Job) -> dict[str, Any]:
        """A job's medians: speed by each system's own clock, and the ratio of ours to it."""
        seconds = {system.name: self._median(job, system) for system in job.systems}
        ours = seconds.get(OURS)
        return {
            "name": job.name,
            "records": job.dataset.records,
            "value_bytes": job.dataset.value_bytes,
            "systems": {
                system.name: self._failed(job, system)
                or {
                    "note": system.note,
                    "seconds": round(own, 3),
                    "records_per_second": round(job.dataset.records / own),
                    "ratio": round(ours / own, 3) if ours else None,
                    **self._costs(job, system),
                }
                for system in job.systems
                if (own := seconds[system.name]) or self._failed(job, system)
            },
        }

    def small(self, job: Job) -> dict[str, Any]:
        """A small job's medians: whole processes only."""
        return {
            system.name: self._failed(job, system)
            or {"records": job.dataset.records, **self._costs(job, system)}
            for system in job.systems
        }

    def _failed(self, job: Job, system: System) -> dict[str, str] | None:
        failure = self._failures.get((job.name, system.name))
        return {"error": failure} if failure else None

    def _median(self, job: Job, system: System) -> float:
        runs = self._runs.get((job.name, system.name), [])
        return statistics.median(run.seconds for run in runs) if runs else 0.0

    def _costs(self, job: Job, system: System) -> dict[str, Any]:
        runs: Sequence[Run] = self._runs[job.name, system.name]
        return {
            "process_seconds": round(statistics.median(run.cost.seconds for run in runs), 3),
            "cpu_seconds": round(statistics.median(run.cost.cpu_seconds for run in runs), 2),
            "peak_pss": max(run.cost.peak_pss for run in runs),
            "written": round(statistics.median(run.cost.written for run in runs)),
            "runs": [asdict(run) for run in runs],
        }

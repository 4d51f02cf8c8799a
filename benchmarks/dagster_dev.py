"""`dagster dev` on a folder of its own, and what it costs, seen from outside; Linux only, since it reads /proc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from benchmarks.measure import below, pss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).parent.parent
_LOOK_SECONDS = 0.05
_WAIT_SECONDS = 180.0
_TAIL = 3000
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class DagsterDev:
    """A running `dagster dev`.

    Attributes:
        folder: Its working directory.
        instance: What it records in, opened here too.
        process: It.
    """

    folder: Path
    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes, those that have ended among them."""
        return sum(_cpu(process) for process in (self.process.pid, *below(self.process.pid)))

    def run_workers(self) -> list[int]:
        """The processes that execute runs just now."""
        found = below(self.process.pid)
        forked = [child for process in found if b"forkserver" in _words(process) for child in below(process)]
        return forked + [process for process in found if b"spawn_main" in _words(process)]

    def wait(
        self,
        reached: Callable[[], bool],
        what: str,
        seconds: float = _WAIT_SECONDS,
        look: float = _LOOK_SECONDS,
    ) -> None:
        """Wait until something is so, looking once in `look` seconds.

        Raises:
            RuntimeError: It was not within those seconds, or `dagster dev` ended.
        """
        deadline = time.monotonic() + seconds
        while not reached():
            if self.process.poll() is not None or time.monotonic() > deadline:
                told = (self.folder / "output").read_text(errors="replace")[-_TAIL:]
                raise RuntimeError(f"no {what} within {seconds:g} s of `dagster dev`:\n{told}")
            time.sleep(look)

    def await_ticks(self, sensors: int) -> None:
        """Wait until so many sensors have been evaluated to the end."""

        def ticked() -> bool:
            states = self.instance.all_instigator_state()
            return (
                sum(bool(getattr(one.instigator_data, "last_tick_timestamp", 0)) for one in states) >= sensors
            )

        self.wait(ticked, f"tick of {sensors} sensors")


@contextmanager
def dagster_dev(folder: Path, *location: str) -> Iterator[DagsterDev]:
    """Run `dagster dev` in a folder with the project's own dagster.yaml.

    Args:
        folder: Has what the code location reads.
        location: Words that name the code location.
    """
    settings = (
        (PROJECT / "dagster.yaml").read_text().replace("base_dir: .dagster", f"base_dir: {folder}/.dagster")
    )
    (folder / "dagster.yaml").write_text(settings)
    env = {**os.environ, "DAGSTER_HOME": str(folder)}
    env.pop("KAFKA_ASSETS_CONFIG", None)
    # Made here, before the processes of Dagster would all make it at once.
    with dg.DagsterInstance.from_config(str(folder)) as instance, (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", *location],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield DagsterDev(folder, instance, process)
        finally:
            _end(process)
    shutil.rmtree(folder / ".dagster", ignore_errors=True)


def peak_pss(processes: Callable[[], list[int]], until: Callable[[], bool]) -> int:
    """Watch processes and return the highest proportional set size, in bytes, that one of them had."""
    peak = 0
    while not until():
        peak = max([peak, *map(pss, processes())])
        time.sleep(_LOOK_SECONDS)
    return peak


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it as Ctrl-C would; it takes its code server, daemon and runs along."""
    for number, patience in ((signal.SIGINT, 30), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)


def _cpu(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, and the same of the children that were waited for.
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def _words(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""

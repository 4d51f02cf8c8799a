"""`dagster dev` of a storm: all of its processes, known by a mark in their environment, to be killed one by one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets_tests.storm import points
from kafka_assets_tests.storm.outcome import StormError, words_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROJECT = Path(__file__).parents[2]
WORDS = "dagster-words"
RUN_WORKER = "forkserver"
"""In the command of the process from which a code server has its run workers forked, and so in theirs."""
DAEMON = "dagster._daemon"
CODE_SERVER = "grpc"

_MARK = "KAFKA_ASSETS_STORM_TOKEN"
_START_SECONDS = 180.0
_LOOK_SECONDS = 0.1


class DagsterDev:
    """Starts it in a folder, finds its processes, kills them.

    Args:
        folder: Has streams.yaml, workspace.yaml and dagster.yaml.
        environment: Of its processes, beside that of this one.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._token = uuid.uuid4().hex
        self._environment = {**os.environ, **environment, _MARK: self._token}
        for foreign in ("DAGSTER_HOME", "KAFKA_ASSETS_CONFIG"):
            self._environment.pop(foreign, None)
        self._environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(points.__file__).parent / "hook"), str(PROJECT)]
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until a run is being executed."""
        with (self._folder / WORDS).open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(_free_port())],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.await_workers()

    def await_workers(self) -> list[int]:
        """Wait for processes that execute a run."""
        return self._await(self.workers, "run worker")

    def await_any(self, words: str) -> list[int]:
        """Wait for processes whose command has these words."""
        return self._await(lambda: self.pids(words), words)

    def _await(self, find: Callable[[], list[int]], what: str) -> list[int]:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := find()):
            if time.monotonic() > deadline:
                raise StormError(f"no {what} within {_START_SECONDS:g} s:\n{words_in(self._folder, WORDS)}")
            # Between two looks: they are not our children.
            time.sleep(_LOOK_SECONDS)
        return found

    def pids(self, words: str = "") -> list[int]:
        """Return its processes whose command has these words."""
        found = (int(place.name) for place in Path("/proc").glob("[0-9]*"))
        return [pid for pid in found if self._has(pid, words)]

    def workers(self) -> list[int]:
        """Return its processes that execute a run."""
        found = self.pids(RUN_WORKER)
        return [pid for pid in found if _parent(pid) in found]

    def kill(self, pid: int) -> bool:
        """Kill a process, if it is still one of these: ids are soon used again."""
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not self._has(pid, ""):
                return False
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(process)
        return True

    def kill_all(self) -> None:
        """Kill all of them, as a power cut would."""
        while pids := self.pids():
            for pid in pids:
                self.kill(pid)
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LOOK_SECONDS)

    def _has(self, pid: int, words: str) -> bool:
        place = Path(f"/proc/{pid}")
        with suppress(OSError):
            return (
                f"{_MARK}={self._token}".encode() in (place / "environ").read_bytes()
                and words.encode() in (place / "cmdline").read_bytes()
            )
        return False


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

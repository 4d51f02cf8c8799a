"""Run one command as a whole process tree and measure it from outside: time, CPU, memory, bytes written.

Linux only, since it reads /proc. The command runs below a process of its own that adopts whatever the command
leaves behind, so that nothing escapes the count.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.5
_LEFT_OVER_SECONDS = 10.0
_TAIL = 4000


class CommandFailedError(RuntimeError):
    """A measured command did not end well."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process tree took.

    Attributes:
        exit_code: Of the command itself.
        seconds: From its start to its exit.
        cpu_seconds: User and system, of all processes.
        peak_pss: The highest sum of all processes' proportional set sizes seen, in bytes, looked at
            twice a second.
        written: Bytes handed to write calls, of all processes.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_pss: int
    written: int


def measure(
    command: Sequence[str | Path], *, folder: Path, env: Mapping[str, str], timeout: float
) -> tuple[Cost, str]:
    """Run a command in a folder and return what it took, and its stdout.

    Raises:
        CommandFailedError: It ended with another code than 0, or not within the timeout (seconds).
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        answer, out, err = (Path(place) / name for name in ("answer", "out", "err"))
        task = {"command": words, "folder": str(folder), "timeout": timeout}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            subprocess.run(
                [sys.executable, "-S", __file__, str(answer)],
                input=json.dumps(task).encode(),
                stdout=stdout,
                stderr=stderr,
                env=dict(env),
                check=True,
            )
        cost = Cost(**json.loads(answer.read_text()))
        if cost.exit_code:
            told = (out.read_text(errors="replace") + err.read_text(errors="replace"))[-_TAIL:]
            raise CommandFailedError(
                f"{' '.join(words[:3])} ended with {cost.exit_code} after {cost.seconds:.1f} s:\n{told}"
            )
        return cost, out.read_text()


def tree_pss(root: int) -> int:
    """Sum the proportional set sizes of all processes below one, in bytes."""
    return sum(pss(process) for process in below(root))


def below(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _run(task: Mapping[str, Any], answer: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, tree_pss(os.getpid()))

    own = _written()
    watcher = threading.Thread(target=watch)
    started = time.monotonic()
    process = subprocess.Popen(task["command"], cwd=task["folder"], stdin=subprocess.DEVNULL)
    watcher.start()
    try:
        process.wait(timeout=task["timeout"])
    except subprocess.TimeoutExpired:
        _end_all()
        process.wait()
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    _reap(time.monotonic() + _LEFT_OVER_SECONDS)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = Cost(
        exit_code=process.returncode,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_pss=peak,
        # The kernel adds a reaped child's counts to its parent's.
        written=_written() - own,
    )
    answer.write_text(json.dumps(asdict(cost)))


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def _reap(deadline: float) -> None:
    """Wait for all that the command left behind, and end what stays too long."""
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            if time.monotonic() > deadline:
                _end_all()
            time.sleep(0.02)


def _end_all() -> None:
    for process in below(os.getpid()):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    _run(json.load(sys.stdin), Path(sys.argv[1]))

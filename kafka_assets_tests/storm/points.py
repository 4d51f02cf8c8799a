"""Named places in the code at which a process kills itself, when a storm has armed them.

The code knows nothing of it: in a process that a storm started, functions are wrapped as their modules are
imported. What is armed stands in a file; the process that gets there first takes the file away and dies.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from pathlib import Path
    from types import ModuleType

ARMED = "KAFKA_ASSETS_STORM_ARMED"
"""Environment variable: the file that says which point is armed."""

FILES = "KAFKA_ASSETS_STORM_FILES"
"""Environment variable: with `SOME`, every slice is staged in a file in one of two processes, small ones too."""

SOME = "some"

_KEEPERS = ("kafka_assets.orchestration.assets",)


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after the calls of a function."""

    module: str
    function: str
    after: bool = False


PLAN = {
    "plan: before the brokers are asked": Point("kafka_assets.log", "KafkaLog.bounds"),
    "plan: made": Point("kafka_assets.planner", "propose", after=True),
    "plan: some rows written": Point("kafka_assets.statements", "insert", after=True),
    "plan: written, not committed": Point("kafka_assets.ledger", "record_plan", after=True),
    "plan: recorded": Point("kafka_assets.planner", "record", after=True),
}
FETCH = {
    "fetch: before its first record": Point("kafka_assets.fetch", "RangeReader.__next__"),
    "fetch: with records in memory": Point("kafka_assets.fetch", "RangeReader.__next__", after=True),
    "fetch: its end proven": Point("kafka_assets.progress", "RangeProgress.evidence", after=True),
}
STAGE = {
    "stage: file open": Point("kafka_assets.staged_file", "StagedFile.__init__", after=True),
    "stage: file written": Point("kafka_assets.staged_file", "StagedFile.write", after=True),
    "stage: all written, not under its name": Point("kafka_assets.staged_file", "StagedFile.finish"),
    "stage: done": Point("kafka_assets.staging", "stage", after=True),
}
COMMIT = {
    "commit: file taken": Point("kafka_assets.warehouse", "Warehouse._attach", after=True),
    "commit: begun": Point("kafka_assets.commits", "commit_batch"),
    "commit: some statements done": Point("kafka_assets.statements", "changed", after=True),
    "commit: written, not committed": Point("kafka_assets.commits", "commit_batch", after=True),
    "commit: committed, file not let go": Point("kafka_assets.warehouse", "Warehouse._detach"),
    "commit: file let go": Point("kafka_assets.warehouse", "Warehouse._detach", after=True),
    "commit: nobody told": Point("kafka_assets.batches", "commit", after=True),
    "commit: lock file gone, no event": Point("kafka_assets.orchestration.liveness", "finish", after=True),
}
INGEST = {
    "ingest: run made, not begun": Point(
        "kafka_assets.orchestration.execution", "RunExecutor._create_run", after=True
    ),
    "ingest: run over": Point("kafka_assets.orchestration.execution", "RunExecutor.execute", after=True),
}
WORKER = {
    "worker: lock taken": Point("kafka_assets.orchestration.liveness", "hold", after=True),
}
TICK = {
    "tick: attempt claimed, not committed": Point("kafka_assets.ledger", "claim_attempt", after=True),
    "tick: looking at runs": Point("kafka_assets.orchestration.runs", "runs_of", after=True),
    "tick: over, nothing launched": Point("kafka_assets.orchestration.sensors", "_Tick.run", after=True),
}
OFTEN = frozenset(["fetch: with records in memory", "commit: some statements done"])
"""Met several times in one run."""

POINTS = {**PLAN, **FETCH, **STAGE, **COMMIT, **INGEST, **WORKER, **TICK}

_calls: Counter[str] = Counter()


def arm(file: Path, name: str, call: int, nonce: int, who: str = "") -> None:
    """Have the process die that comes to a point for the n-th time from now on, with `who` in its command."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(f"{name}\n{call}\n{nonce}\n{who}")
    fresh.rename(file)


def disarm(file: Path) -> int | None:
    """Arm nothing any more; return the id of the process that has died there, if one has."""
    taken = list(file.parent.glob(f"{file.name}.by-*"))
    file.unlink(missing_ok=True)
    taken = taken or list(file.parent.glob(f"{file.name}.by-*"))
    for one in taken:
        one.unlink()
    return int(taken[0].name.rpartition("-")[2]) if taken else None


def reach(name: str) -> None:
    """Die here, if this point is armed and it is its turn."""
    file = os.environ.get(ARMED)
    if not file:
        return
    try:
        with open(file) as opened:  # noqa: PTH123  a process at any stage of its life
            text = opened.read()
    except FileNotFoundError:
        return
    wanted, call, _, who = text.split("\n")
    if wanted != name or who not in " ".join(sys.orig_argv):
        return
    _calls[text] += 1
    if _calls[text] < int(call):
        return
    try:
        os.rename(file, f"{file}.by-{os.getpid()}")  # noqa: PTH104  as above
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _watched(name: str, function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*arguments: Any, **named: Any) -> Any:
        if not after:
            reach(name)
        answer = function(*arguments, **named)
        if after:
            reach(name)
        return answer

    return watched


def watch(module: ModuleType) -> None:
    """Wrap the functions of a module that are points.

    Raises:
        AttributeError: A point names what is not there.
    """
    for name, point in POINTS.items():
        if point.module == module.__name__:
            owner: Any = module
            *outer, function = point.function.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, function, _watched(name, getattr(owner, function), after=point.after))
    if module.__name__ in _KEEPERS and os.environ.get(FILES) == SOME:
        kept = module.MEMORY_BYTES

        def choose() -> None:
            module.MEMORY_BYTES = kept * (os.getpid() % 2)  # type: ignore[attr-defined]  # as read above

        choose()
        os.register_at_fork(after_in_child=choose)


class _Finder:
    """Finds the modules that have points, and watches them once they are loaded."""

    _modules = frozenset({point.module for point in POINTS.values()} | set(_KEEPERS))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        _watch_after(spec.loader)
        return spec


def _watch_after(loader: Loader) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        watch(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def install() -> None:
    """Watch the modules that are imported from now on."""
    sys.meta_path.insert(0, _Finder())

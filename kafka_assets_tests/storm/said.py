"""What an operator says, each in a process of its own: killed before a certain step, or let through and looked at.

Imported in children of the fork server of `lives`, which has all that is imported here.
"""

from __future__ import annotations

import io
import json
import os
import signal
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from kafka_assets.cli.app import run
from kafka_assets.orchestration import sensors
from kafka_assets.orchestration.execution import open_instance
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.faults.story import Story
from kafka_assets_tests.orchestration.support import Bench, make_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STEPS = "steps"
ANSWER = "answer"
_LATER = timedelta(seconds=100)
"""After which a tick reports what nobody has reported."""

_TO_DAGSTER = (
    "create_run",
    "add_dynamic_partitions",
    "delete_dynamic_partition",
    "report_runless_asset_event",
)
_RANGES = """
SELECT kind, state, partition, incarnation, from_offset, until_offset, loaded, undeliverable, lost, removed
FROM kafka_assets_ledger.offset_ranges JOIN kafka_assets_ledger.batches USING (stream, batch) ORDER BY ALL
"""
_OF_STREAMS = """
SELECT table_name FROM duckdb_columns() WHERE schema_name = 'kafka_assets_ledger' AND column_name = 'stream'
"""


class _Cut:
    """Counts the steps of a process that change something, and ends it before one of them."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self.steps: list[str] = []

    def __call__(self, step: str) -> None:
        if len(self.steps) == self._number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps.append(step)


class _Counted:
    """A connection whose statements are steps."""

    def __init__(self, connection: Any, cut: _Cut) -> None:
        self._connection = connection
        self._cut = cut

    def execute(self, statement: str, *arguments: Any) -> Any:
        words = [word for word in statement.split() if word.isupper() or "kafka_assets_ledger." in word]
        if words and words[0] != "SELECT":
            self._cut(" ".join(words[:3]))
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _count(cut: _Cut) -> None:
    """Have every statement of a transaction, and all that Dagster is told of batches and keys, be a step."""
    attached = Warehouse._attached

    @contextmanager
    def counted(
        self: Warehouse, deadline: float, access: str, bytes_per_record: float = 0.0
    ) -> Iterator[Any]:
        with attached(self, deadline, access, bytes_per_record) as connection:
            yield _Counted(connection, cut) if access == "READ_WRITE" else connection
            if access == "READ_WRITE":
                cut("the file is let go")

    Warehouse._attached = counted  # type: ignore[method-assign]
    for name in _TO_DAGSTER:
        setattr(dg.DagsterInstance, name, _counted(getattr(dg.DagsterInstance, name), name, cut))


def _counted(method: Callable[..., Any], name: str, cut: _Cut) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        cut(name)
        return method(*arguments, **named)

    return counted


def say(folder: Path, command: Sequence[str], cut_before: int | None) -> None:
    """Run a command; die before that step, or write down which steps there were. Its exit code is the process's."""
    _enter(folder)
    cut = _Cut(cut_before)
    _count(cut)
    code = _run(command)
    cut("the end")
    Path(STEPS).write_text(json.dumps(cut.steps))
    raise SystemExit(code)


def begin(folder: Path) -> None:
    """Have Dagster make its storage."""
    _enter(folder)
    with open_instance(folder) as instance:
        make_storage(instance)


def plan(folder: Path) -> None:
    """Plan as a tick does that dies before it launches a run."""
    _enter(folder)
    assert _story(folder).tick().batches


def finish(folder: Path, stream: str, commands: Sequence[Sequence[str]]) -> None:
    """Run commands, drain, tick a little later; write down the exit codes and what is there."""
    _enter(folder)
    codes = [_run(command) for command in commands]
    assert _run(("ingest", stream)) == 0
    with open_instance(folder) as instance:
        bench = Bench(folder / "streams.yaml", instance, stream)
        vars(sensors)["utc_now"] = lambda: datetime.now(UTC) + _LATER
        requested = bench.tick().batches
        keys = [key for (key,) in bench.query("SELECT batch FROM kafka_assets.batches ORDER BY 1")]
        partitions = {
            name: instance.get_dynamic_partitions(name) for name in ("orders_batches", "bills_batches")
        }
        seen = {
            "launched again": requested,
            "rows": bench.query(
                "SELECT _kafka_partition, _kafka_offset, _kafka_value::VARCHAR"  # noqa: S608  a table of ours
                f" FROM {bench.stream.table.quoted} ORDER BY ALL"
            ),
            "ranges": bench.query(_RANGES),
            "losses": bench.query(
                "SELECT partition, from_offset, until_offset FROM kafka_assets.losses ORDER BY ALL"
            ),
            "removals": bench.query("SELECT predicate FROM kafka_assets_ledger.removals ORDER BY ALL"),
            "streams": {
                table: bench.query(f"SELECT DISTINCT stream FROM kafka_assets_ledger.{table}")  # noqa: S608
                for (table,) in sorted(bench.query(_OF_STREAMS))
            },
            "keys": {name: [key in found for key in keys] for name, found in partitions.items()},
            "foreign keys": {name: len(set(found) - set(keys)) for name, found in partitions.items()},
            "materialized": [bool(bench.materialized(key)) for key in keys],
            "proof": list(bench.proof().problems),
        }
    Path(ANSWER).write_text(json.dumps({"codes": codes, "seen": seen}))


def _enter(folder: Path) -> None:
    os.environ.pop("DAGSTER_HOME", None)
    os.chdir(folder)
    with Path("words").open("a") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)


def _run(command: Sequence[str]) -> int:
    out = io.StringIO()
    code = run([*command, "--json", "--config", "streams.yaml"], out)
    print(*command, code, out.getvalue(), flush=True)  # noqa: T201  into the words
    return code


def _story(folder: Path) -> Story:
    return Story(folder, "", None)  # type: ignore[arg-type]  # nothing is patched

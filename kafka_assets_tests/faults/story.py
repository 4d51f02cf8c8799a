"""A project in a folder of its own, told through the command line: what it answers, and what its table holds."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka_assets.cli.app import run
from kafka_assets.config import load_config
from kafka_assets.fetch import RangeReader
from kafka_assets.log import KafkaLog
from kafka_assets.planner import propose, record, survey, utc_now
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pytest

    from kafka_assets.planning import Plan
    from kafka_assets_tests.support.kafka import Place

STREAM = "orders"
CLASSES = ("loaded", "filtered", "quarantined", "undeliverable", "lost", "removed", "pending")

Row = tuple[str, int, int, bytes | None]

HALTED = 10
"""Steps of a fetch that bring nothing, 50 ms each, after which it has come to a halt."""

SIPPING = {
    # As little ahead of the reader as there may be, so that a fault in the midst of a fetch meets it there.
    "queued.min.messages": "1",
    "queued.max.messages.kbytes": "1",
    "fetch.message.max.bytes": "20000",
    "reconnect.backoff.max.ms": "200",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answered of the stream, and its exit code."""

    exit_code: int
    stream: dict[str, Any]

    @property
    def code(self) -> str | None:
        """The error's code, None where all went well."""
        return self.stream["error"]["code"] if self.stream["error"] else None

    @property
    def message(self) -> str:
        return str(self.stream["error"]["message"])


class Story:
    """One stream `orders` into table `orders`, format raw, with the options given to `setting`."""

    def __init__(self, folder: Path, bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "streams.yaml"
        self.bootstrap = bootstrap
        self.to_come: list[Callable[[], object]] = []
        self._monkeypatch = monkeypatch

    def setting(self, *, kafka: Mapping[str, str] | None = None, **options: object) -> None:
        """Write the streams file; again, as an operator edits it."""
        stream = {"interval": "1ms", "stall_timeout": "30s", **options}
        self.file.write_text(
            json.dumps(
                {
                    "kafka": {"bootstrap.servers": self.bootstrap, **(kafka or {})},
                    "warehouse": {"uri": "duckdb:///w.duckdb"},
                    "streams": {STREAM: stream},
                }
            )
        )

    def command(self, name: str, *arguments: str) -> Answer:
        """Run a command as it is typed, with `--json`."""
        out = io.StringIO()
        code = run([name, STREAM, *arguments, "--json", "--config", str(self.file)], out)
        told = json.loads(out.getvalue())
        assert "streams" in told, told
        return Answer(code, told["streams"][STREAM])

    def ingest(self, exit_code: int = 0) -> Answer:
        """Ingest, which must end with this exit code."""
        answer = self.command("ingest")
        assert answer.exit_code == exit_code, answer
        return answer

    def plan(self, exit_code: int = 0) -> Answer:
        """Show the next batch; must end with this exit code."""
        answer = self.command("plan")
        assert answer.exit_code == exit_code, answer
        return answer

    def tick(self) -> Plan:
        """Plan and write down what a tick plans, and leave it there: the daemon dies before it launches a run."""
        config = load_config(self.file)
        stream, warehouse, now = config.stream(STREAM), Warehouse.of(config.warehouse), utc_now()
        with KafkaLog(stream.kafka.resolve()) as log:
            seen = survey(stream, warehouse, log)
            planned = propose(stream, seen, log, now=now)
        record(stream, warehouse, seen, planned, now=now, claim=True)
        return planned

    def status(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Where each topic-partition stands, the latest incarnation of each."""
        answer = self.command("status")
        assert answer.exit_code == 0, answer
        return {(row["topic"], row["partition"]): row for row in answer.stream["partitions"]}

    def batches(self) -> dict[str, int]:
        """How many batches are in each state."""
        counts: dict[str, int] = self.command("status").stream["batches"]
        return {state: count for state, count in counts.items() if count}

    def proof(self) -> dict[tuple[str, int, int], dict[str, int]]:
        """Verify, which must hold; (topic, partition, incarnation) -> from, until and the classes not empty."""
        answer = self.command("verify")
        assert answer.exit_code == 0, answer
        assert answer.stream["problems"] == []
        return {
            (one["topic"], one["partition"], one["incarnation"]): {
                name: one[name] for name in ("from", "until", *CLASSES) if one[name] or name not in CLASSES
            }
            for one in answer.stream["partitions"]
        }

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with Warehouse.of(load_config(self.file).warehouse).reading() as connection:
            assert connection is not None
            return connection.execute(statement).fetchall()

    def rows(self) -> list[Row]:
        """Topic, partition, offset and value of every row, in this order."""
        return self.query(
            "SELECT _kafka_topic, _kafka_partition, _kafka_offset, _kafka_value FROM orders ORDER BY ALL"
        )

    def batch_keys(self) -> list[str]:
        """The keys of all batches, in the order in which they were planned."""
        return [key for (key,) in self.query("SELECT batch FROM kafka_assets.batches ORDER BY batch")]

    def losses(self) -> list[tuple[str, int, int, int]]:
        """Topic, partition, from and until of every stretch written down as lost."""
        return self.query(
            'SELECT topic, "partition", from_offset, until_offset FROM kafka_assets.losses ORDER BY ALL'
        )

    def midway(self, *happenings: Callable[[], object], after: int = 1) -> None:
        """Have things happen in the midst of the next fetch, once each, in this order.

        The first when so many records have come, each further one when the fetch has come to a halt since.
        """
        step = RangeReader._step
        taken = idle = 0
        self.to_come = list(happenings)

        def stepped(*arguments: Any) -> int:
            nonlocal taken, idle
            rows = step(*arguments)
            taken += rows
            idle = 0 if rows else idle + 1
            first = len(self.to_come) == len(happenings)
            if self.to_come and (taken >= after if first else idle >= HALTED):
                idle = 0
                self.to_come.pop(0)()
            return rows

        self._monkeypatch.setattr(RangeReader, "_step", stepped)


def expected(topic: str, places: Sequence[Place], values: Sequence[bytes | None]) -> list[Row]:
    """The rows that records become, given where they were put."""
    return sorted(
        (topic, partition, offset, value) for (partition, offset), value in zip(places, values, strict=True)
    )

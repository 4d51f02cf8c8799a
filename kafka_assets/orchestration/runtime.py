"""What assets, sensors and checks of a code location share: the configuration, and what is opened from it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets.log import KafkaLog
from kafka_assets.orchestration.naming import names_of
from kafka_assets.planner import read_state
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from pathlib import Path

    from kafka_assets.config import Config, StreamConfig
    from kafka_assets.ledger import StreamState
    from kafka_assets.orchestration.naming import Names

CLOCK_GRAIN_SECONDS = 2.0
"""Two writes within it may leave a file with the same time of change."""


@dataclass(slots=True)
class Runtime:
    """Opened on first use, so that loading definitions needs no secret, no Kafka and no warehouse.

    Attributes:
        config: The streams file.
        prefix: Asset key prefix of all its streams.
        fetch_groups: Number of fetch steps a batch is spread over, for executors that run steps in parallel.
    """

    config: Config
    prefix: tuple[str, ...] = ()
    fetch_groups: int = 1
    _logs: dict[tuple[tuple[str, str], ...], KafkaLog] = field(default_factory=dict, repr=False)
    _states: dict[str, tuple[object, StreamState]] = field(default_factory=dict, repr=False)
    _instance: tuple[object, dg.DagsterInstance] | None = field(default=None, repr=False)

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse.of(self.config.warehouse)

    def names(self, stream: StreamConfig) -> Names:
        return names_of(stream, self.prefix)

    def state(self, stream: StreamConfig, *, timeout: float) -> StreamState:
        """Read the stream's part of the ledger, or give it as it was read last if nobody wrote the file since.

        Most ticks of most streams find nothing new, and opening the file costs more than all else they do.
        """
        # Taken first: what is read after it can only be newer.
        stamp = _stamp(self.warehouse.path)
        known = self._states.get(stream.name)
        if known is not None and stamp is not None and known[0] == stamp:
            return known[1]
        state = read_state(stream, self.warehouse, timeout=timeout)
        self._states[stream.name] = (stamp, state)
        return state

    def instance(self, context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
        """Return the instance of a tick, kept from one to the next.

        The context would open it anew for each, which takes longer than the tick itself; it has no public way to
        be given one, and asks for it once more when it checks the run requests.
        """
        ref = context.instance_ref
        if ref is not None and context._instance is None:  # noqa: SLF001  see above
            if self._instance is None or self._instance[0] != ref:
                self._instance = (ref, dg.DagsterInstance.from_ref(ref))
            context._instance = self._instance[1]  # noqa: SLF001  see above
        return context.instance

    def log(self, stream: StreamConfig) -> KafkaLog:
        """Return the admin client for a stream's cluster; kept, since each tick asks it again."""
        kafka = stream.kafka.resolve()
        key = tuple(sorted(kafka.items()))
        if key not in self._logs:
            self._logs[key] = KafkaLog(kafka)
        return self._logs[key]

    def drop_log(self, stream: StreamConfig) -> None:
        """Forget a client after an error of its brokers, so that the next use begins with a new connection.

        It is not closed: the sensor of another stream may be in the middle of a call.
        """
        self._logs.pop(tuple(sorted(stream.kafka.resolve().items())), None)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what is another after every write of the file or of its write-ahead log; None where that is not sure."""
    stamp: list[int] = []
    for file in (path, path.with_name(f"{path.name}.wal")):
        try:
            found = file.stat()
        except OSError:
            if file == path:
                return None
            continue
        if found.st_mtime > time.time() - CLOCK_GRAIN_SECONDS:
            return None
        stamp += (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return tuple(stamp)

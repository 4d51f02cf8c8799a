"""What assets, sensors and checks of a code location share: the configuration, and what is opened from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kafka_assets.log import KafkaLog
from kafka_assets.orchestration.naming import names_of
from kafka_assets.warehouse import Warehouse

if TYPE_CHECKING:
    from kafka_assets.config import Config, StreamConfig
    from kafka_assets.orchestration.naming import Names


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

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse.of(self.config.warehouse)

    def names(self, stream: StreamConfig) -> Names:
        return names_of(stream, self.prefix)

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

"""The values a streams file becomes."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kafka_assets.errors import StreamUnknownError
from kafka_assets.starting import StartingOffsets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kafka_assets.backpressure import Backpressure
    from kafka_assets.config.properties import IsolationLevel, KafkaProperties

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_SCHEMAS = ("kafka_assets", "kafka_assets_ledger", "information_schema", "pg_catalog")

OnDataLoss = Literal["fail", "skip"]
OnTopicRecreated = Literal["fail", "restart"]
OnBadRecord = Literal["fail", "quarantine"]


@dataclass(frozen=True, slots=True)
class Topics:
    """All partitions of the topics named."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """All partitions of the topics whose whole name matches, never of internal ones (`__...`)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """The partitions named, in ascending order, for each topic."""

    partitions: Mapping[str, tuple[int, ...]]


TopicSelection = Topics | TopicPattern | Assignment


@dataclass(frozen=True, slots=True)
class TableName:
    """A table of the warehouse; without a schema it is in `main`."""

    schema: str | None
    name: str

    @property
    def quoted(self) -> str:
        """The name for SQL, `"schema"."name"`."""
        return f'"{self.schema or "main"}"."{self.name}"'

    @property
    def key(self) -> tuple[str, str]:
        """What two names of the same table have in common: DuckDB folds case."""
        return (self.schema or "main").lower(), self.name.lower()

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


def parse_table(text: str) -> TableName:
    """The table a text such as `orders` or `sales.orders` names; the schema `main` is the same as none.

    Raises:
        ValueError: The text is no such name, or the schema is not for users.
    """
    schema, dot, name = text.rpartition(".")
    if not _IDENTIFIER.fullmatch(name) or (dot and not _IDENTIFIER.fullmatch(schema)):
        raise ValueError("a table as name or schema.name, each part of [A-Za-z0-9_] and not led by a digit")
    if schema.lower() in _RESERVED_SCHEMAS:
        raise ValueError(f"a table in a schema other than {', '.join(_RESERVED_SCHEMAS)}")
    return TableName(None if schema.lower() in ("", "main") else schema, name)


@dataclass(frozen=True, slots=True)
class FormatConfig:
    """A format's name and its options."""

    kind: str
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """One stream. Durations are seconds, sizes bytes, and limits of records count offsets."""

    name: str
    selection: TopicSelection
    table: TableName
    kafka: KafkaProperties
    format: FormatConfig = FormatConfig("raw", {})
    starting_offsets: StartingOffsets = field(default_factory=StartingOffsets)
    max_records_per_batch: int = 1_000_000
    max_records_per_partition_per_second: float | None = None
    max_bytes_per_batch: int = 256 * 1024**2
    min_records_per_batch: int = 1
    max_batch_delay: float = 60.0
    max_batches_in_flight: int = 4
    interval: float = 30.0
    backpressure: Backpressure | None = None
    stall_timeout: float = 60.0
    batch_timeout: float = 3600.0
    max_attempts: int = 5
    on_data_loss: OnDataLoss = "fail"
    on_topic_recreated: OnTopicRecreated = "fail"
    on_bad_record: OnBadRecord = "fail"
    enabled: bool = True

    @property
    def isolation_level(self) -> IsolationLevel:
        """`isolation.level` of the stream's consumers; the environment is read only if it says `${...}`."""
        return self.kafka.isolation_level()

    @property
    def rate_limits(self) -> tuple[str, ...]:
        """The options that limit the stream's rate; with any there is one batch an interval, also to drain."""
        limits = {
            "max_records_per_partition_per_second": self.max_records_per_partition_per_second,
            "backpressure": self.backpressure,
        }
        return tuple(name for name, value in limits.items() if value is not None)


@dataclass(frozen=True, slots=True)
class WarehouseConfig:
    """Where the tables are.

    Attributes:
        uri: As given.
        path: The database file, absolute.
        lock_timeout: Seconds to wait for another process that holds the file.
        max_staged_bytes: About how many bytes may be fetched and not yet committed, over all streams.
    """

    uri: str
    path: Path
    lock_timeout: float = 60.0
    max_staged_bytes: int = 2 * 1024**3

    @property
    def staging(self) -> Path:
        """The folder of fetched and not yet committed records, beside the database file."""
        return self.path.with_name(f"{self.path.name}.staging")


@dataclass(frozen=True, slots=True)
class Config:
    """A streams file, read and checked."""

    path: Path
    warehouse: WarehouseConfig
    streams: Mapping[str, StreamConfig]

    def stream(self, name: str) -> StreamConfig:
        """The stream of that name.

        Raises:
            StreamUnknownError: There is none; the message names the nearest.
        """
        if name in self.streams:
            return self.streams[name]
        near = difflib.get_close_matches(name, self.streams, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(self.streams)}"
        raise StreamUnknownError(f"no stream {name!r} in {self.path}; {hint}")

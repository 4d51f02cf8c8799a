"""The names under which a stream appears in Dagster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets.config import Assignment, Topics

if TYPE_CHECKING:
    from kafka_assets.config import StreamConfig

STREAM_TAG = "kafka_assets/stream"
GENERATION_TAG = "kafka_assets/generation"
HOST_TAG = "kafka_assets/host"
PARTITION_TAG = "dagster/partition"
RUN_KEY_TAG = "dagster/run_key"
WILL_RETRY_TAG = "dagster/will_retry"


@dataclass(frozen=True, slots=True)
class Names:
    """The Dagster names of one stream.

    Attributes:
        prefix: Asset key prefix of all streams of a code location.
        stream: The stream's name.
        asset_key: `[*prefix, table]`, or `[*prefix, schema, table]`.
        batches: Name of the partitions definition whose keys are the stream's batches.
        sensor: Name of the sensor.
        topics: Keys of the external assets upstream, one a topic.
    """

    prefix: tuple[str, ...]
    stream: str
    asset_key: dg.AssetKey
    batches: str
    sensor: str
    topics: tuple[dg.AssetKey, ...]

    def op(self, step: str) -> str:
        """Op names are unique within a code location's implicit job, so each stream has its own."""
        return "_".join((*self.prefix, self.stream, step))


def names_of(stream: StreamConfig, prefix: tuple[str, ...] = ()) -> Names:
    table = (stream.table.schema, stream.table.name) if stream.table.schema else (stream.table.name,)
    match stream.selection:
        case Topics(names):
            topics = names
        case Assignment(partitions):
            topics = tuple(partitions)
        case _:
            topics = (stream.name,)
    return Names(
        prefix=prefix,
        stream=stream.name,
        asset_key=dg.AssetKey([*prefix, *table]),
        batches="_".join((*prefix, stream.name, "batches")),
        sensor=f"{stream.name}_sensor",
        topics=tuple(dg.AssetKey(["kafka", topic]) for topic in topics),
    )


def run_key(stream: str, batch: str, attempt: int) -> str:
    """One key for each attempt: Dagster never starts a second run under a key, whatever became of the first."""
    return f"{stream}/{batch}/{attempt}"


def generation_tag(run_id: str, generation: int) -> dict[str, str]:
    """Return the tag that says which generation of its batch a run moves on from.

    A run that executes another one again starts with the tags of that one, so the tag names its run.
    """
    return {GENERATION_TAG: f"{generation}/{run_id}"}

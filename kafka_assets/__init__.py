"""Kafka into tables with Dagster: exact offset ranges, rows and offsets in one transaction."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kafka_assets.config import load_config
    from kafka_assets.fetch import read_ranges
    from kafka_assets.offsets import OffsetRange, TopicPartition
    from kafka_assets.orchestration.downstream import batches_def, offset_ranges
    from kafka_assets.orchestration.factory import build_definitions
    from kafka_assets.reader import connect

__all__ = [
    "OffsetRange",
    "TopicPartition",
    "batches_def",
    "build_definitions",
    "connect",
    "load_config",
    "offset_ranges",
    "read_ranges",
]

_HOMES = {
    "OffsetRange": "kafka_assets.offsets",
    "TopicPartition": "kafka_assets.offsets",
    "batches_def": "kafka_assets.orchestration.downstream",
    "build_definitions": "kafka_assets.orchestration.factory",
    "connect": "kafka_assets.reader",
    "load_config": "kafka_assets.config",
    "offset_ranges": "kafka_assets.orchestration.downstream",
    "read_ranges": "kafka_assets.fetch",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is asked for
    """Import a public name when it is first used: reading a table should not wait for Dagster's import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

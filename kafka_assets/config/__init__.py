"""The streams file: what it may say, read and checked at once."""

from __future__ import annotations

from kafka_assets.config.load import load_config
from kafka_assets.config.properties import IsolationLevel, KafkaProperties
from kafka_assets.config.units import parse_duration, parse_size, parse_timestamp_ms
from kafka_assets.config.values import (
    Assignment,
    Config,
    FormatConfig,
    StreamConfig,
    TableName,
    TopicPattern,
    Topics,
    TopicSelection,
    WarehouseConfig,
    parse_table,
)
from kafka_assets.starting import (
    AtOffset,
    AtTimestamp,
    Earliest,
    Latest,
    StartingOffset,
    StartingOffsets,
)

__all__ = [
    "Assignment",
    "AtOffset",
    "AtTimestamp",
    "Config",
    "Earliest",
    "FormatConfig",
    "IsolationLevel",
    "KafkaProperties",
    "Latest",
    "StartingOffset",
    "StartingOffsets",
    "StreamConfig",
    "TableName",
    "TopicPattern",
    "TopicSelection",
    "Topics",
    "WarehouseConfig",
    "load_config",
    "parse_duration",
    "parse_size",
    "parse_table",
    "parse_timestamp_ms",
]

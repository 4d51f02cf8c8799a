"""The options of a stream, one reader each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kafka_assets.backpressure import Backpressure
from kafka_assets.config.interpolate import references
from kafka_assets.config.properties import KafkaProperties
from kafka_assets.config.setting import (
    Setting,
    SettingError,
    boolean,
    choice,
    duration,
    integer,
    not_yet,
    number_within,
    positive_number_or_null,
    size,
)
from kafka_assets.config.units import TIMESTAMP, parse_timestamp_ms
from kafka_assets.config.values import (
    Assignment,
    FormatConfig,
    TableName,
    TopicPattern,
    Topics,
    TopicSelection,
    parse_table,
)
from kafka_assets.offsets import TopicPartition
from kafka_assets.starting import (
    AtOffset,
    AtTimestamp,
    Earliest,
    Latest,
    StartingOffset,
    StartingOffsets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_TOPIC_ALLOWED = "a topic name: 1 to 249 of [a-zA-Z0-9._-], and neither . nor .."
_FORMATS = ("raw", "utf8")
_LATER_FORMATS = ("json", "avro", "protobuf")
_STARTS = (
    "earliest, latest, {timestamp: 2026-01-01T00:00:00Z} or offsets like {orders: {0: 1200, 1: earliest}}"
)
_PARTITION_STARTS = "an offset from 0 up, earliest, latest or {timestamp: 2026-01-01T00:00:00Z}"
_PARTITION = re.compile(r"[0-9]{1,10}")
_LAST_PARTITION = 2**31 - 1


def topic_name(name: str) -> bool:
    """Whether Kafka allows a topic of this name."""
    return _TOPIC.fullmatch(name) is not None and name not in (".", "..")


def _topics(setting: Setting) -> Topics:
    names: list[str] = []
    for item in setting.items("a list of topic names, like [orders]"):
        name = item.read(_topic)
        if name in names:
            item.add(f"got {item.given}, which the list already holds; name each topic once")
        elif name is not None:
            names.append(name)
    return Topics(tuple(names))


def _topic(setting: Setting) -> str:
    name = setting.text(_TOPIC_ALLOWED)
    if not topic_name(name):
        raise setting.expected(_TOPIC_ALLOWED)
    return name


def _topic_pattern(setting: Setting) -> TopicPattern:
    allowed = "a regular expression for the whole topic name, like 'orders\\..*'"
    pattern = setting.text(allowed)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        raise setting.expected(allowed) from None
    if not pattern:
        raise setting.expected(allowed)
    return TopicPattern(pattern)


def _assign(setting: Setting) -> Assignment:
    allowed = "partitions by topic, like {orders: [0, 1]}"
    partitions: dict[str, tuple[int, ...]] = {}
    for topic, listed in setting.entries(allowed).items():
        if not topic_name(topic):
            listed.add(f"its key is no topic name; allowed is {_TOPIC_ALLOWED}")
        numbers = listed.read(_partitions)
        if numbers is not None:
            partitions[topic] = numbers
    if not setting.node.value:
        raise setting.expected(allowed)
    return Assignment(partitions)


def _partitions(setting: Setting) -> tuple[int, ...]:
    numbers: set[int] = set()
    for item in setting.items("a list of partition numbers, like [0, 1]"):
        number = item.read(integer(0, _LAST_PARTITION))
        if number in numbers:
            item.add(f"got {item.given}, which the list already holds; name each partition once")
        elif number is not None:
            numbers.add(number)
    return tuple(sorted(numbers))


SELECTIONS: Mapping[str, Callable[[Setting], TopicSelection]] = {
    "topics": _topics,
    "topic_pattern": _topic_pattern,
    "assign": _assign,
}


def _table(setting: Setting) -> TableName:
    text = setting.text("a table as name or schema.name")
    try:
        return parse_table(text)
    except ValueError as error:
        raise setting.expected(str(error)) from None


def _format(setting: Setting) -> FormatConfig:
    allowed = " or ".join(_FORMATS)
    if not isinstance(setting.node.value, dict):
        return _format_kind(setting, setting.text(allowed), allowed)
    entries = setting.entries(allowed)
    if len(entries) != 1:
        raise SettingError(
            f"got a mapping of {len(entries)} keys, allowed is {allowed}, or one with its options"
        )
    ((kind, options),) = entries.items()
    if kind not in _FORMATS + _LATER_FORMATS:
        raise SettingError(f"got a mapping with a key that is no format, allowed is {allowed}")
    made = _format_kind(setting, kind, allowed)
    for option in options.entries("a mapping of options").values():
        option.add(f"unknown key; the format {kind} has no options")
    return made


def _format_kind(setting: Setting, kind: str, allowed: str) -> FormatConfig:
    if kind in _LATER_FORMATS:
        raise not_yet(f"the format {kind}", allowed)
    if kind not in _FORMATS:
        raise setting.expected(allowed)
    return FormatConfig(kind, {})


def _starting_offsets(setting: Setting) -> StartingOffsets:
    value = setting.node.value
    if not isinstance(value, dict):
        return StartingOffsets(_named_start(setting, _STARTS), {})
    # A topic may be called timestamp, but then its value is a mapping.
    if list(value) == ["timestamp"] and not isinstance(value["timestamp"].value, dict):
        return StartingOffsets(_at_timestamp(setting), {})
    if not value:
        raise setting.expected(_STARTS)
    partitions: dict[TopicPartition, StartingOffset] = {}
    for topic, by_partition in setting.entries(_STARTS).items():
        if not topic_name(topic):
            by_partition.add(f"its key is no topic name; allowed is {_TOPIC_ALLOWED}")
            continue
        starts = by_partition.read(
            lambda starts: starts.entries("starts by partition, like {0: 1200, 1: earliest}")
        )
        for number, start in (starts or {}).items():
            if not _PARTITION.fullmatch(number) or int(number) > _LAST_PARTITION:
                start.add(f"its key is no partition; allowed is a whole number from 0 to {_LAST_PARTITION}")
                continue
            found = start.read(_partition_start)
            if TopicPartition(topic, int(number)) in partitions:
                start.add(f"partition {int(number)} is given twice; keep one")
            elif found is not None:
                partitions[TopicPartition(topic, int(number))] = found
    return StartingOffsets(Earliest(), partitions)


def _partition_start(setting: Setting) -> StartingOffset:
    value = setting.node.value
    if isinstance(value, dict):
        if list(value) != ["timestamp"]:
            raise setting.expected(_PARTITION_STARTS)
        return _at_timestamp(setting)
    given = setting.scalar(_PARTITION_STARTS)
    if isinstance(given, str) and not re.fullmatch(r"[+-]?[0-9]+", given):
        return _named_start(setting, _PARTITION_STARTS)
    try:
        return AtOffset(integer(0)(setting))
    except SettingError:
        raise setting.expected(_PARTITION_STARTS) from None


def _named_start(setting: Setting, allowed: str) -> StartingOffset:
    named: dict[str, StartingOffset] = {"earliest": Earliest(), "latest": Latest()}
    start = named.get(setting.text(allowed))
    if start is None:
        raise setting.expected(allowed)
    return start


def _at_timestamp(setting: Setting) -> AtTimestamp:
    (time,) = setting.entries(_STARTS).values()
    value = time.scalar(TIMESTAMP)
    try:
        return AtTimestamp(parse_timestamp_ms(value if isinstance(value, str) else ""))
    except ValueError:
        time.add(str(time.expected(TIMESTAMP)))
        return AtTimestamp(0)


def _kafka(setting: Setting) -> KafkaProperties:
    texts: dict[str, str] = {}
    paths: dict[str, str] = {}
    for name, entry in setting.entries(
        "a mapping of librdkafka properties, like bootstrap.servers: ..."
    ).items():
        # A problem ends the load, so what stands in for an unreadable text is never used.
        text = entry.read(_property)
        texts[name], paths[name] = "${UNREADABLE}" if text is None else text, entry.path
    return KafkaProperties(texts, paths)


def _property(setting: Setting) -> str:
    """A property's text as written: `007` is a fine password and no number. Never shown."""
    value, text = setting.node.value, setting.node.text
    if text is None or value is None:
        raise SettingError(
            setting.node.fault
            or f"got {setting.given}, allowed is one text, number or true/false;"
            " several are separated by commas"
        )
    if isinstance(value, bool):
        return str(value).lower()
    references(text)
    return text


_WEIGHT = number_within(0, 1000)
_TERMS: Mapping[str, Callable[[Setting], float | None]] = {
    "proportional": _WEIGHT,
    "integral": _WEIGHT,
    "derived": _WEIGHT,
    "min_rate": number_within(0, 1e12, above=True),
    "initial_rate": positive_number_or_null,
}


def _backpressure(setting: Setting) -> Backpressure | None:
    allowed = f"true, false or a mapping of {', '.join(_TERMS)}"
    if not isinstance(setting.node.value, dict):
        return Backpressure() if boolean(setting, allowed) else None
    terms = {name: term.read(_TERMS[name]) for name, term in setting.known_entries(_TERMS, allowed).items()}
    # A problem ends the load, so it does not matter that a term left out has its default.
    return Backpressure(**{name: value for name, value in terms.items() if value is not None})


OPTIONS: Mapping[str, Callable[[Setting], object]] = {
    "kafka": _kafka,
    "table": _table,
    "format": _format,
    "starting_offsets": _starting_offsets,
    "max_records_per_batch": integer(1),
    "max_records_per_partition_per_second": positive_number_or_null,
    "max_bytes_per_batch": size,
    "min_records_per_batch": integer(1),
    "max_batch_delay": duration(zero=True),
    "max_batches_in_flight": integer(1, 100),
    "interval": duration(),
    "backpressure": _backpressure,
    "stall_timeout": duration(),
    "batch_timeout": duration(),
    "max_attempts": integer(1),
    "on_data_loss": choice("fail", "skip"),
    "on_topic_recreated": choice("fail", "restart"),
    "on_bad_record": choice("fail", "quarantine"),
    "enabled": boolean,
}

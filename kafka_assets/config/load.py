"""From the streams file to a `Config`, or to every problem in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka_assets.config.document import Problems, child_path, read_document
from kafka_assets.config.options import OPTIONS, SELECTIONS
from kafka_assets.config.properties import KafkaProperties
from kafka_assets.config.setting import Setting, SettingError, duration, size
from kafka_assets.config.values import (
    Assignment,
    Config,
    StreamConfig,
    TopicPattern,
    Topics,
    TopicSelection,
    WarehouseConfig,
    parse_table,
)
from kafka_assets.errors import ConfigInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_FILE = "streams.yaml"
_DEFAULT_URI = "duckdb:///data/warehouse.duckdb"
_URI = "duckdb:///FILE (relative to the streams file) or duckdb:////FILE (absolute)"
_STREAM_NAME = re.compile(r"[A-Za-z0-9_]+")


def load_config(
    path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] = os.environ
) -> Config:
    """Reads and checks a streams file; needs no Kafka, no warehouse and no secret.

    Args:
        path: The file; None for `$KAFKA_ASSETS_CONFIG`, else `streams.yaml` in the working directory.
        environ: Where `${NAME}` is looked up, outside `kafka`.

    Raises:
        ConfigInvalidError: With all problems of the file, each with its YAML path.
    """
    given = path if path is not None else environ.get("KAFKA_ASSETS_CONFIG") or _DEFAULT_FILE
    # Not resolved: beside a link to a file is where its relative paths begin.
    file = Path(os.path.abspath(os.fspath(given)))  # noqa: PTH100 (Path has no such function that keeps links)
    problems = Problems()
    config = _read(_text_of(file), file, problems, environ)
    if problems or config is None:
        found = tuple(problems)
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigInvalidError(f"{file} has {count}, so none of its streams can run:", found)
    return config


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problem = f"no streams file at {file}; make one, or name another with --config or KAFKA_ASSETS_CONFIG"
    except IsADirectoryError:
        problem = f"{file} is a folder; name the streams file in it, like {file / _DEFAULT_FILE}"
    except UnicodeDecodeError as error:
        problem = f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        problem = f"{str(file)!r} cannot be read ({reason}); make it readable or name another with --config"
    raise ConfigInvalidError(problem)


def _read(text: str, file: Path, problems: Problems, environ: Mapping[str, str]) -> Config | None:
    node = read_document(text, problems)
    if node is None or node.value is None:
        if node is not None and node.fault:
            problems.add("", f"the file {node.fault}")
        elif not problems:
            problems.add("", "the file is empty; it needs at least `kafka` and `streams`")
        return None
    if not isinstance(node.value, dict):
        problems.add(
            "", "the file is not a mapping; it needs the keys kafka and streams, with a colon after each"
        )
        return None
    top = Setting("", node, problems, environ)
    sections = top.known_entries(("kafka", "warehouse", "defaults", "streams"), "a mapping")
    kafka = sections["kafka"].read(OPTIONS["kafka"]) if "kafka" in sections else None
    shared = (_Level.of(sections["defaults"]) if "defaults" in sections else None) or _Level({}, {})
    warehouse = _warehouse(sections.get("warehouse"), file)
    entries = sections["streams"].read(_streams) if "streams" in sections else {}
    if entries is not None and not entries:
        problems.add("streams", "no stream is defined; add one, like `orders: {topics: [orders]}`")
    global_kafka = kafka if isinstance(kafka, KafkaProperties) else KafkaProperties({})
    streams = {
        name: stream
        for name, setting in (entries or {}).items()
        if (stream := _stream(name, setting, shared, global_kafka)) is not None
    }
    _refuse_shared_tables(streams, problems)
    return Config(file, warehouse, streams)


def _streams(setting: Setting) -> dict[str, Setting]:
    entries = setting.entries("a mapping of streams, like `orders: {topics: [orders]}`")
    for name, stream in entries.items():
        if not _STREAM_NAME.fullmatch(name):
            stream.add("its key is no stream name; allowed is [A-Za-z0-9_]+")
    return entries


def _warehouse(setting: Setting | None, file: Path) -> WarehouseConfig:
    entries = None
    if setting is not None:
        entries = setting.read(
            lambda section: section.known_entries(
                ("uri", "lock_timeout", "max_staged_bytes"),
                "a mapping with uri, lock_timeout and max_staged_bytes",
            )
        )
    entries = entries or {}
    uri = (entries["uri"].read(_uri) if "uri" in entries else None) or _DEFAULT_URI
    options = {"lock_timeout": duration(zero=True), "max_staged_bytes": size}
    read = {name: entries[name].read(option) for name, option in options.items() if name in entries}
    given: dict[str, Any] = {name: value for name, value in read.items() if value is not None}
    path = Path(os.path.abspath(file.parent / uri.removeprefix("duckdb:///")))  # noqa: PTH100 (keeps links)
    return WarehouseConfig(uri, path, **given)


def _uri(setting: Setting) -> str:
    uri = setting.text(_URI)
    place = uri.removeprefix("duckdb:///")
    # An address may hold a password or token, so no more than its scheme is shown.
    if place == uri:
        scheme = (
            uri.partition(":")[0] if re.match(r"[a-z][a-z0-9+]*:", uri) and not setting.substituted else ""
        )
        if scheme and scheme != "duckdb":
            raise SettingError(f"a warehouse of {scheme}: is not available in this version yet; use {_URI}")
        raise SettingError(f"got something else, allowed is {_URI}")
    if not place.strip("/") or place.endswith(("/", "/.", "/..")) or place in (".", ".."):
        raise SettingError(f"got no file name after duckdb:///, allowed is {_URI}")
    if place.startswith(":memory:") or "?" in place or not place.isprintable():
        raise SettingError(
            f"got :memory:, a ? or an unprintable character in the file name, allowed is {_URI}"
        )
    return uri


@dataclass(frozen=True, slots=True)
class _Level:
    """The options given in one place, `defaults` or a stream.

    Attributes:
        settings: All that are given; the three ways to select topics also as `selection`.
        values: Those of them that could be read.
    """

    settings: Mapping[str, Setting]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, setting: Setting) -> _Level | None:
        """The options at a setting; None if it is no mapping."""
        given = setting.read(lambda here: here.known_entries((*SELECTIONS, *OPTIONS), "a mapping of options"))
        if given is None:
            return None
        settings = dict(given)
        selections = [key for key in SELECTIONS if key in settings]
        if len(selections) > 1:
            setting.add(f"has {' and '.join(selections)}; allowed is exactly one of {', '.join(SELECTIONS)}")
        values: dict[str, Any] = {}
        for key, reader in (*SELECTIONS.items(), *OPTIONS.items()):
            if key not in settings:
                continue
            problems = setting.problems.count
            value = settings[key].read(reader)
            name = "selection" if key in SELECTIONS else key
            settings[name] = settings[key]
            if setting.problems.count == problems:
                values[name] = value
        return cls(settings, values)

    def over(self, shared: _Level) -> _Level:
        """These options, and the shared ones for what is not given here."""
        inherited = {key: value for key, value in shared.values.items() if key not in self.settings}
        return _Level({**shared.settings, **self.settings}, {**inherited, **self.values})


def _stream(
    name: str, setting: Setting, shared: _Level, global_kafka: KafkaProperties
) -> StreamConfig | None:
    own = _Level.of(setting)
    if own is None:
        return None
    level = own.over(shared)
    values = dict(level.values)
    kafka = global_kafka
    for part in (shared, own):
        if "kafka" in part.values:
            kafka = kafka.merged(part.values["kafka"])
    values["kafka"] = kafka
    for path, text in kafka.problems():
        setting.problems.add(path, text)
    if "selection" not in level.settings:
        setting.add(f"reads nothing; give it exactly one of {', '.join(SELECTIONS)}")
    if "table" not in level.settings:
        try:
            values["table"] = parse_table(name)
        except ValueError:
            setting.add(f"its name {name!r:.80} is no table name; give it the option table")
    if "selection" not in values or "table" not in values:
        return None
    stream = StreamConfig(name=name, **values)
    if level.settings.keys() - {"topics", "topic_pattern", "assign"} <= values.keys():
        _check_together(stream, level)
    return stream


def _check_together(stream: StreamConfig, level: _Level) -> None:
    if stream.min_records_per_batch > stream.max_records_per_batch:
        key = (
            "min_records_per_batch" if "min_records_per_batch" in level.settings else "max_records_per_batch"
        )
        level.settings[key].add(
            f"stream {stream.name} would wait for min_records_per_batch {stream.min_records_per_batch},"
            f" above its max_records_per_batch {stream.max_records_per_batch}; allowed is at most as many"
        )
    if "starting_offsets" in level.settings:
        for topic_partition in stream.starting_offsets.partitions:
            if not _selects(stream.selection, topic_partition.topic, topic_partition.partition):
                level.settings["starting_offsets"].add(
                    f"names {topic_partition}, which stream {stream.name} does not read;"
                    f" allowed are partitions of {_described(stream.selection)}"
                )


def _selects(selection: TopicSelection, topic: str, partition: int) -> bool:
    match selection:
        case Topics(names):
            return topic in names
        case TopicPattern(pattern):
            return not topic.startswith("__") and re.fullmatch(pattern, topic) is not None
        case Assignment(partitions):
            return partition in partitions.get(topic, ())


def _described(selection: TopicSelection) -> str:
    match selection:
        case Topics(names):
            return ", ".join(names)
        case TopicPattern(pattern):
            return f"topics that match {pattern!r}, and no internal ones"
        case Assignment(partitions):
            return ", ".join(f"{topic} {list(numbers)}" for topic, numbers in partitions.items())


def _refuse_shared_tables(streams: Mapping[str, StreamConfig], problems: Problems) -> None:
    owners: dict[tuple[str, str], StreamConfig] = {}
    for name, stream in streams.items():
        owner = owners.setdefault(stream.table.key, stream)
        if owner is not stream:
            problems.add(
                child_path("streams", name),
                f"writes to the table {stream.table}, which belongs to the stream {owner.name}"
                " (case does not matter); give each stream a table of its own",
            )

"""What a streams file may say, and what it becomes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kafka_assets.backpressure import Backpressure
from kafka_assets.config import (
    Assignment,
    AtOffset,
    AtTimestamp,
    Config,
    Earliest,
    FormatConfig,
    KafkaProperties,
    Latest,
    StartingOffsets,
    StreamConfig,
    TableName,
    TopicPattern,
    Topics,
    load_config,
)
from kafka_assets.errors import ConfigInvalidError, StreamUnknownError
from kafka_assets.offsets import TopicPartition

EVERYTHING = r"""
kafka:
  bootstrap.servers: 127.0.0.1:9092
  socket.keepalive.enable: yes
  socket.timeout.ms: 10000
warehouse:
  uri: duckdb:////srv/warehouse.duckdb
  lock_timeout: 5s
  max_staged_bytes: 1 GiB
defaults:
  kafka: {client.id: shared, client.rack: a}
  max_attempts: 7
  interval: 1m
streams:
  orders:
    topics: [orders, orders.eu]
    table: sales.orders
    format: {utf8: }
    starting_offsets:
      orders: {0: 1200, 1: earliest, 2: latest}
      orders.eu: {0: {timestamp: 1969-12-31T23:59:59Z}}
    kafka: {client.id: own, isolation.level: read_uncommitted}
    max_records_per_batch: 5
    max_records_per_partition_per_second: 0.5
    max_bytes_per_batch: 1GB
    min_records_per_batch: 2
    max_batch_delay: 0s
    max_batches_in_flight: 100
    interval: 500ms
    backpressure: {proportional: 0.5, integral: 0, derived: 1e-1, min_rate: 7, initial_rate: 2.5}
    stall_timeout: 2m
    batch_timeout: 2d
    max_attempts: 1
    on_data_loss: skip
    on_topic_recreated: restart
    on_bad_record: quarantine
    enabled: no
  patterned:
    topic_pattern: 'orders\..*$'
    table: main.patterned
    max_records_per_partition_per_second: null
  assigned:
    assign: {orders: [3, 0]}
    starting_offsets: {timestamp: 2026-01-01T01:00:00+01:00}
"""


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    (tmp_path / "streams.yaml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "streams.yaml", environ=environ)


def one_stream(tmp_path: Path, options: str, **environ: str) -> StreamConfig:
    text = f"kafka: {{bootstrap.servers: a}}\nstreams: {{orders: {{topics: [orders], {options}}}}}"
    return load(tmp_path, text, **environ).stream("orders")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("false", None),
        ("true", Backpressure(1.0, 0.2, 0.0, 100.0, None)),
        ("{}", Backpressure()),
        ("{min_rate: 5, initial_rate: null}", Backpressure(min_rate=5.0)),
        ("'${ON}'", Backpressure()),
        ("{initial_rate: '${RATE}'}", Backpressure(initial_rate=250.0)),
    ],
)
def test_backpressure_has_sparks_terms_unless_others_are_given(tmp_path, written, read):
    """`true` and an empty mapping mean the defaults, a mapping overrides them term by term, `false` means none."""
    stream = one_stream(tmp_path, f"backpressure: {written}", ON="true", RATE="250")
    assert stream.backpressure == read
    assert stream.rate_limits == (("backpressure",) if read else ())


def test_every_option_is_read(tmp_path):
    """Each option of the file arrives in the stream with its type and unit."""
    config = load(tmp_path, EVERYTHING)
    assert config.path == tmp_path / "streams.yaml"
    assert config.warehouse.path == Path("/srv/warehouse.duckdb")
    assert config.warehouse.staging == Path("/srv/warehouse.duckdb.staging")
    assert config.warehouse.lock_timeout == 5.0
    assert config.warehouse.max_staged_bytes == 1024**3
    properties = {"bootstrap.servers": "127.0.0.1:9092", "socket.keepalive.enable": "true"}
    properties |= {"socket.timeout.ms": "10000", "client.id": "own", "client.rack": "a"}
    assert config.stream("orders") == StreamConfig(
        name="orders",
        selection=Topics(("orders", "orders.eu")),
        table=TableName("sales", "orders"),
        format=FormatConfig("utf8", {}),
        starting_offsets=StartingOffsets(
            Earliest(),
            {
                TopicPartition("orders", 0): AtOffset(1200),
                TopicPartition("orders", 1): Earliest(),
                TopicPartition("orders", 2): Latest(),
                TopicPartition("orders.eu", 0): AtTimestamp(-1000),
            },
        ),
        kafka=KafkaProperties(properties | {"isolation.level": "read_uncommitted"}),
        max_records_per_batch=5,
        max_records_per_partition_per_second=0.5,
        max_bytes_per_batch=1_000_000_000,
        min_records_per_batch=2,
        max_batch_delay=0.0,
        max_batches_in_flight=100,
        interval=0.5,
        backpressure=Backpressure(0.5, 0.0, 0.1, 7.0, 2.5),
        stall_timeout=120.0,
        batch_timeout=172_800.0,
        max_attempts=1,
        on_data_loss="skip",
        on_topic_recreated="restart",
        on_bad_record="quarantine",
        enabled=False,
    )


def test_streams_inherit_the_defaults(tmp_path):
    """What a stream does not say comes from `defaults`, and from the built-in values after that."""
    stream = load(tmp_path, EVERYTHING).stream("patterned")
    assert stream.selection == TopicPattern(r"orders\..*$")
    assert (stream.max_attempts, stream.interval, stream.max_records_per_batch) == (7, 60.0, 1_000_000)
    assert stream.max_bytes_per_batch == 268_435_456
    assert stream.kafka.resolve({})["client.id"] == "shared"
    assert stream.starting_offsets == StartingOffsets(Earliest(), {})


def test_a_selection_overrides_another_kind_in_the_defaults(tmp_path):
    """A stream's own way to select topics replaces the one of `defaults`, whichever kind that is."""
    config = load(
        tmp_path,
        "kafka: {bootstrap.servers: a}\ndefaults: {topics: [a]}\nstreams: {x: , y: {assign: {b: [0]}}}",
    )
    assert config.stream("x").selection == Topics(("a",))
    assert config.stream("y").selection == Assignment({"b": (0,)})


def test_assignment_is_sorted_and_a_time_with_its_zone_is_utc(tmp_path):
    """Assigned partitions come in ascending order, and a starting time counts from 1970 in UTC."""
    stream = load(tmp_path, EVERYTHING).stream("assigned")
    assert stream.selection == Assignment({"orders": (0, 3)})
    assert stream.starting_offsets == StartingOffsets(AtTimestamp(1_767_225_600_000), {})


def test_a_topic_may_be_called_timestamp(tmp_path):
    """A mapping below `timestamp` makes it a topic's name."""
    stream = load(
        tmp_path,
        "kafka: {bootstrap.servers: a}\n"
        "streams: {x: {topics: [timestamp], starting_offsets: {timestamp: {0: 5}}}}",
    ).stream("x")
    assert stream.starting_offsets.partitions == {TopicPartition("timestamp", 0): AtOffset(5)}


def test_keys_are_taken_as_written(tmp_path):
    """A key that YAML would take for a number or a boolean keeps its text."""
    config = load(
        tmp_path, "kafka: {bootstrap.servers: a}\nstreams: {on: {topics: [a]}, 007: {topics: [a], table: t}}"
    )
    assert list(config.streams) == ["on", "007"]


def test_aliases_and_merged_mappings_are_yaml(tmp_path):
    """Aliases and merge keys work, and own keys win over merged ones."""
    config = load(
        tmp_path,
        "kafka: {bootstrap.servers: a}\n"
        "streams:\n"
        "  a: &a {topics: [t], max_attempts: 2, interval: 1s}\n"
        "  b: {<<: *a, max_attempts: 3}\n",
    )
    assert config.stream("b") == dataclasses.replace(
        config.stream("a"), name="b", table=TableName(None, "b"), max_attempts=3
    )


def test_without_a_warehouse_section_the_file_stands_beside(tmp_path):
    """The warehouse is data/warehouse.duckdb beside the streams file, unless it says otherwise."""
    config = load(tmp_path, "kafka: {bootstrap.servers: a}\nstreams: {x: {topics: [a]}}")
    assert config.warehouse.path == tmp_path / "data" / "warehouse.duckdb"
    assert config.warehouse.lock_timeout == 60.0
    assert config.warehouse.max_staged_bytes == 2 * 1024**3


def test_relative_paths_begin_at_the_file(tmp_path, monkeypatch):
    """A relative warehouse is looked for beside the streams file, not in the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "streams.yaml").write_text(
        "kafka: {bootstrap.servers: a}\nwarehouse: {uri: duckdb:///../w.duckdb}\nstreams: {x: {topics: [a]}}"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config("project/streams.yaml")
    assert config.path == folder / "streams.yaml"
    assert config.warehouse.path == tmp_path / "w.duckdb"


def test_relative_paths_begin_beside_a_link(tmp_path):
    """A streams file that is a link keeps its own folder as the place where relative paths begin."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "s.yaml").write_text("kafka: {bootstrap.servers: a}\nstreams: {x: {topics: [a]}}")
    (tmp_path / "streams.yaml").symlink_to("hidden/s.yaml")
    assert load_config(tmp_path / "streams.yaml").warehouse.path == tmp_path / "data" / "warehouse.duckdb"


def test_the_file_is_found_by_the_environment_then_by_its_name(tmp_path, monkeypatch):
    """Without a path, `KAFKA_ASSETS_CONFIG` names the file, else it is streams.yaml here."""
    text = "kafka: {bootstrap.servers: a}\nstreams: {x: {topics: [a]}}"
    (tmp_path / "streams.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAFKA_ASSETS_CONFIG", raising=False)
    assert load_config().path == tmp_path / "streams.yaml"
    monkeypatch.setenv("KAFKA_ASSETS_CONFIG", "other.yaml")
    assert load_config().path == tmp_path / "other.yaml"


@pytest.mark.parametrize(
    ("text", "table", "quoted"),
    [
        ("orders", "orders", '"main"."orders"'),
        ("main.orders", "orders", '"main"."orders"'),
        ("MAIN.orders", "orders", '"main"."orders"'),
        ("sales.Orders", "sales.Orders", '"sales"."Orders"'),
    ],
)
def test_table_names(tmp_path, text, table, quoted):
    """A table prints as given, without the schema main, and is quoted in full."""
    stream = one_stream(tmp_path, f"table: {text}")
    assert (str(stream.table), stream.table.quoted) == (table, quoted)


def test_isolation_level(tmp_path, monkeypatch):
    """`isolation.level` is read_committed unless set, and may come from the environment."""
    assert one_stream(tmp_path, "enabled: true").isolation_level == "read_committed"
    literal = one_stream(tmp_path, "kafka: {isolation.level: read_uncommitted, sasl.password: '${NOT_SET}'}")
    assert literal.isolation_level == "read_uncommitted"
    variable = one_stream(tmp_path, "kafka: {isolation.level: '${LEVEL}'}")
    monkeypatch.setenv("LEVEL", "read_uncommitted")
    assert variable.isolation_level == "read_uncommitted"
    monkeypatch.setenv("LEVEL", "serializable")
    with pytest.raises(ConfigInvalidError, match=r"isolation\.level: must be read_committed or read_unc"):
        _ = variable.isolation_level


def test_resolve_adds_the_default_isolation_level(tmp_path):
    """Resolved properties always say the isolation level."""
    assert one_stream(tmp_path, "enabled: true").kafka.resolve({}) == {
        "bootstrap.servers": "a",
        "isolation.level": "read_committed",
    }


def test_unknown_stream(tmp_path):
    """A stream that is not there is named together with the nearest that is."""
    config = load(tmp_path, EVERYTHING)
    with pytest.raises(StreamUnknownError, match=r"no stream 'order' .* did you mean orders"):
        config.stream("order")
    with pytest.raises(StreamUnknownError, match="it has orders, patterned, assigned"):
        config.stream("zzz")


def test_values_can_be_copied_and_pickled(tmp_path):
    """A configuration survives a copy, a pickle and `dataclasses.asdict`."""
    config = load(tmp_path, EVERYTHING)
    pickled = pickle.loads(pickle.dumps(config))  # noqa: S301 (our own)
    assert pickled == copy.deepcopy(config) == config
    assert dataclasses.asdict(config.stream("assigned"))["kafka"] == config.stream("assigned").kafka


def test_the_sample_loads_with_nothing_else():
    """The streams file of the project loads with neither Kafka nor a warehouse nor a variable."""
    config = load_config(Path(__file__).parent.parent / "streams.yaml", environ={})
    assert config.stream("orders").selection == Topics(("orders",))
    assert config.stream("orders").kafka.resolve({})["bootstrap.servers"] == "127.0.0.1:9092"


def test_importing_needs_no_kafka_client():
    """The module imports neither confluent_kafka nor duckdb nor dagster."""
    code = (
        "import sys, kafka_assets.config.load as _;"
        "print({'confluent_kafka', 'duckdb', 'dagster'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"

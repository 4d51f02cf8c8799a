"""What a streams file may not say: each error has its YAML path, what was given and what is allowed."""

from __future__ import annotations

import os

import pytest

from kafka_assets.config import load_config
from kafka_assets.errors import ConfigInvalidError
from kafka_assets_tests.test_config import load, one_stream


def problems_of(tmp_path, text, **environ):
    with pytest.raises(ConfigInvalidError) as caught:
        load(tmp_path, text, **environ)
    assert str(tmp_path / "streams.yaml") in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


NUMBER = "a whole number from 1 up"
DURATION = "a duration with its unit, like 500ms, 30s, 5m, 1h or 2d"
SIZE = "a size like 256 MiB (1024 based), 1GB (1000 based) or a whole number of bytes"
TIME = "an RFC 3339 time with its zone"
LATER = "is not available in this version yet"

OPTIONS = [
    ("max_records_per_batch: -5", ".max_records_per_batch", "got -5", NUMBER),
    ("max_records_per_batch: 0", ".max_records_per_batch", "got 0", NUMBER),
    ("max_records_per_batch: 1.5", ".max_records_per_batch", "got 1.5", NUMBER),
    ("max_records_per_batch: many", ".max_records_per_batch", "got the text 'many'", NUMBER),
    ("max_records_per_batch: true", ".max_records_per_batch", "got true", NUMBER),
    ("max_records_per_batch: ", ".max_records_per_batch", "got nothing (null)", NUMBER),
    ("max_records_per_batch: [1]", ".max_records_per_batch", "got a list", NUMBER),
    ("max_records_per_batch: {a: 1}", ".max_records_per_batch", "got a mapping", NUMBER),
    ("max_records_per_batch: 9223372036854775808", ".max_records_per_batch", "9223372036854775808", NUMBER),
    ("max_records_per_batch: 0x10", ".max_records_per_batch", "got the text '0x10'", NUMBER),
    ("max_records_per_batch: 1:30", ".max_records_per_batch", "got the text '1:30'", NUMBER),
    ("min_records_per_batch: 0", ".min_records_per_batch", "got 0", NUMBER),
    ("max_attempts: 0", ".max_attempts", "got 0", NUMBER),
    ("max_batches_in_flight: 101", ".max_batches_in_flight", "got 101", "a whole number from 1 to 100"),
    ("max_batches_in_flight: 0", ".max_batches_in_flight", "got 0", "a whole number from 1 to 100"),
    ("max_records_per_partition_per_second: 0", "_per_second", "got 0", "a number above 0, or null"),
    ("max_records_per_partition_per_second: .nan", "_per_second", "got the text '.nan'", "above 0"),
    ("max_records_per_partition_per_second: 1e999", "_per_second", "got the text '1e999'", "above 0"),
    ("max_records_per_partition_per_second: yes", "_per_second", "got yes", "a number above 0, or null"),
    ("max_bytes_per_batch: 0", ".max_bytes_per_batch", "got 0", SIZE),
    ("max_bytes_per_batch: 5 apples", ".max_bytes_per_batch", "got the text '5 apples'", SIZE),
    ("max_bytes_per_batch: 1.5", ".max_bytes_per_batch", "got 1.5", SIZE),
    ("interval: 30", ".interval", "got 30, which has no unit; 30s are seconds", DURATION),
    ("interval: 0s", ".interval", "got the text '0s'", f"{DURATION}, longer than 0s"),
    ("interval: -1s", ".interval", "got the text '-1s'", DURATION),
    ("interval: 1.5", ".interval", "got 1.5", DURATION),
    ("interval: [1s]", ".interval", "got a list", DURATION),
    ("stall_timeout: soon", ".stall_timeout", "got the text 'soon'", DURATION),
    ("batch_timeout: 0s", ".batch_timeout", "got the text '0s'", "longer than 0s"),
    ("max_batch_delay: false", ".max_batch_delay", "got false", DURATION),
    ("enabled: 'yes'", ".enabled", "got the text 'yes'", "true or false"),
    ("enabled: 1", ".enabled", "got 1", "true or false"),
    ("on_data_loss: ignore", ".on_data_loss", "got the text 'ignore'", "fail or skip"),
    ("on_data_loss: false", ".on_data_loss", "got false", "fail or skip"),
    ("on_topic_recreated: skip", ".on_topic_recreated", "got the text 'skip'", "fail or restart"),
    ("on_bad_record: drop", ".on_bad_record", "got the text 'drop'", "fail or quarantine"),
    ("backpressure: 5", ".backpressure", "got 5", "true, false or a mapping of proportional, integral,"),
    ("backpressure: 'true'", ".backpressure", "got the text 'true'", "true, false or a mapping"),
    ("backpressure: ", ".backpressure", "got nothing (null)", "true, false or a mapping"),
    ("backpressure: [1]", ".backpressure", "got a list", "true, false or a mapping"),
    (
        "backpressure: {proportion: 1}",
        ".backpressure.proportion",
        "unknown key",
        "did you mean proportional?",
    ),
    ("backpressure: {proportional: -1}", ".backpressure.proportional", "got -1", "a number from 0 to 1000"),
    ("backpressure: {integral: 1001}", ".backpressure.integral", "got 1001", "a number from 0 to 1000"),
    ("backpressure: {derived: .nan}", ".backpressure.derived", "got the text '.nan'", "a number from 0"),
    ("backpressure: {derived: true}", ".backpressure.derived", "got true", "a number from 0 to 1000"),
    ("backpressure: {min_rate: 0}", ".backpressure.min_rate", "got 0", "a number above 0 up to 1e+12"),
    ("backpressure: {min_rate: }", ".backpressure.min_rate", "got nothing (null)", "a number above 0"),
    ("backpressure: {initial_rate: 0}", ".backpressure.initial_rate", "got 0", "above 0, or null"),
    ("format: json", ".format", f"the format json {LATER}", "use raw or utf8"),
    ("format: {json: {columns: {id: BIGINT}}}", ".format", f"the format json {LATER}", "use raw or utf8"),
    ("format: avro", ".format", f"the format avro {LATER}", "use raw or utf8"),
    ("format: {protobuf: }", ".format", f"the format protobuf {LATER}", "use raw or utf8"),
    ("format: csv", ".format", "got the text 'csv'", "raw or utf8"),
    ("format: {csv: {}}", ".format", "a key that is no format", "raw or utf8"),
    ("format: {raw: , utf8: }", ".format", "a mapping of 2 keys", "raw or utf8"),
    ("format: {raw: {size: 1}}", ".format.raw.size", "unknown key", "raw has no options"),
    ("format: [raw]", ".format", "got a list", "raw or utf8"),
    ("table: a.b.c", ".table", "got the text 'a.b.c'", "a table as name or schema.name"),
    ("table: 'a-b'", ".table", "got the text 'a-b'", "a table as name or schema.name"),
    ("table: 'x\"; DROP'", ".table", "DROP", "a table as name or schema.name"),
    ("table: .a", ".table", "got the text '.a'", "a table as name or schema.name"),
    ("table: a.", ".table", "got the text 'a.'", "a table as name or schema.name"),
    ("table: 5", ".table", "got 5", "write it in quotes"),
    ("table: Kafka_Assets.x", ".table", "Kafka_Assets.x", "a schema other than kafka_assets,"),
    ("table: kafka_assets_ledger.x", ".table", "kafka_assets_ledger.x", "a schema other than"),
    ("table: information_schema.x", ".table", "information_schema.x", "a schema other than"),
    ("table: pg_catalog.x", ".table", "pg_catalog.x", "a schema other than"),
    ("starting_offsets: newest", ".starting_offsets", "got the text 'newest'", "earliest, latest, {timest"),
    ("starting_offsets: 5", ".starting_offsets", "got 5", "earliest, latest, {timestamp"),
    ("starting_offsets: [latest]", ".starting_offsets", "got a list", "earliest, latest, {timestamp"),
    ("starting_offsets: {}", ".starting_offsets", "got an empty mapping", "earliest, latest, {timestamp"),
    ("starting_offsets: {timestamp: 2026-01-01}", ".timestamp", "'2026-01-01'", TIME),
    ("starting_offsets: {timestamp: 2026-01-01T00:00:00}", ".timestamp", "'2026-01-01T00:00:00'", TIME),
    ("starting_offsets: {timestamp: 2026-99-01T00:00:00Z}", ".timestamp", "'2026-99-01T00", TIME),
    ("starting_offsets: {timestamp: 1767225600000}", ".timestamp", "got 1767225600000", TIME),
    ("starting_offsets: {timestamp: }", ".timestamp", "got nothing", TIME),
    ("starting_offsets: {orders: earliest}", ".starting_offsets.orders", "a single value", "by partition"),
    ("starting_offsets: {orders: {0: -1}}", ".starting_offsets.orders.0", "got -1", "an offset from 0 up"),
    ("starting_offsets: {orders: {0: first}}", ".starting_offsets.orders.0", "'first'", "an offset from 0"),
    ("starting_offsets: {orders: {0: {at: 5}}}", ".starting_offsets.orders.0", "a mapping", "an offset fr"),
    ("starting_offsets: {orders: {0: [5]}}", ".starting_offsets.orders.0", "got a list", "an offset from"),
    ("starting_offsets: {orders: {0: {timestamp: 5}}}", ".orders.0.timestamp", "got 5", TIME),
    (
        "starting_offsets: {orders: {p: 1}}",
        ".starting_offsets.orders.p",
        "its key is no partition",
        "2147483647",
    ),
    ("starting_offsets: {orders: {-1: 1}}", ".starting_offsets.orders.-1", "no partition", "from 0 to"),
    ("starting_offsets: {orders: {0: 1, 00: 2}}", ".starting_offsets.orders.00", "given twice", "keep one"),
    ("starting_offsets: {'a b': {0: 1}}", ".starting_offsets.a?b", "no topic name", "1 to 249 of"),
    ("starting_offsets: {other: {0: 1}}", ".starting_offsets", "names other[0]", "partitions of orders"),
    ("min_records_per_batch: 9, max_records_per_batch: 8", ".min_records_per_batch", "9, above its", " 8;"),
    ("max_recrds_per_batch: 5", ".max_recrds_per_batch", "unknown key", "did you mean max_records_per_batch"),
    ("bogus: 5", ".bogus", "unknown key", "known here are topics, topic_pattern, assign, kafka"),
    ("security.protocol: x", ".security.protocol", "unknown key", "librdkafka properties stand under kafka"),
    ("max_attempts: '${N}'", ".max_attempts", "got '${N}', whose content is not shown", NUMBER),
    ("enabled: '${N}'", ".enabled", "got '${N}', whose content is not shown", "true or false"),
    ("enabled: '${'", ".enabled", "has a '${' that is neither", "written $$"),
    ("max_attempts: !!python/name:os.system x", ".max_attempts", "has a YAML tag", "none is understood"),
    ("max_attempts: !!binary aGk=", ".max_attempts", "has a YAML tag", "none is understood"),
    ("max_attempts: 1, max_attempts: 2", ".max_attempts", "is given twice, at lines 2 and 2", "keep one"),
    ("kafka: {auto.offset.reset: latest}", ".kafka.auto.offset.reset", "not yours", "starting_offsets"),
    ("kafka: {enable.auto.commit: true}", ".kafka.enable.auto.commit", "not yours", "never committed"),
    ("kafka: {auto.commit.enable: true}", ".kafka.auto.commit.enable", "not yours", "never committed"),
    ("kafka: {enable.auto.offset.store: no}", ".enable.auto.offset.store", "not yours", "leave it out"),
    ("kafka: {enable.partition.eof: no}", ".enable.partition.eof", "not yours", "max_records_per_batch"),
    ("kafka: {allow.auto.create.topics: no}", ".allow.auto.create.topics", "not yours", "topics"),
    ("kafka: {metadata.broker.list: a}", ".metadata.broker.list", "not yours", "use bootstrap.servers"),
    ("kafka: {sasl.jaas.config: a}", ".sasl.jaas.config", "not yours", "use sasl.mechanisms"),
    ("kafka: {oauth_token: 'a:b'}", ".kafka.oauth_token", "SASL/OAUTHBEARER alone", "sasl.mechanisms"),
    (
        "kafka: {security.protocol: SASL_SSL, sasl.mechanisms: OAUTHBEARER, oauth_token: os.getcwd()}",
        ".kafka.oauth_token",
        "must name",
        "module:function",
    ),
    ("kafka: {error_cb: a}", ".kafka.error_cb", "takes a Python object", "leave it out"),
    ("kafka: {oauth_cb: a}", ".kafka.oauth_cb", "takes a Python object", "leave it out"),
    ("kafka: {logger: a}", ".kafka.logger", "takes a Python object", "leave it out"),
    ("kafka: {bootstrap.server: a}", ".bootstrap.server", "not a property", "did you mean bootstrap.servers"),
    ("kafka: {bootstrap.server: '${A}'}", ".bootstrap.server", "not a property", "did you mean bootstrap.s"),
    ("kafka: {zzzzzz: a}", ".kafka.zzzzzz", "not a property", "CONFIGURATION.md"),
    ('kafka: {"client.id\\0x": a}', ".kafka.client.id?x", "not a property", "did you mean client.id"),
    ("kafka: {isolation.level: dirty}", ".isolation.level", "got 'dirty'", "read_committed or read_unc"),
    ("kafka: {isolation.level: READ_COMMITTED}", ".isolation.level", "READ_COMMITTED", "read_committed or"),
    ("kafka: {security.protocol: tls}", ".security.protocol", '"tls"', "is refused by librdkafka"),
    ("kafka: {socket.timeout.ms: 1}", ".socket.timeout.ms", "value 1", "allowed range 10..300000"),
    ("kafka: {bootstrap.servers: 'a,,b'}", ".bootstrap.servers", "got 'a,,b'", "addresses like host:9092"),
    ("kafka: {bootstrap.servers: [a, b]}", ".bootstrap.servers", "got a list", "separated by commas"),
    ("kafka: {client.id: {a: b}}", ".kafka.client.id", "got a mapping", "one text, number or true/false"),
    ("kafka: {client.id: }", ".kafka.client.id", "got nothing (null)", "one text, number or true/false"),
    ("kafka: {client.id: '${'}", ".kafka.client.id", "has a '${' that is neither", "written $$"),
    ('kafka: {client.id: "a\\0b"}', ".kafka.client.id", "holds a NUL character", "librdkafka cannot take"),
    ('kafka: {client.id: "\\uD800"}', ".kafka.client.id", "not valid Unicode", "librdkafka cannot take"),
    ("kafka: sasl", ".kafka", "got a single value", "a mapping of librdkafka properties"),
]


@pytest.mark.parametrize(("option", "path", "given", "allowed"), OPTIONS, ids=[row[0] for row in OPTIONS])
def test_options(tmp_path, option, path, given, allowed):
    """An option that cannot be is one problem: its path and line, what was given, what is allowed."""
    with pytest.raises(ConfigInvalidError) as caught:
        one_stream(tmp_path, option, N="hidden")
    (problem,) = caught.value.problems
    where, _, what = problem.partition(": ")
    assert where.startswith("streams.orders.")
    assert where.endswith(f"{path} (line 2)")
    assert given in what
    assert allowed in what
    assert "hidden" not in str(caught.value)
    assert "\n" not in problem


SELECTIONS = [
    ("", "streams.orders (line 2)", "reads nothing", "exactly one of topics, topic_pattern, assign"),
    ("topics: [a], assign: {a: [0]}", "streams.orders (line 2)", "has topics and assign", "exactly one of"),
    ("topics: []", ".topics", "got an empty list", "a list of topic names, like [orders]"),
    ("topics: orders", ".topics", "got the text 'orders'", "a list of topic names, like [orders]"),
    ("topics: {orders: }", ".topics", "got a mapping", "a list of topic names, like [orders]"),
    ("topics: [a, a]", ".topics[1]", "got the text 'a'", "name each topic once"),
    ("topics: [5]", ".topics[0]", "got 5", "write it in quotes if 5 is meant"),
    ("topics: [a/b]", ".topics[0]", "got the text 'a/b'", "1 to 249 of [a-zA-Z0-9._-]"),
    ("topics: [.]", ".topics[0]", "got the text '.'", "neither . nor .."),
    ("topics: [..]", ".topics[0]", "got the text '..'", "neither . nor .."),
    (f"topics: [{'a' * 250}]", ".topics[0]", "got the text 'aaaa", "1 to 249 of"),
    ("topics: ['']", ".topics[0]", "got the text ''", "1 to 249 of"),
    ('topics: ["a\\n"]', ".topics[0]", "got the text 'a\\n'", "1 to 249 of"),
    ("topics: [[a]]", ".topics[0]", "got a list", "1 to 249 of"),
    ("topic_pattern: '['", ".topic_pattern", "got the text '['", "a regular expression"),
    ("topic_pattern: ''", ".topic_pattern", "got the text ''", "a regular expression"),
    ("topic_pattern: [a]", ".topic_pattern", "got a list", "a regular expression"),
    ("assign: {}", ".assign", "got an empty mapping", "partitions by topic, like {orders: [0, 1]}"),
    ("assign: ", ".assign", "got nothing", "partitions by topic, like {orders: [0, 1]}"),
    ("assign: [a]", ".assign", "got a list", "partitions by topic, like {orders: [0, 1]}"),
    ("assign: {a: 0}", ".assign.a", "got 0", "a list of partition numbers, like [0, 1]"),
    ("assign: {a: []}", ".assign.a", "got an empty list", "a list of partition numbers"),
    ("assign: {a: [-1]}", ".assign.a[0]", "got -1", "a whole number from 0 to 2147483647"),
    ("assign: {a: [0, 0]}", ".assign.a[1]", "got 0", "name each partition once"),
    ("assign: {a: [x]}", ".assign.a[0]", "got the text 'x'", "a whole number from 0 to"),
    ("assign: {a b: [0]}", ".assign.a?b", "no topic name", "1 to 249 of"),
    ("assign: {a: [0]}, starting_offsets: {a: {1: 5}}", ".starting_offsets", "names a[1]", "of a [0]"),
    ("topic_pattern: a.*, starting_offsets: {b: {1: 5}}", ".starting_offsets", "names b[1]", "match 'a.*'"),
    ("topic_pattern: .*, starting_offsets: {__b: {1: 5}}", ".starting_offsets", "names __b[1]", "internal"),
]


@pytest.mark.parametrize(
    ("option", "path", "given", "allowed"), SELECTIONS, ids=[row[0] for row in SELECTIONS]
)
def test_selections(tmp_path, option, path, given, allowed):
    """A stream selects its topics in exactly one way, by names that Kafka allows."""
    text = f"kafka: {{bootstrap.servers: a}}\nstreams: {{orders: {{{option}}}}}"
    (problem,) = problems_of(tmp_path, text)
    assert path in problem.partition(": ")[0]
    assert given in problem
    assert allowed in problem


STREAM = "streams: {orders: {topics: [orders]}}"
KAFKA = "kafka: {bootstrap.servers: a}"
FILES = [
    ("", "the file is empty; it needs at least `kafka` and `streams`"),
    ("# nothing\n", "the file is empty"),
    ("~", "the file is empty"),
    ("- a", "the file is not a mapping"),
    ("text", "the file is not a mapping"),
    (f"{KAFKA}\n", "streams: no stream is defined; add one"),
    (f"{KAFKA}\nstreams:\n", "streams (line 2): no stream is defined; add one"),
    (f"{KAFKA}\nstreams: []", "streams (line 2): got a list, allowed is a mapping of streams"),
    (
        f"{KAFKA}\nstreams: {{a-b: {{topics: [a], table: t}}}}",
        "streams.a-b (line 2): its key is no stream name",
    ),
    (
        f"{KAFKA}\nstreams: {{1a: {{topics: [a]}}}}",
        "streams.1a (line 2): its name '1a' is no table name; give",
    ),
    (f"{KAFKA}\nstreams: {{a: [b]}}", "streams.a (line 2): got a list, allowed is a mapping of options"),
    (STREAM, "kafka.bootstrap.servers: is missing; give the brokers' addresses"),
    (f"kafka: {{group.id: g}}\n{STREAM}", "kafka.bootstrap.servers: is missing"),
    (f"{KAFKA}\n{STREAM}\nstrems: 5", "strems (line 3): unknown key; did you mean streams?"),
    (f"{KAFKA}\n{STREAM}\ndefaults: [a]", "defaults (line 3): got a list, allowed is a mapping of options"),
    (f"{KAFKA}\n{STREAM}\ndefaults: {{interval: 5}}", "defaults.interval (line 3): got 5, which has no unit"),
    (
        f"{KAFKA}\n{STREAM}\ndefaults: {{intervall: 5s}}",
        "defaults.intervall (line 3): unknown key; did you mean",
    ),
    (
        f"{KAFKA}\n{STREAM}\ndefaults: {{kafka: {{logger: 1}}}}",
        "defaults.kafka.logger (line 3): takes a Python",
    ),
    (
        f"{KAFKA}\n{STREAM}\ndefaults: {{format: json}}",
        "defaults.format (line 3): the format json is not avail",
    ),
    (f"{KAFKA}\n{STREAM}\ndefaults: {{topics: [a], topic_pattern: b}}", "defaults (line 3): has topics and"),
    (
        f"{KAFKA}\n{STREAM}\nwarehouse: duckdb:///x",
        "warehouse (line 3): got a single value, allowed is a map",
    ),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{url: x}}", "warehouse.url (line 3): unknown key; did you mean uri?"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 5}}", "warehouse.uri (line 3): got 5, allowed is duckdb:///FILE"),
    (
        f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: x.db}}",
        "warehouse.uri (line 3): got something else, allowed is",
    ),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: duckdb://x.db}}", "warehouse.uri (line 3): got something else"),
    (
        f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'ducklake:x'}}",
        "a warehouse of ducklake: is not available in this",
    ),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'postgres://h/d'}}", "a warehouse of postgres: is not available"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'duckdb:///'}}", "got no file name after duckdb:///"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'duckdb:///d/'}}", "got no file name after duckdb:///"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'duckdb:///..'}}", "got no file name after duckdb:///"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'duckdb:///:memory:'}}", "got :memory:"),
    (f"{KAFKA}\n{STREAM}\nwarehouse: {{uri: 'duckdb:///a?b=c'}}", "a ? or an unprintable character"),
    (
        f"{KAFKA}\n{STREAM}\nwarehouse: {{lock_timeout: -1s}}",
        "warehouse.lock_timeout (line 3): got the text '-1s'",
    ),
    (
        f"{KAFKA}\n{STREAM}\nwarehouse: {{max_staged_bytes: 0}}",
        "warehouse.max_staged_bytes (line 3): got 0, allowed is",
    ),
    (f"{KAFKA}\n{STREAM}\n{KAFKA}", "kafka (line 1): is given twice, at lines 1 and 3; keep one"),
    (f"{KAFKA}\n{STREAM}\n? [a]\n: b", "has a key at line 3 that is not plain text"),
    (
        f"{KAFKA}\n{STREAM}\ndefaults: &d {{kafka: *d}}",
        "defaults.kafka (line 3): contains itself through an ali",
    ),
    (f"{KAFKA}\nstreams: {{a: {{<<: 5, topics: [a]}}}}", "streams.a.<< (line 2): takes mappings only"),
    (f"{KAFKA}\nstreams: [", "line 2, column 11: not valid YAML: expected the node content"),
    ("a: b: c", "line 1, column 5: not valid YAML: mapping values are not allowed here"),
    (
        "kafka: {\n\tbootstrap.servers",
        "line 2, column 1: not valid YAML: found character '\\t' that cannot start",
    ),
    ("a: 1\n---\nb: 2", "not valid YAML: but found another document"),
    ("a: \x01", "line 1: not valid YAML: holds the character #x0001"),
    ('a: "\\UFFFFFFFF"', "not valid YAML: an escape or version number"),
    ("[" * 5000, "not usable YAML: nested too deeply"),
    (
        f"{KAFKA}\nstreams: {{a: {{topics: [a], table: x}}, b: {{topics: [b], table: Main.X}}}}",
        "streams.b (line 2): writes to the table X, which belongs to the stream a (case does not matter)",
    ),
    (
        f"{KAFKA}\nstreams: {{a: {{topics: [a]}}, A: {{topics: [b]}}}}",
        "streams.A (line 2): writes to the table A, which belongs to the stream a",
    ),
]


@pytest.mark.parametrize(("text", "expected"), FILES, ids=[row[1] for row in FILES])
def test_files(tmp_path, text, expected):
    """A file that is not as it should be is one problem that says where and why."""
    (problem,) = problems_of(tmp_path, text)
    assert expected in problem


def test_bootstrap_servers_may_come_from_the_stream(tmp_path):
    """Addresses of a stream suffice, and only the streams without any make a problem."""
    own = "a: {topics: [a], kafka: {bootstrap.servers: x}}"
    assert load(tmp_path, f"streams: {{{own}}}").stream("a").kafka.resolve({})["bootstrap.servers"] == "x"
    (problem,) = problems_of(tmp_path, f"streams: {{{own}, b: {{topics: [b]}}, c: {{topics: [c]}}}}")
    assert problem.startswith("kafka.bootstrap.servers: is missing")


def test_an_empty_address_from_the_environment(tmp_path):
    """Addresses that a variable leaves empty are an error on use, before any broker is asked."""
    stream = one_stream(tmp_path, "kafka: {bootstrap.servers: '${B}'}")
    with pytest.raises(ConfigInvalidError, match=r"orders\.kafka\.bootstrap\.servers: must be addresses"):
        stream.kafka.resolve({"B": ""})


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path):
    """One load names everything that is wrong, from the top down."""
    found = problems_of(
        tmp_path,
        "kafka: {enable.auto.commit: true, bootstrap.servers: a}\n"
        "warehouse: {uri: nowhere}\n"
        "streams:\n"
        "  a: {topics: [a], interval: 5, max_attempts: 0}\n"
        "  b: {topics: [b/c], on_data_loss: '${NONE}'}\n"
        "  c: {}\n",
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "kafka.enable.auto.commit (line 1)",
        "warehouse.uri (line 2)",
        "streams.a.interval (line 4)",
        "streams.a.max_attempts (line 4)",
        "streams.b.topics[0] (line 5)",
        "streams.b.on_data_loss (line 5)",
        "streams.c (line 6)",
    ]


def test_one_fault_makes_no_second_problem(tmp_path):
    """What depends on an option that cannot be read is not complained about as well."""
    found = problems_of(
        tmp_path,
        f"{KAFKA}\n"
        "streams:\n"
        "  a: {topics: [5], starting_offsets: {x: {0: 1}}, min_records_per_batch: 2000000,"
        " max_records_per_batch: lots}\n",
    )
    assert len(found) == 2


def test_aliases_do_not_multiply(tmp_path):
    """A small file of nested aliases is read in no time, and refused for what it says."""
    levels = "\n".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))
    assert problems_of(tmp_path, f"{KAFKA}\n{STREAM}\nbomb:\n  a0: &a0 [x]\n{levels}") == (
        "bomb (line 4): unknown key; known here are kafka, warehouse, defaults, streams",
    )


def test_files_that_cannot_be_read(tmp_path):
    """A file that is missing, a folder, no file name or not UTF-8 is an error that names it."""
    with pytest.raises(
        ConfigInvalidError, match=r"no streams file at .*none\.yaml; make one, or name another with"
    ):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigInvalidError, match=r"is a folder; name the streams file in it"):
        load_config(tmp_path)
    with pytest.raises(ConfigInvalidError, match=r"cannot be read \(not a file name\)"):
        load_config("a\0b")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalidError, match=r"cannot be read \(Not a directory\)"):
        load_config(tmp_path / "file" / "streams.yaml")
    (tmp_path / "latin.yaml").write_bytes("kafka: é".encode("latin-1"))
    with pytest.raises(ConfigInvalidError, match=r"is not UTF-8 at byte 7; save it as UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_a_file_without_permission(tmp_path, monkeypatch):
    """A file the system does not let us read is an error with the system's reason."""
    (tmp_path / "streams.yaml").touch()

    def refuse(*_):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(ConfigInvalidError, match=r"cannot be read \(Permission denied\)"):
        load_config(tmp_path / "streams.yaml")


def test_a_byte_order_mark_is_no_problem(tmp_path):
    """A file saved with a byte order mark loads."""
    (tmp_path / "streams.yaml").write_text(f"{KAFKA}\n{STREAM}", encoding="utf-8-sig")
    assert list(load_config(tmp_path / "streams.yaml").streams) == ["orders"]

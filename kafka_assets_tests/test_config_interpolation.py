"""References to the environment in scalars."""

from __future__ import annotations

import pytest

from kafka_assets.config.interpolate import references, substitute
from kafka_assets.errors import ConfigInvalidError
from kafka_assets_tests.test_config import one_stream


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${A}", "a"),
        ("x-${A}-${A}", "x-a-a"),
        ("${A:-other}", "a"),
        ("${NONE:-other}", "other"),
        ("${NONE:-}", ""),
        ("${EMPTY:-other}", "other"),
        ("${EMPTY}", ""),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("$$${A}", "$a"),
        ("$A $1 end$", "$A $1 end$"),
        ("${NONE:-a:-b $x}", "a:-b $x"),
        ("${TWICE}", "${A} $$"),
        ("${YAML}", "[1, {a: b}] # no"),
    ],
)
def test_substitution(text, value):
    """References are replaced once, and what they bring in is left alone."""
    environ = {"A": "a", "EMPTY": "", "TWICE": "${A} $$", "YAML": "[1, {a: b}] # no"}
    assert substitute(text, environ) == value


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A:?must}", "${A-b}", "${ A }", "$$${"])
def test_a_malformed_reference_is_an_error(text):
    """A `${` that begins no reference is an error, which tells how a dollar sign is written."""
    with pytest.raises(ValueError, match=r"dollar sign itself is written \$\$"):
        references(text)


def test_values_are_typed_after_substitution(tmp_path):
    """A variable's content becomes what the option needs."""
    stream = one_stream(
        tmp_path,
        "max_records_per_batch: '${N}', enabled: '${E}', interval: '${I}', max_bytes_per_batch: '${S}',"
        " max_records_per_partition_per_second: '${R}', starting_offsets: {orders: {0: '${O}', 1: '${W}'}}",
        N="5",
        E="false",
        I="2s",
        S="1024",
        R="1e3",
        O="7",
        W="latest",
    )
    assert (stream.max_records_per_batch, stream.enabled, stream.interval) == (5, False, 2.0)
    assert (stream.max_bytes_per_batch, stream.max_records_per_partition_per_second) == (1024, 1000.0)
    assert [repr(start) for start in stream.starting_offsets.partitions.values()] == [
        "AtOffset(offset=7)",
        "Latest()",
    ]


def test_an_empty_variable_may_stand_for_no_limit(tmp_path):
    """Where null is allowed, a variable that is empty or says null is null."""
    for content in ("", "null"):
        stream = one_stream(tmp_path, "max_records_per_partition_per_second: '${R}'", R=content)
        assert stream.max_records_per_partition_per_second is None


def test_content_that_looks_like_yaml_stays_one_text(tmp_path):
    """A variable that holds YAML adds no structure to the file."""
    with pytest.raises(ConfigInvalidError, match=r"streams\.orders\.starting_offsets.*got '\$\{T\}'"):
        one_stream(tmp_path, "starting_offsets: '${T}'", T="{timestamp: 2026-01-01T00:00:00Z}")
    assert one_stream(tmp_path, "kafka: {client.id: '${C}'}").kafka.resolve({"C": "[a]\nb: ${D}"})[
        "client.id"
    ] == ("[a]\nb: ${D}")


def test_keys_are_not_substituted(tmp_path):
    """A reference in a key is no reference."""
    with pytest.raises(ConfigInvalidError, match="unknown key"):
        one_stream(tmp_path, "'${A}': 1", A="max_attempts")


def test_a_missing_variable_outside_kafka_is_an_error_at_load(tmp_path):
    """Loading names the YAML path and the variable that is not set."""
    with pytest.raises(ConfigInvalidError) as caught:
        one_stream(tmp_path, "max_attempts: '${NOT_THERE}'")
    assert "streams.orders.max_attempts (line 2): needs the environment variable NOT_THERE" in str(
        caught.value
    )


def test_a_missing_variable_under_kafka_is_an_error_on_use(tmp_path):
    """Loading needs no secret; using the properties names every path and variable that is missing."""
    stream = one_stream(
        tmp_path, "kafka: {client.id: '${ONE}', sasl.username: 'x${TWO}', client.rack: '${THREE:-c}'}"
    )
    with pytest.raises(ConfigInvalidError) as caught:
        stream.kafka.resolve({"ONE": "1"})
    (problem,) = caught.value.problems
    assert problem == (
        "streams.orders.kafka.sasl.username: needs the environment variable TWO, which is not set;"
        " set it, or give a default: ${TWO:-...}"
    )
    assert stream.kafka.resolve({"ONE": "1", "TWO": "2"})["sasl.username"] == "x2"

"""Secrets stay where they are: in no repr, text or error."""

from __future__ import annotations

import dataclasses
import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_assets.config import KafkaProperties
from kafka_assets.errors import ConfigInvalidError
from kafka_assets_tests.test_config import load, one_stream

SECRET = "hunter2-Zx9"  # noqa: S105 (the planted one)
NAMES = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
]


@pytest.mark.parametrize("text", [SECRET, "${PLANTED}", "a${PLANTED}b", f"${{NONE:-{SECRET}}}"])
def test_a_configuration_shows_no_secret(tmp_path, text):
    """Whatever way a configuration is shown, its secrets are not."""
    options = ", ".join(f"{name}: '{text}'" for name in NAMES)
    stream = one_stream(tmp_path, f"kafka: {{{options}, client.id: me}}")
    shown = [repr(stream), str(stream.kafka), f"{stream.kafka}", json.dumps(stream.kafka.describe())]
    shown += [repr(dataclasses.asdict(stream)), repr(vars(type(stream.kafka))), str({"k": stream.kafka})]
    assert all(SECRET not in text for text in shown)
    assert all(stream.kafka.describe()[name] == "***" for name in NAMES)
    assert stream.kafka.describe()["client.id"] == "me"
    environ = {"PLANTED": SECRET}
    resolved = stream.kafka.resolve(environ)
    assert all(SECRET in resolved[name] for name in NAMES)
    assert stream.kafka.secrets(environ) == {resolved[NAMES[0]]}


def test_a_password_is_taken_as_written(tmp_path):
    """A password that YAML would take for a number keeps its zeros."""
    stream = one_stream(tmp_path, "kafka: {sasl.password: 0070, ssl.key.password: 1_0e5, client.id: 1.10}")
    resolved = stream.kafka.resolve({})
    assert [resolved[key] for key in ("sasl.password", "ssl.key.password", "client.id")] == [
        "0070",
        "1_0e5",
        "1.10",
    ]


def test_a_password_within_an_address_is_secret():
    """An address that holds a user and password is not shown either."""
    properties = KafkaProperties({"bootstrap.servers": "a", "https.proxy": f"http://u:{SECRET}@proxy"})
    assert SECRET not in repr(properties)
    assert properties.secrets({}) == {f"http://u:{SECRET}@proxy"}


def test_secrets_leave_out_what_is_missing_or_empty():
    """Asking for the secrets never fails, and never gives an empty text to look for."""
    properties = KafkaProperties({"sasl.password": "${NONE}", "ssl.key.password": "", "ssl.key.pem": "${"})
    assert properties.secrets({}) == frozenset()


FAULTS = [
    f"kafka: 'sasl.password={SECRET}'",
    f"kafka: [sasl.password, {SECRET}]",
    f"kafka: {{sasl.password: [{SECRET}]}}",
    f"kafka: {{sasl.password: {{a: {SECRET}}}}}",
    f"kafka: {{'sasl.password={SECRET}': }}",
    f"kafka: {{'sasl.password={SECRET}': x}}",
    f"kafka: {{sasl.pasword: {SECRET}}}",
    f"kafka: {{sasl.password: '${{{SECRET}'}}",
    f"kafka: {{sasl.password: *{SECRET}}}",
    f"kafka: {{sasl.password: !{SECRET} }}",
    f"kafka: {{sasl.password: !{SECRET}!x }}",
    f'kafka: {{sasl.password: "{SECRET}\\0"}}',
    f'kafka: {{sasl.password: "{SECRET}\\uD800"}}',
    f"kafka: {{sasl.password: {SECRET}, sasl.password: {SECRET}}}",
    f"kafka: {{sasl.password: {SECRET}: x}}",
    f'kafka: {{sasl.password: "{SECRET}\\q"}}',
    f"kafka: {{sasl.jaas.config: '{SECRET}'}}",
    f"kafka: {{oauth_token: '{SECRET}'}}",
    f"kafka: {{oauth_cb: '{SECRET}'}}",
    f"sasl.password: {SECRET}",
    f"warehouse: {{uri: 'postgres://u:{SECRET}@h/d'}}",
    "max_attempts: '${PLANTED}'",
    "max_records_per_partition_per_second: '${PLANTED}'",
    "max_bytes_per_batch: '${PLANTED}'",
    "interval: '${PLANTED}'",
    "enabled: '${PLANTED}'",
    "backpressure: '${PLANTED}'",
    "backpressure: {min_rate: '${PLANTED}'}",
    "format: '${PLANTED}'",
    "table: '${PLANTED}!'",
    "on_data_loss: '${PLANTED}'",
    "starting_offsets: '${PLANTED}'",
    "starting_offsets: {timestamp: '${PLANTED}'}",
    "starting_offsets: {orders: {0: '${PLANTED}'}}",
    "assign: {orders: ['${PLANTED}']}",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_error_at_load_shows_a_secret(tmp_path, fault):
    """A fault beside, around or in a secret is told without it, in the traceback too."""
    with pytest.raises(ConfigInvalidError) as caught:
        one_stream(tmp_path, fault, PLANTED=SECRET)
    shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "uri",
    [f"postgres://u:{SECRET}@h/d", f"md:x?motherduck_token={SECRET}", f"duckdb:///x?token={SECRET}", SECRET],
)
def test_no_error_shows_an_address_of_a_warehouse(tmp_path, uri):
    """A warehouse that is refused is told by its scheme alone."""
    text = f"kafka: {{bootstrap.servers: a}}\nwarehouse: {{uri: '{uri}'}}\nstreams: {{x: {{topics: [a]}}}}"
    with pytest.raises(ConfigInvalidError) as caught:
        load(tmp_path, text)
    assert SECRET not in str(caught.value)


def test_a_wrong_variable_is_not_shown_on_use():
    """A secret that a variable put into another property is in no error, nor what librdkafka says of it."""
    properties = KafkaProperties(
        {
            "bootstrap.servers": "a",
            "security.protocol": "${PLANTED}",
            "isolation.level": "${PLANTED}",
            "socket.timeout.ms": "${PLANTED}",
            "debug": "${PLANTED}",
            "sasl.password": "${NONE}",
        }
    )
    with pytest.raises(ConfigInvalidError) as caught:
        properties.resolve({"PLANTED": SECRET})
    assert len(caught.value.problems) == 5
    assert SECRET not in str(caught.value)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=4, max_size=30))
def test_any_secret_is_kept(secret):
    """Any text as a password is resolved to itself and shown nowhere."""
    properties = KafkaProperties({"bootstrap.servers": "-", "sasl.password": secret.replace("$", "$$")})
    assert properties.resolve({})["sasl.password"] == secret
    assert repr(properties) == "KafkaProperties({'bootstrap.servers': '-', 'sasl.password': '***'})"

"""OAUTHBEARER with `oauth_token: module:function`."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError

from kafka_assets.client import ClientEvents, create_consumer
from kafka_assets.config import Topics, load_config
from kafka_assets.errors import BrokerAuthError, ConfigInvalidError
from kafka_assets.fetch import read_ranges
from kafka_assets.log import KafkaLog
from kafka_assets.oauth import TokenSource
from kafka_assets.offsets import OffsetRange
from kafka_assets_tests.cli.support import NOWHERE, error_of
from kafka_assets_tests.security.support import unsecured_token
from kafka_assets_tests.support.kafka import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import GuardedKafka

SECRET = "the-token-server-said-8Yn"  # noqa: S105  planted to be looked for
FAR = 4e9

MODULE = """\
from kafka_assets_tests.security.support import unsecured_token

def get(config):
    return unsecured_token(config.removeprefix("principal="), 600)
"""


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], str]:
    """`function(f)` puts a function where it can be imported, and returns its name."""

    def put(made: Callable[[str], Any]) -> str:
        module = ModuleType("tokens_of_a_test")
        module.get = made  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return f"{module.__name__}:get"

    return put


def test_a_function_beside_the_streams_file_gives_the_tokens(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project
) -> None:
    """The installed command imports the function from the folder of the streams file, and logs in with its token."""
    topic = orders("bearer")
    (project.folder / "my_tokens.py").write_text(MODULE)
    kafka = guarded.bearer("my_tokens:get", "principal=bearer")
    project.write({"orders": {"topics": [topic]}}, kafka=kafka)
    with project.start("ingest", "--json", PYTHONSAFEPATH="1") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["streams"]["orders"]["rows"] == 20


def test_every_client_gets_a_token(
    guarded: GuardedKafka, orders: Callable[..., str], function: Callable[..., str]
) -> None:
    """Questions and fetches each log in with a token of the function, which gets `sasl.oauthbearer.config`."""
    topic = orders("bearer")
    asked: list[str] = []

    def get(config: str) -> tuple[str, float]:
        asked.append(config)
        return unsecured_token("bearer", 600)

    kafka = guarded.bearer(function(get), "what=ever")
    assert sum(len(batch) for batch in read_ranges(kafka, [OffsetRange(topic, 0, 5, 12)], timeout=30)) == 7
    assert set(asked) == {"what=ever"}
    assert len(asked) == 3


def test_a_token_is_renewed_before_it_ends(
    guarded: GuardedKafka, orders: Callable[..., str], function: Callable[..., str]
) -> None:
    """The function is asked for another token in time, and the client goes on with that one."""
    topic = orders("bearer")
    given: list[str] = []

    def get(config: str) -> tuple[str, float]:
        made = unsecured_token(config, 600 if given else 6)
        given.append(made[0])
        return made

    with KafkaLog(guarded.bearer(function(get), "bearer")) as log:
        partitions = log.topic_partitions(Topics((topic,))).partitions
        wait_until(lambda: len(given) > 1, "the function is asked for another token")
        assert log.bounds(partitions)[partitions[0]].end == 20


def test_a_token_that_is_not_renewed_is_a_warning(
    function: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """A function that fails while there is still a good token does not end what is going on."""
    calls = 0

    def get(config: str) -> tuple[str, float]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError(SECRET)
        return unsecured_token(config, 2)

    kafka = {
        "bootstrap.servers": NOWHERE,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "OAUTHBEARER",
        "oauth_token": function(get),
    }
    told: list[int] = []

    class Events(ClientEvents):
        def on_error(self, error: KafkaError) -> None:
            told.append(error.code())
            super().on_error(error)

    events = Events(kafka)
    consumer = create_consumer(kafka, {}, events)

    def reported() -> bool:
        consumer.poll(0.1)
        return KafkaError._AUTHENTICATION in told

    wait_until(reported, "librdkafka has no new token")
    events.raise_refusal()
    consumer.close()
    assert "tokens_of_a_test:get" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("command", ["plan", "ingest", "status"])
def test_a_function_that_fails_is_an_error_of_authentication(
    command: str,
    guarded: GuardedKafka,
    function: Callable[..., str],
    project: Project,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The error names the function and what kind of error it raised, and says nothing that it said."""

    def get(config: str) -> tuple[str, float]:
        raise RuntimeError(f"{SECRET} {config}")

    kafka = guarded.bearer(function(get), SECRET)
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    answer = project(command, exit_code=4)
    code, message = error_of(answer, "orders")
    assert code == "BROKER_AUTH"
    assert "tokens_of_a_test:get" in message
    assert "RuntimeError" in message
    assert SECRET not in str(answer) + "".join(capfd.readouterr())


def test_a_token_that_the_broker_refuses_is_not_shown(
    guarded: GuardedKafka, function: Callable[..., str]
) -> None:
    """A refused token is an error of authentication at once, and no part of it is in the message."""
    expired = unsecured_token("bearer", -5)[0]
    name = function(lambda _: (expired, FAR))
    with KafkaLog(guarded.bearer(name, "")) as log, pytest.raises(BrokerAuthError) as caught:
        log.topic_partitions(Topics(("orders",)))
    assert guarded.address("OAUTH") in str(caught.value)
    assert all(part not in str(caught.value) for part in expired.split(".") if part)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (SECRET, "a str"),
        (None, "a NoneType"),
        ((SECRET,), "a tuple of 1"),
        ((SECRET, FAR, "me"), "a tuple of 3"),
        ((SECRET.encode(), FAR), "visible ASCII"),
        (("", FAR), "visible ASCII"),
        ((f"{SECRET}\n", FAR), "visible ASCII"),
        ((f"{SECRET}\0", FAR), "visible ASCII"),
        ((SECRET, "2030-01-01"), "seconds since the epoch"),
        ((SECRET, True), "seconds since the epoch"),
        ((SECRET, 1e9), "1000000000 seconds since the epoch, is over"),
        ((SECRET, float("nan")), "is over"),
        ((SECRET, FAR, 5, {}), "principal"),
        ((SECRET, FAR, "me", []), "extensions"),
        ((SECRET, FAR, "me", {"auth": SECRET}), "extensions"),
        ((SECRET, FAR, "me", {"a b": SECRET}), "extensions"),
        ((SECRET, FAR, "me", {"a": 5}), "extensions"),
    ],
)
def test_what_is_no_token_is_told_without_it(answer: object, told: str, function: Callable[..., str]) -> None:
    """Whatever else a function returns is told by its shape alone, at once and not after ten seconds."""
    kafka = {"bootstrap.servers": NOWHERE, "oauth_token": function(lambda _: answer)}
    with pytest.raises(BrokerAuthError, match="tokens_of_a_test:get") as caught:
        create_consumer(kafka, {}, ClientEvents(kafka))
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_principal_and_extensions_may_follow(function: Callable[..., str]) -> None:
    """A function written for confluent_kafka's `oauth_cb` serves as it is."""
    answer = ("token", FAR, "me", {"logicalCluster": "lkc-1", "identityPoolId": "pool-1"})
    told: list[str] = []
    source = TokenSource(function(lambda _: answer), told.append)
    source.fetch("")
    assert source("") == answer
    assert told == ["token"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module_at_all:get", "no module 'no_such_module_at_all'"),
        ("json:no_such_function", "no such function"),
        ("json:__doc__", "no function"),
    ],
)
def test_a_function_that_is_not_there_is_an_error_of_the_configuration(
    name: str, told: str, guarded: GuardedKafka, project: Project
) -> None:
    """A name that leads nowhere is found when a client is made, and told with the place in the file."""
    project.write({"orders": {"topics": ["orders"]}}, kafka=guarded.bearer(name, ""))
    code, message = error_of(project("plan", exit_code=2), "orders")
    assert code == "CONFIG_INVALID"
    assert name in message
    assert "kafka.oauth_token" in message
    assert told in message


def test_reading_the_file_imports_nothing(guarded: GuardedKafka, project: Project) -> None:
    """Loading a streams file runs no code that it names."""
    (project.folder / "harm.py").write_text("raise SystemExit('imported')")
    project.write({"orders": {"topics": ["orders"]}}, kafka=guarded.bearer("harm:get", ""))
    properties = load_config(project.file).stream("orders").kafka
    assert "harm:get" in properties.resolve().values()
    assert "harm" not in sys.modules


def test_a_function_in_a_variable_is_checked_on_use(guarded: GuardedKafka, project: Project) -> None:
    """A reference is resolved as in any property, and what it brings must be a name too; it is not shown."""
    kafka = guarded.bearer("${TOKENS}", "")
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    properties = load_config(project.file).stream("orders").kafka
    assert "json:dumps" in properties.resolve({"TOKENS": "json:dumps"}).values()
    with pytest.raises(ConfigInvalidError, match="module:function") as caught:
        properties.resolve({"TOKENS": SECRET})
    assert SECRET not in str(caught.value)

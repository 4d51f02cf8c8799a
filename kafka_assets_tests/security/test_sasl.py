"""SASL/SCRAM: a login by name and password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_assets_tests.cli.support import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import GuardedKafka

PASSWORD = "the-right-one-5Rt"  # noqa: S105  of a user made for a test
WRONG = "the-wrong-one-9Qz"


@pytest.fixture(scope="module", autouse=True)
def reader(guarded: GuardedKafka) -> None:
    """The user of this module."""
    guarded.add_user("reader", PASSWORD)


def test_a_user_logs_in_with_a_password_from_the_environment(
    guarded: GuardedKafka, orders: Callable[..., str], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SCRAM-SHA-256 every command works, and the password stands in the environment alone."""
    topic = orders("reader")
    monkeypatch.setenv("READER_PASSWORD", PASSWORD)
    project.write({"orders": {"topics": [topic]}}, kafka=guarded.scram("reader", "${READER_PASSWORD}"))
    assert project("plan")["streams"]["orders"]["batch"]["records_at_most"] == 20
    assert project("ingest")["streams"]["orders"]["rows"] == 20
    assert project("status")["streams"]["orders"]["partitions"][0]["lag"] == 0
    project.assert_each_once(topic, partitions=1, count=20)


@pytest.mark.parametrize("command", ["plan", "ingest", "status"])
def test_a_wrong_password_is_refused_and_not_shown(
    command: str, guarded: GuardedKafka, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    """A login that the broker refuses is BROKER_AUTH, exit 4, in the broker's words and without the password."""
    project.write({"orders": {"topics": ["orders"]}}, kafka=guarded.scram("reader", WRONG))
    answer = project(command, exit_code=4)
    code, message = error_of(answer, "orders")
    assert code == "BROKER_AUTH"
    assert "authentication" in message.lower()
    assert "invalid credentials" in message
    assert guarded.address("SCRAM") in message
    assert WRONG not in str(answer) + "".join(capfd.readouterr())


def test_a_missing_variable_is_named_before_any_broker_is_asked(
    project: Project, guarded: GuardedKafka
) -> None:
    """A password in a variable that is not set is an error of the configuration, which names both."""
    project.write({"orders": {"topics": ["orders"]}}, kafka=guarded.scram("reader", "${NO_SUCH_VARIABLE}"))
    code, message = error_of(project("plan", exit_code=2), "orders")
    assert code == "CONFIG_INVALID"
    assert "kafka.sasl.password" in message
    assert "NO_SUCH_VARIABLE" in message

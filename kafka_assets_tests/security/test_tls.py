"""TLS: who the broker is, and who the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets_tests.cli.support import error_of
from kafka_assets_tests.security.support import STORE_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from kafka_assets_tests.cli.support import Project
    from kafka_assets_tests.security.support import Certificate, GuardedKafka


def test_a_password_goes_through_tls(
    guarded: GuardedKafka,
    certificates: dict[str, Certificate],
    orders: Callable[..., str],
    project: Project,
) -> None:
    """SASL over TLS, with a broker whose certificate the given authority has signed."""
    guarded.add_user("reader", "pass-word")
    topic = orders("reader")
    kafka = {
        **guarded.scram("reader", "pass-word"),
        "bootstrap.servers": guarded.address("BOTH"),
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates["broker"].pem),
    }
    project.write({"orders": {"topics": [topic]}}, kafka=kafka)
    assert project("ingest")["streams"]["orders"]["rows"] == 20


def test_a_certificate_says_who_the_client_is(
    guarded: GuardedKafka,
    certificates: dict[str, Certificate],
    orders: Callable[..., str],
    project: Project,
) -> None:
    """With a certificate of its own, whose key a password guards, the client needs no other login."""
    topic = orders("CN=client")
    kafka = {
        "bootstrap.servers": guarded.address("TLS"),
        "security.protocol": "SSL",
        "ssl.ca.location": str(certificates["broker"].pem),
        "ssl.keystore.location": str(certificates["client"].store),
        "ssl.keystore.password": STORE_PASSWORD,
    }
    project.write({"orders": {"topics": [topic]}}, kafka=kafka)
    assert project("ingest")["streams"]["orders"]["rows"] == 20


def test_a_wrong_password_of_the_key_is_an_error_of_the_configuration(
    guarded: GuardedKafka,
    certificates: dict[str, Certificate],
    project: Project,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A key that the password does not open is told with its file, and without the password."""
    kafka = {
        "bootstrap.servers": guarded.address("TLS"),
        "security.protocol": "SSL",
        "ssl.keystore.location": str(certificates["client"].store),
        "ssl.keystore.password": "not-the-one-3Wk",
    }
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    answer = project("plan", exit_code=2)
    code, message = error_of(answer, "orders")
    assert code == "CONFIG_INVALID"
    assert "keystore" in message
    assert "not-the-one-3Wk" not in str(answer) + "".join(capfd.readouterr())


def test_a_broker_of_an_unknown_authority_is_refused(guarded: GuardedKafka, project: Project) -> None:
    """A broker whose certificate no known authority has signed gets no password; the error says what to set."""
    kafka = {
        **guarded.scram("reader", "pass-word"),
        "bootstrap.servers": guarded.address("BOTH"),
        "security.protocol": "SASL_SSL",
    }
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    code, message = error_of(project("plan", exit_code=4), "orders")
    assert code == "BROKER_AUTH"
    assert "broker certificate could not be verified" in message
    assert "ssl.ca.location" in message


def test_a_broker_of_another_name_is_refused(
    guarded: GuardedKafka, certificates: dict[str, Certificate], project: Project
) -> None:
    """A certificate that is good but for another host does not do."""
    kafka = {
        **guarded.scram("reader", "pass-word"),
        "bootstrap.servers": guarded.address("BOTH").replace("127.0.0.1", "localhost"),
        "broker.address.family": "v4",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates["broker"].pem),
    }
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    code, message = error_of(project("plan", exit_code=4), "orders")
    assert code == "BROKER_AUTH"
    assert "certificate" in message


def test_a_client_without_a_certificate_is_refused(
    guarded: GuardedKafka, certificates: dict[str, Certificate], project: Project
) -> None:
    """Where the broker asks for a certificate, a client without one is told so."""
    kafka = {
        "bootstrap.servers": guarded.address("TLS"),
        "security.protocol": "SSL",
        "ssl.ca.location": str(certificates["broker"].pem),
    }
    project.write({"orders": {"topics": ["orders"]}}, kafka=kafka)
    code, message = error_of(project("plan", exit_code=4), "orders")
    assert code == "BROKER_AUTH"
    assert guarded.address("TLS") in message
    assert "certificate" in message

"""A Kafka that asks who is there, and what its users may do."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from kafka_assets.dev import broker
from kafka_assets.dev.broker import LocalKafka
from kafka_assets.dev.jars import java
from kafka_assets.dev.topics import admin, create_topic
from kafka_assets_tests.support.kafka import produce, values

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

STORE_PASSWORD = "open-the-store-7Kq"  # noqa: S105  of certificates made for a test
COUNT = 20
"""Records of a topic."""

DESCRIBE_AND_READ = (AclOperation.DESCRIBE, AclOperation.READ)

_LISTENERS = {"SCRAM": "SASL_PLAINTEXT", "OAUTH": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"}
_MODULES = "org.apache.kafka.common.security"
_SCRAM = f"{_MODULES}.scram.ScramLoginModule required;"
_BEARER = f'{_MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'


@dataclass(frozen=True)
class Certificate:
    """A certificate that signs itself; its key is in a PKCS #12 store under `STORE_PASSWORD`."""

    store: Path
    pem: Path


class GuardedKafka(LocalKafka):
    """A Kafka with a listener for each way to log in, beside the open one, whose anonymous user may do anything.

    Args:
        own: The broker's certificate.
        trusted: The one that clients may have.
    """

    def __init__(self, own: Certificate, trusted: Certificate) -> None:
        super().__init__()
        self._own = own
        self._trusted = trusted
        self._extra: dict[str, int] = {}

    def address(self, listener: str) -> str:
        """`host:port` of the listener SCRAM, OAUTH, TLS or BOTH, which is SCRAM over TLS."""
        return f"127.0.0.1:{self._extra[listener]}"

    def _settings(self, node: int) -> dict[str, str]:
        settings = super()._settings(node)
        for listener in _LISTENERS:
            if listener not in self._extra:
                self._extra[listener] = broker._free_port([*self._ports, *self._extra.values()])
        more = "".join(f",{name}://{self.address(name)}" for name in _LISTENERS)
        protocols = "".join(f",{name}:{protocol}" for name, protocol in _LISTENERS.items())
        return settings | {
            "listeners": settings["listeners"] + more,
            "advertised.listeners": settings["advertised.listeners"] + more,
            "listener.security.protocol.map": settings["listener.security.protocol.map"] + protocols,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.scram.scram-sha-256.sasl.jaas.config": _SCRAM,
            "listener.name.both.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.both.scram-sha-256.sasl.jaas.config": _SCRAM,
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": _BEARER,
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self._own.store),
            "ssl.keystore.password": STORE_PASSWORD,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._trusted.pem),
            "listener.name.tls.ssl.client.auth": "required",
        }

    def add_user(self, name: str, password: str) -> None:
        """Make a SCRAM user."""
        client = admin(self.bootstrap_servers)
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(name, scram, password.encode())
        for future in client.alter_user_scram_credentials([change]).values():
            future.result(30)

    def fill(
        self,
        stem: str,
        users: Sequence[str],
        *,
        operations: Collection[AclOperation] = DESCRIBE_AND_READ,
    ) -> str:
        """Make a topic of `COUNT` records, with which these users may do these things and nothing else."""
        stem = re.sub(r"\W+", "_", stem)[:80]
        topic = f"{stem}_{uuid.uuid4().hex[:8]}"
        create_topic(self.bootstrap_servers, topic)
        produce(self.bootstrap_servers, topic, values(COUNT))
        for user in users:
            self.allow(user, topic, operations)
        return topic

    def allow(self, user: str, topic: str, operations: Collection[AclOperation]) -> None:
        """Let a user do these things with a topic."""
        client = admin(self.bootstrap_servers)
        allowed = [
            AclBinding(
                ResourceType.TOPIC,
                topic,
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                operation,
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        for future in client.create_acls(allowed).values():
            future.result(30)

    def scram(self, user: str, password: str) -> dict[str, str]:
        """The properties of a user of the listener SCRAM."""
        return {
            "bootstrap.servers": self.address("SCRAM"),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "SCRAM-SHA-256",
            "sasl.username": user,
            "sasl.password": password,
        }

    def bearer(self, function: str, config: str) -> dict[str, str]:
        """The properties of a user of the listener OAUTH, with tokens from `module:function`."""
        return {
            "bootstrap.servers": self.address("OAUTH"),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "OAUTHBEARER",
            "sasl.oauthbearer.config": config,
            "oauth_token": function,
        }


def make_certificate(folder: Path, name: str) -> Certificate:
    """Make a key, and a certificate of it for 127.0.0.1.

    By the keytool of the Java that runs Kafka, so that nothing else needs to be installed.
    """
    made = Certificate(folder / f"{name}.p12", folder / f"{name}.pem")
    common = [
        "-alias",
        name,
        "-keystore",
        made.store,
        "-storetype",
        "PKCS12",
        "-storepass:env",
        "STORE_PASSWORD",
    ]
    names = ["-dname", f"CN={name}", "-ext", "SAN=IP:127.0.0.1", "-ext", "BC=ca:true"]
    for command in (
        ["-genkeypair", "-keyalg", "EC", "-validity", "2", *names, *common],
        ["-exportcert", "-rfc", "-file", made.pem, *common],
    ):
        subprocess.run(
            [java().with_name("keytool"), "-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", *command],
            check=True,
            capture_output=True,
            env={**os.environ, "STORE_PASSWORD": STORE_PASSWORD},
        )
    return made


def unsecured_token(principal: str, seconds: float) -> tuple[str, float]:
    """A token that Kafka takes without a signature, and when it expires."""
    now = time.time()
    parts: list[dict[str, object]] = [
        {"alg": "none"},
        {"sub": principal, "iat": now - 1, "exp": now + seconds},
    ]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, ""]), now + seconds

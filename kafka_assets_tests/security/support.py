"""A Kafka that asks who is there, and what its users may do."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
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
from kafka_assets.dev.topics import admin

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

STORE_PASSWORD = "the-brokers-own"
MODULE = __name__

_LISTENERS = {"SCRAM": "SASL_PLAINTEXT", "OAUTH": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"}
_MODULES = "org.apache.kafka.common.security"


class GuardedKafka(LocalKafka):
    """A Kafka with a listener for each way to log in, beside the open one, whose anonymous user may do anything.

    Args:
        store: The broker's key and certificate, PKCS #12 with `STORE_PASSWORD`.
    """

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._store = store
        self._extra: dict[str, int] = {}

    def address(self, listener: str) -> str:
        """`host:port` of the listener SCRAM, OAUTH, TLS or BOTH (SCRAM over TLS)."""
        return f"127.0.0.1:{self._extra[listener]}"

    def _settings(self, node: int) -> dict[str, str]:
        settings = super()._settings(node)
        for listener in _LISTENERS:
            if listener not in self._extra:
                self._extra[listener] = broker._free_port([*self._ports, *self._extra.values()])
        more = "".join(f",{name}://{self.address(name)}" for name in _LISTENERS)
        scram = f"{_MODULES}.scram.ScramLoginModule required;"
        bearer = f'{_MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        return settings | {
            "listeners": settings["listeners"] + more,
            "advertised.listeners": settings["advertised.listeners"] + more,
            "listener.security.protocol.map": settings["listener.security.protocol.map"]
            + "".join(f",{name}:{protocol}" for name, protocol in _LISTENERS.items()),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.scram.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.both.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.both.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": bearer,
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self._store),
            "ssl.keystore.password": STORE_PASSWORD,
        }

    def add_user(self, name: str, password: str) -> None:
        """Make a SCRAM user."""
        client = admin(self.bootstrap_servers)
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(name, scram, password.encode())
        for future in client.alter_user_scram_credentials([change]).values():
            future.result(30)

    def allow(self, user: str, topic: str, operations: Collection[AclOperation]) -> None:
        """Let a user do these things with a topic, and nothing else."""
        client = admin(self.bootstrap_servers)
        bindings = [
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
        for future in client.create_acls(bindings).values():
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
        """The properties of a user of the listener OAUTH, with tokens from a function of this package."""
        return {
            "bootstrap.servers": self.address("OAUTH"),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "OAUTHBEARER",
            "sasl.oauthbearer.config": config,
            "oauth_token": f"{MODULE}:{function}",
        }


READ = (AclOperation.DESCRIBE, AclOperation.READ)


def make_certificate(folder: Path, name: str, password: str = STORE_PASSWORD) -> tuple[Path, Path]:
    """Make a key with a certificate for 127.0.0.1 that signs itself; returns its PKCS #12 store and the PEM file.

    By the keytool of the Java that runs Kafka, so that nothing else needs to be installed.
    """
    store, pem = folder / f"{name}.p12", folder / f"{name}.pem"
    common = ["-alias", name, "-keystore", store, "-storetype", "PKCS12", "-storepass:env", "STORE_PASSWORD"]
    names = ["-dname", f"CN={name}", "-ext", "SAN=IP:127.0.0.1", "-ext", "BC=ca:true"]
    for command in (
        ["-genkeypair", "-keyalg", "EC", "-validity", "2", *names, *common],
        ["-exportcert", "-rfc", "-file", pem, *common],
    ):
        subprocess.run(
            [java().with_name("keytool"), *command],
            check=True,
            capture_output=True,
            env={**os.environ, "STORE_PASSWORD": password},
        )
    return store, pem


def unsecured_token(principal: str, seconds: float, **claims: object) -> tuple[str, float]:
    """A token that Kafka takes without a signature, and when it expires."""
    now = time.time()
    parts = [{"alg": "none"}, {"sub": principal, "iat": now - 1, "exp": now + seconds, **claims}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, ""]), now + seconds


def token(config: str) -> tuple[str, float]:
    """A token for the principal that `sasl.oauthbearer.config` names."""
    return unsecured_token(config, 600)

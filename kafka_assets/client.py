"""librdkafka clients: how they are made, what they report in passing, and what their errors mean to users."""

# ruff: noqa: SLF001  (the client's own error codes begin with an underscore and are public)
from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Literal, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from kafka_assets import oauth
from kafka_assets.config.properties import is_secret
from kafka_assets.errors import (
    BrokerAuthError,
    BrokerUnreachableError,
    ConfigInvalidError,
    KafkaAssetsError,
    RunFailedError,
    TopicMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

Kind = Literal["auth", "transport", "missing", "leader", "group", "lost", "truncated", "eof", "other"]

_Client = TypeVar("_Client")

DEFAULT_GROUP_ID = "kafka_assets"

_REFUSED_PROPERTY = re.compile(r"property:? \"([^\"]+)\"")
_NOT_REFRESHED = "Failed to acquire SASL OAUTHBEARER token"
# The peer's refusal, RFC 8446 section 6.2; with TLS 1.3 it comes after the handshake, as an error of transport.
_TLS_REFUSAL = re.compile(r"SSL alert number (?:4[0-9]|70|71|116)\b")
_MIN_SECRET_LENGTH = 3

_OURS: dict[str, str | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
}

_CODES: tuple[tuple[Kind, tuple[int, ...]], ...] = (
    (
        "auth",
        (
            KafkaError._AUTHENTICATION,
            KafkaError._SSL,
            KafkaError.SASL_AUTHENTICATION_FAILED,
            KafkaError.UNSUPPORTED_SASL_MECHANISM,
            KafkaError.ILLEGAL_SASL_STATE,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.CLUSTER_AUTHORIZATION_FAILED,
            KafkaError.SECURITY_DISABLED,
        ),
    ),
    (
        "transport",
        (
            KafkaError._TRANSPORT,
            KafkaError._ALL_BROKERS_DOWN,
            KafkaError._RESOLVE,
            KafkaError._TIMED_OUT,
            KafkaError._TIMED_OUT_QUEUE,
            KafkaError._WAIT_COORD,
            KafkaError.NETWORK_EXCEPTION,
            KafkaError.REQUEST_TIMED_OUT,
        ),
    ),
    (
        "missing",
        (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError.UNKNOWN_TOPIC_ID,
            KafkaError.TOPIC_EXCEPTION,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError._UNKNOWN_PARTITION,
        ),
    ),
    (
        "leader",
        (
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError._NOENT,
            KafkaError.NOT_LEADER_FOR_PARTITION,
            KafkaError.BROKER_NOT_AVAILABLE,
            KafkaError.REPLICA_NOT_AVAILABLE,
            KafkaError.OFFSET_NOT_AVAILABLE,
            KafkaError.FENCED_LEADER_EPOCH,
            KafkaError.UNKNOWN_LEADER_EPOCH,
            KafkaError.KAFKA_STORAGE_ERROR,
        ),
    ),
    (
        "group",
        (
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.COORDINATOR_NOT_AVAILABLE,
            KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
            KafkaError.NOT_COORDINATOR,
            KafkaError.INVALID_GROUP_ID,
        ),
    ),
    ("lost", (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)),
    ("truncated", (KafkaError._LOG_TRUNCATION,)),
    ("eof", (KafkaError._PARTITION_EOF,)),
)
# Follow from another error that says why.
_SAYS_LITTLE = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE})
_TRUNCATED = KafkaError(KafkaError._LOG_TRUNCATION).str()
_KINDS: dict[int, Kind] = {code: kind for kind, codes in _CODES for code in codes}


def kind_of(error: KafkaError) -> Kind:
    """Sort an error of librdkafka or of a broker by what follows from it."""
    kind = _KINDS.get(error.code(), "other")
    # What the check of leader epochs found comes under the code of an offset out of range, told apart by its
    # words alone, and once: the log may have grown past that offset again, with other records.
    return "truncated" if kind == "lost" and _TRUNCATED in error.str() else kind


class ClientEvents:
    """What a client reported outside of any answer: the last transport error and a refusal of credentials.

    Args:
        kafka: The client's properties; values of secret ones never appear in what this says.
    """

    def __init__(self, kafka: Mapping[str, str]) -> None:
        self.addresses = kafka.get("bootstrap.servers") or kafka.get("metadata.broker.list") or "(no address)"
        self.last_transport: str | None = None
        self.all_down = False
        self._refusal: str | None = None
        self._has_token = False
        self._secrets = [
            str(value)
            for name, value in kafka.items()
            if (is_secret(name, str(value)) or name == "sasl.username")
            and name != oauth.PROPERTY
            and len(str(value)) >= _MIN_SECRET_LENGTH
        ]

    def forget(self) -> None:
        """Begin anew: what a connection reported before another question says nothing about that one."""
        self.last_transport = None
        self.all_down = False
        self._refusal = None

    def on_error(self, error: KafkaError) -> None:
        """Take note of an error that belongs to no call: librdkafka's `error_cb`."""
        kind = kind_of(error)
        if self._has_token and _NOT_REFRESHED in error.str():
            # The function's own error is in the log, and the token before is good for a while; then it is refused.
            return
        if kind == "auth" or _TLS_REFUSAL.search(error.str()):
            self._refusal = self.text(error)
        elif kind == "transport":
            self.all_down = self.all_down or error.code() == KafkaError._ALL_BROKERS_DOWN
            if error.code() not in _SAYS_LITTLE or self.last_transport is None:
                self.last_transport = self.text(error)

    def text(self, error: KafkaError) -> str:
        """Return what the error says, without the secrets."""
        return self.redacted(f"{error.str()} ({error.name()})")

    def redacted(self, text: str) -> str:
        """Return a text with each secret of this client replaced by `***`."""
        for secret in tuple(self._secrets):
            text = text.replace(secret, "***")
        return text

    def token_source(self, name: str, config: str) -> oauth.TokenSource:
        """Return where the client gets its tokens, with the first one at hand; they are secrets from now on.

        Raises:
            ConfigInvalidError: There is no such function.
            BrokerAuthError: It gave no token.
        """
        source = oauth.TokenSource(name, self._secrets.append)
        source.fetch(config)
        self._has_token = True
        return source

    def raise_refusal(self) -> None:
        """Raise BrokerAuthError if a broker has refused this client's TLS handshake or credentials."""
        if self._refusal is not None:
            raise self.refused(self._refusal)

    def refused(self, said: str) -> BrokerAuthError:
        """Return the error for a refusal, given what the broker said."""
        return BrokerAuthError(
            f"authentication or authorization with the brokers at {self.addresses} failed: {said}. Nothing"
            " was"
            " read. Check security.protocol, the sasl.* and ssl.* properties under `kafka:` and the"
            " principal's"
            " permissions (Describe and Read on the topics)."
        )

    def unreachable(self, doing: str, seconds: float) -> BrokerUnreachableError:
        """Return the error for brokers that gave no answer for so long."""
        last = f"; the last error was: {self.last_transport}" if self.last_transport else ""
        return BrokerUnreachableError(
            f"no answer from the Kafka brokers at {self.addresses} while {doing}, for {seconds:.0f} s{last}."
            " Nothing was read. Check that they run and that `bootstrap.servers` and `security.protocol`"
            " under `kafka:` are right, then try again."
        )

    def error_for(self, error: KafkaError, doing: str) -> KafkaAssetsError:
        """Return the error users meet for one that an answer carried."""
        said = self.text(error)
        kind = kind_of(error)
        if kind == "auth":
            return self.refused(f"{said}, while {doing}")
        if kind == "missing":
            return TopicMissingError(
                f"the brokers at {self.addresses} have no such topic or partition, while {doing}: {said}."
                " Create it,"
                " or take it out of the stream."
            )
        if kind == "transport":
            return BrokerUnreachableError(
                f"the Kafka brokers at {self.addresses} did not answer while {doing}: {said}. Try again."
            )
        return RunFailedError(f"Kafka at {self.addresses} answered with an error while {doing}: {said}.")


def create_admin(kafka: Mapping[str, str], events: ClientEvents) -> AdminClient:
    """Return an admin client; poll it, or `events` hears nothing.

    Raises:
        ConfigInvalidError: librdkafka refuses a property.
        BrokerAuthError: `oauth_token` gave no token.
    """
    return _create(AdminClient, {**kafka, "allow.auto.create.topics": False}, kafka, events)


def create_consumer(kafka: Mapping[str, str], tuning: Mapping[str, str], events: ClientEvents) -> Consumer:
    """Return a consumer for assigned ranges: no commits, end-of-partition events, no offset reset.

    Args:
        kafka: The user's properties, which win over `tuning`.
        tuning: Properties where the user sets none.
        events: Hears of errors while the consumer is polled.

    Raises:
        ConfigInvalidError: librdkafka refuses a property, or it is one of those set here.
        BrokerAuthError: `oauth_token` gave no token.
    """
    for name, ours in _OURS.items():
        if name in kafka and str(kafka[name]).lower() != str(ours).lower():
            raise ConfigInvalidError(
                f"the Kafka property {name!r} cannot be set: exact ranges need {str(ours).lower()!r}. Remove"
                " it."
            )
    base = {"group.id": DEFAULT_GROUP_ID, "isolation.level": "read_committed"}
    return _create(Consumer, {**base, **tuning, **kafka, **_OURS}, kafka, events)


def _create(
    make: Callable[..., _Client],
    settings: Mapping[str, object],
    kafka: Mapping[str, str],
    events: ClientEvents,
) -> _Client:
    settings = {**settings, "error_cb": events.on_error}
    if function := settings.pop(oauth.PROPERTY, None):
        settings["oauth_cb"] = events.token_source(str(function), kafka.get("sasl.oauthbearer.config", ""))
    try:
        return make(settings, logger=_Lines(events))
    except (KafkaException, TypeError, ValueError) as refused:
        error = refused.args[0] if refused.args else refused
        if isinstance(error, KafkaError) and error.code() == KafkaError.SASL_AUTHENTICATION_FAILED:
            raise events.refused(events.text(error)) from None
        said = error.str() if isinstance(error, KafkaError) else str(error)
        prefix = f"the Kafka property {named!r}" if (named := _named(said, kafka)) else "a Kafka property"
        # A value may be a secret put under the wrong name, so none is repeated.
        values = tuple(
            sorted(
                {str(v) for k, v in kafka.items() if str(v) and k != "bootstrap.servers"},
                key=len,
                reverse=True,
            )
        )
        raise ConfigInvalidError(
            f"librdkafka refuses {prefix}: {_redact_quoted(said, values)}. Correct it under `kafka:` in the"
            " streams file."
        ) from None


def _named(said: str, kafka: Mapping[str, str]) -> str | None:
    """Return the property that librdkafka speaks of."""
    if quoted := _REFUSED_PROPERTY.search(said):
        return quoted[1]
    spoken = (name for name in kafka if name in said or name.replace(".", " ") in said.lower())
    return max(spoken, key=len, default=None)


def _redact_quoted(text: str, values: tuple[str, ...]) -> str:
    for value in values:
        text = text.replace(f'"{value}"', '"***"')
        if len(value) > _MIN_SECRET_LENGTH * 2:
            text = text.replace(value, "***")
    return text


class _Lines:
    """Takes librdkafka's lines, one for each vain try to connect, as a matter of debugging, without secrets.

    What follows from them stands in the errors that are raised. Warnings that a client has no use for another
    kind of client's property are dropped.
    """

    def __init__(self, events: ClientEvents) -> None:
        self._events = events

    def log(self, _: int, form: str, *arguments: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            text = form % arguments
            if "CONFWARN" not in text:
                _librdkafka_logger.debug("%s", self._events.redacted(text))


_librdkafka_logger = logging.getLogger("kafka_assets.librdkafka")

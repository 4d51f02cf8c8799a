"""librdkafka properties, kept as written until they are used, and never shown where they may be secret."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Literal, cast

from kafka_assets import oauth
from kafka_assets.config.interpolate import references, substitute
from kafka_assets.errors import ConfigInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

IsolationLevel = Literal["read_committed", "read_uncommitted"]
_ISOLATION_LEVELS = ("read_committed", "read_uncommitted")

_NO_COMMITS = (
    "offsets are kept in the warehouse beside the rows and are never committed to Kafka; leave it out"
)
_REFUSED = {
    "enable.auto.commit": _NO_COMMITS,
    "auto.commit.enable": _NO_COMMITS,
    "enable.auto.offset.store": _NO_COMMITS,
    "auto.offset.reset": "use the stream's options starting_offsets (where to begin) and on_data_loss"
    " (what to do when offsets are gone) instead",
    "enable.partition.eof": "it is always on, as ranges are ended by it; leave it out, and limit batches by"
    " the stream's option max_records_per_batch",
    "allow.auto.create.topics": "a topic is never created by reading it; create it first, and name it in the"
    " stream's option topics",
    "metadata.broker.list": "use bootstrap.servers instead",
    "sasl.jaas.config": "librdkafka has no JAAS; use sasl.mechanisms, sasl.username and sasl.password",
}
_OAUTH_ALONE = (
    "is for SASL/OAUTHBEARER alone; set security.protocol to SASL_SSL or SASL_PLAINTEXT and sasl.mechanisms to"
    " OAUTHBEARER, or leave it out"
)
_PYTHON_ONLY = frozenset({"logger", "on_commit", "opaque", "default.topic.config", "default_topic_conf"})
_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|credential|private|user\.info|jaas|oauthbearer\.config|\.pem$|\.key$",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"://[^/\s]*@")
_REDACTED = "***"

# For suggestions only; what is a property, librdkafka itself decides.
_COMMON = """
    api.version.request bootstrap.servers broker.address.family broker.address.ttl check.crcs
    client.dns.lookup client.id client.rack connections.max.idle.ms debug
    enable.ssl.certificate.verification enable.sasl.oauthbearer.unsecure.jwt fetch.error.backoff.ms
    fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms
    group.id group.instance.id group.protocol isolation.level log.connection.close oauth_token
    max.partition.fetch.bytes max.poll.interval.ms message.max.bytes metadata.max.age.ms
    queued.max.messages.kbytes queued.min.messages receive.message.max.bytes
    reconnect.backoff.max.ms reconnect.backoff.ms retry.backoff.max.ms retry.backoff.ms
    sasl.kerberos.keytab sasl.kerberos.kinit.cmd sasl.kerberos.principal sasl.kerberos.service.name
    sasl.mechanism sasl.mechanisms sasl.oauthbearer.client.id sasl.oauthbearer.client.secret
    sasl.oauthbearer.config sasl.oauthbearer.extensions sasl.oauthbearer.method
    sasl.oauthbearer.scope sasl.oauthbearer.token.endpoint.url sasl.password sasl.username
    security.protocol session.timeout.ms socket.connection.setup.timeout.ms socket.keepalive.enable
    socket.nagle.disable socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms
    ssl.ca.location ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.cipher.suites
    ssl.crl.location ssl.endpoint.identification.algorithm ssl.key.location ssl.key.password
    ssl.key.pem ssl.keystore.location ssl.keystore.password statistics.interval.ms
    topic.metadata.refresh.interval.ms
""".split()  # noqa: SIM905 (a list of words reads better without 70 pairs of quotes)

_STOP = "kafka_assets.stop"
_UNKNOWN = "No such configuration property"
_STOPPED = f'{_UNKNOWN}: "{_STOP}"'
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def is_secret(name: str, value: str = "") -> bool:
    """Whether a property is not to be shown: by its name, or for a password within an address."""
    return bool(_SECRET_NAME.search(name) or _USERINFO.search(value))


class KafkaProperties:
    """The librdkafka properties of a stream, unresolved: `${...}` stands until `resolve()`.

    One of them is not librdkafka's: `oauth_token: module:function` names a Python function that gives tokens for
    SASL/OAUTHBEARER. It is imported when a client is made, never when the file is read.
    A value is shown by `describe()` alone, and only where it is not secret.
    """

    __slots__ = ("_paths", "_texts")

    def __init__(self, texts: Mapping[str, str], paths: Mapping[str, str] | None = None) -> None:
        """Takes the values as written and, for messages, the YAML path of each, else `kafka.<name>`."""
        self._texts = dict(texts)
        self._paths = {name: (paths or {}).get(name, f"kafka.{name}") for name in texts}

    def merged(self, over: KafkaProperties) -> KafkaProperties:
        """These properties with those of `over` added or put in their place."""
        return KafkaProperties(self._texts | over._texts, self._paths | over._paths)

    def resolve(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The properties for a client: references replaced, `isolation.level` added where it is not given.

        Raises:
            ConfigInvalidError: A variable is not set, or a value is not one librdkafka takes; every
                problem is named by its YAML path.
        """
        values: dict[str, str] = {}
        problems: list[str] = []
        for name, text in self._texts.items():
            try:
                values[name] = substitute(text, environ)
            except ValueError as error:
                problems.append(f"{self._paths[name]}: {error}")
        problems += [f"{path}: {text}" for path, text in self._objections(values)]
        if problems:
            raise ConfigInvalidError(
                "the Kafka properties cannot be used, so no broker was asked:", tuple(problems)
            )
        return {"isolation.level": "read_committed", **values}

    def secrets(self, environ: Mapping[str, str] = os.environ) -> frozenset[str]:
        """The values to be blotted out of whatever is shown; those that cannot be resolved are left out."""
        found = set()
        for name, text in self._texts.items():
            try:
                value = substitute(text, environ)
            except ValueError:
                continue
            if value and is_secret(name, value):
                found.add(value)
        return frozenset(found)

    def isolation_level(self, environ: Mapping[str, str] = os.environ) -> IsolationLevel:
        """`isolation.level`, or its default.

        Raises:
            ConfigInvalidError: It stands in a variable that is not set or holds neither level.
        """
        name = "isolation.level"
        if name not in self._texts:
            return "read_committed"
        only = KafkaProperties({name: self._texts[name], "bootstrap.servers": "-"}, self._paths)
        return cast("IsolationLevel", only.resolve(environ)[name])

    def describe(self) -> dict[str, str]:
        """The properties as written, to be shown: secret ones as `***`."""
        return {
            name: _REDACTED if is_secret(name, text) else text for name, text in sorted(self._texts.items())
        }

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them that can be told without the environment, as (YAML path, text)."""
        known: dict[str, str] = {}
        for name, text in self._texts.items():
            if not references(text):
                known[name] = substitute(text, {})
        return list(self._objections(known))

    def _objections(self, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        if "bootstrap.servers" not in self._texts:
            yield (
                "kafka.bootstrap.servers",
                "is missing; give the brokers' addresses, like 127.0.0.1:9092, here or per stream",
            )
        if oauth.PROPERTY in self._texts and not self._may_use_oauth(values):
            yield self._paths[oauth.PROPERTY], _OAUTH_ALONE
        # A plugin brings properties of its own, known only once it is loaded.
        plugins = "plugin.library.paths" in self._texts
        for name, text in self._texts.items():
            # What a variable brought in is not shown under any name: it may be the wrong variable.
            literal = not references(text) and not is_secret(name, text)
            objection = _objection(name, values.get(name), literal=literal, plugins=plugins)
            if objection is not None:
                yield self._paths[name], objection

    def _may_use_oauth(self, values: Mapping[str, str]) -> bool:
        """Whether the mechanism is OAUTHBEARER, or in a variable that is not known yet."""

        def one_of(allowed: tuple[str, ...], *names: str) -> bool:
            return any(
                values.get(name, allowed[0]).upper() in allowed for name in names if name in self._texts
            )

        return one_of(("SASL_SSL", "SASL_PLAINTEXT"), "security.protocol") and one_of(
            ("OAUTHBEARER",), "sasl.mechanisms", "sasl.mechanism"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaProperties) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(frozenset(self._texts.items()))

    def __repr__(self) -> str:
        return f"KafkaProperties({self.describe()!r})"


def refusal(name: str) -> str | None:
    """Why a property is not the user's to set, and what is; None where it is."""
    if name in _REFUSED:
        return f"is not yours to set: {_REFUSED[name]}"
    if name.endswith("_cb") or name in _PYTHON_ONLY:
        return "takes a Python object, which no file can give; leave it out"
    return None


def _objection(name: str, value: str | None, *, literal: bool, plugins: bool) -> str | None:
    problem = refusal(name)
    if problem is None and value is not None:
        problem = _bad_value(name, value, f"got {value!r}" if literal else "got something else")
    if name == oauth.PROPERTY:
        return problem
    if problem is not None or plugins:
        return problem
    answer = _librdkafka_says(name, value or "") if _NAME.fullmatch(name) else _UNKNOWN
    if answer is None:
        return None
    if answer.startswith(_UNKNOWN):
        near = difflib.get_close_matches(name, _COMMON, n=1)
        hint = f"did you mean {near[0]}?" if near else "its CONFIGURATION.md lists them all"
        return f"is not a property that librdkafka knows; {hint}"
    if value is None:
        return None
    return f"is refused by librdkafka: {answer}" if literal else "has a value that librdkafka refuses"


def _bad_value(name: str, value: str, got: str) -> str | None:
    if name == "isolation.level" and value not in _ISOLATION_LEVELS:
        return f"must be read_committed or read_uncommitted, {got}"
    if name == "bootstrap.servers" and not all(address.strip() for address in value.split(",")):
        return f"must be addresses like host:9092, separated by commas, {got}"
    if name == oauth.PROPERTY and not oauth.names_function(value):
        return f"must name a Python function as module:function, {got}"
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return "holds a NUL character or is not valid Unicode, which librdkafka cannot take"
    return None


def _librdkafka_says(name: str, value: str) -> str | None:
    """What librdkafka has against a property, None if nothing.

    It sets properties one by one before it makes a client, so one that it cannot know, set last,
    keeps it from making any.
    """
    from confluent_kafka import Consumer, KafkaException  # noqa: PLC0415 (reading a file needs no client)

    try:
        Consumer({"group.id": "-", name: value, _STOP: "-"})
    except KafkaException as error:
        answer = " ".join(str(error.args[0].str()).split())
    except (TypeError, ValueError, AttributeError):
        answer = "it takes no text"
    else:
        return None
    return None if answer == _STOPPED else answer

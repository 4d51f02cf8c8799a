"""What the brokers say of topics and logs: partitions, bounds, offsets for times, topic ids."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import confluent_kafka
import confluent_kafka.admin
from confluent_kafka import IsolationLevel, KafkaException, TopicCollection

from kafka_assets.client import ClientEvents, create_admin, kind_of
from kafka_assets.config import Assignment, TopicPattern, Topics
from kafka_assets.errors import TopicMissingError
from kafka_assets.offsets import TopicPartition
from kafka_assets.planning import LogBounds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from concurrent.futures import Future

    from kafka_assets.config import TopicSelection

logger = logging.getLogger(__name__)

_Key = TypeVar("_Key")

# Untyped there, and not exported by the rules of a type checker.
_OffsetSpec: Any = confluent_kafka.admin.OffsetSpec  # type: ignore[attr-defined]

_warned: set[tuple[str, str]] = set()
_ZERO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 0.2
_METADATA_CALL_SECONDS = 2.0
# A broker that restarts is back within this; one that refuses connections for longer is reported early.
_ALL_DOWN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a selection of topics comes to on the brokers.

    Attributes:
        partitions: Every topic-partition selected, in order.
        missing: What the selection names and the brokers do not have: topics, and `topic[partition]`.
        topic_ids: The id of each topic found; None where the broker gives none.
    """

    partitions: tuple[TopicPartition, ...]
    missing: tuple[str, ...]
    topic_ids: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as the brokers describe it.

    Attributes:
        topic_id: The broker's id of the topic, None where it gives none.
        partitions: The partition numbers, ascending.
    """

    topic_id: str | None
    partitions: tuple[int, ...]


class KafkaLog:
    """Asks the brokers about logs, by one admin client; consumes nothing. Close it, or use it in a `with`.

    Args:
        kafka: Resolved librdkafka properties.
        timeout: Seconds that one question may take.

    Raises:
        ConfigInvalidError: librdkafka refuses a property.
        BrokerAuthError: `oauth_token` gave no token.
    """

    def __init__(self, kafka: Mapping[str, str], *, timeout: float = 30.0) -> None:
        self._events = ClientEvents(kafka)
        # An answer that comes at the last moment still has to be put into words within the timeout.
        self._timeout = timeout * 0.9
        self._read_committed = kafka.get("isolation.level", "read_committed") == "read_committed"
        self._admin: Any = create_admin(kafka, self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._admin = None

    def topic_partitions(self, selection: TopicSelection) -> Discovery:
        """Find the topic-partitions that a selection means now.

        Raises:
            BrokerUnreachableError, BrokerAuthError: No answer, or a refusal.
        """
        match selection:
            case Topics(names):
                topics = self.describe(names)
                wanted = {name: topics[name].partitions for name in names if name in topics}
                missing = [name for name in names if name not in topics]
            case TopicPattern(pattern):
                topics = self.describe(self._names_matching(pattern))
                wanted = {name: topics[name].partitions for name in topics}
                missing = []
            case Assignment(partitions):
                topics = self.describe(partitions)
                wanted = {
                    name: tuple(number for number in numbers if number in topics[name].partitions)
                    for name, numbers in partitions.items()
                    if name in topics
                }
                missing = [name for name in partitions if name not in topics]
                missing += [
                    str(TopicPartition(name, number))
                    for name, found in wanted.items()
                    for number in partitions[name]
                    if number not in found
                ]
        return Discovery(
            tuple(
                sorted(TopicPartition(name, number) for name, numbers in wanted.items() for number in numbers)
            ),
            tuple(missing),
            {name: info.topic_id for name, info in topics.items()},
        )

    def describe(self, topics: Collection[str], *, timeout: float | None = None) -> dict[str, TopicInfo]:
        """Describe topics in one call; those that are not there are left out.

        Args:
            topics: Names of topics.
            timeout: Seconds to wait for an answer; None for that of this object.

        Raises:
            BrokerUnreachableError, BrokerAuthError: No answer, or a refusal.
        """
        names = sorted(set(topics))
        found = self._ask(
            names,
            self._describe,
            doing=f"describing {_some(names)}",
            timeout=timeout,
        )
        topics = {
            name: TopicInfo(
                _topic_id(description.topic_id),
                tuple(sorted(partition.id for partition in description.partitions)),
            )
            for name, description in found.items()
        }
        self._warn_once(name for name, info in topics.items() if info.topic_id is None)
        return topics

    def bounds(
        self,
        partitions: Collection[TopicPartition],
        *,
        topic_ids: Mapping[str, str | None] | None = None,
        timeout: float | None = None,
    ) -> dict[TopicPartition, LogBounds]:
        """Read log start, end, high watermark and topic id of topic-partitions.

        The end is the last stable offset, or the high watermark where `isolation.level` is
        `read_uncommitted`. Costs one request to each broker for each of the three. Topic-partitions that are
        not there are left out.

        Args:
            partitions: Which to ask for.
            topic_ids: Those of their topics, where these were described just now; they are described here otherwise.
            timeout: Seconds to wait for each of two answers; None for that of this object.

        Raises:
            BrokerUnreachableError, BrokerAuthError: No answer, or a refusal.
        """
        there: Collection[TopicPartition] = partitions
        if topic_ids is None:
            topics = self.describe({partition.topic for partition in partitions}, timeout=timeout)
            there = _those_in(topics, partitions)
            topic_ids = {name: info.topic_id for name, info in topics.items()}
        earliest, latest = _OffsetSpec.earliest(), _OffsetSpec.latest()
        kinds: dict[str, tuple[Any, IsolationLevel]] = {
            "start": (earliest, IsolationLevel.READ_UNCOMMITTED),
            "high": (latest, IsolationLevel.READ_UNCOMMITTED),
        }
        if self._read_committed:
            kinds["stable"] = (latest, IsolationLevel.READ_COMMITTED)

        def ask(
            keys: Collection[tuple[str, TopicPartition]], seconds: float
        ) -> dict[tuple[str, TopicPartition], Future[Any]]:
            futures: dict[tuple[str, TopicPartition], Future[Any]] = {}
            for kind, (spec, isolation) in kinds.items():
                asked = {partition: spec for which, partition in keys if which == kind}
                if asked:
                    listed = self._list_offsets(asked, isolation, seconds)
                    futures.update({(kind, partition): future for partition, future in listed.items()})
            return futures

        found = self._ask(
            [(kind, partition) for kind in kinds for partition in there],
            ask,
            doing=f"reading the log bounds of {_some(topic_ids)}",
            timeout=timeout,
        )
        bounds: dict[TopicPartition, LogBounds] = {}
        for partition in there:
            start, high = found.get(("start", partition)), found.get(("high", partition))
            stable = found.get(("stable", partition)) if self._read_committed else high
            if start is not None and high is not None and stable is not None:
                bounds[partition] = LogBounds(
                    log_start=start.offset,
                    end=stable.offset,
                    # The answers are of slightly different moments, and a log grows.
                    high_watermark=max(high.offset, stable.offset),
                    topic_id=topic_ids[partition.topic],
                    leader_epoch=_latest_epoch(high.leader_epoch, stable.leader_epoch),
                )
        return bounds

    def offsets_at(self, timestamps_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """Find the first offset at or after a time in each topic-partition.

        Args:
            timestamps_ms: Milliseconds since the epoch; before 1970 means the log start.

        Returns:
            The offset; None where the last record is older.

        Raises:
            TopicMissingError: A topic-partition is not there: it was, or nobody would ask, and what began at the end
                of its log would leave out all that is in it once it is there again.
            BrokerUnreachableError, BrokerAuthError: No answer, or a refusal.
        """
        # The broker takes negative numbers for its own marks and refuses the others.
        specs = {
            partition: _OffsetSpec.for_timestamp(stamp) if stamp >= 0 else _OffsetSpec.earliest()
            for partition, stamp in timestamps_ms.items()
        }
        isolation = IsolationLevel.READ_COMMITTED if self._read_committed else IsolationLevel.READ_UNCOMMITTED
        topics = self.describe({partition.topic for partition in specs})
        found = self._ask(
            _those_in(topics, specs),
            lambda keys, seconds: self._list_offsets({key: specs[key] for key in keys}, isolation, seconds),
            doing=f"looking up offsets by time in {_some(topics)}",
        )
        if missing := sorted(specs.keys() - found.keys()):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise TopicMissingError(
                f"an offset was to be looked up by time in {missing[0]}{more}, which is not there according to the"
                f" brokers at {self._events.addresses}. It was a moment ago: deleted, or on the move. Nothing was"
                " planned; try again."
            )
        return {
            partition: answer.offset if answer.offset >= 0 else None for partition, answer in found.items()
        }

    def _warn_once(self, without_id: Iterable[str]) -> None:
        for name in without_id:
            if (self._events.addresses, name) not in _warned:
                _warned.add((self._events.addresses, name))
                logger.warning(
                    "the brokers at %s give no topic id of %r: if it is deleted and created again, only its offsets"
                    " and epochs can show it. Kafka 2.8 and newer give ids.",
                    self._events.addresses,
                    name,
                )

    def _names_matching(self, pattern: str) -> list[str]:
        matches = re.compile(pattern).fullmatch
        deadline = _Deadline(self._timeout, self._events, "listing the topics")
        while True:
            try:
                metadata = self._admin.list_topics(timeout=min(_METADATA_CALL_SECONDS, deadline.left()))
            except KafkaException as failed:
                self._admin.poll(0)
                if kind_of(failed.args[0]) not in ("transport", "leader"):
                    raise self._events.error_for(failed.args[0], "listing the topics") from None
                deadline.check()
                time.sleep(_RETRY_SECONDS)
            else:
                return [name for name in metadata.topics if not name.startswith("__") and matches(name)]

    def _describe(self, names: Collection[str], seconds: float) -> dict[str, Future[Any]]:
        return dict(self._admin.describe_topics(TopicCollection(list(names)), request_timeout=seconds))

    def _list_offsets(
        self, specs: Mapping[TopicPartition, Any], isolation: IsolationLevel, seconds: float
    ) -> dict[TopicPartition, Future[Any]]:
        futures = self._admin.list_offsets(
            {confluent_kafka.TopicPartition(key.topic, key.partition): spec for key, spec in specs.items()},
            isolation_level=isolation,
            request_timeout=seconds,
        )
        return {TopicPartition(key.topic, key.partition): future for key, future in futures.items()}

    def _ask(
        self,
        keys: Collection[_Key],
        ask: Callable[[Collection[_Key], float], Mapping[_Key, Future[Any]]],
        *,
        doing: str,
        timeout: float | None = None,
    ) -> dict[_Key, Any]:
        """Ask until every key has an answer; ask again for those whose leader moves or whose broker is away.

        Returns the answers; keys that the brokers do not know are left out.
        """
        deadline = _Deadline(self._timeout if timeout is None else timeout, self._events, doing)
        answers: dict[_Key, Any] = {}
        open_keys = list(keys)
        while open_keys:
            asked = ask(open_keys, deadline.left())
            self._await(asked.values(), deadline)
            again: list[_Key] = []
            for key, future in asked.items():
                try:
                    answers[key] = future.result()
                except KafkaException as failed:
                    error = failed.args[0]
                    kind = kind_of(error)
                    if kind in ("transport", "leader"):
                        self._admin.poll(0)
                        self._events.on_error(error)
                        again.append(key)
                    elif kind != "missing":
                        raise self._events.error_for(error, doing) from None
            open_keys = again
            if open_keys:
                deadline.check()
                time.sleep(_RETRY_SECONDS)
        return answers

    def _await(self, futures: Collection[Future[Any]], deadline: _Deadline) -> None:
        # One by one: `wait` would have each of thousands report to it.
        for future in futures:
            while True:
                try:
                    future.exception(_POLL_SECONDS)
                except TimeoutError:
                    # Errors of connections reach `error_cb` only here.
                    self._admin.poll(0)
                    deadline.check()
                else:
                    break


class _Deadline:
    """How long to wait for the brokers: the timeout, or less when every one of them refuses connections."""

    def __init__(self, seconds: float, events: ClientEvents, doing: str) -> None:
        self._events = events
        self._doing = doing
        self._started = time.monotonic()
        self._seconds = seconds
        events.forget()

    def left(self) -> float:
        return max(0.1, self._started + self._seconds - time.monotonic())

    def check(self) -> None:
        """Raise BrokerAuthError on a refusal, BrokerUnreachableError when the time is over."""
        self._events.raise_refusal()
        waited = time.monotonic() - self._started
        if waited >= self._seconds or (self._events.all_down and waited >= _ALL_DOWN_SECONDS):
            raise self._events.unreachable(self._doing, waited)


def _those_in(
    topics: Mapping[str, TopicInfo], partitions: Collection[TopicPartition]
) -> list[TopicPartition]:
    return sorted(
        partition
        for partition in set(partitions)
        if partition.topic in topics and partition.partition in topics[partition.topic].partitions
    )


def _latest_epoch(*given: int | None) -> int | None:
    """Return the latest leader epoch of several answers.

    They may be of different leaders: an earlier one's epoch would say of the later one's end that it was cut off.
    """
    return max((epoch for epoch in given if epoch is not None and epoch >= 0), default=None)


def _topic_id(given: object) -> str | None:
    """Return a topic's id as text; None where the broker gives none, or zero."""
    text = _ZERO_TOPIC_ID if given is None else str(given)
    return None if text == _ZERO_TOPIC_ID else text


def _some(names: Collection[str]) -> str:
    """Return names as a phrase of bounded length."""
    shown = sorted(names)
    few = ", ".join(repr(name) for name in shown[:3])
    kept = 3
    return few if len(shown) <= kept else f"{few} and {len(shown) - kept} more topics"

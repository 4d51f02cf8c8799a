"""The errors users meet: one class for each error code, with its exit code.

Every message says what happened, the value that was met, what follows from it and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class KafkaAssetsError(Exception):
    """Base of all errors this package raises on purpose.

    Attributes:
        code: The stable name that scripts match on.
        exit_code: What the command line exits with.
        retryable: Whether the same call may succeed later with nothing changed by a person.
    """

    code: ClassVar[str] = "RUN_FAILED"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        return str(self)


class ConfigInvalidError(KafkaAssetsError):
    """The streams file, or what it leads to, cannot be used. Carries every problem found."""

    code = "CONFIG_INVALID"
    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  {problem}" for problem in self.problems)]))


class UsageInvalidError(KafkaAssetsError):
    """The command was called in a way that has no meaning."""

    code = "USAGE_INVALID"
    exit_code = 2


class StreamUnknownError(KafkaAssetsError):
    """No stream of that name is in the streams file."""

    code = "STREAM_UNKNOWN"
    exit_code = 2


class BatchUnknownError(KafkaAssetsError):
    """The ledger holds no batch of that key."""

    code = "BATCH_UNKNOWN"
    exit_code = 2


class TableTakenError(KafkaAssetsError):
    """The stream's table belongs to another stream, or was there before it."""

    code = "TABLE_TAKEN"
    exit_code = 2


class WarehouseInvalidError(KafkaAssetsError):
    """The warehouse cannot be used: not DuckDB, an unknown ledger schema, a table that no longer fits."""

    code = "WAREHOUSE_INVALID"
    exit_code = 2


class RunFailedError(KafkaAssetsError):
    """A batch's run failed for a reason without a code of its own."""

    code = "RUN_FAILED"


class ProofFailedError(KafkaAssetsError):
    """The coverage proof did not hold."""

    code = "PROOF_FAILED"


class DiskFullError(KafkaAssetsError):
    """No space was left while staging or writing."""

    code = "DISK_FULL"


class DataLostError(KafkaAssetsError):
    """Kafka deleted offsets before they were read."""

    code = "DATA_LOST"
    exit_code = 3


class LogTruncatedError(KafkaAssetsError):
    """A log ends below what was planned from it."""

    code = "LOG_TRUNCATED"
    exit_code = 3


class TopicRecreatedError(KafkaAssetsError):
    """A topic of the same name has another topic id."""

    code = "TOPIC_RECREATED"
    exit_code = 3


class TopicMissingError(KafkaAssetsError):
    """A topic or partition the stream names is not there."""

    code = "TOPIC_MISSING"
    exit_code = 3


class BadRecordError(KafkaAssetsError):
    """A record does not decode."""

    code = "BAD_RECORD"
    exit_code = 3


class RangeUnavailableError(KafkaAssetsError):
    """Kafka no longer gives back what a replay would replace."""

    code = "RANGE_UNAVAILABLE"
    exit_code = 3


class AttemptsExhaustedError(KafkaAssetsError):
    """A batch failed as often as it may."""

    code = "ATTEMPTS_EXHAUSTED"
    exit_code = 3


class BrokerUnreachableError(KafkaAssetsError):
    """No broker answered."""

    code = "BROKER_UNREACHABLE"
    exit_code = 4
    retryable = True


class BrokerAuthError(KafkaAssetsError):
    """The broker refused the credentials, or the principal lacks a permission."""

    code = "BROKER_AUTH"
    exit_code = 4


class FetchStalledError(KafkaAssetsError):
    """A fetch got no further within the stall timeout."""

    code = "FETCH_STALLED"
    exit_code = 4
    retryable = True


class WarehouseLockedError(KafkaAssetsError):
    """Another process held the warehouse file for longer than the lock timeout."""

    code = "WAREHOUSE_LOCKED"
    exit_code = 4
    retryable = True


def error_from_text(text: str) -> KafkaAssetsError:
    """Return the error that a text `CODE: message` tells of, as the ledger and Dagster keep it."""
    code, _, message = text.partition(": ")
    for kind in KafkaAssetsError.__subclasses__():
        if kind.code == code:
            return kind(message)
    return RunFailedError(text)

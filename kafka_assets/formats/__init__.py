"""Formats: what becomes of a record's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kafka_assets.errors import ConfigInvalidError

if TYPE_CHECKING:
    import pyarrow as pa

    from kafka_assets.config import FormatConfig


DECODING = "decode"
"""The stage of a bad record that its format could not read."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a stream's table.

    Attributes:
        name: Its name.
        type: Its DuckDB type.
    """

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a batch of records: each is in one of the two.

    Attributes:
        rows: The columns of RAW_SCHEMA without `_kafka_value`, then those of the format.
        bad: The records that do not decode: RAW_SCHEMA, then `stage` and `error`; None without any. An error is
            a sentence without its subject and its full stop, and shows a few bytes of the value at most.
    """

    rows: pa.RecordBatch
    bad: pa.RecordBatch | None = None


class Format(Protocol):
    """Turns records as Kafka has them into the columns of a table."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that the format adds to the metadata columns."""

    @property
    def fingerprint(self) -> str:
        """Names the format and its settings; it changes when the same bytes would decode otherwise."""

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        """Decode a batch of RAW_SCHEMA. A record that does not decode is a bad one, never an error."""


def get_format(config: FormatConfig) -> Format:
    """Return the format that a stream's configuration names.

    Raises:
        ConfigInvalidError: There is none of that name, or not with these options.
    """
    # Imported late: the formats build on what stands above.
    from kafka_assets.formats.raw import RawFormat  # noqa: PLC0415
    from kafka_assets.formats.utf8 import Utf8Format  # noqa: PLC0415

    made: dict[str, type[Format]] = {"raw": RawFormat, "utf8": Utf8Format}
    if config.kind not in made:
        raise ConfigInvalidError(
            f"format {config.kind!r} is not supported by this version; it reads {', '.join(made)}."
        )
    if config.options:
        named = ", ".join(repr(name) for name in config.options)
        raise ConfigInvalidError(f"format {config.kind!r} takes no options, got {named}. Remove them.")
    return made[config.kind]()

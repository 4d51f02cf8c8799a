"""The utf8 format: values are text."""

from __future__ import annotations

import pyarrow as pa

from kafka_assets.errors import BadRecordError
from kafka_assets.formats import Column
from kafka_assets.records import place

_SHOWN_BYTES = 8


class Utf8Format:
    """`value VARCHAR`; NULL for a tombstone."""

    columns = (Column("value", "VARCHAR"),)
    fingerprint = "utf8/1"

    def decode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch with its values as text.

        Raises:
            BadRecordError: A value is not valid UTF-8.
        """
        index = batch.schema.get_field_index("_kafka_value")
        try:
            text = batch.column(index).cast(pa.string())
        except pa.ArrowInvalid:
            raise _first_bad(batch) from None
        return batch.set_column(index, "value", text)


def _first_bad(batch: pa.RecordBatch) -> BadRecordError:
    # Arrow says that there is one, not which.
    for row, value in enumerate(batch.column("_kafka_value")):
        try:
            (value.as_py() or b"").decode("utf-8")
        except UnicodeDecodeError as bad:
            shown = bad.object[bad.start : bad.start + _SHOWN_BYTES].hex(" ")
            where = place(
                *(
                    batch.column(name)[row].as_py()
                    for name in ("_kafka_topic", "_kafka_partition", "_kafka_offset")
                )
            )
            return BadRecordError(
                f"{where}: its value is not UTF-8: {bad.reason} at byte {bad.start}, where it goes on with"
                f" {shown}. Nothing of its batch is loaded, and later batches go on. The batch stays blocked for as"
                " long as Kafka has the record; a stream with `format: raw` keeps such values as they are."
            )
    raise AssertionError("unreachable: Arrow and Python agree on what UTF-8 is")

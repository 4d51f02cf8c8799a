"""The utf8 format: values are text."""

from __future__ import annotations

import pyarrow as pa

from kafka_assets.formats import Column, Decoded
from kafka_assets.formats.bad import split

_SHOWN_BYTES = 8


class Utf8Format:
    """`value VARCHAR`; NULL for a tombstone. A value that is not UTF-8 is bad."""

    columns = (Column("value", "VARCHAR"),)
    fingerprint = "utf8/1"

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        """Return the batch with its values as text."""
        try:
            return Decoded(_as_text(batch))
        except pa.ArrowInvalid:
            # Arrow says that there is a bad one, not which.
            good, bad = split(batch, _errors(batch))
            return Decoded(_as_text(good), bad)


def _as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    index = batch.schema.get_field_index("_kafka_value")
    return batch.set_column(index, "value", batch.column(index).cast(pa.string()))


def _errors(batch: pa.RecordBatch) -> dict[int, str]:
    errors = {}
    for row, value in enumerate(batch.column("_kafka_value").to_pylist()):
        try:
            (value or b"").decode("utf-8")
        except UnicodeDecodeError as bad:
            shown = bad.object[bad.start : bad.start + _SHOWN_BYTES].hex(" ")
            errors[row] = (
                f"its value is not UTF-8: {bad.reason} at byte {bad.start}, where it goes on with {shown}"
            )
    return errors
